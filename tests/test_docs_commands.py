"""The commands of the documentation, run one after the other as they stand there, with sounds of ours where the pages
say MODEL, DIR or recordings/. README's and the tutorial's: test_readme.py. What is not run says why: NOT_RUN."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, render_folds
from processes import PATIENCE_S, ROOT, environment, verb

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SMALL = {  # what stands behind a command, for its minutes not to become this test's
    "train folder": "--set data.crop_seconds=0.4 --set encoder.channels=4 --set encoder.se_ratio=1"
    " --set encoder.block=basic --set method.kind=supervised --set 'method.stages=[{name: classify, epochs: 2}]'",
    "tune folder": "--trials 1 --epochs 2 --set base.data.crop_seconds=0.4",
}
NOT_RUN = {  # start of a command -> why
    "prepare loops --remove-old": "asks at a terminal: test_prepared.py answers it",
    "tag MODEL street.wav --tags": "needs vectors of words, an extra: test_tag_vectors.py, test_zero_shot.py",
    "evaluate MODEL --protocol generalised_zero_shot": "needs held-out tags: test_zero_shot.py",
    "tag MODEL film.mp4 --vggish": "needs published weights: test_published_tagger.py, with made-up ones",
    "find recordings.index 'slow cello, piano:0.5,": "these words are not those of the test's model: README's are",
    "serve": "does not end: test_serve_local.py, test_serve_ray.py and the tutorial's",
    "train published_mtat": "needs MagnaTagATune: test_recipes.py holds the recipe",
    "train esc50": "needs ESC-50: test_augment.py holds what it sets",
    "train folder --set encoder.kind=pretrained": "test_probe.py",
    "tune folder --set search.metric=probe_accuracy": "needs ESC-50: test_downstream.py searches so on another set",
    "tune zero_shot_folder": "needs vectors of words, an extra: test_zero_shot.py",
    "probe": "needs ESC-50: test_probe.py",
    "prepare folder --source review": "needs a person's answers: test_review.py",
    "train folder --set data.dataset=reviewed": "of the same: test_review.py",
}
PAGES = ("DATA", "USE", "PROTOCOLS", "MODELS")


def commands_of(page: str) -> list[str]:
    """The indented lines of a page that begin a command, with what stands before a pipe."""
    text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    return re.findall(r"^    ((?:[a-z]+ [^|\n]*\| )?python -m atose_ray\.[^\n]+)$", text, re.MULTILINE)


def why_not(line: str) -> str | None:
    """Of NOT_RUN, by the longest beginning that fits."""
    rest = line.partition("atose_ray.")[2]
    fitting = [start for start in NOT_RUN if rest.startswith(f"{start} ") or rest.partition("  ")[0] == start]
    return NOT_RUN[max(fitting, key=len)] if fitting else None


def test_reasons_are_of_commands_that_are_there() -> None:
    lines = [line.partition("atose_ray.")[2] for page in PAGES for line in commands_of(page)]
    assert not {start for start in NOT_RUN if not any(line.startswith(start) for line in lines)}
    assert sum(why_not(line) is None for page in PAGES for line in commands_of(page)) >= 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "DIR").mkdir()
    render_folds(folder / "DIR", 48)
    rng = np.random.default_rng(0)
    for name, seconds in (("song.mp3", 4), ("other.flac", 3), ("street.wav", 6), ("rain.wav", 2), ("film.wav", 5)):
        soundfile.write(folder / name, 0.1 * rng.standard_normal(int(seconds * 16000)).astype(np.float32), 16000)
    (folder / "film.wav").rename(folder / "film.mp4")  # its content says what it is
    for place, marked in (("recordings", False), ("street", True)):
        (folder / place).mkdir()
        for name in "ab":
            tone = np.sin(2 * np.pi * 180 * np.arange(4 * RATE) / RATE) * (np.arange(4 * RATE) > 2 * RATE)
            soundfile.write(folder / place / f"{name}.wav", 0.5 * tone + 0.01 * rng.standard_normal(4 * RATE), RATE)
            if marked:
                (folder / place / f"{name}.txt").write_text("2.0\t4.0\tlow\n")
    marks = "".join(f"{name}.wav,2.0,4.0,low\n" for name in "ab")
    (folder / "marks.csv").write_text(f"filename,onset,offset,event_label\n{marks}")
    run_line("python -m atose_ray.prepare folder --source DIR --name loops", folder)
    said = run_line("python -m atose_ray.train folder --set data.dataset=loops", folder)
    model = re.search(r"model: +(\S+)", said)
    assert model, said
    for name in ("MODEL", "OTHER", "BEST"):
        (folder / name).symlink_to(folder / model[1])
    return folder


def run_line(line: str, folder: Path) -> str:
    """A command in a folder -> what it printed."""
    before, _, command = line.rpartition("python -m atose_ray.")
    more = next((small for start, small in SMALL.items() if command.startswith(start)), "")
    command, into, file = command.partition(" > ")
    words = shlex.split(f"{command} {more}", comments=True)
    words = [name for word in words for name in (found_in(folder, word) if "*" in word else [word])]
    if before:
        sound = (folder / "street.wav").read_bytes()[44:]
        full = [sys.executable, "-m", f"atose_ray.{words[0]}", *words[1:]]
        done = subprocess.run(
            full, input=sound, cwd=folder, env=environment(), capture_output=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stderr.decode()[-3000:]}"
        return done.stdout.decode()
    done = verb(*words, cwd=folder)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    if into:
        (folder / shlex.split(file, comments=True)[0]).write_text(done.stdout)
    return done.stdout


def found_in(folder: Path, pattern: str) -> list[str]:
    """What a shell makes of a word with a star."""
    return [str(path.relative_to(folder)) for path in sorted(folder.glob(pattern))]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_end_well(page: str, world: Path) -> None:
    for line in commands_of(page):
        if why_not(line) is None:
            run_line(line, world)
    made = {
        "USE": [
            "tonight",
            "review/review.csv",
            "recordings.index",
            "found.html",
            "scenes.parquet",
            "exported",
            "hops.parquet",
        ],
        "PROTOCOLS": ["before.json"],
    }
    assert all((world / name).exists() for name in made.get(page, []))
