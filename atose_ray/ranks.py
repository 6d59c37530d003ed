"""Which of a run's workers this process is, and what they tell each other. Without torch.distributed there is one, of
rank 0.

A rank that raises leaves word why, in the store where the workers met. The others, who wait for it in a collective of
gloo, look there every second, so all of them leave within seconds and for the same reason. (NCCL waits on the device,
out of reach: there Ray Train, which hears of the error, ends the group.)"""

import json
import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

LOOK_EVERY = timedelta(seconds=1)
WHY = "atose_ray/why"  # key of the store


class RankLeftError(ConnectionError):
    """Another rank left. kind: name of the class of what it raised."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind

    def __reduce__(self) -> Any:
        return RankLeftError, (self.kind, str(self))


def rank() -> int:
    """This process's rank among the workers of a run."""
    return dist.get_rank() if _together() else 0


def world() -> int:
    """How many workers the run has."""
    return dist.get_world_size() if _together() else 1


def local_world(workers: int) -> int:
    """How many of a run's workers share this node's memory: what Ray Train (or torchrun) says of them, else all."""
    return min(workers, int(os.environ.get("LOCAL_WORLD_SIZE", workers)))


def is_main() -> bool:
    """Whether this process writes the run folder."""
    return rank() == 0


def sum_over_all_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over all ranks, the same on each."""
    if _together():
        finish(dist.all_reduce(tensor, async_op=True), tensor)
    return tensor


def average_over_all_ranks(tensors: Iterable[torch.Tensor]) -> None:
    """Replace tensors by their means over all ranks, in place; one collective for all of them."""
    parts = list(tensors)
    flat = torch.cat([part.reshape(-1) for part in parts]).div_(world())
    first, means = 0, sum_over_all_ranks(flat)
    for part in parts:
        part.copy_(means[first : first + part.numel()].view_as(part))
        first += part.numel()


def rows_of_ranks(row: list[float], device: torch.device) -> list[list[float]]:
    """The row of every rank, in their order, the same on each."""
    rows_WX = torch.zeros(world(), len(row), dtype=torch.float64, device=device)
    rows_WX[rank()] = torch.tensor(row, dtype=torch.float64)
    found: list[list[float]] = sum_over_all_ranks(rows_WX).tolist()
    return found


def from_every_rank(value: Any) -> list[Any]:
    """What every rank has, in their order, the same on each."""
    values = [value] * world()
    if _together():
        dist.all_gather_object(values, value)
    return values


def finish(work: Any, tensor: torch.Tensor) -> None:
    """Wait for a collective over `tensor`. Raises RankLeftError where it never ends, because a rank has left."""
    if tensor.device.type != "cpu":
        work.wait()
        return
    while True:
        try:
            work.wait(LOOK_EVERY)
            return
        except RuntimeError as error:
            look(error)
            if work.is_completed():  # else it was only our patience that ended
                raise


def look(error: BaseException) -> None:
    """Raises RankLeftError, from `error`, where another rank left word why it left."""
    try:
        store = dist.group.WORLD.get_group_store()  # type: ignore[union-attr]
        word = json.loads(store.get(WHY)) if store.check([WHY]) else None
    except RuntimeError:
        return  # the rank that kept the store is gone
    if word is not None and word["rank"] != rank():
        raise RankLeftError(word["kind"], f"rank {word['rank']} left: {word['text']}") from error


def leave_word(error: BaseException) -> None:
    """Say why this rank leaves, unless another one left first."""
    if world() > 1:
        word = {"rank": rank(), "kind": type(error).__name__, "text": str(error)[:2000]}
        dist.group.WORLD.get_group_store().compare_set(WHY, "", json.dumps(word))  # type: ignore[union-attr]


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
