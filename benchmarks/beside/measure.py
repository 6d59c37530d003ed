"""What measures the contenders from within their own loops: lines marked `# measured`, which count for nobody.

The race and the hardships give their settings in the environment (BESIDE_...); a finished epoch is a JSON line."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import NamedTuple

MARK = "# measured"


class Settings(NamedTuple):
    """data: folder with a tags.csv. out: where the search keeps its things. trials: at most so many; None is no limit.
    epochs: of a trial. stub_s: a training that is one sleep of so long; 0 is the real one."""

    data: Path
    out: Path
    seed: int
    seconds: float
    trials: int | None
    epochs: int
    stub_s: float


def settings() -> Settings:
    """Of this run."""
    ours = {key: value for key, value in os.environ.items() if key.startswith("BESIDE_")}
    given = {key.removeprefix("BESIDE_").lower(): value for key, value in ours.items()}
    return Settings(
        Path(given["data"]),
        Path(given["out"]),
        int(given.get("seed", 0)),
        float(given.get("seconds", 75)),
        int(given["trials"]) if "trials" in given else None,
        int(given.get("epochs", 10)),
        float(given.get("stub", 0)),
    )


def note(out: Path, trial: object, epoch: int, value: float) -> None:
    """One epoch has ended. Lines of two processes do not mix: each is one write at the end of the file."""
    line = {"time": time.time(), "trial": str(trial), "epoch": epoch, "value": round(float(value), 6)}
    with (out / "events.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")


def stubbed(out: Path, trial: object) -> float | None:
    """The score of a training that is a sleep, where this run is to measure the rest; else None."""
    wait = settings().stub_s
    if not wait:
        return None
    time.sleep(wait)
    note(out, trial, 1, 0.5)
    return 0.5
