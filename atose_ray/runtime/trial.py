"""What Ray Tune executes for a trial: a run in the trial's own actor, or a Ray Train worker group below it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from atose_ray.config import SearchConfig
from atose_ray.runtime.shared import SharedClips
from atose_ray.runtime.train import FLOOR, open_on_ray, report_line, train_on_ray
from atose_ray.training.loop import DivergedError, run_epochs
from atose_ray.training.record import EpochRecord
from atose_ray.training.run import Job, OpenRun, use_threads

KEY = "atose"


class ActorTrial(tune.Trainable):  # type: ignore[misc]
    """workers_per_trial = 0: train inside this actor, which serves one trial after another."""

    def setup(self, config: dict[str, Any], shared: SharedClips | None = None) -> None:
        """Open the run; it goes on from its last checkpoint if it has one."""
        trial = config[KEY]
        self.job: Job = trial["job"]
        use_threads(self.job.run.execution.threads or max(1, int(trial["search"].cpus_per_worker)))
        self.opened: OpenRun = open_on_ray(self.job, shared, trial["stream_bytes"])
        opened = self.opened
        self.epochs: Iterator[EpochRecord] = run_epochs(
            opened.run, opened.method, opened.batches, opened.folder, device=opened.device
        )
        self.last: EpochRecord | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in this process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """One epoch. A divergence ends the trial with the best value it had, and its reason in the log."""
        run = self.job.run
        try:
            self.last = next(self.epochs)
        except DivergedError as error:
            self.opened.folder.end("diverged", str(error))
            line = report_line(self.last, run.metric) if self.last else {run.metric: FLOOR, "epoch": 1}
            return {**line, "done": True}
        done = self.last.epoch >= run.method.epochs
        if done and self.opened.folder.ending() is None:
            self.opened.folder.end("complete")
        return {**report_line(self.last, run.metric), "done": done}


def worker_group_trial(config: dict[str, Any], shared: SharedClips | None = None) -> None:
    """workers_per_trial >= 1: a Ray Train worker group, whose reports go on to Tune."""
    trial = config[KEY]
    job: Job = trial["job"]
    search: SearchConfig = trial["search"]
    name = f"{job.about['name']}-{job.run.signature()}"
    clips = {"shared": shared, "stream_bytes": trial["stream_bytes"]}
    train_on_ray(job, search, trial["gpus"], name, trial["ray_uri"], [TuneReportCallback()], **clips)
