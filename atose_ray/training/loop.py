"""The training loop: stages, epochs, best weights, checkpoints. Plain PyTorch; Ray enters through three arguments:
where batches come from (`batches`), where reports go (`report`), how a module is wrapped for DDP (`wrap`).

Random numbers of an epoch (dropout, crops, order) are drawn from (seed, epoch, rank), so the epoch is also the state of
the random generators: a resumed run is bitwise the uninterrupted one."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from atose_ray.config import RunConfig
from atose_ray.data.batches import BatchSource
from atose_ray.data.memory import gpu_memory_held
from atose_ray.encoders import Encoder
from atose_ray.evaluation.metrics import NonFiniteError
from atose_ray.evaluation.protocols import CLIP
from atose_ray.methods import Method, StageConfig
from atose_ray.ranks import is_main, rank, sum_over_all_ranks
from atose_ray.training.accumulate import Accumulator, backward
from atose_ray.training.cached import CachedEmbeddings, cached_span, check_room
from atose_ray.training.checkpoint import keep_epoch, keep_if_best
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.types import AnyBatch

REMEDY = "a smaller optim.lr is the usual remedy"


class DivergedError(RuntimeError):
    """The loss stopped being a number. The message says where, and what to try."""


@dataclass(frozen=True)
class Result:
    """How a run ended. objective: best validation value of the run's metric. state: complete or diverged."""

    objective: float | None
    epochs: int
    state: str
    reason: str | None = None


def fit(
    run: RunConfig,
    method: Method,
    batches: BatchSource,
    folder: RunFolder,
    *,
    report: Callable[[EpochRecord], None] = lambda record: None,
    wrap: Callable[[Method], nn.Module] = lambda method: method,
    device: torch.device | None = None,
) -> Result:
    """Train all stages from the last checkpoint, if any, and log the end. A run that diverges keeps its best epoch."""
    return to_the_end(folder, run_epochs(run, method, batches, folder, wrap=wrap, device=device), report)


def to_the_end(
    folder: RunFolder, training: Iterator[EpochRecord], report: Callable[[EpochRecord], None] = lambda record: None
) -> Result:
    """Take all epochs of a training, and log its end."""
    objective, epochs = None, 0
    try:
        for record in training:
            objective, epochs = record.objective, record.epoch
            report(record)
    except DivergedError as error:
        if is_main():
            folder.end("diverged", str(error))
        return Result(objective, epochs, "diverged", str(error))
    if is_main() and folder.ending() is None:
        folder.end("complete")
    return Result(objective, epochs, "complete")


def run_epochs(
    run: RunConfig,
    method: Method,
    batches: BatchSource,
    folder: RunFolder,
    *,
    wrap: Callable[[Method], nn.Module] = lambda method: method,
    device: torch.device | None = None,
) -> Iterator[EpochRecord]:
    """Train epoch by epoch, yielding each finished epoch once it is safe in the folder.

    On resume the last finished epoch is yielded again first, so that a report lost in a crash is made up for.
    Raises DivergedError at the first loss that is not finite, before the update, and NoMemoryError when half a batch
    does not fit."""
    device = device or torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    method.to(device)
    check_room(run, method, batches.sizes, device)
    done, best, optimizer_state = 0, float("-inf"), None
    resumed = folder.checkpoint()
    if resumed is not None:
        record, state = resumed
        method.load_state_dict(state.pop("method"))
        done, best, optimizer_state = record.epoch, record.objective, state["optimizer"]
        if is_main() and folder.ending() is None:
            if done not in {known.epoch for known in folder.epochs()}:
                folder.add_epoch(record)
            keep_if_best(folder, record, method, run.metric)
        yield record
    else:
        fit_statistics(method, batches, device)
    feed, accumulator, end = batches, Accumulator(folder), 0
    for index, stage in enumerate(run.method.stages):
        start, end = end, end + stage.epochs
        if done >= end:
            continue
        parameters = method.train_only(run.method.trained_parts(stage))
        module, optimizer = wrap(method), stage.optimizer_under(run.optim).build(parameters)
        if optimizer_state is not None and done > start:
            optimizer.load_state_dict(optimizer_state)
        elif optimizer_state is not None and stage.carry:
            carry_state(optimizer, optimizer_state)
        span = cached_span(run.method, index)
        if span is None:
            feed = batches
        elif not isinstance(feed, CachedEmbeddings) or feed.span != span:  # else stages share their embeddings
            feed = CachedEmbeddings(method, batches, span, run.seed, device)
        scores = [one.valid[run.metric] for one in folder.epochs() if start < one.epoch <= done]
        for epoch in range(done, end):
            record = _run_epoch(
                run, stage, module, method, optimizer, feed, epoch, epoch - start, best, device, accumulator, scores
            )
            done, best = record.epoch, record.objective
            scores.append(record.valid[run.metric])
            yield record
        optimizer_state = optimizer.state_dict()


@torch.no_grad()
def fit_statistics(method: Method, batches: BatchSource, device: torch.device) -> None:
    """What the encoder learns of the train split before it is trained (a scaler): one pass, all ranks' sums."""
    if type(method.encoder).statistics is Encoder.statistics:
        return
    sums = [method.encoder.statistics(batch.to(device).inputs) for batch in batches.train(0)]  # type: ignore[union-attr]
    method.encoder.fit(sum_over_all_ranks(torch.stack([one.double() for one in sums if one is not None]).sum(dim=0)))


def carry_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Moments, velocity and step count of the phase before, under this phase's own settings."""
    settings = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update({key: value for key, value in own.items() if key not in ("params", "t")})


def _run_epoch(
    run: RunConfig,
    stage: StageConfig,
    module: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    batches: BatchSource,
    epoch: int,
    stage_epoch: int,
    best: float,
    device: torch.device,
    accumulator: Accumulator,
    scores: Sequence[float],
) -> EpochRecord:
    """One epoch of training and its validation, made safe (training/checkpoint.py). scores: of the stage's epochs."""
    started = time.time()
    method.train_only(run.method.trained_parts(stage))
    train_loss, lr = train_epoch(
        run, stage, module, optimizer, batches, epoch, stage_epoch, device, accumulator.backward, scores
    )
    try:
        valid = CLIP.evaluate(method, batches.evaluate("valid"), stage.name, device)
    except NonFiniteError as error:
        raise DivergedError(f"after epoch {epoch + 1} of stage {stage.name!r}: {error}; {REMEDY}") from error
    improved = valid[run.metric] > best
    record = EpochRecord(
        epoch=epoch + 1,
        stage=stage.name,
        seconds=time.time() - started,
        train_loss=train_loss,
        lr=lr,
        valid=valid,
        objective=valid[run.metric] if improved else best,
        time=time.time(),
        gpu_memory=round(gpu_memory_held(device), 4),
    )
    if is_main():
        keep_epoch(accumulator.folder, record, method, optimizer, run.metric)
    return record


def train_epoch(
    run: RunConfig,
    stage: StageConfig,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: BatchSource,
    epoch: int,
    stage_epoch: int,
    device: torch.device,
    backward: Callable[[nn.Module, AnyBatch, str], float] = backward,
    scores: Sequence[float] = (),
) -> tuple[float, float]:
    """One pass over the train split, after so many epochs of run and stage -> mean loss of this rank, last lr."""
    schedule, steps = stage.optimizer_under(run.optim).after(scores), batches.steps()
    total, lr = 0.0, 0.0
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((run.seed * 1_000_003 + epoch * 1009 + rank()) % 2**63)  # of dropout
        for step, batch in enumerate(batches.train(epoch)):
            lr = schedule.lr_at(stage_epoch * steps + step, stage.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad(set_to_none=True)
            value = backward(module, batch.to(device), stage.name)
            if not math.isfinite(value):
                raise DivergedError(
                    f"loss is {value} in stage {stage.name!r}, epoch {epoch + 1}, step {step + 1} of {steps}, "
                    f"lr {lr:.2e}; {REMEDY}"
                )
            optimizer.step()
            total += value
    return total / steps, lr
