"""The tables behind the demo data: which instruments there are, what they are called, and which genre uses them how.

A genre ties instruments, tempo, loudness and register together, so that its tags correlate as they do in real music.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from atose_ray.datasets.demo import synthesis as syn
from atose_ray.datasets.demo.synthesis import Samples, Timbre

Peaks = tuple[tuple[float, float, float], ...]
VIOLIN_BODY: Peaks = ((280, 80, 1.0), (460, 100, 1.3), (1050, 300, 0.8), (2600, 900, 0.9))
CELLO_BODY: Peaks = ((110, 50, 1.0), (200, 60, 1.2), (420, 150, 0.7), (1500, 500, 0.3))
GUITAR_BODY: Peaks = ((105, 30, 1.2), (205, 50, 1.0), (410, 120, 0.5))
CABINET: Peaks = ((120, 80, 0.6), (2300, 1500, 0.8))


class Instrument(NamedTuple):
    """Who plays (`synthesis`), what (a style of `composition`), where (MIDI notes), through which body, its tags."""

    play: Callable[[float, int, float, Timbre, np.random.Generator], Samples]
    style: str
    low: int
    high: int
    tags: tuple[str, ...]
    body: Peaks = ()
    floor: float = 1.0
    lowpass_hz: float = 7000.0
    drive: float = 0.0


INSTRUMENTS: dict[str, Instrument] = {
    "guitar": Instrument(syn.pluck, "strum", 45, 67, ("guitar",), GUITAR_BODY, 0.5),
    "picked guitar": Instrument(syn.pluck, "arpeggio", 45, 72, ("guitar",), GUITAR_BODY, 0.5),
    "distorted guitar": Instrument(
        partial(syn.pluck, t60_s=3.0), "power", 40, 57, ("guitar",), CABINET, 0.3, 4000.0, 6.0
    ),
    "harp": Instrument(
        partial(syn.pluck, t60_s=2.6, soft=0.95), "arpeggio", 55, 88, ("harp",), ((250, 200, 0.4),), 0.8
    ),
    "sitar": Instrument(syn.sitar, "melody", 50, 74, ("sitar",), ((350, 200, 0.7), (900, 400, 0.6)), 0.5),
    "tanpura": Instrument(partial(syn.pluck, t60_s=3.5, soft=0.3), "drone", 38, 55, (), ((300, 300, 0.7),), 0.5),
    "piano": Instrument(syn.strike, "piano", 48, 84, ("piano",), ((180, 150, 0.3),), 0.8),
    "violin": Instrument(syn.bow, "melody", 60, 86, ("violin", "strings"), VIOLIN_BODY, 0.12, 5500.0),
    "cello": Instrument(syn.bow, "melody", 40, 60, ("strings",), CELLO_BODY, 0.12, 3000.0),
    "strings": Instrument(syn.section, "chords", 50, 79, ("strings",), VIOLIN_BODY, 0.15, 4000.0),
    "flute": Instrument(syn.blow, "melody", 67, 91, ("flute",)),
    "singer f": Instrument(partial(syn.sing, head=1.17), "melody", 57, 76, ("vocal", "female")),
    "singer m": Instrument(partial(syn.sing, head=1.0), "melody", 43, 62, ("vocal", "male")),
    "women": Instrument(partial(syn.sing, head=1.17, voices=3), "hymn", 60, 77, ("choir", "vocal", "female")),
    "men": Instrument(partial(syn.sing, head=1.0, voices=3), "hymn", 43, 60, ("choir", "vocal", "male")),
    "pad": Instrument(syn.pad, "chords", 45, 72, ("synth", "electronic")),
    "lead": Instrument(syn.lead, "arpeggio", 48, 76, ("synth", "electronic")),
    "synth bass": Instrument(syn.lead, "bass", 31, 45, ("synth", "electronic"), (), 1.0, 1500.0, 1.5),
    "bass": Instrument(partial(syn.pluck, t60_s=1.2, soft=0.9), "bass", 28, 43, (), ((90, 60, 1.0),), 0.6, 1800.0),
}

SCALES: dict[str, tuple[int, ...]] = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "bhairav": (0, 1, 4, 5, 7, 8, 11),
}


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


GENRES: dict[str, Genre] = {
    "techno": Genre(
        ("techno", "electronic"), (118, 152), (0.45, 1.0), ("lead", "synth bass"),
        {"synth bass": 0.6, "pad": 0.35, "lead": 0.4, "singer": 0.12}, {"four": 0.9}, ("minor", "dorian"),
    ),
    "rock": Genre(
        ("rock",), (76, 172), (0.5, 1.0), ("distorted guitar",),
        {"bass": 0.8, "singer": 0.45, "lead": 0.1, "piano": 0.15}, {"backbeat": 0.92}, ("minor", "dorian", "major"),
    ),
    "classical": Genre(
        ("classical",), (56, 150), (0.05, 0.85), ("piano", "violin", "flute", "harp", "strings"),
        {"strings": 0.3, "cello": 0.3, "violin": 0.15, "harp": 0.12, "piano": 0.15}, solo=0.4, room_s=(0.6, 2.0),
    ),
    "choral": Genre(
        ("classical",), (48, 84), (0.1, 0.8), ("women", "men"),
        {"men": 0.4, "women": 0.3, "strings": 0.25, "harp": 0.2}, solo=0.3, room_s=(1.2, 2.6),
    ),
    "ambient": Genre(
        ("ambient",), (48, 96), (0.02, 0.5), ("pad",),
        {"flute": 0.3, "harp": 0.35, "piano": 0.3, "women": 0.15, "picked guitar": 0.15}, {"four": 0.2},
        ("dorian", "major"), 0.15, (1.2, 2.6),
    ),
    "country": Genre(
        (), (76, 160), (0.2, 0.75), ("guitar", "picked guitar"),
        {"singer": 0.5, "violin": 0.4, "bass": 0.4, "flute": 0.1, "piano": 0.1}, {"train": 0.4}, ("major",), 0.25,
    ),
    "indian": Genre(
        ("indian",), (56, 150), (0.15, 0.8), ("sitar", "sitar", "flute"),
        {"tanpura": 0.85, "sitar": 0.3, "singer": 0.3, "violin": 0.15}, {"tabla": 0.65}, ("bhairav", "dorian"), 0.12,
    ),
    "pop": Genre(
        (), (84, 136), (0.3, 0.9), ("singer",),
        {"pad": 0.4, "lead": 0.25, "piano": 0.4, "guitar": 0.4, "bass": 0.6, "strings": 0.2},
        {"backbeat": 0.6, "four": 0.25},
    ),
}  # fmt: skip


class Kit(NamedTuple):
    """Pattern of one bar in sixteenths: hit -> steps. `snare` decides whether a beat is tagged as drums, too."""

    hits: dict[str, tuple[int, ...]]
    tags: tuple[str, ...]


KITS: dict[str, Kit] = {
    "four": Kit({"kick": (0, 4, 8, 12), "hat": (2, 6, 10, 14), "clap": (4, 12)}, ("beat",)),
    "backbeat": Kit({"kick": (0, 8, 10), "snare": (4, 12), "hat": (0, 2, 4, 6, 8, 10, 12, 14)}, ("beat", "drums")),
    "train": Kit({"kick": (0, 8), "brush": (0, 2, 3, 4, 6, 7, 8, 10, 11, 12, 14, 15)}, ("drums",)),
    "tabla": Kit({"low": (0, 6, 10), "high": (0, 2, 3, 4, 8, 10, 11, 12, 14)}, ("drums",)),
}
