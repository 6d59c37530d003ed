"""The documentation: it builds without a warning, its links lead somewhere, it asks no other host, and its commands are
commands."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
import urllib.parse
from html.parser import HTMLParser
from pathlib import Path

import pytest
from processes import ROOT, environment

import atose_ray
from atose_ray.__main__ import COMMANDS
from atose_ray.config import apply_overrides, run_config
from atose_ray.evaluation.protocols import PROTOCOLS
from atose_ray.evaluation.sound_events import SUMMARIES
from atose_ray.search.space import load_study, load_tree

PAGES = [ROOT / "README.md", ROOT / "cluster/README.md", *sorted((ROOT / "docs").rglob("*.md"))]


class Links(HTMLParser):
    """hrefs: what a page links to; loads: what it loads to be shown; ids: where a link into it may lead."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.hrefs: set[str] = set()
        self.loads: set[str] = set()
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.hrefs.add(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.loads.add(given["href"])
        elif "src" in given:
            self.loads.add(given["src"])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the site is built by the extra `docs`")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_no_page_links_nowhere(site: Path) -> None:
    pages = {page: Links(page) for page in sorted(site.rglob("*.html")) if page.name != "404.html"}
    assert {"index.html", "TUTORIAL.html", "REFERENCE.html", "COALA.html"} <= {page.name for page in pages}
    nowhere = []
    for page, links in pages.items():
        for link in links.hrefs | links.loads:
            at = urllib.parse.urlsplit(link)
            if at.scheme or at.netloc:
                continue
            there = page if not at.path else (page.parent / urllib.parse.unquote(at.path)).resolve()
            if not there.exists():
                nowhere.append(f"{page.name}: {link}")
            elif at.fragment and there.suffix == ".html":
                ids = (pages.get(there) or Links(there)).ids
                if urllib.parse.unquote(at.fragment) not in ids:
                    nowhere.append(f"{page.name}: {link}")
    assert not nowhere


def test_the_site_asks_no_other_host(site: Path) -> None:
    for page in sorted(site.rglob("*.html")):
        assert not [link for link in Links(page).loads if "://" in link or link.startswith("//")], page.name
        assert "unpkg.com" not in page.read_text(encoding="utf-8"), page.name


def test_the_reference_has_every_public_name() -> None:
    shown = re.findall(r"^::: \S+\.(\w+)$", (ROOT / "docs/REFERENCE.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(atose_ray.__all__) <= set(shown)


def test_every_protocol_is_explained() -> None:
    text = (ROOT / "docs/PROTOCOLS.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"\w+", " ".join(re.findall(r"^## (.*)$", text, re.MULTILINE))))
    known = {name for name in (*PROTOCOLS, *SUMMARIES) if not name.startswith("made_up")}  # those of other tests
    assert {*known, "probe_linear", "probe_mlp", "probe_coala"} <= headings


def lines_of(page: Path) -> list[str]:
    """What follows `python -m atose_ray.` or `atose-ray` wherever a page says so, to the end of its line or its
    backticks; a line that ends with a backslash goes on in the next."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    found: list[str] = re.findall(r"(?:python -m atose_ray\.|atose-ray )([^`\n]*)", text)
    return [line.replace("\\|", "|").strip() for line in found]


def parsed(line: str) -> argparse.Namespace | None:
    """What a command's own parser makes of such a line; None where a sentence only names the command. Raises
    SystemExit for what it does not take, ValueError where there is no such command or study."""
    command, _, rest = line.partition(" ")
    command = re.match(r"\w+", command)[0]  # type: ignore[index]
    if command == "completion":  # of __main__, without a parser; test_cli.py runs it
        return None
    if command not in COMMANDS:
        raise ValueError(f"there is no command {command!r}")
    words = shlex.split(re.split(r"(?:^| )[|>] ", rest)[0], comments=True)
    if not words or words[0] in ("...", "find") or words[0].isdigit():  # the picture of ARCHITECTURE.md
        return None
    module = importlib.import_module(f"atose_ray.{command}")
    if words[0] == "index" and command == "find":
        return module.index_arguments().parse_args(words[1:])  # type: ignore[no-any-return]
    options: argparse.Namespace = module.arguments().parse_args(words)
    if command == "tune" and not Path(options.study).suffix:
        load_study(options.study, options.overrides)
    elif command == "train" and not Path(options.config).suffix:
        tree = apply_overrides(load_tree(options.config, options.overrides), options.overrides)
        run_config(tree, options.config)
    return options


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_is_one(page: Path) -> None:
    """What it names and how: commands, options, studies, and the values that a study is given."""
    for line in lines_of(page):
        try:
            parsed(line)
        except (SystemExit, ValueError) as error:
            pytest.fail(f"{page.name}: {line}\n{error}")


@pytest.mark.parametrize(
    "line",
    [
        "tune demo --trial-count 3",
        "tunes demo",
        "tune no_such_study",
        "tune demo --set base.data.batch=3",
        "tag --bogus song.mp3",
    ],
)
def test_a_command_that_is_none_is_found(line: str) -> None:
    with pytest.raises((SystemExit, ValueError)):
        parsed(line)


def test_pages_hold_commands() -> None:
    assert sum(parsed(line) is not None for page in PAGES for line in lines_of(page)) > 90
