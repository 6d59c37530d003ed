"""Which of a run's workers this process is. Without torch.distributed there is one, of rank 0."""

import os

import torch
import torch.distributed as dist


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
        dist.all_reduce(tensor)
    return tensor


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
