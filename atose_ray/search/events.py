"""What happens to the trials of a search, as one stream of events with three listeners (search/listeners.py).

A trial is asked of the sampler, started on its resources, finishes epochs, and ends; or it is settled at once.
`runtime/search.py` turns Ray Tune's hooks into these events; nothing that listens to them knows Ray.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from atose_ray.training.record import EpochRecord
from atose_ray.training.run import Job

Cause = Literal["out_of_memory", "infrastructure", "preemption", "divergence", "bug"]
MENDABLE: tuple[Cause, ...] = ("infrastructure", "preemption", "out_of_memory")  # another machine or day may do
SettledState = Literal["infeasible", "complete"]
EndState = Literal["complete", "pruned", "diverged", "failed", "paused"]


@dataclass(frozen=True)
class Asked:
    """The sampler chose a trial's parameters, and its run folder was begun."""

    number: int
    job: Job


@dataclass(frozen=True)
class Started:
    """A trial got its resources."""

    number: int
    job: Job


@dataclass(frozen=True)
class Epoch:
    """A trial finished an epoch. After a restart the last one before it is reported once more."""

    number: int
    job: Job
    record: EpochRecord


@dataclass(frozen=True)
class Ended:
    """A trial ended. paused: the search was stopped before its end, and the next session goes on with it.

    cause, trace: of a failure. recorded: whether its run folder says so already.
    """

    number: int
    job: Job
    state: EndState
    reason: str | None = None
    cause: Cause | None = None
    trace: str = ""
    recorded: bool = False


@dataclass(frozen=True)
class Settled:
    """A trial ended as it was asked for, and nothing is run: its configuration cannot be built (infeasible), or it took
    the result of an equal one (complete). All of it is on record in its run folder."""

    number: int
    name: str
    folder_uri: str
    state: SettledState
    reason: str


Event = Asked | Started | Epoch | Ended | Settled


class Listener(Protocol):
    """Gets every event of a search, in order."""

    def on_event(self, event: Event) -> None: ...
