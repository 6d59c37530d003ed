"""README and the tutorial as a newcomer runs them: their commands, in their order, each ends well. (`make test` is what
runs this; that of the cluster is submitted in test_job_submit.py.)"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import render_folds
from processes import PATIENCE_S, ROOT, environment, verb
from serving import free_port, serving

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
    render_folds(tmp_path / "DIR", 48)
    for line in commands():
        more = next((small for start, small in SMALL.items() if f"atose_ray.{start}" in line), "")
        if "atose_ray.stop" in line or "atose_ray.serve" in line:
            continue  # nothing runs by now, and a service does not end: test_stop.py and test_serve_local.py have them
        run_line(line, more, tmp_path)


def run_line(line: str, more: str, folder: Path) -> str:
    """A command, with `more` behind it, in a folder. Returns what it printed."""
    words = shlex.split(f"{line} {more}", comments=True)
    words = [str(path) for word in words for path in (sorted(folder.glob(word)) if "*" in word else [word])]
    done = verb(words[2].removeprefix("atose_ray."), *words[3:], cwd=folder)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def steps_of_tutorial() -> list[tuple[str, str]]:
    """Commands and Python of docs/TUTORIAL.md in their order, each with what the page says it printed."""
    text = (ROOT / "docs/TUTORIAL.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$|((?:^    [^\n]*\n|^\n(?=    ))+)", text, re.MULTILINE | re.DOTALL)
    steps: list[tuple[str, str]] = []
    for code, block in blocks:
        if code:
            steps.append((code, ""))
            continue
        for line in block.strip("\n").splitlines():
            if line.startswith(("    python -m ", "    curl ")):
                steps.append((line.strip(), ""))
            else:
                steps[-1] = (steps[-1][0], f"{steps[-1][1]}{line.strip()}\n")
    return steps


SMALL_TUTORIAL = {
    "prepare demo": "--option clips=72",
    "tune folder": "--trials 2 --epochs 2 --set search.concurrency=1 --set base.data.crop_seconds=0.3",
}


def test_the_tutorial_has_all_its_steps() -> None:
    steps = steps_of_tutorial()
    verbs = [re.match(r"python -m atose_ray\.(\w+)", step) for step, _ in steps]
    named = [found[1] for found in verbs if found]
    assert named == ["prepare", "prepare", "tune", "status", "report", "tag", "tag", "find", "find", "serve"]
    assert sum(step.startswith("curl ") for step, _ in steps) == 2
    assert sum(found is None for found in verbs) == 2 + 2  # curl's, and its Python
    assert all(shown for step, shown in steps if "tune" in step or ".tag" in step)


@pytest.mark.slow
@pytest.mark.ray
def test_the_tutorial_word_by_word(tmp_path: Path) -> None:
    """Every step ends well, and makes the models, reports and pages that the page names."""
    port = free_port()  # in the place of 8000, where another may listen
    with contextlib.ExitStack() as services:
        for step, shown in steps_of_tutorial():
            said = take_step(step.replace(":8000", f":{port}"), tmp_path, services, port)
            for place in re.findall(r"(?:model|report): +(\S+)", shown):
                assert place in said and (tmp_path / place).exists(), step
            if step.startswith("curl "):
                assert shape(json.loads(said)) == shape(json.loads(shown)), (said, shown)
    for page in ("found.html", "atose_store/studies/mine/report.html"):
        assert (tmp_path / page).stat().st_size > 10_000
    assert len(list((tmp_path / "timelines").rglob("*.html"))) == len(list((tmp_path / "timelines").rglob("*.srt"))) > 0


def take_step(step: str, folder: Path, services: contextlib.ExitStack, port: int) -> str:
    """A command, a service that goes on, a question to it, or Python. Returns what it printed."""
    if step.startswith("python -m atose_ray.serve "):
        pytest.importorskip("fastapi", reason="the tutorial's service needs the extra `serve`")
        services.enter_context(serving(folder, *shlex.split(step)[3:], port=port))
        return ""
    if step.startswith("python -m"):
        more = next((small for start, small in SMALL_TUTORIAL.items() if f"atose_ray.{start}" in step), "")
        return run_line(step, more, folder)
    words = [*shlex.split(step), "-sS", "--fail"] if step.startswith("curl ") else [sys.executable, "-c", step]
    done = subprocess.run(
        words, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 0, f"{step}\n{done.stderr}"
    return done.stdout


def shape(answer: Any) -> Any:
    """The names and kinds in a JSON value. How many tags there are, and which, is the model's."""
    if isinstance(answer, dict):
        scores = all(isinstance(value, float) for value in answer.values())
        return {} if scores else {name: shape(value) for name, value in answer.items()}
    return [shape(one) for one in answer] if isinstance(answer, list) else type(answer)
