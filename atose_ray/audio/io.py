"""Decoding: an encoded file, or part of one, to mono float32 at the rate that is asked for; and int16 for storage.

soundfile (libsndfile) reads wav, flac, ogg and mp3, and seeks in all of them; PyAV (FFmpeg) reads what is left: m4a,
aac, webm. Neither reports a file that was cut off, so what was decoded is held against what the header declares. An
MP3 that declares no length (no Xing, Info or VBRI tag) goes to PyAV at once: libsndfile estimates its length from the
first frame's bit rate, and silently stops there, which for variable bit rates may be after a sixth of the file.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import av
import numpy as np
import soundfile
import torch
import torchaudio

INT16_PEAK = 32767
TOLERANCE_SAMPLES = 4 * 1152  # four MP3 frames: encoder delay and padding that a header may or may not count
TOLERANCE_S = 0.1  # annotations are rounded: an end may lie this far behind the file's end
PREROLL_S = 2  # an MP3 frame borrows bits from earlier ones: what follows a seek is wrong (measured: up to 0.5 s)
SILENT_PEAK = 1e-12  # -240 dB: below it a clip is stored as silence
CLIPPED_LEVEL, CLIPPED_RUN = 0.999, 3  # this many samples in a row, this loud, are a peak that was cut off

_RECEIVED_INSTEAD = {
    b"<!doctype html": "is an HTML page, not audio: the download probably failed; fetch it again",
    b"<html": "is an HTML page, not audio: the download probably failed; fetch it again",
    b"<?xml": "is an XML document, not audio: the download probably failed; fetch it again",
    b"version https://git-lfs": "is a Git LFS pointer, not audio: run `git lfs pull` in its repository",
}
_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")
_CONTAINERS_THAT_DECLARE = (
    "mov",
    "matroska",
    "flac",
    "mp3",
)  # PyAV guesses the duration of the others from their bit rate
_STREAMED_WAV_BYTES = 0x7FFF0000  # a WAV written to a pipe declares a placeholder at least this large


class AudioError(ValueError):
    """A file that cannot become audio; the message names the file, what came, and the way out."""


class Decoded(NamedTuple):
    """audio_T: mono float32 in [-1, 1] at the rate asked for. The rest is of the file before mixing and resampling:
    its rate, its channels, its highest magnitude, and the share of its samples that are clipped."""

    audio_T: np.ndarray
    source_rate_hz: int
    channels: int
    source_peak: float
    clipped: float


class _Samples(NamedTuple):
    """What a decoder gave: `expected` samples per channel were declared for the part that was read."""

    audio_TC: np.ndarray
    rate_hz: int
    expected: int


class _Refused(Exception):
    """One decoder cannot read the file; the next one may."""


Window = Callable[[int, int], tuple[int, int]]  # (samples in the file, rate_hz) -> first sample, last sample + 1


def decode(source: str | bytes, *, sample_rate_hz: int, start_s: float = 0.0, end_s: float | None = None) -> Decoded:
    """Path or encoded bytes -> mono [T] float32 in [-1, 1], resampled (windowed sinc) to `sample_rate_hz`.

    start_s, end_s: the part to read, in seconds of the file; `end_s=None` is its end. Mono is the mean of the channels.
    Raises AudioError for a file that is missing, empty, no audio, damaged, cut off or not finite, and for a part
    that lies outside the file. A silent file is no error.
    """
    name = f"<{len(source)} bytes>" if isinstance(source, bytes) else source
    with _open(source, name) as file:
        samples = _read(file, name, lambda total, rate_hz: _window(total, rate_hz, start_s, end_s, name))
    got, rate_hz = len(samples.audio_TC), samples.rate_hz
    if got < samples.expected - TOLERANCE_SAMPLES:
        raise AudioError(
            f"{name}: decodes to {got / rate_hz:.2f} s where its header declares {samples.expected / rate_hz:.2f} s: "
            "the file is cut off; fetch it again"
        )
    if got == 0:
        raise AudioError(f"{name}: holds no samples; fetch or record it again, or leave it out")
    finite_T = np.isfinite(samples.audio_TC).all(axis=1)
    if not finite_T.all():
        at = int(finite_T.argmin())
        raise AudioError(
            f"{name}: {got - int(finite_T.sum())} of {got} samples are NaN or infinite, the first one at "
            f"{start_s + at / rate_hz:.3f} s; export the file again"
        )
    audio_TC = samples.audio_TC
    mono_T = torch.from_numpy(audio_TC.mean(axis=1, dtype=np.float32))
    if rate_hz != sample_rate_hz:
        mono_T = torchaudio.functional.resample(mono_T, rate_hz, sample_rate_hz)
    peak = float(max(audio_TC.max(), -audio_TC.min()))
    clipped = clipped_share(audio_TC) if peak >= CLIPPED_LEVEL else 0.0
    return Decoded(mono_T.clamp(-1.0, 1.0).numpy(), rate_hz, audio_TC.shape[1], peak, clipped)


def clipped_share(audio_TC: np.ndarray) -> float:
    """Share of the samples in runs of CLIPPED_RUN or more whose magnitude is at least CLIPPED_LEVEL."""
    full_TC = np.abs(audio_TC) >= CLIPPED_LEVEL
    if len(full_TC) < CLIPPED_RUN:
        return 0.0
    count = len(full_TC) - CLIPPED_RUN + 1
    starts_TC = np.logical_and.reduce([full_TC[k : k + count] for k in range(CLIPPED_RUN)])
    in_run_TC = np.zeros_like(full_TC)
    for k in range(CLIPPED_RUN):
        in_run_TC[k : k + count] |= starts_TC
    return float(in_run_TC.mean())


def to_pcm16(audio_T: np.ndarray, peak_normalize: bool) -> tuple[np.ndarray, float]:
    """[T] float -> ([T] int16, scale) such that `pcm_T.astype(float32) * scale` is the audio.

    The clip's own peak fills the int16 range, so a quiet clip keeps 15 bits; scale = peak / 32767. With
    `peak_normalize` the scale is 1 / 32767, so what is read back peaks at 1. Silence gives zeros and 1 / 32767.
    Raises AudioError for samples that are not finite.
    """
    peak = float(np.abs(audio_T).max(initial=0.0))
    if not np.isfinite(peak):
        raise AudioError("audio must be finite to be stored as int16, but it holds NaN or infinity")
    if peak < SILENT_PEAK:
        return np.zeros(len(audio_T), np.int16), 1 / INT16_PEAK
    pcm_T = np.rint(audio_T.astype(np.float64) * (INT16_PEAK / peak)).astype(np.int16)
    return pcm_T, 1 / INT16_PEAK if peak_normalize else peak / INT16_PEAK


@contextlib.contextmanager
def _open(source: str | bytes, name: str) -> Iterator[BinaryIO]:
    """The source as a readable file. Raises AudioError when there is nothing to read."""
    if isinstance(source, str) and not Path(source).is_file():
        why = "is a directory, not a file" if Path(source).is_dir() else "no such file"
        raise AudioError(f"{name}: {why}; check the path, or fetch the file")
    if (len(source) if isinstance(source, bytes) else Path(source).stat().st_size) == 0:
        raise AudioError(f"{name}: is empty (0 bytes): the download probably failed; fetch it again")
    # Opened without a name: soundfile would believe a name that ends in .raw more than the content.
    with io.BytesIO(source) if isinstance(source, bytes) else open(os.open(source, os.O_RDONLY), "rb") as file:
        yield file


def _window(total: int, rate_hz: int, start_s: float, end_s: float | None, name: str) -> tuple[int, int]:
    """First sample and last sample + 1 of the part. Raises AudioError when it is not inside the file."""
    if total == 0:
        raise AudioError(f"{name}: holds no samples; fetch or record it again, or leave it out")
    seconds = total / rate_hz
    part = f"from {start_s:g} s to {'its end' if end_s is None else f'{end_s:g} s'}"
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise AudioError(f"{name}: a part must have 0 <= start_s < end_s, but it goes {part}; correct the annotation")
    if start_s >= seconds or (end_s is not None and end_s > seconds + TOLERANCE_S):
        raise AudioError(
            f"{name}: the part {part} was asked for, but the file is {seconds:.2f} s long; "
            "correct the annotation, or fetch the whole file"
        )
    first, last = round(start_s * rate_hz), total if end_s is None else min(round(end_s * rate_hz), total)
    if last <= first:
        raise AudioError(f"{name}: the part {part} is shorter than one sample at {rate_hz} Hz; correct the annotation")
    return first, last


def _read(file: BinaryIO, name: str, window: Window) -> _Samples:
    """The samples of a part, from the first decoder that can read the file."""
    head = file.read(4096)
    for magic, message in _RECEIVED_INSTEAD.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(magic):
            raise AudioError(f"{name}: {message}")
    tagless = _is_mp3_without_length(file, head)
    noisy = not head.startswith((b"RIFF", b"fLaC", b"OggS"))
    reasons = []
    by_av = functools.partial(_read_av, declares=not tagless)
    for read in (by_av,) if tagless else (_read_soundfile, by_av):
        file.seek(0)
        try:
            with _silent_stderr() if noisy else contextlib.nullcontext():
                return read(file, window)
        except _Refused as reason:
            reasons.append(str(reason))
    raise AudioError(f"{name}: cannot be decoded ({'; '.join(reasons)}): damaged, or not audio; fetch it again")


def _is_mp3_without_length(file: BinaryIO, head: bytes) -> bool:
    """True for an MP3 in whose first frame, behind any ID3v2 tag, no encoder wrote the number of frames."""
    if head.startswith(b"ID3") and len(head) >= 10:
        id3_bytes = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(id3_bytes)
        head = file.read(4096)
    elif not (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06):
        return False
    return not any(tag in head for tag in _LENGTH_TAGS)


def _read_soundfile(file: BinaryIO, window: Window) -> _Samples:
    try:
        with soundfile.SoundFile(file) as opened:
            rate_hz = int(opened.samplerate)
            first, last = window(int(opened.frames), rate_hz)
            run_up = min(first, PREROLL_S * rate_hz)
            opened.seek(first - run_up)
            audio_TC = opened.read(last - first + run_up, dtype="float32", always_2d=True)[run_up:]
            lost = _lost_wav_samples(opened) if last == opened.frames else 0
    except soundfile.LibsndfileError as error:
        raise _Refused(f"libsndfile: {error.error_string}") from error
    return _Samples(audio_TC, rate_hz, last - first + lost)


def _lost_wav_samples(opened: soundfile.SoundFile) -> int:
    """Samples that a WAV's data chunk declares and the file does not hold; libsndfile notes them only in its log."""
    for line in str(opened.extra_info).splitlines():
        words = line.replace("(", " ").replace(")", " ").split()
        if words[:2] == ["data", ":"] and words[3:5] == ["should", "be"] and int(words[2]) < _STREAMED_WAV_BYTES:
            held, declared = int(words[5]), int(words[2])
            return round(int(opened.frames) * (declared / max(held, 1) - 1))
    return 0


def _read_av(file: BinaryIO, window: Window, declares: bool) -> _Samples:
    """declares: the file's own word about its length can be trusted, where its container has one."""
    try:
        with av.open(file, metadata_errors="ignore") as container:
            if not container.streams.audio:
                raise _Refused("FFmpeg: it has no audio stream")
            stream = container.streams.audio[0]
            rate_hz = int(stream.rate)
            declared = _declared_samples(container, stream) if declares else 0
            planar = av.AudioResampler(format="fltp")
            parts = [part.to_ndarray() for frame in container.decode(stream) for part in planar.resample(frame)]
    except av.FFmpegError as error:
        raise _Refused(f"FFmpeg: {error.strerror or error}") from error
    audio_TC = np.concatenate(parts, axis=1).T if parts else np.zeros((0, 1), np.float32)
    total = max(len(audio_TC), declared)
    first, last = window(total, rate_hz)
    return _Samples(np.ascontiguousarray(audio_TC[first:last]), rate_hz, last - first)


def _declared_samples(container: av.container.InputContainer, stream: av.AudioStream) -> int:
    """Samples that the container declares for its audio, or 0 where it declares none."""
    if not container.format.name.startswith(_CONTAINERS_THAT_DECLARE):
        return 0
    if stream.duration is not None:
        return int(stream.duration * stream.time_base * stream.rate)
    if container.duration is not None and len(container.streams) == 1:
        return int(container.duration * stream.rate / av.time_base)
    return 0


_stderr_lock = threading.Lock()
_stderr_users = 0
_stderr_kept: int | None = None


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """File descriptor 2 leads nowhere meanwhile: libmpg123 prints its warnings there, past Python.

    Threads share one redirection: the first in makes it, the last out undoes it, so they may decode at a time.
    """
    global _stderr_users, _stderr_kept
    with _stderr_lock:
        _stderr_users += 1
        if _stderr_users == 1:
            _stderr_kept = _redirect_stderr()
    try:
        yield
    finally:
        with _stderr_lock:
            _stderr_users -= 1
            if _stderr_users == 0 and _stderr_kept is not None:
                os.dup2(_stderr_kept, 2)
                os.close(_stderr_kept)
                _stderr_kept = None


def _redirect_stderr() -> int | None:
    """Point file descriptor 2 at the null device; returns a copy of what it was, None where it was closed."""
    try:
        kept = os.dup(2)
    except OSError:
        return None
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return kept
