"""A job from its folder to its last epoch: one training, or, where `data.fold` is `all`, one per fold of its data set.

The trainings of the folds go side by side: an epoch of the run is one of each fold. So its scores are means over folds,
a search compares trials after equally many epochs, and a trial that is stopped early has been trained on every fold.

    <run folder>/log.jsonl         the epochs: means over the folds
    <run folder>/folds/<number>/   a run folder per fold, with its own checkpoint and best weights
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from atose_ray.config import RunConfig
from atose_ray.data.views import fold_numbers
from atose_ray.evaluation.card import CARD, model_card
from atose_ray.evaluation.metrics import COUNTS
from atose_ray.evaluation.significance import spread
from atose_ray.methods import Method
from atose_ray.ranks import is_main
from atose_ray.storage import Store
from atose_ray.training.loop import DivergedError, run_epochs
from atose_ray.training.notice import Notice
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.run import Job, OpenRun, finish_run, open_run, scorings_with, trained_on

FOLDS = "folds"
Wrap = Callable[[OpenRun], Callable[[Method], nn.Module]]


def not_wrapped(opened: OpenRun) -> Callable[[Method], nn.Module]:
    """For a training in one process."""
    return lambda method: method


def begin(
    job: Job, wrap: Wrap = not_wrapped, notice: Notice | None = None, **source: Any
) -> tuple[RunFolder, Iterator[EpochRecord]]:
    """Open a job: its folder, and its epochs from the last checkpoint on. wrap: how a method is wrapped for DDP.
    notice: of `run_epochs`; source: of `open_run`. Raises what that raises; the epochs raise what `run_epochs` does."""
    if job.run.data.fold != "all":
        opened = open_run(job, **source)
        return opened.folder, epochs_of(opened, wrap, notice)
    numbers = fold_numbers(trained_on(job.run, Store(job.store_uri)))
    folds = [open_run(of_fold(job, number), **source) for number in numbers]
    folder = RunFolder(Store(job.folder_uri))
    if is_main():
        about = folds[0].folder.about()
        kept = {**job.about, **{key: about[key] for key in about if key not in job.about and key != "started"}}
        folder.start(job.run, folds[0].method.spec, kept)
    return folder, side_by_side(folder, job.run, numbers, folds, wrap, notice)


def of_fold(job: Job, number: int) -> Job:
    """The training of one fold of a job of all."""
    folder = Store(job.folder_uri).child(FOLDS, str(number))
    name = f"{job.about.get('name', 'run')}-fold{number}"
    return dataclasses.replace(
        job, run=run_of_fold(job.run, number), folder_uri=folder.uri, about={**job.about, "name": name}
    )


def run_of_fold(run: RunConfig, number: int) -> RunConfig:
    """The configuration of one fold."""
    return run.model_copy(update={"data": run.data.model_copy(update={"fold": number})})


def epochs_of(opened: OpenRun, wrap: Wrap, notice: Notice | None) -> Iterator[EpochRecord]:
    """The epochs of an open run."""
    how = {"wrap": wrap(opened), "device": opened.device, "notice": notice, "probe": opened.probe}
    return run_epochs(opened.run, opened.method, opened.batches, opened.folder, **how)  # type: ignore[arg-type]


def side_by_side(
    folder: RunFolder,
    run: RunConfig,
    numbers: Sequence[int],
    folds: Sequence[OpenRun],
    wrap: Wrap,
    notice: Notice | None = None,
) -> Iterator[EpochRecord]:
    """The epochs of a run of all folds, each safe in the folder before it is yielded; when it goes on, its last one
    first. Raises DivergedError, which names the fold, and what `run_epochs` raises."""
    known = folder.epochs()
    if known:
        yield known[-1]
    trainings = [epochs_of(opened, wrap, notice) for opened in folds]
    for epoch in range(len(known) + 1, run.method.epochs + 1):
        began = time.time()
        records = []
        for number, training in zip(numbers, trainings, strict=True):
            try:
                records.append(next(record for record in training if record.epoch == epoch))
            except DivergedError as error:
                raise DivergedError(f"fold {number}: {error}") from error
        record = mean_of(records, time.time() - began)
        if is_main():
            folder.add_epoch(record)
        yield record


def mean_of(records: Sequence[EpochRecord], seconds: float) -> EpochRecord:
    """One epoch of all folds: means of losses and scores; the objective is the mean of each fold's best so far, which
    `folds` holds one by one."""
    first = records[0]
    mean = {name: float(np.mean([record.valid[name] for record in records])) for name in first.valid}
    return dataclasses.replace(
        first,
        seconds=seconds,
        train_loss=float(np.mean([record.train_loss for record in records])),
        valid=mean,
        objective=float(np.mean([record.objective for record in records])),
        time=time.time(),
        gpu_memory=max(record.gpu_memory for record in records),
        folds=tuple(record.objective for record in records),
    )


def finish(job: Job, best: Store) -> dict[str, Any]:
    """Score the test split with the best epoch and write the model folder `best`; returns the metrics. Of all folds
    each is scored with its own best epoch and has a model folder of its own: `test` then holds the means,
    `test_intervals` their 95 % intervals over the folds (Student), `folds` the scores one by one, and `best` the model
    of the fold that `fold` names, the first."""
    if job.run.data.fold != "all":
        return finish_run(job, best)
    rows = []
    for number in fold_numbers(trained_on(job.run, Store(job.store_uri))):
        inner = of_fold(job, number)
        place = Store(inner.folder_uri).child("best")
        done = place.read_json("metrics.json") if place.exists("metrics.json") else finish_run(inner, place)
        rows.append({"fold": number, **{key: done[key] for key in ("epoch", "valid", "test")}})
    place = Store(of_fold(job, rows[0]["fold"]).folder_uri).child("best")
    first, last = place.read_json("metrics.json"), RunFolder(Store(job.folder_uri)).epochs()[-1]
    over = {name: spread([row["test"][name] for row in rows]) for name in rows[0]["test"]}
    test = {name: one.mean for name, one in over.items()}
    metrics = {
        **first,
        "valid": {**last.valid, job.run.metric: last.objective},
        "test": test,
        "test_intervals": {name: [one.low, one.high] for name, one in over.items() if name not in COUNTS},
        "test_deviation": {name: one.deviation for name, one in over.items() if name not in COUNTS},
        "test_scorings": scorings_with(best, first["number"], job.run.metric, test),
        "folds": rows,
        "fold": rows[0]["fold"],
    }
    for name in place.names():
        best.write(name, place.read(name))
    best.write_json("metrics.json", metrics)
    best.write(CARD, model_card(*RunFolder(place).config(), metrics).encode())
    return metrics
