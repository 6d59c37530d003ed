"""What Ray Tune executes for a trial: a run in the trial's own actor, or a Ray Train worker group below it."""

import functools
import gc
import os
from collections.abc import Iterator
from typing import Any

import ray
import torch
from ray import tune
from ray.train import UserCallback
from ray.tune.integration.ray_train import TuneReportCallback

from atose_ray.runtime.cluster import ENVIRONMENT
from atose_ray.runtime.failures import RETRIED, cause_of, record_failure
from atose_ray.runtime.ray_private import controller_class, logs_folder, own_node_is_draining
from atose_ray.runtime.shared import SharedRefs, source_of
from atose_ray.runtime.train import train_on_ray
from atose_ray.search.board import Board
from atose_ray.search.costs import FLOOR, note_latency
from atose_ray.search.plan import Plan
from atose_ray.search.ranking import Ranking
from atose_ray.search.trials import TrialSetup
from atose_ray.storage import Store
from atose_ray.storage.lease import Lease
from atose_ray.training.folds import begin
from atose_ray.training.loop import DivergedError
from atose_ray.training.notice import Watch
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.run import use_threads

KEY = "atose"


def name_of(trial: Any) -> str:
    """The readable name of a Tune trial."""
    return str(trial.config[KEY].job.about["name"])


class ActorTrial(tune.Trainable):  # type: ignore[misc]
    """workers_per_trial = 0: train inside this actor, which serves one trial after another.

    What a retry cannot mend ends the run folder as failed, here, and Tune is told of a trial that is done, without a
    value.
    """

    failure: dict[str, Any] | None = None
    epochs: Iterator[EpochRecord] | None = None
    lease: Lease | None = None
    board: Board | None = None
    watch: Watch | None = None

    def __repr__(self) -> str:
        """How Ray's dashboard lists the actor: by its first trial, as Ray asks once."""
        return f"trial {self.job.about['name']}" if "job" in vars(self) else "trial"

    def setup(self, config: dict[str, Any], shared: SharedRefs | None = None) -> None:
        """Open the run; it goes on from its last checkpoint if it has one."""
        self.given: TrialSetup = config[KEY]
        self.job = self.given.job
        use_threads(self.given.threads)
        self.folder = RunFolder(Store(self.job.folder_uri))
        self.failure = None
        self.line: dict[str, Any] = {self.job.run.metric: FLOOR, "epoch": 1}  # what Tune was told last
        self.lease = Lease(self.folder.store).take()
        try:
            source = source_of(self.job.run.execution.ingest, shared, self.given.stream_bytes)
            source = with_note(source, self.given.gpus)
            self.watch = Watch(own_node_is_draining)
            _, self.epochs = begin(self.job, notice=self.watch.notice, **source)
        except Exception as error:
            self.failure = self.fail(error)
            return
        self.ranking = Ranking(self.job.run, self.folder.epochs())
        self.board = Board(self.folder, str(self.job.about["name"]), self.job.run.metric, logs_folder())

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in this process."""
        self.cleanup()
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
        """The next epoch, and what Tune is told of it."""
        assert self.epochs is not None and self.lease is not None and self.board is not None
        run = self.job.run
        self.lease.check()
        try:
            record = next(self.epochs, None)  # None: the last stage ended early (its patience)
            if record is not None:
                self.board.add(record)
                self.line = self.ranking.line(record)
                if record.epoch < run.method.epochs:
                    return self.line
            if self.folder.ending() is None:
                self.folder.end("complete")
        except DivergedError as error:
            self.folder.end("diverged", str(error))
        if "latency_ms" in self.given.search.costs:
            note_latency(self.job, self.given.threads)
        return {**self.line, "done": True}

    def fail(self, error: Exception) -> dict[str, Any]:
        """End the run, or raise what another try may mend."""
        cause = cause_of(error)
        if cause in RETRIED:
            self.cleanup()
            raise error
        failure = record_failure(self.folder, error, cause)
        if self.board is not None:
            self.board.write(failure["trace"])
        return failure

    def cleanup(self) -> None:
        """Let go of the run, as Tune ends the actor or gives it another: its folder, its files, its memory."""
        if self.board is not None:
            self.board.close("left this process")
        if self.lease is not None:
            self.lease.release()
        if self.watch is not None:
            self.watch.close()
        self.board, self.lease, self.epochs, self.watch = None, None, None, None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def with_note(source: dict[str, Any], gpus: float) -> dict[str, Any]:
    """The arguments of `open_run`, with a note where Ray gave a GPU and PyTorch sees none."""
    if gpus <= 0 or torch.cuda.is_available():
        return source
    said = f"Ray gave {gpus:g} GPU, but PyTorch sees none here (its build, or the driver), so trials train on the CPU"
    return {**source, "note": "; ".join(filter(None, [source.get("note"), said]))}


class ReportToTune(UserCallback):  # type: ignore[misc]
    """Hands the reports of rank 0 on to the Tune trial whose process Ray Train's controller runs in."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """metrics: one dict per worker."""
        tune.report(metrics[0].copy())


def worker_group_trial(config: dict[str, Any], shared: SharedRefs | None = None) -> None:
    """workers_per_trial >= 1: a Ray Train worker group, whose reports go on to Tune.

    Ray Train has tried again what can be; so every error ends the trial here, and Tune starts it anew only when this
    process itself is lost.
    """
    for variable, value in ENVIRONMENT.items():  # the controller reads them; a driver's do not reach other nodes
        os.environ.setdefault(variable, value)
    given: TrialSetup = config[KEY]
    job, search, gpus = given.job, given.search, given.gpus
    name = f"{job.about['name']}-{job.run.signature()}"
    clips: dict[str, Any] = {"shared": shared, "stream_bytes": given.stream_bytes}
    try:
        report = ReportToTune() if controller_class() else TuneReportCallback()
        train_on_ray(job, search, gpus, name, given.ray_uri, [report], **clips)
    except Exception as error:
        cause = cause_of(error)
        if cause == "preemption":
            raise
        tune.report(record_failure(RunFolder(Store(job.folder_uri)), error, cause))
        return
    if "latency_ms" in search.costs:
        # outside the placement group of this trial, which holds no more than this process
        one = ray.remote(num_cpus=search.cpus_per_worker, num_gpus=gpus, scheduling_strategy="DEFAULT")
        ray.get(one(note_latency).remote(job, given.threads))


def trainable(plan: Plan, shared: SharedRefs | None) -> Any:
    """What Tune runs, with the resources of the trial's own process and the references to what trials share."""
    kind: Any = worker_group_trial if plan.workers else ActorTrial
    if shared is not None:
        kind = tune.with_parameters(kind, shared=shared)
    kind = tune.with_resources(kind, functools.partial(resources_of, plan))
    if isinstance(kind, type):  # Tune wraps the class in others: the last name is what Ray's dashboard lists
        kind.__name__ = kind.__qualname__ = "Trial"
    return kind


def resources_of(plan: Plan, config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """What a trial's own process holds; of a GPU what its setup says, for that follows from the trials before it."""
    gpus = 0.0 if plan.workers else config[KEY].gpus
    return tune.PlacementGroupFactory([{"CPU": plan.trial_cpus, **({"GPU": gpus} if gpus else {})}])
