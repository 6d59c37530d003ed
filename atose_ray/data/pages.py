"""Pages that open offline: one file with its style, its scripts and its data, which asks no network for anything.

A template holds @@HEAD@@, @@TITLE@@, @@STYLE@@ and @@FOOT@@; @@SCRIPT@@ and @@DATA@@ stand in the foot. Text from the
data reaches the page only through JSON and `textContent`, so no tag, file name or error message can become markup.
"""

import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

SHARED_SCRIPTS = ("elements.js", "plot.js")


def offline_page(
    package: str, template: str, title: str, scripts: Sequence[str], data: dict[str, Any], styles: Sequence[str] = ()
) -> str:
    """The template of a package's `assets`, filled. data: JSON types. scripts, styles: behind the shared ones."""
    assets, shared = files(package).joinpath("assets"), files("atose_ray").joinpath("assets")
    sources = [*map(shared.joinpath, SHARED_SCRIPTS), *map(assets.joinpath, scripts)]
    sheets = [shared.joinpath("page.css"), *map(assets.joinpath, styles)]
    parts = {
        "TITLE": html.escape(well_formed(title)),
        "STYLE": "\n".join(source.read_text(encoding="utf-8") for source in sheets),
        "SCRIPT": "\n".join(source.read_text(encoding="utf-8") for source in sources),
        "DATA": script_safe(data),
    }
    page = assets.joinpath(template).read_text(encoding="utf-8")
    for name in ("head", "foot"):
        page = page.replace(f"@@{name.upper()}@@", shared.joinpath(f"{name}.html").read_text(encoding="utf-8").rstrip())
    return re.sub("@@([A-Z]+)@@", lambda match: parts[match[1]], page)  # one pass: data may hold a placeholder


def well_formed(text: str) -> str:
    """File names that are no UTF-8 arrive with lone surrogates, which no page can hold: show them as \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def script_safe(data: dict[str, Any]) -> str:
    """JSON that cannot end its script element nor open a comment in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text
