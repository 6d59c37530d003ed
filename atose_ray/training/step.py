"""One update of the weights. The loop calls it with a batch and a rate, and gets the loss as it lies on the device.

Out of memory once: from there on a step takes its batch in two halves and adds their gradients up. The gradient is that
of the whole batch where the loss is a mean over clips, or their sum where the method says so (`summed`). Where clips of
a batch see each other (BatchNorm in training, the negatives of InfoNCE) they see half as many: a run that was halved
says so in its log.

A loss that is no number: on a CPU, where reading it costs nothing, the step makes no update. Elsewhere it does, for a
look at the loss would make the host wait for the device; the loop looks every few steps and at the end of an epoch,
before anything is written. So what may be lost is the memory of a process that ends, and nothing of a diverged epoch is
ever saved (training/loop.py)."""

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from atose_ray.optim import be_recorded, set_rate
from atose_ray.ranks import average_over_all_ranks, world
from atose_ray.training.averaging import Average
from atose_ray.training.compiling import Compiling
from atose_ray.training.graphs import Graphs
from atose_ray.training.record import OUT_OF_MEMORY, RunFolder
from atose_ray.types import AnyBatch, Batch

HALVED = (
    "out of memory with {clips} clips at a time: from here on every batch is taken in two halves whose gradients are "
    "added. The step is that of the whole batch, but BatchNorm and in-batch negatives see half of it"
)

NOT_RECORDED = "eager"  # cause of a note in the log


class NoMemoryError(RuntimeError):
    """Half a batch does not fit either. The message says what to do."""


class Pieces:
    """In how many pieces the steps of a run take their batches: one, or two from the first time that memory ran out.

    A run that goes on remembers it by its log. Several workers cannot change course in the middle of a step: there the
    error ends the worker group, and the next one begins halved."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.count = 2 if any(event.get("cause") == OUT_OF_MEMORY for event in folder.events()) else 1

    def halve(self, error: torch.OutOfMemoryError, clips: int) -> None:
        """Two from here on, for a batch of so many clips that did not fit. Raises NoMemoryError where it is in two
        already, and `error` on one of several workers."""
        clips = -(-clips // self.count)
        if self.count == 2 or clips < 2:
            raise NoMemoryError(
                f"out of memory with {clips} clips at a time, half of a batch: use a smaller data.batch_size, "
                "shorter data.crop_seconds, fewer encoder channels or execution.precision=bfloat16"
            ) from error
        self.folder.note(OUT_OF_MEMORY, HALVED.format(clips=clips))
        if world() > 1:
            raise error
        self.count = 2


class Step:
    """The updates of one stage. module: the method, or DDP around it; optimizer: over what the stage trains.

    Several ranks without DDP average their gradients here, when all of them are there: on CPUs, where a rank that waits
    inside of DDP could not be told that another one has left (what it costs: benchmarks/ranks.py).

    recorded: replay whole updates as CUDA graphs (training/graphs.py); the log says where that does not work.
    compiling: whom steps go through that train the encoder (training/compiling.py).
    average: of the weights, where the stage takes one."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        stage: str,
        pieces: Pieces,
        recorded: bool = False,
        compiling: Compiling | None = None,
        average: Average | None = None,
    ) -> None:
        self.module, self.optimizer, self.stage, self.pieces = module, optimizer, stage, pieces
        self.recorded, self.compiling, self.average = recorded, compiling, average
        self.batch_type: type[AnyBatch] = Batch
        be_recorded(optimizer, recorded)
        self.graphs = Graphs(self.update, self.state, self.say_eager) if recorded else None
        self.averages = world() > 1 and not isinstance(module, DistributedDataParallel)

    def __call__(self, batch: AnyBatch, lr: float) -> torch.Tensor:
        """Train on a batch that lies on the device, at a rate -> its loss, 0-dim, detached, there too.

        Raises NoMemoryError, or torch.OutOfMemoryError on one of several workers."""
        set_rate(self.optimizer, lr, self.recorded)
        self.batch_type = type(batch)
        loss = self.take(batch) if self.compiling is None else self.compiling(self, batch)
        if self.average is not None:
            self.average.update()
        return loss

    def scored(self) -> AbstractContextManager[None]:
        """Within, the method has the weights that are scored and kept."""
        return nullcontext() if self.average is None else self.average.in_place()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights: the optimizer's state, and the average."""
        state = self.optimizer.state_dict()
        return state if self.average is None else {**state, "average": self.average.state()}

    def take(self, batch: AnyBatch) -> torch.Tensor:
        """Train on a batch at the rate that is set -> its loss."""
        if self.graphs is not None and self.pieces.count == 1:
            return self.graphs(*batch)
        return self.update(*batch)

    def record_anew(self) -> None:
        """Forget what is recorded: the module computes in another form."""
        if self.recorded:
            self.graphs = Graphs(self.update, self.state, self.say_eager)

    def update(self, *tensors: torch.Tensor) -> torch.Tensor:
        """Train on the tensors of a batch, at the rate that is set -> the loss."""
        loss = self.backward(self.batch_type(*tensors))
        if self.averages:
            weights = (weight for group in self.optimizer.param_groups for weight in group["params"])
            average_over_all_ranks(weight.grad for weight in weights if weight.grad is not None)
        if loss.device.type != "cpu" or math.isfinite(loss):
            self.optimizer.step()
        return loss

    def state(self) -> Iterator[torch.Tensor]:
        """What an update reads or changes beside the batch."""
        yield from itertools.chain(self.module.parameters(), self.module.buffers())
        for moments in self.optimizer.state.values():
            yield from (value for value in moments.values() if isinstance(value, torch.Tensor))

    def say_eager(self, reason: str) -> None:
        """Note in the log that this stage runs without graphs."""
        self.pieces.folder.note(NOT_RECORDED, f"stage {self.stage!r} runs without CUDA graphs: {reason}")

    def backward(self, batch: AnyBatch) -> torch.Tensor:
        """The loss of a batch, its gradients in the weights."""
        self.optimizer.zero_grad(set_to_none=True)
        try:
            return backward(self.module, batch, self.stage, self.pieces.count)
        except torch.OutOfMemoryError as error:
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                raise
            self.pieces.halve(error, len(batch.clip_id_B))
        if torch.cuda.is_available():  # here, where no traceback holds the activations any more
            torch.cuda.empty_cache()
        return self.backward(batch)


def backward(module: nn.Module, batch: AnyBatch, stage: str, pieces: int = 1) -> torch.Tensor:
    """Add the batch's gradients to the module's -> its loss, 0-dim, detached. pieces: 1, or 2 for halves.
    A clip alone is no batch for BatchNorm, so three clips or fewer stay whole."""
    losses, clips = list[torch.Tensor](), len(batch.clip_id_B)
    halves = zip(*(tensor.tensor_split(pieces) for tensor in batch), strict=True)
    parts = [batch] if pieces == 1 or clips < 4 else [type(batch)(*half) for half in halves]
    for part in parts:
        terms = module(part, stage)
        loss, share = terms["loss"], len(part.clip_id_B) / clips
        if part is not batch:
            loss = loss * share + terms.get("summed", 0.0) * (1 - share)
        loss.backward()
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).double().sum()
