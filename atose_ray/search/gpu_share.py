"""How much of a GPU a trial asks for: as little as the study says, but what a model of its size was seen to hold.

Ray divides a GPU's time by number only; its memory is divided by nobody. So a trial asks for a fraction that covers the
memory that the largest trial of its size held, or of a size at least as large; the first of a size takes a whole GPU
alone. A size is the encoder without its rates, the batch, the crop and the precision; what methods and heads add is
small beside it, and the most that was seen counts. So what is asked for was measured, never extrapolated: a space of
many encoders shares little until they were seen.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from atose_ray.search.plan import Plan
from atose_ray.search.record import TrialRecord

FILLED = 0.92  # of a GPU's memory that trials may take together: allocators need some room to move
GROWS = ("batch_size", "channels", "crops_per_clip")  # with more of these, and all else equal, no less memory is held
PARTS = ("encoder", "data", "execution")  # of a configuration, that decide what it holds
NO_SIZE = ("device", "threads", "ingest", "fold", "content_hash", "shuffle_row_groups", "eval_crops")
Size = tuple[tuple[str, Any], ...]


def size_of(config: Mapping[str, Any]) -> Size:
    """What decides how much memory a configuration holds: words and whole numbers of its PARTS, and its crop's length.
    A floating-point number else is a rate."""
    return tuple(sorted(found for part in PARTS for found in _leaves(config.get(part) or {}, part)))


def _leaves(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.{key}")
        elif key not in NO_SIZE and (not isinstance(value, float) or key == "crop_seconds"):
            yield f"{path}.{key}", tuple(value) if isinstance(value, list) else value


def no_larger(size: Size, other: Size) -> bool:
    """Whether a trial of `size` holds no more than one of `other`: equal but for what grows."""
    if [path for path, _ in size] != [path for path, _ in other]:
        return False
    for (path, value), (_, more) in zip(size, other, strict=True):
        grows = path.rpartition(".")[2] in GROWS and isinstance(value, int) and isinstance(more, int)
        if not (value <= more if grows else value == more):
            return False
    return True


class GpuShare:
    """The fraction of a GPU that a trial asks for. earlier: trials that an earlier session measured.

    Without fractions in the plan nothing is changed, and nothing waits.
    """

    def __init__(self, plan: Plan, earlier: Sequence[TrialRecord] = (), say: Callable[[str], None] = print) -> None:
        self.planned, self.say, self.gpus = plan.worker_gpus, say, plan.available.gpus
        self.measured: dict[Size, float] = {}
        for trial in earlier:
            if trial.epochs:
                self.note(trial.config, trial.gpu_memory)

    @property
    def divides(self) -> bool:
        """Whether trials share a GPU at all."""
        return 0 < self.planned < 1

    def fraction(self, tree: Mapping[str, Any]) -> float:
        """GPUs of a trial of this resolved configuration."""
        if not self.divides:
            return self.planned
        size = size_of(tree)
        held = self.measured.get(size, min((m for s, m in self.measured.items() if no_larger(size, s)), default=None))
        if held is None:
            return 1.0
        return self.planned if held == 0 else max(self.planned, 1 / max(1, int(FILLED / held)))

    def may_launch(self, running: Sequence[float]) -> bool:
        """Whether one more trial may find room beside those that run, by the fractions they asked for: so none is
        asked for to wait with a whole GPU, while others that were measured meanwhile could run."""
        if not self.divides:
            return True
        alone = sum(fraction > 1 - self.planned + 1e-9 for fraction in running)
        rest = sum(fraction for fraction in running if fraction <= 1 - self.planned + 1e-9)
        return alone + math.ceil(rest + self.planned - 1e-9) <= self.gpus

    def note(self, tree: Mapping[str, Any], gpu_memory: float) -> None:
        """A trial of this configuration held so much of its GPU's memory (0: there is nothing to measure)."""
        if not self.divides:
            return
        size = size_of(tree)
        if gpu_memory <= self.measured.get(size, -1.0):
            return
        before, self.measured[size] = self.fraction(tree), gpu_memory
        after, asked = self.fraction(tree), int(1 / self.planned + 1e-9)
        together = int(1 / after + 1e-9)
        if together < asked and (after != before or together == 1):
            self.say(
                f"memory  a trial of this size holds {gpu_memory:.0%} of a GPU's memory: {together} at a time on each, "
                f"not {asked}"
            )
