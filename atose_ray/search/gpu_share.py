"""How many trials share a GPU: as many as asked for, but no more than its memory holds, as the first trial shows.

Ray divides a GPU's time by number only; its memory is divided by nobody. So the first trials take whole GPUs, and from
their first epoch on every trial asks Ray for a fraction that keeps the others' memory free.
"""

import math
from collections.abc import Callable, Sequence

from atose_ray.search.plan import Plan
from atose_ray.search.record import TrialRecord

FILLED = 0.92  # of a GPU's memory that trials may take together: allocators need some room to move


class GpuShare:
    """The fraction of a GPU that the next trial asks for. earlier: trials that an earlier session measured.

    Without fractions in the plan nothing is changed, and nothing waits.
    """

    def __init__(self, plan: Plan, earlier: Sequence[TrialRecord] = (), say: Callable[[str], None] = print) -> None:
        self.planned, self.workers = plan.worker_gpus, max(plan.workers, 1)
        self.gpus, self.say = plan.available.gpus, say
        self.measured: float | None = None
        for trial in earlier:
            if trial.epochs:
                self.note(trial.gpu_memory)

    @property
    def divides(self) -> bool:
        """Whether processes share a GPU at all."""
        return 0 < self.planned < 1

    def fraction(self) -> float:
        """GPUs of each process of the next trial."""
        if not self.divides:
            return self.planned
        alone = 1 / max(1, math.ceil(self.workers / self.gpus))  # whole GPUs, where a trial's workers can have them
        if self.measured is None:
            return max(self.planned, alone)
        return max(self.planned, min(alone, 1 / max(1, self.room())))

    def room(self) -> int:
        """Processes that one GPU's memory holds, by what was measured; as many as planned where nothing was."""
        return int(FILLED / self.measured) if self.measured else round(1 / self.planned)

    def may_launch(self, running: int) -> bool:
        """Whether one more trial finds room beside `running` ones, so that none waits with a fraction of yesterday."""
        if not self.divides:
            return True
        return running < max(1, int(self.gpus * int(1 / self.fraction() + 1e-9) / self.workers + 1e-9))

    def note(self, gpu_memory: float) -> None:
        """A process held this share of its GPU's memory (0: there is nothing to measure)."""
        if not self.divides or (self.measured is not None and gpu_memory <= self.measured):
            return
        before, self.measured = self.fraction(), gpu_memory
        after, asked = self.fraction(), int(1 / self.planned + 1e-9)
        together = int(1 / after + 1e-9)
        if after != before and together < asked:
            self.say(
                f"memory  a trial holds {gpu_memory:.0%} of a GPU's memory: {together} at a time on each, not {asked}"
            )
