"""A search that is given again when all of it is done: known from its folder alone, without PyTorch and without Ray.

    finished.json    what the command that ended the search was given, as a hash; the same command has nothing to do

A study of an earlier version, or one that is asked for in other words, has no such hash: then its identity is compared,
which takes PyTorch, but no Ray.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import atose_ray
from atose_ray.search.record import TrialRecord, best_trial, load_trials
from atose_ray.storage import Store, StoreError, folder_of
from atose_ray.storage.lease import STUDY_LEASE, read_lease
from atose_ray.training.record import EXAMPLES

FINISHED = "finished.json"
SHIPPED = tuple(Path(atose_ray.__file__).parents[depth] / "search_spaces" for depth in (0, 1))


def study_file(name: str) -> Path | None:
    """The file of a study, shipped or by path; None where there is none."""
    if name.endswith((".yaml", ".yml")):
        return Path(name) if Path(name).is_file() else None
    files = (folder / f"{name}.yaml" for folder in SHIPPED)
    return next((file for file in files if file.is_file()), None)


def hash_of(file: Path, given: Any) -> str:
    """What is asked for: a study's file as it stands, and what the command line lays over it."""
    asked = [atose_ray.__version__, hashlib.sha256(file.read_bytes()).hexdigest(), given]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def is_done(folder: Store, trials: tuple[TrialRecord, ...], wanted: int) -> bool:
    """Whether so many trials have ended, the best one is chosen and scored, and the report is written."""
    best, chosen = best_trial(trials), folder.child("best")
    if any(trial.state == "running" for trial in trials) or len(trials) < wanted or not folder.exists("report.html"):
        return False
    if best is None:
        return True
    scored = chosen.exists("metrics.json") and chosen.read_json("metrics.json")["number"] == best.number
    return scored and chosen.exists(EXAMPLES)


def was_asked(folder: Store, asked: str) -> bool:
    """Whether just this was asked for when the search ended, and its end still stands as it was."""
    if not folder.exists(FINISHED):
        return False
    left = folder.read_json(FINISHED)
    return bool(left["asked"] == asked and is_done(folder, load_trials(folder), left["trials"]))


def note_finished(folder: Store, asked: str, wanted: int) -> None:
    """Leave word that all that this command asks for is done, where it is."""
    if is_done(folder, load_trials(folder), wanted):
        folder.write_json(FINISHED, {"asked": asked, "trials": wanted})


@contextmanager
def nothing_left_if_refused(folder: Store) -> Iterator[None]:
    """Take away the folder of a study that was not there before and is refused before its first trial. (What another
    driver holds is left alone.)"""
    fresh = False
    with suppress(OSError, StoreError):  # a store that is not what it was is named by who wants to write
        fresh = not folder.names()
    try:
        yield
    except Exception:
        with suppress(OSError, StoreError):
            if fresh and not folder.child("trials").names() and read_lease(folder, STUDY_LEASE) is None:
                above, name = folder_of(folder.uri)
                Store(above).delete(name)
        raise
