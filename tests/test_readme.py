"""README as a newcomer runs it: its commands, in its order, each ends well. (`make test` is what runs this; that of the
cluster is submitted in test_job_submit.py.)"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from conftest import render_tiny
from processes import ROOT, verb

SMALL = {  # what keeps a newcomer's minutes from becoming this test's
    "tune demo": "--trials 2 --set base.data.train_share=0.1 --set base.data.crop_seconds=0.5",
    "tune folder": "--trials 4 --set base.data.crop_seconds=0.3 --set search.concurrency=1",
}


def commands() -> list[str]:
    """Every command of README, those of `make demo` in its place; not what follows `ray job submit`."""
    demo = [
        line.strip() for line in (ROOT / "Makefile").read_text().splitlines() if "$(BIN)/python -m atose_ray" in line
    ]
    found = []
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("    make demo"):
            found += [line.replace("$(BIN)/", "").replace("$(STORE)", "atose_store") for line in demo]
        elif line.startswith("    python -m atose_ray"):
            found.append(line.strip())
    return found


def test_readme_names_the_commands_of_a_first_hour() -> None:
    verbs = [re.match(r"python -m atose_ray\.(\w+)", line) for line in commands()]
    named = {verb[1] for verb in verbs if verb}
    assert named >= {
        "prepare",
        "tune",
        "tag",
        "status",
        "report",
        "stop",
        "rerun",
        "promote",
        "crossvalidate",
        "evaluate",
        "find",
    }


@pytest.mark.slow
@pytest.mark.ray
def test_every_command_of_readme_ends_well(tmp_path: Path) -> None:
    (tmp_path / "DIR").mkdir()
    source = render_tiny(tmp_path / "DIR", 48)
    header, *lines = (source / "tags.csv").read_text().splitlines()
    at = header.split(",").index("tags")
    rows = [f"{line.split(',')[0]},{number // 4 % 3},{line.split(',')[at]}" for number, line in enumerate(lines)]
    (source / "tags.csv").write_text("\n".join(["path,fold,tags", *rows]) + "\n")
    for line in commands():
        more = next((small for start, small in SMALL.items() if f"atose_ray.{start}" in line), "")
        words = shlex.split(f"{line} {more}", comments=True)
        words = [str(path) for word in words for path in (sorted(tmp_path.glob(word)) if "*" in word else [word])]
        if words[2] == "atose_ray.stop":
            continue  # nothing runs by now; test_stop.py stops a search that does
        done = verb(words[2].removeprefix("atose_ray."), *words[3:], cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
