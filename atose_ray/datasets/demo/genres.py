"""The tables behind the demo data (genres.yaml), as types: instruments, genres, drum kits, scales."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from atose_ray.datasets.demo import synthesis
from atose_ray.datasets.demo.synthesis import Rng, Samples, Timbre
from atose_ray.types import package_yaml

Peaks = tuple[tuple[float, float, float], ...]


class Instrument(NamedTuple):
    """Who plays (`synthesis`), what (a style of `composition`), where (MIDI notes), through which body, its tags."""

    play: Callable[[float, int, float, Timbre, Rng], Samples]
    style: str
    low: int
    high: int
    tags: tuple[str, ...]
    body: Peaks = ()
    floor: float = 1.0
    lowpass_hz: float = 7000.0
    drive: float = 0.0


@dataclass(frozen=True)
class Genre:
    """`leads`: one of them always sounds. `backing`: instrument -> probability. `drums`: pattern -> probability."""

    tags: tuple[str, ...]
    tempo_bpm: tuple[float, float]
    force: tuple[float, float]
    leads: tuple[str, ...]
    backing: dict[str, float]
    drums: dict[str, float] = field(default_factory=dict)
    scales: tuple[str, ...] = ("major", "minor")
    solo: float = 0.0
    room_s: tuple[float, float] = (0.2, 0.9)


class Kit(NamedTuple):
    """Pattern of one bar in sixteenths: hit -> steps. `snare` decides whether a beat is tagged as drums, too."""

    hits: dict[str, tuple[int, ...]]
    tags: tuple[str, ...]


def _frozen(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    if isinstance(value, dict):
        return {key: _frozen(one) for key, one in value.items()}
    return tuple(_frozen(one) for one in value) if isinstance(value, list) else value


def _instrument(row: dict[str, Any], bodies: dict[str, Peaks]) -> Instrument:
    play, how = getattr(synthesis, row["play"]), row.get("how")
    rest = {key: value for key, value in row.items() if key not in ("play", "how", "body")}
    body = row.get("body", ())
    return Instrument(partial(play, **how) if how else play, body=bodies.get(body, body), **rest)


_TABLES = _frozen(package_yaml(__package__, "genres.yaml"))
INSTRUMENTS = {name: _instrument(row, _TABLES["bodies"]) for name, row in _TABLES["instruments"].items()}
SCALES: dict[str, tuple[int, ...]] = _TABLES["scales"]
GENRES = {name: Genre(**row) for name, row in _TABLES["genres"].items()}
KITS = {name: Kit(**row) for name, row in _TABLES["kits"].items()}
