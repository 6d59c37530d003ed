"""One line per trial event, and how each trial ended written into its own log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ray import tune

from atose_ray.config import SearchConfig
from atose_ray.metrics import PROTOCOL
from atose_ray.runtime.object_store import Spilling
from atose_ray.runtime.trial import KEY
from atose_ray.store import Store
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, forget_checkpoint


class Console(tune.Callback):  # type: ignore[misc]
    """Prints starts, changes of the lead and ends; marks pruned and failed trials in their run folders."""

    def __init__(self, search: SearchConfig, done: int, spilling: Spilling) -> None:
        self.metric, self.trials, self.spilling = search.metric, search.trials, spilling
        self.done, self.began = done, time.monotonic()
        self.best, self.leader = float("-inf"), ""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial got its resources."""
        job = job_of(trial)
        chosen = ", ".join(f"{short(k)}={show(v)}" for k, v in job.about["params"].items() if not k.endswith(".kind"))
        self.say(f"start  {job.about['name']}  {chosen}")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch ended: worth a line only when another trial takes the lead."""
        value, name = result.get(self.metric), job_of(trial).about["name"]
        if value is not None and value > self.best:
            self.best = value
            if name != self.leader:
                self.leader = name
                self.say(f"lead   {name}  {self.metric} {value:.4f} [{PROTOCOL}] at epoch {result['epoch']}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself or was pruned."""
        job = job_of(trial)
        folder = RunFolder(Store(job.folder_uri))
        ending = folder.ending()
        result = trial.last_result or {}
        epochs = result.get("epoch", 0)
        if ending is None:
            reason = f"by successive halving at epoch {epochs}"
            folder.end("pruned", reason)
            ending = {"state": "pruned", "reason": reason}
        forget_checkpoint(job)
        self.done += 1
        why = "" if ending["state"] == "complete" else f": {ending['reason']}"
        value = result.get(self.metric, float("nan"))
        best = " (best so far)" if job.about["name"] == self.leader else ""
        self.say(
            f"{ending['state']:<6} {job.about['name']}  {self.metric} {value:.4f} [{PROTOCOL}] after {epochs} epochs"
            f"{best}{why}"
        )
        note = folder.about().get("note")
        if note:
            self.say(f"note   {job.about['name']}: {note}")
        self.say_spilled()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        job = job_of(trial)
        reason = cause(trial)
        RunFolder(Store(job.folder_uri)).end("failed", reason)
        self.done += 1
        self.say(f"failed {job.about['name']}: {reason}")
        self.say_spilled()

    def say_spilled(self, last: bool = False) -> None:
        """A line about the object store, when it was too small. last: the search is over."""
        line = self.spilling.line(last)
        if line:
            self.say(f"memory {line}")

    def say(self, text: str) -> None:
        """Print a line with the count of ended trials and the time."""
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        print(f"[{self.done:>3}/{self.trials} {minutes:02d}:{seconds:02d}] {text}", flush=True)


def job_of(trial: Any) -> Job:
    """The run of a Tune trial."""
    job: Job = trial.config[KEY]["job"]
    return job


def cause(trial: Any) -> str:
    """The last line of a trial's traceback: the exception and its message."""
    file = Path(trial.error_file or "")
    lines = [line.strip() for line in file.read_text().splitlines() if line.strip()] if file.is_file() else []
    return lines[-1][:500] if lines else "its process died without a message (killed, or out of memory)"


def short(name: str) -> str:
    """The last word of a config path."""
    return name.rpartition(".")[2]


def show(value: Any) -> str:
    """A parameter's value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
