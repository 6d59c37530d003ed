"""What the writers share: the contract, clock times, and cues, in which events of one time stand together."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from atose_ray.apps.timeline import Event, Timeline


@dataclass(frozen=True)
class Writer:
    """suffix: of its files, in place of the sound's. write: a timeline -> the file; one without events gives a file
    that parses too."""

    suffix: str
    write: Callable[[Timeline], bytes]


class Cue(NamedTuple):
    """What is shown from start_ms to end_ms: events that sound there, the surest first."""

    start_ms: int
    end_ms: int
    events: tuple[Event, ...]


def cues(timeline: Timeline) -> list[Cue]:
    """The times between two changes with something to show; players do not show overlapping cues well."""
    changes: dict[int, tuple[set[int], set[int]]] = {}  # time -> numbers of the events that begin, that end
    for number, event in enumerate(timeline.events):
        start, end = round(1000 * event.start_s), round(1000 * event.end_s)
        if end > start:
            changes.setdefault(start, (set(), set()))[0].add(number)
            changes.setdefault(end, (set(), set()))[1].add(number)
    found, here = list[Cue](), set[int]()
    for first, last in itertools.pairwise([*sorted(changes), -1]):
        begun, ended = changes[first]
        here = (here - ended) | begun
        if here:
            events = [timeline.events[number] for number in here]
            found.append(Cue(first, last, tuple(sorted(events, key=lambda event: (-event.score, event.tag)))))
    return found


def clock(ms: int, mark: str) -> str:
    """Milliseconds -> HH:MM:SS<mark>mmm; hours grow beyond two digits."""
    seconds, rest = divmod(ms, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{mark}{rest:03d}"


def one_line(text: str) -> str:
    """A name without the characters that end a line or a column."""
    return " ".join(text.split())


def lines(*rows: str) -> bytes:
    """UTF-8, each with its line end."""
    return "".join(f"{row}\n" for row in rows).encode("utf-8")
