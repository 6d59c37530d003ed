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
from atose_ray.training.cached import CachedEmbeddings, cached_span, check_room
from atose_ray.training.checkpoint import keep_epoch, keep_if_best
from atose_ray.training.feed import train_batches
from atose_ray.training.precision import use_graphs
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.step import Pieces, Step

REMEDY = "a smaller optim.lr is the usual remedy"
READ_EVERY = 8  # steps whose losses are read together where a look makes the host wait for the device


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
    Raises DivergedError where a loss is not finite: on a CPU at once and before the update, elsewhere some steps later,
    but before anything of that epoch is written. Raises NoMemoryError when half a batch does not fit."""
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
    feed, pieces, end = batches, Pieces(folder), 0
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
        step = Step(module, optimizer, stage.name, pieces, use_graphs(run.execution, device))
        span = cached_span(run.method, index)
        if span is None:
            feed = batches
        elif not isinstance(feed, CachedEmbeddings) or feed.span != span:  # else stages share their embeddings
            feed = CachedEmbeddings(method, batches, span, run.seed, device)
        for epoch in range(done, end):
            record = _run_epoch(run, stage, step, method, feed, epoch, epoch - start, best, device)
            done, best = record.epoch, record.objective
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
    step: Step,
    method: Method,
    batches: BatchSource,
    epoch: int,
    stage_epoch: int,
    best: float,
    device: torch.device,
) -> EpochRecord:
    """One epoch of training and its validation, made safe (training/checkpoint.py)."""
    started = time.time()
    method.train_only(run.method.trained_parts(stage))
    train_loss, lr = train_epoch(run, stage, step, batches, epoch, stage_epoch, device)
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
        keep_epoch(step.pieces.folder, record, method, step.optimizer, run.metric)
    return record


def train_epoch(
    run: RunConfig,
    stage: StageConfig,
    step: Step,
    batches: BatchSource,
    epoch: int,
    stage_epoch: int,
    device: torch.device,
) -> tuple[float, float]:
    """One pass over the train split, after so many epochs of run and stage -> mean loss of this rank, last lr."""
    schedule, steps = stage.optimizer_under(run.optim), batches.steps()
    total, lr, unread = 0.0, 0.0, list[torch.Tensor]()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((run.seed * 1_000_003 + epoch * 1009 + rank()) % 2**63)  # of dropout
        for number, batch in enumerate(train_batches(batches, epoch, device)):
            lr = schedule.lr_at(stage_epoch * steps + number, stage.epochs * steps)
            unread.append(step(batch, lr))
            if len(unread) == read_every(device) or number + 1 == steps:
                at = f"stage {stage.name!r}, epoch {epoch + 1}, step {{}} of {steps}, lr {lr:.2e}"
                total, unread = total + read(unread, number + 1, at), []
    return total / steps, lr


def read_every(device: torch.device) -> int:
    """How many steps' losses are read together: one where that costs nothing."""
    return 1 if device.type == "cpu" else READ_EVERY


def read(losses: Sequence[torch.Tensor], last: int, at: str) -> float:
    """The sum of some steps' losses; the host waits for the device here. last: number of the last one, from 1.
    Raises DivergedError at the first that is not finite."""
    values = [float(losses[0])] if len(losses) == 1 else torch.stack(list(losses)).tolist()
    for number, value in enumerate(values, start=last - len(values) + 1):
        if not math.isfinite(value):
            raise DivergedError(f"loss is {value} in {at.format(number)}; {REMEDY}")
    return math.fsum(values) if len(values) > 1 else values[0]
