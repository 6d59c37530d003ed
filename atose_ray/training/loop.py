"""The training loop: stages, epochs, best weights, checkpoints. Plain PyTorch; Ray enters through four arguments:
where batches come from (`batches`), where reports go (`report`), how a module is wrapped for DDP (`wrap`), and what is
asked of it from outside (`notice`).

Random numbers of an epoch (dropout, crops, order) are drawn from (seed, epoch, rank); a checkpoint within an epoch
holds how far dropout has drawn. So a resumed run is bitwise the uninterrupted one on a CPU.

All ranks do the same after the same step: where losses are read, they tell each other theirs and what is asked of them.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
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
from atose_ray.ranks import (
    RankLeftError,
    from_every_rank,
    is_main,
    leave_word,
    rank,
    rows_of_ranks,
    sum_over_all_ranks,
    world,
)
from atose_ray.training.averaging import Average
from atose_ray.training.cached import CachedEmbeddings, cached_span, check_room
from atose_ray.training.compiling import Compiling
from atose_ray.training.downstream import Downstream
from atose_ray.training.feed import train_batches
from atose_ray.training.notice import Ask, Notice, StoppedError
from atose_ray.training.precision import use_graphs
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.resume import RARELY_S, Checkpoints, Position, keep_epoch, last_checkpoint, mend_log
from atose_ray.training.step import NoMemoryError, Pieces, Step
from atose_ray.types import seconds_of

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
    notice: Notice | None = None,
    probe: Downstream | None = None,
) -> Result:
    """Train all stages from the last checkpoint, if any, and log the end. A run that diverges keeps its best epoch."""
    training = run_epochs(run, method, batches, folder, wrap=wrap, device=device, notice=notice, probe=probe)
    return to_the_end(folder, training, report)


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
    notice: Notice | None = None,
    probe: Downstream | None = None,
) -> Iterator[EpochRecord]:
    """Train epoch by epoch, yielding each finished epoch once it is safe in the folder.

    On resume the last epoch on record is yielded again first, so that a report lost in a crash is made up for.
    Raises DivergedError where a loss is not finite: on a CPU at once and before the update, elsewhere some steps later,
    but before anything of that epoch is written; NoMemoryError when half a batch does not fit; StoppedError when
    `notice` asks for a stop. What one of several ranks raises, all raise."""
    assert (probe is None) == (run.probe is None), "a run's own probe is given beside its batches"
    device = device or torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    method.to(device)
    check_room(run, method, batches.sizes, device)
    with Checkpoints(folder, method) as checkpoints:
        compiling = Compiling(run, method, folder, device)
        heard, pieces = notice or Notice(), Pieces(folder)
        training = Training(run, method, batches, device, checkpoints, heard, pieces, compiling, probe)
        yield from training.epochs(wrap)


@dataclass
class Training:
    """One training under way. recorded: its epochs that were in the log when it began; scores: validation scores of
    all there are; valid: all scores of the last one; best: objective so far."""

    run: RunConfig
    method: Method
    batches: BatchSource
    device: torch.device
    checkpoints: Checkpoints
    notice: Notice
    pieces: Pieces
    compiling: Compiling
    probe: Downstream | None = None
    recorded: Mapping[int, EpochRecord] = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    valid: Mapping[str, float] = field(default_factory=dict)
    best: float = float("-inf")

    def epochs(self, wrap: Callable[[Method], nn.Module]) -> Iterator[EpochRecord]:
        """The epochs from the last checkpoint on."""
        run, method, position, optimizer_state = self.run, self.method, Position(), None
        resumed = last_checkpoint(self.checkpoints.folder)
        if resumed is None:
            fit_statistics(method, self.batches, self.device)
        else:
            method.load_state_dict(resumed.weights)
            position, optimizer_state = resumed.position, resumed.optimizer
            self.recorded = mend_log(self.checkpoints.folder, resumed, run.metric)
            self.scores = {number: record.valid[run.metric] for number, record in self.recorded.items()}
            if self.recorded:
                last = self.recorded[max(self.recorded)]
                self.best, self.valid = last.objective, last.valid
                yield last
        feed, end = self.batches, 0
        for index, stage in enumerate(run.method.stages):
            start, end = end, end + stage.epochs
            if position.epochs >= end:
                continue
            trained = run.method.trained_parts(stage)
            self.checkpoints.begin_stage(trained)
            parameters = method.train_only(trained)
            settings = stage.optimizer_under(run.optim)
            module, optimizer = wrap(method), settings.build(parameters)
            average = None if settings.average is None else Average(method, trained, settings.average)
            if optimizer_state is not None and (position.epochs > start or position.step):
                optimizer.load_state_dict(optimizer_state)
                if average is not None:
                    average.load(optimizer_state["average"])
            elif optimizer_state is not None and stage.carry:
                carry_state(optimizer, optimizer_state)
            compiling = self.compiling if self.compiling.auto and "encoder" in trained else None
            graphs = use_graphs(run.execution, self.device)
            step = Step(module, optimizer, stage.name, self.pieces, graphs, compiling, average)
            span = cached_span(run.method, index)
            if span is None:
                feed = self.batches
            elif not isinstance(feed, CachedEmbeddings) or feed.span != span:  # else stages share their embeddings
                feed = CachedEmbeddings(method, self.batches, span, run.seed, self.device)
            while position.epochs < end and not stage.is_over(self.scores_of(start, position.epochs)):
                with alike_on_all_ranks():
                    record = self.epoch(stage, step, feed, position, start)
                position = Position(position.epochs + 1)
                if record is not None:
                    yield record
            optimizer_state = optimizer.state_dict()
            if average is not None:
                average.settle()

    def epoch(
        self, stage: StageConfig, step: Step, feed: BatchSource, position: Position, start: int
    ) -> EpochRecord | None:
        """One epoch from a position in it, and its validation, made safe (training/resume.py); None for an epoch that
        is on record already. start: epochs before the stage."""
        run, epoch, began = self.run, position.epochs + 1, time.time() - position.seconds
        self.method.train_only(run.method.trained_parts(stage))
        self.compiling.begin(position.epochs, position.step, feed.sizes)
        scores = self.scores_of(start, position.epochs)
        position, lr = train_epoch(run, stage, step, feed, position, start, self.device, scores, self.asked, self.heed)
        due = epoch == start + stage.epochs or self.checkpoints.age > RARELY_S
        if is_main() and due:
            self.checkpoints.save(position, step.state_dict())  # while the epoch is validated
        if epoch in self.recorded:
            return None
        try:
            with step.scored():
                valid = CLIP.evaluate(self.method, feed.evaluate("valid"), stage.name, self.device)
                if self.probe is not None:
                    valid |= self.probe.after(epoch, stage, start + stage.epochs, self.valid, self.method, self.device)
        except NonFiniteError as error:
            raise DivergedError(f"after epoch {epoch} of stage {stage.name!r}: {error}; {REMEDY}") from error
        self.scores[epoch], self.valid = valid[run.metric], valid
        improved = valid[run.metric] > self.best
        self.best = valid[run.metric] if improved else self.best
        record = EpochRecord(
            epoch=epoch,
            stage=stage.name,
            seconds=time.time() - began,
            train_loss=position.loss / position.steps,
            lr=lr,
            valid=valid,
            objective=self.best,
            time=time.time(),
            gpu_memory=round(gpu_memory_held(self.device), 4),
        )
        if is_main():
            if improved and not due:
                self.checkpoints.save(position, step.state_dict())
            with step.scored():
                keep_epoch(self.checkpoints, record, run.metric, run.execution.keep_epochs)
        return record

    def scores_of(self, start: int, epochs: int) -> list[float]:
        """The validation scores of the epochs behind a run that are of a stage. start: epochs before it."""
        return [self.scores[number] for number in range(start + 1, epochs + 1)]

    def asked(self) -> Ask:
        """What is asked of this rank."""
        due = is_main() and self.checkpoints.age > seconds_of(self.run.execution.checkpoint_every)
        return max(self.notice.take(), Ask.SAVE if due else Ask.NOTHING)

    def heed(self, ask: Ask, position: Position, step: Step) -> None:
        """Save within an epoch, all ranks after the same step. Raises StoppedError where that was asked."""
        position = replace(position, dropout=tuple(from_every_rank(dropout_state(self.device))))
        if is_main():
            self.checkpoints.save(position, step.state_dict())
        if ask is Ask.STOP:
            if is_main():
                self.checkpoints.wait()
            from_every_rank(None)  # no rank leaves before it is safe
            raise StoppedError(f"stopped after step {position.step} of {position.steps} of epoch {position.epochs + 1}")


@contextmanager
def alike_on_all_ranks() -> Iterator[None]:
    """What one rank raises in here, all raise: the others with its message, and as soon as they wait for it."""
    try:
        yield
    except RankLeftError as left:
        kinds: dict[str, type[Exception]] = {kind.__name__: kind for kind in (DivergedError, NoMemoryError)}
        kind = {**kinds, "OutOfMemoryError": torch.OutOfMemoryError}.get(left.kind)
        if kind is None:
            raise
        raise kind(str(left)) from left
    except Exception as error:
        leave_word(error)
        raise


def dropout_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    """The state of the random generators that a training on this device draws from."""
    return (torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else []))


def set_dropout_state(states: Sequence[torch.Tensor], device: torch.device) -> None:
    """What `dropout_state` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


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


def train_epoch(
    run: RunConfig,
    stage: StageConfig,
    step: Step,
    batches: BatchSource,
    position: Position,
    start: int,
    device: torch.device,
    scores: Sequence[float] = (),
    asked: Callable[[], Ask] = lambda: Ask.NOTHING,
    heed: Callable[[Ask, Position, Step], None] = lambda ask, position, step: None,
) -> tuple[Position, float]:
    """One pass over the train split from a position in an epoch -> the position at its end, last lr.

    start: epochs before the stage. scores: validation scores of the stage's epochs, for a rate that follows them.
    asked: what is asked of this rank; heed: what all ranks do then."""
    schedule, steps = stage.optimizer_under(run.optim).after(scores), batches.steps()
    epoch, done = position.epochs, position.step
    began, total, unread = time.time() - position.seconds, position.loss, list[torch.Tensor]()

    def lr_at(number: int) -> float:
        return schedule.lr_at((epoch - start) * steps + number, stage.epochs * steps)

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed((run.seed * 1_000_003 + epoch * 1009 + rank()) % 2**63)  # of dropout
        if position.dropout:
            set_dropout_state(position.dropout[rank()], device)
        for done, batch in enumerate(train_batches(batches, epoch, device, position.step), start=position.step + 1):
            unread.append(step(batch, lr_at(done - 1)))
            if len(unread) < read_every(device) and done < steps:
                continue
            values, unread = torch.stack(unread).tolist() if len(unread) > 1 else [float(unread[0])], []
            at = f"stage {stage.name!r}, epoch {epoch + 1}, step {{}} of {steps}, lr {lr_at(done - 1):.2e}"
            ask = agree(values, done, at, asked() if done < steps else Ask.NOTHING, device)
            total += math.fsum(values)
            if ask is not Ask.NOTHING:
                heed(ask, Position(epoch, done, steps, total, time.time() - began), step)
    return Position(epoch, done, steps, total, time.time() - began), lr_at(done - 1)


def read_every(device: torch.device) -> int:
    """How many steps' losses are read together: one where that costs nothing."""
    return 1 if device.type == "cpu" else READ_EVERY


def agree(losses: Sequence[float], last: int, at: str, ask: Ask, device: torch.device) -> Ask:
    """What all ranks do now: the most that is asked of one. losses: of the steps up to number `last`, from 1, on this
    rank. Raises DivergedError, the same on all, where a loss of any rank is not finite; at: where that is, for the
    message."""
    numbers = range(last - len(losses) + 1, last + 1)
    found = ([number, loss] for number, loss in zip(numbers, losses, strict=True) if not math.isfinite(loss))
    rows = [[*map(float, next(found, (0, 0))), float(ask)]]
    if world() > 1:
        rows = rows_of_ranks(rows[0], device)
    for on, (number, loss, _) in enumerate(rows):
        if number:
            where = f" on rank {on}" if world() > 1 else ""
            raise DivergedError(f"loss is {loss}{where} in {at.format(int(number))}; {REMEDY}")
    return Ask(int(max(row[2] for row in rows)))
