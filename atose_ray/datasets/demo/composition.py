"""The music of the demo data: an artist and a number -> a short piece of several instruments, and the tags of it.

An artist belongs to one genre and has instruments, a room, a tuning and a habit of mastering of its own, so that a
model must generalise over artists. Tags say what sounds (instruments, beat, tempo, dynamics) and what it is (genre);
none depends on the level of the recording, which is drawn apart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from atose_ray.datasets.demo import synthesis as syn
from atose_ray.datasets.demo.genres import GENRES, INSTRUMENTS, KITS, SCALES, Genre
from atose_ray.datasets.demo.synthesis import RATE_HZ, Rng, Samples, Timbre

SLOW_BPM, FAST_BPM = 80.0, 130.0
QUIET_FORCE, LOUD_FORCE = 0.3, 0.72
FORGOTTEN = 0.05  # the share of tags that an annotator leaves out


class Habits(NamedTuple):
    """What an artist's recordings have in common beside the instruments. 0 .. 1 is a place in the genre's range."""

    tempo: float
    force: float
    cents: float  # tuning against 440 Hz
    room: float
    wet: float
    tilt: float  # dB per octave, around 1 kHz
    hiss: float  # dB below the music
    level: float  # peak of the recording


@dataclass(frozen=True)
class Artist:
    """One generated artist. `number` draws all that is particular to it; `turn` counts the artists of its genre."""

    seed: int
    number: int

    @property
    def turn(self) -> int:
        return self.number // len(GENRES)

    @property
    def genre(self) -> Genre:
        return tuple(GENRES.values())[self.number % len(GENRES)]

    @property
    def singer(self) -> str:
        return ("singer f", "singer m")[(self.turn // 2 + self.number) % 2]

    def rng(self, *path: int) -> Rng:
        """A stream of its own for every (seed, artist, path)."""
        return np.random.default_rng([self.seed, self.number, *path])

    @property
    def habits(self) -> Habits:
        """Drawn once per artist."""
        low = (0.0, 0.0, -45.0, 0.0, 0.1, -2.5, -60.0, 0.35)
        high = (1.0, 1.0, 45.0, 1.0, 0.8, 1.5, -35.0, 0.98)
        return Habits(*(float(value) for value in self.rng(0).uniform(low, high)))

    def timbre(self, instrument: str) -> Timbre:
        """This artist's instrument."""
        return Timbre.draw(self.rng(1, list(INSTRUMENTS).index(instrument)))


Note = tuple[float, float, int]  # start and length in beats, degree of the scale (0: the lowest root)


def _steps(beats: float, step: float) -> list[float]:
    return [step * index for index in range(int(np.ceil(beats / step)))]


def _melody(beats: float, roots: list[int], rng: Rng) -> list[Note]:
    notes, start, degree = [], 0.0, int(rng.integers(3, 8))
    while start < beats:
        length = float(rng.choice([0.5, 1.0, 1.0, 2.0]))
        if rng.random() > 0.1:
            notes.append((start, length, degree))
        start, degree = start + length, int(np.clip(degree + rng.integers(-3, 4), 0, 12))
    return notes


def _held(beats: float, roots: list[int], rng: Rng, length: float, parts: tuple[int, ...]) -> list[Note]:
    return [(start, length, roots[int(start) // 4 % 4] + part) for start in _steps(beats, length) for part in parts]


def _strum(beats: float, roots: list[int], rng: Rng) -> list[Note]:
    down = [(start, roots[int(start) // 4 % 4]) for start in _steps(beats, 0.5) if start % 1 == 0 or rng.random() < 0.5]
    return [(start + 0.03 * index, 0.9, root + part) for start, root in down for index, part in enumerate((0, 2, 4, 7))]


def _arpeggio(beats: float, roots: list[int], rng: Rng) -> list[Note]:
    step = float(rng.choice([0.25, 0.5, 0.5]))
    order = rng.permutation([0, 2, 4, 7]) if rng.random() < 0.5 else np.array([0, 2, 4, 7, 9, 7, 4, 2])
    return [
        (start, 2.5 * step, roots[int(start) // 4 % 4] + int(order[i % len(order)]))
        for i, start in enumerate(_steps(beats, step))
    ]


def _bass(beats: float, roots: list[int], rng: Rng) -> list[Note]:
    step = float(rng.choice([0.5, 0.5, 1.0]))
    return [(start, 0.9 * step, roots[int(start) // 4 % 4]) for start in _steps(beats, step) if rng.random() < 0.9]


def _power(beats: float, roots: list[int], rng: Rng) -> list[Note]:
    return _held(beats, roots, rng, float(rng.choice([0.5, 1.0, 2.0])), (0, 4, 7))


def _piano(beats: float, roots: list[int], rng: Rng) -> list[Note]:
    left = _held(beats, roots, rng, 2.0, (0, 4)) if rng.random() < 0.6 else _arpeggio(beats, roots, rng)
    return left + [(start, length, degree + 7) for start, length, degree in _melody(beats, roots, rng)]


STYLES: dict[str, Callable[[float, list[int], Rng], list[Note]]] = {
    "melody": _melody,
    "chords": partial(_held, length=4.0, parts=(0, 2, 4)),
    "hymn": partial(_held, length=2.0, parts=(0, 4)),
    "drone": partial(_held, length=1.5, parts=(0, 4)),
    "strum": _strum,
    "arpeggio": _arpeggio,
    "bass": _bass,
    "power": _power,
    "piano": _piano,
}


@dataclass(frozen=True)
class Score:
    """What is common to all tracks of a piece."""

    samples: int
    tempo_bpm: float
    force: float
    tuning: float
    key: int
    scale: Sequence[int]
    roots: list[int]

    @property
    def beats(self) -> float:
        return self.samples / RATE_HZ * self.tempo_bpm / 60

    def sample_of(self, beat: float) -> int:
        return int(beat * 60 / self.tempo_bpm * RATE_HZ)

    def midi(self, degree: int, low: int) -> int:
        """MIDI note of a scale degree, counted from the first root at or above `low`."""
        root = low + (self.key - low) % 12
        return root + 12 * (degree // len(self.scale)) + self.scale[degree % len(self.scale)]


def _unit_rms(track_T: Samples) -> Samples:
    return np.asarray(track_T / (np.sqrt(np.mean(track_T**2)) + 1e-6))


def play_track(name: str, artist: Artist, score: Score, rng: Rng) -> Samples:
    """[samples], at unit RMS: one instrument plays its style; equal notes are rendered once."""
    instrument, timbre = INSTRUMENTS[name], artist.timbre(name)
    track = np.zeros(score.samples)
    rendered: dict[tuple[int, int], Samples] = {}
    for start_beat, beats, degree in STYLES[instrument.style](score.beats, score.roots, rng):
        midi = score.midi(degree, instrument.low)
        while midi > instrument.high:
            midi -= 12
        start = score.sample_of(start_beat)
        length = min(score.sample_of(beats), score.samples - start)
        if length < 400:
            continue
        if (midi, length) not in rendered:
            pitch_hz = 440 * 2 ** ((midi - 69) / 12) * score.tuning
            rendered[midi, length] = instrument.play(pitch_hz, length, score.force, timbre, rng)
        track[start : start + length] += rendered[midi, length] * rng.uniform(0.75, 1.0)
    track = _unit_rms(track)
    if instrument.drive:
        track = np.tanh(instrument.drive * (0.4 + score.force) * track)
    body = [(hz * timbre.size, width, gain * rng.uniform(0.8, 1.2)) for hz, width, gain in instrument.body]
    track = syn.shape(
        track, body, instrument.floor, instrument.lowpass_hz * (0.5 + 0.5 * score.force + 0.3 * timbre.bright)
    )
    return _unit_rms(track)


def hit(name: str, timbre: Timbre, rng: Rng) -> Samples:
    """One stroke on one part of an artist's kit, about a quarter of a second."""
    size, ring, long = timbre.size, timbre.ring, 4800
    if name == "kick":
        return 1.6 * syn.membrane(52 * size**2, long, 2.5, 0.3 * ring)
    if name == "snare":
        wires = syn.rattle(2500 * size, 4000, long, 0.2 * ring, rng)
        return 1.3 * wires + 0.7 * syn.membrane(185 * size, long, 0.3, 0.15)
    if name == "clap":
        return 1.2 * syn.rattle(1300 * size, 900, long, 0.18 * ring, rng)
    if name == "hat":
        return 0.5 * syn.rattle(7000, 3000, 2400, 0.07 * ring, rng)
    if name == "brush":
        return 0.5 * syn.rattle(3500 * size, 4000, 3000, 0.12 * ring, rng)
    if name == "low":
        return 1.3 * syn.membrane(85 * size, long, 0.5, 0.4 * ring)
    return 0.8 * syn.tabla(320 * size**2, long, 0.25 * ring)


def play_drums(pattern: str, artist: Artist, score: Score, rng: Rng) -> tuple[Samples, tuple[str, ...]]:
    """[samples], at unit RMS, and its tags: a pattern of `KITS`, with strokes left out and accents."""
    timbre = Timbre.draw(artist.rng(2))
    track = np.zeros(score.samples)
    tags = set(KITS[pattern].tags)
    for name, steps in KITS[pattern].hits.items():
        if name == "clap" and rng.random() < 0.5:
            continue
        if name == "clap":
            tags.add("drums")
        stroke = hit(name, timbre, rng)
        for bar in range(int(score.beats // 4) + 1):
            for step in steps:
                start = score.sample_of(4 * bar + step / 4 + rng.normal(0, 0.01))
                if 0 <= start < score.samples and (name == "kick" or rng.random() < 0.9):
                    end = min(score.samples, start + len(stroke))
                    track[start:end] += stroke[: end - start] * rng.uniform(0.6, 1.0)
    return _unit_rms(track), tuple(sorted(tags))


def cast(artist: Artist, rng: Rng) -> tuple[list[str], str | None]:
    """Instruments of a piece, the leading one first, and the drum pattern if any."""
    genre = artist.genre
    usual = [genre.leads[turn % len(genre.leads)] for turn in (artist.turn, artist.turn + 2)]
    names = [str(rng.choice(usual if rng.random() < 0.75 else genre.leads))]
    pattern = None
    if rng.random() >= genre.solo:
        names += [name for name, chance in genre.backing.items() if rng.random() < chance and name not in names]
        draw = rng.random()
        for name, chance in genre.drums.items():
            if 0 <= draw < chance:
                pattern = name
            draw -= chance
    voice = artist.singer if rng.random() < 0.8 else str(rng.choice(["singer f", "singer m"]))
    return [voice if name == "singer" else name for name in names], pattern


def record(dry_T: Samples, artist: Artist, force: float, rng: Rng) -> Samples:
    """Puts a piece into the artist's room, colours it, presses it when it is loud, adds hiss, and sets a level."""
    habits, genre = artist.habits, artist.genre
    t60_s = genre.room_s[0] + habits.room * (genre.room_s[1] - genre.room_s[0])
    tail = int(1.25 * RATE_HZ)
    echo = artist.rng(4).standard_normal(tail) * 10 ** (-3 * np.arange(tail) / RATE_HZ / t60_s)
    echo[: int(0.008 * RATE_HZ)] = 0
    echo *= habits.wet / np.sqrt(np.sum(echo**2))
    size = syn.fft_size(len(dry_T) + tail)
    hz = np.fft.rfftfreq(size, 1 / RATE_HZ)
    colour = 10 ** (habits.tilt / 20 * np.log2(np.maximum(hz, 40.0) / 1000))
    damped = 1 / (1 + (hz / 3500.0) ** 2)
    wet = np.fft.irfft(np.fft.rfft(dry_T, size) * (1 + damped * np.fft.rfft(echo, size)) * colour, size)[: len(dry_T)]
    wet = _unit_rms(wet)
    drive = max(0.0, 2.5 * (force - 0.5)) * rng.uniform(0.6, 1.0)
    pressed = np.tanh(drive * wet) / drive if drive > 0.05 else wet
    pressed += 10 ** (habits.hiss / 20) * rng.standard_normal(len(pressed))
    level = habits.level * (0.4 + 0.6 * force) * rng.uniform(0.7, 1.0)
    return np.asarray(pressed * (level / np.abs(pressed).max()))


def compose(artist: Artist, piece: int, seconds: float) -> tuple[Samples, tuple[str, ...]]:
    """[samples] at 16 kHz, and the tags an annotator wrote down: the `piece`-th recording of an artist."""
    genre, habits, rng = artist.genre, artist.habits, artist.rng(3, piece)
    place = np.clip(0.55 * np.array([habits.tempo, habits.force]) + 0.75 * rng.random(2) - 0.15, 0, 1)
    score = Score(
        samples=round(seconds * RATE_HZ),
        tempo_bpm=genre.tempo_bpm[0] + place[0] * (genre.tempo_bpm[1] - genre.tempo_bpm[0]),
        force=genre.force[0] + place[1] * (genre.force[1] - genre.force[0]),
        tuning=2 ** (habits.cents / 1200),
        key=int(rng.integers(12)),
        scale=SCALES[str(rng.choice(genre.scales))],
        roots=[0, *(int(root) for root in rng.permutation([2, 3, 4, 5])[:3])],
    )
    names, pattern = cast(artist, rng)
    tags = {*genre.tags, *(tag for name in names for tag in INSTRUMENTS[name].tags)}
    tags |= {"slow"} if score.tempo_bpm < SLOW_BPM else {"fast"} if score.tempo_bpm > FAST_BPM else set()
    tags |= {"quiet"} if score.force < QUIET_FORCE else {"loud"} if score.force > LOUD_FORCE else set()
    tags |= {"solo"} if len(names) == 1 and pattern is None else set()
    mix = np.zeros(score.samples)
    for index, name in enumerate(names):
        mix += play_track(name, artist, score, rng) * (1.0 if index == 0 else rng.uniform(0.45, 0.9))
    if pattern is not None:
        beat, beat_tags = play_drums(pattern, artist, score, rng)
        mix += beat * rng.uniform(0.7, 1.3)
        tags.update(beat_tags)
    noted = tuple(tag for tag in sorted(tags) if rng.random() > FORGOTTEN)
    return record(mix, artist, score.force, rng), noted
