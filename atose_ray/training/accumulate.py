"""Out of memory once: from there on a step takes its batch in two halves and adds their gradients up.

The gradient is that of the whole batch where the loss is a mean over clips. Where clips of a batch see each other
(BatchNorm in training, the negatives of InfoNCE) they see half as many: a run that was halved says so in its log."""

import torch
from torch import nn

from atose_ray.ranks import world
from atose_ray.training.record import OUT_OF_MEMORY, RunFolder
from atose_ray.types import AnyBatch

HALVED = (
    "out of memory with {clips} clips at a time: from here on every batch is taken in two halves whose gradients are "
    "added. The step is that of the whole batch, but BatchNorm and in-batch negatives see half of it"
)


class NoMemoryError(RuntimeError):
    """Half a batch does not fit either. The message says what to do."""


class Accumulator:
    """Takes the backward pass of one batch after another, in halves once memory ran out.

    A run that goes on remembers it by its log. Several workers cannot change course in the middle of a step: there the
    error ends the worker group, and the next one begins halved."""

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.pieces = 2 if any(event.get("cause") == OUT_OF_MEMORY for event in folder.events()) else 1

    def backward(self, module: nn.Module, batch: AnyBatch, stage: str) -> float:
        """`backward`. Raises NoMemoryError, or torch.OutOfMemoryError on one of several workers."""
        try:
            return backward(module, batch, stage, self.pieces)
        except torch.OutOfMemoryError as error:
            clips = -(-len(batch.clip_id_B) // self.pieces)
            if self.pieces == 2 or clips < 2:
                raise NoMemoryError(
                    f"out of memory with {clips} clips at a time, half of a batch: use a smaller data.batch_size, "
                    "shorter data.crop_seconds, fewer encoder channels or execution.precision=bfloat16"
                ) from error
            self.folder.note(OUT_OF_MEMORY, HALVED.format(clips=clips))
            if world() > 1:
                raise
        module.zero_grad()
        self.pieces = 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self.backward(module, batch, stage)


def backward(module: nn.Module, batch: AnyBatch, stage: str, pieces: int = 1) -> float:
    """Add the batch's gradients to the module's; returns its loss. pieces: 1, or 2 for halves.
    A clip alone is no batch for BatchNorm, so three clips or fewer stay whole."""
    total, clips = 0.0, len(batch.clip_id_B)
    halves = zip(*(tensor.tensor_split(pieces) for tensor in batch), strict=True)
    parts = [batch] if pieces == 1 or clips < 4 else [type(batch)(*half) for half in halves]
    for part in parts:
        loss = module(part, stage)["loss"]
        if part is not batch:
            loss = loss * (len(part.clip_id_B) / clips)
        loss.backward()
        total += float(loss.detach())
    return total
