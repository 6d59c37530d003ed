"""The tables behind the demo data (genres.yaml), as types: instruments, genres, drum kits, scales."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from atose_ray.datasets.demo import synthesis
from atose_ray.datasets.demo.synthesis import Rng, Samples, Timbre
from atose_ray.types import package_yaml


class Instrument(NamedTuple):
    """Who plays (`synthesis`), what (a style of `composition`), where (MIDI notes), through which body, its tags."""

    play: Callable[[float, int, float, Timbre, Rng], Samples]
    style: str
    low: int
    high: int
    tags: Sequence[str]
    body: Sequence[Sequence[float]] = ()  # resonances: Hz, width in Hz, gain
    floor: float = 1.0
    lowpass_hz: float = 7000.0
    drive: float = 0.0


@dataclass(frozen=True)
class Genre:
    """`leads`: one of them always sounds. `backing`: instrument -> probability. `drums`: pattern -> probability."""

    tags: Sequence[str]
    tempo_bpm: Sequence[float]
    force: Sequence[float]
    leads: Sequence[str]
    backing: dict[str, float]
    drums: dict[str, float] = field(default_factory=dict)
    scales: Sequence[str] = ("major", "minor")
    solo: float = 0.0
    room_s: Sequence[float] = (0.2, 0.9)


class Kit(NamedTuple):
    """Pattern of one bar in sixteenths: hit -> steps. `snare` decides whether a beat is tagged as drums, too."""

    hits: dict[str, Sequence[int]]
    tags: Sequence[str]


def _instrument(play: str, how: dict[str, float] | None = None, **rest: Any) -> Instrument:
    return Instrument(partial(getattr(synthesis, play), **(how or {})), **rest)


_TABLES = package_yaml(__package__, "genres.yaml")
INSTRUMENTS = {name: _instrument(**row) for name, row in _TABLES["instruments"].items()}
SCALES: dict[str, Sequence[int]] = _TABLES["scales"]
GENRES = {name: Genre(**row) for name, row in _TABLES["genres"].items()}
KITS = {name: Kit(**row) for name, row in _TABLES["kits"].items()}
