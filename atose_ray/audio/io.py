"""Decoding: an encoded file, or part of one, to mono float32 at the rate that is asked for; and int16 for storage.

However long the file: it is read in blocks (streams.py), resampled as they come (resample.py), and given in pieces.
"""

import contextlib
import io
from collections.abc import Generator, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import soundfile

from atose_ray.audio.guard import AudioError as AudioError
from atose_ray.audio.guard import open_source
from atose_ray.audio.part import Part
from atose_ray.audio.resample import Resampler
from atose_ray.audio.streams import BLOCK_SAMPLES, HIGHEST_HZ, LOWEST_HZ, Block, Refused, decoders

INT16_PEAK = 32767
TOLERANCE_SAMPLES = 4 * 1152  # four MP3 frames: encoder delay and padding that a header may or may not count
SILENT_PEAK = 1e-12  # -240 dB: below it a clip is stored as silence
CLIPPED_LEVEL, CLIPPED_RUN = 0.999, 3  # this many samples in a row, this loud, are a peak that was cut off


class Decoded(NamedTuple):
    """audio_T: mono float32 in [-1, 1] at the rate asked for, which begins `start_s` seconds into the file. The rest is
    of the file before mixing and resampling: its rate, its channels, and, of what became audio_T, the highest magnitude
    and the share of samples that are clipped."""

    audio_T: np.ndarray
    source_rate_hz: int
    channels: int
    source_peak: float
    clipped: float
    start_s: float = 0.0


class Samples(NamedTuple):
    """A sound that is decoded already: audio_TC [T, C] float32."""

    audio_TC: np.ndarray
    rate_hz: int

    def blocks(self) -> Iterator[Block]:
        """As a decoder gives them. Raises AudioError for a rate that no recording has."""
        if not LOWEST_HZ <= self.rate_hz <= HIGHEST_HZ:
            raise AudioError(f"samples at {self.rate_hz} Hz, where {LOWEST_HZ} to {HIGHEST_HZ} Hz are plausible")
        for at in range(0, len(self.audio_TC), BLOCK_SAMPLES):
            yield Block(self.audio_TC[at : at + BLOCK_SAMPLES], self.rate_hz, len(self.audio_TC))


Source = str | bytes | BinaryIO | Samples


def decode(
    source: str | bytes | BinaryIO,
    *,
    sample_rate_hz: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    name: str | None = None,
) -> Decoded:
    """Path, encoded bytes or open file -> mono [T] float32 in [-1, 1], resampled (windowed sinc) to `sample_rate_hz`.

    start_s, end_s: the part to read, in seconds of the file; `end_s=None` is its end. Mono is the mean of the channels.
    name: the file's name in messages. An open file must seek; it is read from its beginning, and stays open.
    Raises AudioError for a file that is missing, empty, no audio, damaged, cut off or not finite, and for a part
    that lies outside the file; and what an open file raises. A silent file is no error."""
    [piece] = decode_parts(source, sample_rate_hz=sample_rate_hz, start_s=start_s, end_s=end_s, name=name)
    return piece


def decode_parts(
    source: Source,
    *,
    sample_rate_hz: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    max_seconds: float | None = None,
    name: str | None = None,
) -> Iterator[Decoded]:
    """As `decode`, but the part [start_s, end_s), of samples the whole, in consecutive pieces of at most `max_seconds`
    (None: in one).

    Piece k is the samples [k n, (k + 1) n) of what `decode` gives, n = round(max_seconds * sample_rate_hz); the last
    one is what is left, one sample or more. In memory are a piece and some blocks of the source (streams.py), not more.
    Raises as `decode`, perhaps after some pieces: a file that is found damaged at its end makes no good pieces, so
    whoever collects them drops them. Raises ValueError for a `max_seconds` below one sample."""
    size = None if max_seconds is None else round(max_seconds * sample_rate_hz)
    if size is not None and size < 1:
        raise ValueError(f"max_seconds must be at least one sample ({1 / sample_rate_hz:g} s), but is {max_seconds:g}")
    if isinstance(source, Samples):
        assert start_s == 0 and end_s is None, "a part of samples is a slice of them"
        yield from _pieces(source.blocks(), Part(name or "samples", 0.0, None), sample_rate_hz, size)
        return
    with open_source(source, name) as file:
        part = Part(file.label, start_s, end_s)
        part.check()
        given, reasons = 0, []
        for decoder in decoders(file):
            try:
                with (
                    contextlib.closing(decoder(part)) as blocks,
                    contextlib.closing(_pieces(blocks, part, sample_rate_hz, size)) as pieces,
                ):
                    for index, piece in enumerate(pieces):
                        if index == given:  # what an earlier decoder gave before it gave up is not given again
                            given += 1
                            yield piece
                return
            except Refused as reason:
                reasons.append(str(reason))
        why = "; ".join(reasons)
        raise AudioError(f"{file.label}: cannot be decoded ({why}): damaged, or not audio; fetch it again")


def _pieces(
    blocks: Iterator[Block], part: Part, sample_rate_hz: int, size: int | None
) -> Generator[Decoded, None, None]:
    """The blocks of a part, mixed, resampled and cut. Raises AudioError for what only the end shows: cut off, no
    samples, not finite; by then all pieces but the last are given."""
    cutter, broken_at = None, None
    got = broken = expected = rate_hz = 0
    for block in blocks:
        audio_TC, rate_hz, expected = block
        cutter = cutter or _Cutter(part.start_s, rate_hz, audio_TC.shape[1], sample_rate_hz, size)
        if not (np.isfinite(audio_TC.max(initial=0)) and np.isfinite(audio_TC.min(initial=0))):  # NaN gets through both
            finite_T = np.isfinite(audio_TC).all(axis=1)
            broken_at = got + int(finite_T.argmin()) if broken_at is None else broken_at
            broken += len(finite_T) - int(finite_T.sum())
        got += len(audio_TC)
        if broken_at is None:  # what follows is only counted
            yield from cutter.add(audio_TC)
    if got < expected - TOLERANCE_SAMPLES:
        raise AudioError(
            f"{part.name}: decodes to {got / rate_hz:.2f} s where its header declares {expected / rate_hz:.2f} s: "
            "the file is cut off; fetch it again"
        )
    if got == 0 or cutter is None:
        raise AudioError(f"{part.name}: holds no samples; fetch or record it again, or leave it out")
    if broken_at is not None:
        raise AudioError(
            f"{part.name}: {broken} of {got} samples are NaN or infinite, the first one at "
            f"{part.start_s + broken_at / rate_hz:.3f} s; export the file again"
        )
    yield from cutter.finish()


class _Cutter:
    """Blocks of the source -> pieces of `size` samples at the rate asked for, the last one kept until `finish`."""

    def __init__(self, start_s: float, rate_hz: int, channels: int, sample_rate_hz: int, size: int | None) -> None:
        self._start_s, self._rate_hz, self._channels = start_s, rate_hz, channels
        self._target_hz, self._size = sample_rate_hz, size
        self._resampler = Resampler(rate_hz, sample_rate_hz)
        self._waiting: list[np.ndarray] = []
        self._given = self._read = 0  # pieces, samples of the source
        self._levels = [_Levels()]  # of the pieces that are not given yet

    def add(self, audio_TC: np.ndarray) -> Iterator[Decoded]:
        """The pieces that this block completes."""
        self._measure(audio_TC)
        self._waiting.append(self._resampler.push(_mixed(audio_TC)))
        if self._size is not None and sum(map(len, self._waiting)) > self._size:
            yield from self._cut(keep=1)

    def finish(self) -> Iterator[Decoded]:
        """The pieces that are left."""
        self._waiting.append(self._resampler.finish())
        yield from self._cut(keep=0)

    def _cut(self, keep: int) -> Iterator[Decoded]:
        """Pieces off what waits, until at most `size` samples, or none, are left."""
        ready_T = np.concatenate(self._waiting)
        size = self._size or len(ready_T)
        at = 0
        while len(ready_T) - at > (size if keep else 0):
            start_s = self._start_s + self._given * size / self._target_hz
            levels = self._levels.pop(0) if self._levels else _Levels()
            audio_T = ready_T[at : at + size].clip(-1.0, 1.0)
            at += size
            self._given += 1
            yield Decoded(audio_T, self._rate_hz, self._channels, levels.peak, levels.clipped, start_s)
        self._waiting = [ready_T[at:].copy()]

    def _measure(self, audio_TC: np.ndarray) -> None:
        """Add a block's samples to the levels of the pieces in whose time they lie."""
        while len(audio_TC):
            here = len(audio_TC)
            if self._size is not None:
                piece = self._given + len(self._levels)  # the one that begins where the last of the levels ends
                end = (2 * piece * self._size * self._rate_hz + self._target_hz) // (2 * self._target_hz)
                here = min(here, end - self._read)
            self._levels[-1].add(audio_TC[:here])
            audio_TC = audio_TC[here:]
            self._read += here
            if len(audio_TC):
                self._levels.append(_Levels())


def _mixed(audio_TC: np.ndarray) -> np.ndarray:
    """[T, C] -> [T]: the mean of the channels; of one and two the same bits as numpy's, several times faster."""
    if audio_TC.shape[1] > 2:
        return np.asarray(audio_TC.mean(axis=1, dtype=np.float32))
    return audio_TC[:, 0] if audio_TC.shape[1] == 1 else (audio_TC[:, 0] + audio_TC[:, 1]) / 2


class _Levels:
    """Peak and clipped share of [T, C] samples that come in blocks: as of the whole."""

    def __init__(self) -> None:
        self.peak, self._samples, self._clipped = 0.0, 0, 0
        self._last_TC = np.zeros((CLIPPED_RUN, 1), bool)  # which of the last samples are at the limit

    @property
    def clipped(self) -> float:
        """Share of the samples in runs of CLIPPED_RUN or more whose magnitude is at least CLIPPED_LEVEL."""
        return self._clipped / max(self._samples, 1)

    def add(self, audio_TC: np.ndarray) -> None:
        """One more block, not empty."""
        peak = float(max(audio_TC.max(), -audio_TC.min()))
        self.peak = max(self.peak, peak)
        self._samples += audio_TC.size
        if peak < CLIPPED_LEVEL:
            self._last_TC = np.zeros((CLIPPED_RUN, 1), bool)
            return
        before_TC = np.broadcast_to(self._last_TC, (CLIPPED_RUN, audio_TC.shape[1]))
        full_TC = np.concatenate([before_TC, np.abs(audio_TC) >= CLIPPED_LEVEL])
        ends_TC = np.logical_and.reduce([full_TC[k : k + len(audio_TC) + 1] for k in range(CLIPPED_RUN)])
        begun_TC = ends_TC[1:] & ~ends_TC[:-1]  # a run is as long now as counts: so do the samples before
        self._clipped += int(ends_TC[1:].sum()) + (CLIPPED_RUN - 1) * int(begun_TC.sum())
        self._last_TC = full_TC[-CLIPPED_RUN:]


def clipped_share(audio_TC: np.ndarray) -> float:
    """Share of the samples in runs of CLIPPED_RUN or more whose magnitude is at least CLIPPED_LEVEL."""
    levels = _Levels()
    if len(audio_TC):
        levels.add(audio_TC)
    return levels.clipped


def to_pcm16(audio_T: np.ndarray, peak_normalize: bool) -> tuple[np.ndarray, float]:
    """[T] float -> ([T] int16, scale) such that `pcm_T.astype(float32) * scale` is the audio.

    The clip's own peak fills the int16 range, so a quiet clip keeps 15 bits; scale = peak / 32767. With
    `peak_normalize` the scale is 1 / 32767, so what is read back peaks at 1. Silence gives zeros and 1 / 32767.
    Raises AudioError for samples that are not finite."""
    peak = float(np.abs(audio_T).max(initial=0.0))
    if not np.isfinite(peak):
        raise AudioError("audio must be finite to be stored as int16, but it holds NaN or infinity")
    if peak < SILENT_PEAK:
        return np.zeros(len(audio_T), np.int16), 1 / INT16_PEAK
    pcm_T = np.rint(audio_T.astype(np.float64) * (INT16_PEAK / peak)).astype(np.int16)
    return pcm_T, 1 / INT16_PEAK if peak_normalize else peak / INT16_PEAK


def wav_of(pcm_T: np.ndarray, rate_hz: int) -> bytes:
    """[T] int16 -> a mono WAV file."""
    content = io.BytesIO()
    soundfile.write(content, pcm_T.astype(np.int16, copy=False), rate_hz, format="WAV", subtype="PCM_16")
    return content.getvalue()
