"""One line per trial event, and how each trial ended written into its own log. Here the driver also sees what ends a
search early: a request to stop, and one mistake in trial after trial."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray._private import worker as ray_worker

from atose_ray.config import SearchConfig
from atose_ray.evaluation.protocols import CLIP
from atose_ray.runtime.failures import Bugs, Cause, cause_of, reason_of, trace_of
from atose_ray.runtime.gauges import Gauges, upload_board
from atose_ray.runtime.object_store import Spilling
from atose_ray.runtime.trial import KEY
from atose_ray.runtime.watchdog import Watchdog
from atose_ray.search.record import TrialRecord, best_trial, load_study_record
from atose_ray.search.report import render_report
from atose_ray.search.session import Session
from atose_ray.storage import Store, folder_of
from atose_ray.storage.lease import RUN_LEASE
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, forget_checkpoint


class LostError(ConnectionError):
    """Nothing is left of a trial's process, not even why."""

    def __str__(self) -> str:
        return "its process died without a message (killed, or out of memory)"


class StoppedError(KeyboardInterrupt):
    """A search that was asked to stop has stopped; its command says so and ends with code 130."""


class EqualBugsError(SystemExit):
    """One mistake ended several trials and nothing ended well: the command ends with code 1 and this message."""


class LostNodeError(SystemExit):
    """The driver's own node died: no trial is to blame, so all of them stay unfinished. Ends with code 1."""


class Console(tune.Callback):  # type: ignore[misc]
    """Prints starts, changes of the lead and ends; marks pruned and failed trials in their run folders; ends a search
    that was asked to stop."""

    def __init__(
        self, search: SearchConfig, earlier: Sequence[TrialRecord], spilling: Spilling, session: Session
    ) -> None:
        self.metric, self.trials, self.spilling = search.metric, search.trials, spilling
        self.pruned_by = "below the median of the others" if search.pruner.kind == "median" else "by successive halving"
        self.done, self.began = sum(trial.state != "running" for trial in earlier), time.monotonic()
        leads = best_trial(earlier)
        self.best, self.leader = (leads.value, leads.name) if leads and leads.value is not None else (float("-inf"), "")
        self.watchdog, self.bugs, self.ended_well = Watchdog(name_of), Bugs(), False
        self.session, self.folder = session, session.folder
        self.gauges = Gauges(folder_of(session.folder.uri)[1], search.metric)
        self.awaited: set[str] | None = None  # ids of the trials whose epoch is waited for, since a stop was asked

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process: Tune writes a copy into its own folder, which nobody reads."""
        return {**self.__dict__, "session": None, "gauges": None}

    def setup(
        self, stop: Any = None, num_samples: int | None = None, total_num_samples: int | None = None, **info: Any
    ) -> None:
        """Tune begins. A trial that failed reports no value, which Tune refuses unless told."""
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"

    def may_launch(self) -> bool:
        """Whether another trial may begin."""
        return self.awaited is None and not self.equal_bugs()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop turns, some ten times a second. Raises StoppedError or EqualBugsError to end the search."""
        self.stop_if_asked(trials)
        names = self.equal_bugs()
        if names:
            self.report()
            raise EqualBugsError(
                f"error: {len(names)} trials ended by the same error, none ended well: {', '.join(names)}. It stands "
                "above in full; once it is mended, the same command goes on with the trials that are left"
            )
        for line in self.watchdog.lines(trials):
            self.say(f"wait   {line}")

    def stop_if_asked(self, trials: list[Any]) -> None:
        """Let the trials that run end with their epoch, unfinished; then raise StoppedError."""
        request = self.session.request()
        if not request:
            return
        if self.awaited is None:
            if self.session.lease.lost:
                self.say("stop   another driver has taken this study over, as this one was silent for long")
            self.awaited = {trial.trial_id for trial in trials if trial.status == "RUNNING"}
            rest = f"the {len(self.awaited)} trials that run finish their epoch" if request == "stop" else "now"
            self.say(f"stop   {rest}")
        for trial in trials:
            trial.stopping_criterion = {"training_iteration": 0}  # whatever it reports next is its last here
        left = [trial for trial in trials if trial.trial_id in self.awaited and trial.status == "RUNNING"]
        if request == "now" or not left:
            self.end_if_stopped()

    def end_if_stopped(self) -> None:
        """Tune's loop may end before it turns again, with the last trials that were waited for. Raises StoppedError."""
        if self.awaited is not None:
            self.report()
            raise StoppedError

    def equal_bugs(self) -> list[str]:
        """Names of the trials that one mistake ended, when there are enough of them and nothing ended well."""
        return [] if self.ended_well else self.bugs.too_many()

    def report(self) -> None:
        """Write the study's report, as nobody else will."""
        name, store_uri = folder_of(self.folder.uri)[1], folder_of(folder_of(self.folder.uri)[0])[0]
        self.folder.write("report.html", render_report(load_study_record(Store(store_uri), name)).encode())

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
        self.watchdog.heard(trial)
        if self.awaited is not None:
            result["stopped"] = True  # for the sampler: the trial has not ended
        self.gauges.set(name, result)
        if value is not None and value > self.best:
            self.best = value
            if name != self.leader:
                self.leader = name
                self.say(f"lead   {name}  {self.metric} {value:.4f} [{CLIP.name}] at epoch {result['epoch']}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, was pruned, or was stopped with the search."""
        job, result = job_of(trial), trial.last_result or {}
        folder = RunFolder(Store(job.folder_uri))
        if "failed" in result:
            self.failed(job, folder, result["failed"], result["trace"])
            return
        ending, epochs = folder.ending(), result.get("epoch", 0)
        if ending is None and self.awaited is not None:
            self.say(f"paused {job.about['name']}  after {epochs} epochs")
            return
        if ending is None:
            reason = f"{self.pruned_by} at epoch {epochs}"
            folder.end("pruned", reason)
            ending = {"state": "pruned", "reason": reason}
        self.finish(job, folder)
        self.ended_well = True
        why = "" if ending["state"] == "complete" else f": {ending['reason']}"
        value = result.get(self.metric, float("nan"))
        best = " (best so far)" if job.about["name"] == self.leader else ""
        self.say(
            f"{ending['state']:<6} {job.about['name']}  {self.metric} {value:.4f} [{CLIP.name}] after {epochs} epochs"
            f"{best}{why}"
        )
        note = folder.about().get("note")
        if note:
            self.say(f"note   {job.about['name']}: {note}")
        self.say_spilled()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for good, though it was tried again."""
        job, error = job_of(trial), trial.get_pickled_error() or LostError()
        cause, trace = cause_of(error), trace_of(error)
        if cause == "infrastructure" and own_node_is_gone():
            raise LostNodeError("error: Ray's node on this machine has died; the same command goes on from here")
        folder = RunFolder(Store(job.folder_uri))
        if folder.ending() is None:
            folder.note(cause, trace)
            folder.end("failed", f"{cause}: {reason_of(error)}")
        self.failed(job, folder, cause, trace)

    def failed(self, job: Job, folder: RunFolder, cause: Cause, trace: str) -> None:
        """Count and show a trial that failed; the traceback of a bug is shown once."""
        name = str(job.about["name"])
        self.finish(job, folder)
        self.say(f"failed {name}: {(folder.ending() or {}).get('reason')}")
        if cause == "bug" and self.bugs.add(name, trace):
            print(trace, flush=True)
        self.say_spilled()

    def finish(self, job: Job, folder: RunFolder) -> None:
        """Tidy the folder of a trial that will not go on, and count it."""
        forget_checkpoint(job)
        folder.store.delete(RUN_LEASE)
        upload_board(folder, str(job.about["name"]))
        self.done += 1

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


def own_node_is_gone() -> bool:
    """Whether the node manager that this process works with has died."""
    node = ray_worker._global_node
    if node is None or not node.raylet_socket_name:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(node.raylet_socket_name) != 0


def name_of(trial: Any) -> str:
    """The readable name of a Tune trial."""
    return str(job_of(trial).about["name"])


def short(name: str) -> str:
    """The last word of a config path."""
    return name.rpartition(".")[2]


def show(value: Any) -> str:
    """A parameter's value in few characters."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
