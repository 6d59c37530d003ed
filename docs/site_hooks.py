"""What MkDocs needs beyond docs/: README and the cluster guide as pages, and the files of the repository that pages
point to. Links stay as they are in the repository; here they are turned to where the site has them."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md", "cluster/README.md": "CLUSTER.md"}  # of the repository -> of the site
HOME = {page: posixpath.dirname(place) for place, page in PAGES.items()}  # the folder whose links a page has
SHIM = re.compile(r"https://unpkg\.com/iframe-worker/shim")  # what Material loads for a search on file://
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def outside(place: str) -> str:
    """Where the site has a file of the repository: a page, a file of docs/, or a copy below source/."""
    if place in PAGES:
        return PAGES[place]
    return place.removeprefix("docs/") if place.startswith("docs/") else f"source/{place}"


def target(link: str, page: str) -> str:
    """The place in the repository that a link of a page names."""
    return posixpath.normpath(posixpath.join(HOME.get(page, posixpath.join("docs", posixpath.dirname(page))), link))


def is_local(link: str) -> bool:
    """Whether a link is to a file, and not to a host."""
    return "://" not in link and not link.startswith("mailto:")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from elsewhere, and what pages link to outside docs/."""
    for place, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / place).read_text(encoding="utf-8")))
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        for _, link, _ in LINK.findall(page.content_string):
            place = target(link, page.src_uri)
            there = outside(place)
            wanted = is_local(link) and there.startswith("source/") and (ROOT / place).is_file()
            if wanted and files.get_file_from_path(there) is None:
                files.append(File.generated(config, there, abs_src_path=str(ROOT / place)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn the links of a page; a folder of the repository is named without a link."""
    own = page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        words, link, anchor = match[1], match[2], match[3] or ""
        place = target(link, own)
        if not is_local(link):
            return match[0]
        if (ROOT / place).is_dir():
            return f"`{words}`"
        return f"[{words}]({posixpath.relpath(outside(place), posixpath.dirname(own) or '.')}{anchor})"

    return LINK.sub(turned, markdown)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Our own script where the theme would ask another host for one."""
    return SHIM.sub(posixpath.relpath("search_worker.js", posixpath.dirname(page.file.src_uri) or "."), output)


def on_post_template(output: str, template_name: str, config: Any) -> str:
    """The same of the page for what is not there."""
    return SHIM.sub("search_worker.js", output)


class Examples(griffe.Extension):
    """Shows the doctest examples of docstrings as code."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Fence every block that begins with >>>."""
        if obj.docstring is not None:
            blocks = obj.docstring.value.split("\n\n")
            obj.docstring.value = "\n\n".join(
                f"```pycon\n{block}\n```" if block.startswith(">>>") else block for block in blocks
            )
