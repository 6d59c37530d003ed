"""What Ray Tune executes for a trial: a run in the trial's own actor, or a Ray Train worker group below it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import torch
from ray import tune

from atose_ray.config import SearchConfig
from atose_ray.runtime.controller import ReportToTune
from atose_ray.runtime.failures import RETRIED, cause_of, record_failure
from atose_ray.runtime.gauges import Shown
from atose_ray.runtime.shared import SharedRefs
from atose_ray.runtime.train import FLOOR, open_on_ray, report_line, train_on_ray
from atose_ray.storage import Store
from atose_ray.storage.lease import Lease
from atose_ray.training.loop import DivergedError, run_epochs
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.run import Job, use_threads

KEY = "atose"


class ActorTrial(tune.Trainable):  # type: ignore[misc]
    """workers_per_trial = 0: train inside this actor, which serves one trial after another.

    What a retry cannot mend ends the run folder as failed, here, and Tune hears of a trial that is done, without a
    value.
    """

    failure: dict[str, Any] | None = None
    epochs: Iterator[EpochRecord] | None = None
    lease: Lease | None = None
    shown: Shown | None = None
    job: Job
    last: EpochRecord | None

    def __repr__(self) -> str:
        """How Ray's dashboard lists the actor: by its first trial, as Ray asks once."""
        return f"trial {self.job.about['name']}"

    def setup(self, config: dict[str, Any], shared: SharedRefs | None = None) -> None:
        """Open the run; it goes on from its last checkpoint if it has one."""
        trial = config[KEY]
        self.job = trial["job"]
        use_threads(self.job.run.execution.threads or max(1, int(trial["search"].cpus_per_worker)))
        self.folder = RunFolder(Store(self.job.folder_uri))
        self.failure, self.last = None, None
        self.lease = Lease(self.folder.store).take()
        try:
            opened = open_on_ray(self.job, shared, trial["stream_bytes"])
        except Exception as error:
            self.failure = self.fail(error)
            return
        self.shown = Shown(opened.folder, str(self.job.about["name"]), self.job.run.metric)
        self.epochs = run_epochs(opened.run, opened.method, opened.batches, opened.folder, device=opened.device)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in this process."""
        self.leave()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch. A divergence ends the trial with the best value it had, and its reason in the log."""
        if self.failure is None:
            try:
                return self.epoch()
            except Exception as error:
                self.failure = self.fail(error)
        return self.failure

    def epoch(self) -> dict[str, Any]:
        """The next epoch, and what Tune hears of it."""
        assert self.epochs is not None and self.lease is not None and self.shown is not None
        run = self.job.run
        self.lease.check()
        try:
            self.last = next(self.epochs)
        except DivergedError as error:
            self.folder.end("diverged", str(error))
            line = report_line(self.last, run.metric) if self.last else {run.metric: FLOOR, "epoch": 1}
            return {**line, "done": True}
        self.shown.epoch(self.last)
        done = self.last.epoch >= run.method.epochs
        if done and self.folder.ending() is None:
            self.folder.end("complete")
        return {**report_line(self.last, run.metric), "done": done}

    def fail(self, error: Exception) -> dict[str, Any]:
        """End the run, or raise what another try may mend."""
        cause = cause_of(error)
        if cause in RETRIED:
            self.leave()
            raise error
        failure = record_failure(self.folder, error, cause)
        if self.shown is not None:
            self.shown.write(failure["trace"])
        return failure

    def leave(self) -> None:
        """Let go of the run: its folder, its files, its memory."""
        if self.shown is not None:
            self.shown.close("left this process")
        if self.lease is not None:
            self.lease.release()
        self.shown, self.lease, self.epochs = None, None, None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def cleanup(self) -> None:
        """Tune ends the actor."""
        self.leave()


def worker_group_trial(config: dict[str, Any], shared: SharedRefs | None = None) -> None:
    """workers_per_trial >= 1: a Ray Train worker group, whose reports go on to Tune.

    Ray Train has tried again what can be; so every error ends the trial here, and Tune starts it anew only when this
    process itself is lost.
    """
    trial = config[KEY]
    job: Job = trial["job"]
    search: SearchConfig = trial["search"]
    name = f"{job.about['name']}-{job.run.signature()}"
    clips = {"shared": shared, "stream_bytes": trial["stream_bytes"]}
    try:
        train_on_ray(job, search, trial["gpus"], name, trial["ray_uri"], [ReportToTune()], **clips)
    except Exception as error:
        cause = cause_of(error)
        if cause == "preemption":
            raise
        tune.report(record_failure(RunFolder(Store(job.folder_uri)), error, cause))
