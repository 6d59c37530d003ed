"""Decoders as streams of blocks: an encoded file in, a part of its samples out, never more than a block in memory.

soundfile (libsndfile) reads wav, flac, ogg and mp3, and seeks in all of them; PyAV (FFmpeg) reads what is left: m4a,
aac, webm. Neither reports a file that was cut off, so the last block says how many samples were declared. An MP3 that
declares no length (no Xing, Info or VBRI tag) goes to PyAV at once: libsndfile estimates its length from the first
frame's bit rate, and silently stops there, which for variable bit rates may be after a sixth of the file.

Where PyAV is not installed, what needs it is refused by name, and everything else is read.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import soundfile

from atose_ray.audio.guard import AudioError, GuardedFile, silent_stderr
from atose_ray.audio.part import LONGEST_S, Part
from atose_ray.types import package_yaml

try:
    import av
except ModuleNotFoundError:  # a machine with PyTorch and little else; the package declares it
    av = None

BLOCK_SAMPLES, BLOCK_VALUES = 1 << 20, 1 << 21  # per channel (24 s at 44.1 kHz), and of all channels together
LOWEST_HZ, HIGHEST_HZ, MOST_CHANNELS = 1000, 768_000, 256
PLANES_OF_PYAV = 8  # PyAV looks for the plane behind the last one, and with eight there is none: memory fault
MP3_IN_MEMORY = 1 << 25  # bytes of a file that is read whole: half an hour and more
PREROLL_S = 2  # an MP3 frame borrows bits from earlier ones: what follows a seek is wrong (measured: up to 0.5 s)

_MAY_OPEN = package_yaml(__package__, "formats.yaml")
_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")
_UNKNOWN_LENGTH = 1 << 62
_STREAMED_WAV_BYTES = 0x7FFF0000  # a WAV written to a pipe declares a placeholder at least this large
_SHORTENED = re.compile(r"^ *(?:data|SSND|Data Size) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_DECLARED_64 = {"RF64": re.compile(r"^ *Data size : (\d+)", re.M), "W64": re.compile(r"^data : (\d+)", re.M)}
_SAMPLE_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}

_ONLY_AUDIO = {
    "format_whitelist": _MAY_OPEN["formats"].replace(" ", ","),
    "codec_whitelist": _MAY_OPEN["codecs"].replace(" ", ","),
    "protocol_whitelist": "none",
}
# PyAV guesses the duration of the others from their bit rate
_CONTAINERS_THAT_DECLARE = ("mov", "matroska", "flac", "mp3")


class Refused(Exception):
    """One decoder cannot read the file; the next one may."""


class Block(NamedTuple):
    """Consecutive samples [T, C] of the part. expected: how many the whole part must have; known in the last block."""

    audio_TC: np.ndarray
    rate_hz: int
    expected: int


Blocks = Generator[Block, None, None]
Decoder = Callable[[Part], Blocks]


def decoders(file: GuardedFile) -> list[Decoder]:
    """The decoders to try, best first, by the file's content. Each gives one block or more, or raises Refused. Raises
    AudioError for what is known to be no audio."""
    head = file.read(4096)
    for magic, message in _MAY_OPEN["received_instead"].items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(magic.encode()):
            raise AudioError(f"{file.label}: {message}")
    tagless = _is_mp3_without_length(file, head)
    by_av = functools.partial(_av_blocks, file, declares=not tagless)
    in_turn: list[Decoder] = [by_av] if tagless else [functools.partial(_soundfile_blocks, file), by_av]
    noisy = not head.startswith((b"RIFF", b"fLaC", b"OggS"))
    return [functools.partial(_guarded, file, decoder, noisy) for decoder in in_turn]


def _guarded(file: GuardedFile, decoder: Decoder, noisy: bool, part: Part) -> Blocks:
    """The decoder's blocks from the start of the file; what reading the file raised goes before what became of it."""
    file.seek(0)
    quiet = silent_stderr if noisy else contextlib.nullcontext
    with contextlib.closing(decoder(part)) as blocks:
        while True:
            try:
                with quiet():
                    block = next(blocks, None)
            except Refused:
                file.check()
                raise
            file.check()
            if block is None:
                return
            yield block


def _is_mp3_without_length(file: GuardedFile, head: bytes) -> bool:
    """True for an MP3 in whose first frame, behind any ID3v2 tag, no encoder wrote the number of frames."""
    if head.startswith(b"ID3") and len(head) >= 10:
        id3_bytes = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        file.seek(id3_bytes)
        head = file.read(4096)
    elif not _begins_as_mp3(head):
        return False
    return not any(tag in head for tag in _LENGTH_TAGS)


def _begins_as_mp3(head: bytes) -> bool:
    """Whether these are the first bytes of an MPEG audio frame, or of the tag that goes before one."""
    return head.startswith(b"ID3") or (
        len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06 != 0
    )


def _block_samples(rate_hz: int, channels: int, by: str) -> int:
    """Samples per channel of a block. Raises Refused for a rate or channels that no recording has."""
    if not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
        raise Refused(f"{by}: a rate of {rate_hz} Hz, where {LOWEST_HZ} to {HIGHEST_HZ} Hz are plausible")
    if not 1 <= channels <= MOST_CHANNELS:
        raise Refused(f"{by}: {channels} channels, where 1 to {MOST_CHANNELS} are plausible")
    return min(BLOCK_SAMPLES, BLOCK_VALUES // channels)


def _soundfile_blocks(file: GuardedFile, part: Part) -> Blocks:
    try:
        with soundfile.SoundFile(_at_hand(file)) as opened:
            rate_hz, total = int(opened.samplerate), int(opened.frames)
            size = _block_samples(rate_hz, int(opened.channels), "libsndfile")
            if total >= _UNKNOWN_LENGTH:
                raise Refused("libsndfile: the header declares no length")
            first, last = part.window(total, rate_hz)
            expected = last - first + (_lost_samples(opened) if last == total else 0)
            at = first - min(first, PREROLL_S * rate_hz)
            opened.seek(at)
            while at < last:
                asked = min(size, last - at)
                audio_TC = opened.read(asked, dtype="float32", always_2d=True)
                file.check(at + len(audio_TC) - first)
                yield Block(audio_TC[max(0, first - at) :], rate_hz, expected)
                at += len(audio_TC)
                if len(audio_TC) < asked:
                    break
    except soundfile.LibsndfileError as error:
        raise Refused(f"libsndfile: {error.error_string}") from error


def _at_hand(file: GuardedFile) -> GuardedFile | io.BytesIO:
    """What libsndfile reads: the file, or the content of an MP3, of which it asks for two hundred bytes at a time."""
    start = file.tell()
    is_mp3 = file.size <= MP3_IN_MEMORY and _begins_as_mp3(file.read(4))
    file.seek(start)
    content = io.BytesIO(file.read()) if is_mp3 else file
    file.check()
    return content


def _lost_samples(opened: soundfile.SoundFile) -> int:
    """Samples per channel that the header declares and the file does not hold: libsndfile says so in its log only."""
    log, frames = str(opened.extra_info), int(opened.frames)
    if shortened := _SHORTENED.search(log):  # WAV, AIFF, AU
        declared, there = int(shortened[1]), int(shortened[2])
        return round(frames * (declared / max(there, 1) - 1)) if declared < _STREAMED_WAV_BYTES else 0
    declared_64, width = _DECLARED_64.get(opened.format), _SAMPLE_BYTES.get(opened.subtype)
    if declared_64 is None or width is None or not (found := declared_64.search(log)):
        return 0
    return max(0, int(found[1]) // (width * int(opened.channels)) - frames)


def _av_blocks(file: GuardedFile, part: Part, declares: bool) -> Blocks:
    """declares: the file's own word about its length can be trusted, where its container has one."""
    if av is None:
        raise Refused("FFmpeg: PyAV, which reads this format, is not installed here (pip install av)")
    try:
        with _av_container(file) as container:
            stream = _audio_stream(container)
            frames = _av_frames(file, container, stream)
            head = next(frames, None)  # what was decoded knows its rate better than what was declared
            rate_hz, channels = (head.rate_hz, head.audio_TC.shape[1]) if head else (stream.rate, stream.channels)
            size = _block_samples(rate_hz, channels, "FFmpeg")
            declared = int(_declared_seconds(container, stream) * rate_hz) if declares else 0
            first = round(min(part.start_s, LONGEST_S) * rate_hz)
            last = None if part.end_s is None else round(min(part.end_s, part.start_s + LONGEST_S) * rate_hz)
            at, ready, ready_samples = 0, [np.zeros((0, channels), np.float32)], 0
            for audio_TC, _, _ in itertools.chain([head] if head else [], frames):
                wanted_TC = audio_TC[max(0, first - at) : None if last is None else max(0, last - at)]
                at += len(audio_TC)
                file.check(at)
                part.check_length(at - first, rate_hz)
                ready.append(wanted_TC)
                ready_samples += len(wanted_TC)
                if ready_samples >= size:
                    yield Block(np.concatenate(ready), rate_hz, 0)
                    ready, ready_samples = ready[:1], 0
                if last is not None and at >= last:
                    break
    except AudioError:
        raise
    except (av.FFmpegError, ValueError, IndexError) as error:  # PyAV's own are for files that change on the way
        raise Refused(f"FFmpeg: {getattr(error, 'strerror', None) or error}") from error
    first, end = part.window(max(at, declared), rate_hz)
    yield Block(np.concatenate(ready), rate_hz, end - first)


def _av_container(file: GuardedFile) -> av.container.InputContainer:
    """The file opened by FFmpeg. Raises Refused for a format that is not in the list."""
    try:
        return av.open(file, metadata_errors="ignore", container_options=_ONLY_AUDIO)
    except av.ArgumentError as error:
        raise Refused("FFmpeg: not one of the audio formats that are read") from error


def _audio_stream(container: av.container.InputContainer) -> av.AudioStream:
    """The first audio stream. Raises Refused when there is none that may be decoded."""
    if not container.streams.audio:
        raise Refused("FFmpeg: it has no audio stream")
    stream = container.streams.audio[0]
    codec = stream.codec_context and stream.codec_context.name
    if codec not in _MAY_OPEN["codecs"].split():
        raise Refused(f"FFmpeg: its audio is of a kind that is not read ({codec or 'unknown'})")
    return stream


def _av_frames(file: GuardedFile, container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[Block]:
    """Decoded frames. Raises Refused for a file whose rate or channels change on the way."""
    to_float, kind = None, (0, 0)
    for count, packet in enumerate(container.demux(stream)):
        if count > file.size:  # a packet has a byte at least
            raise Refused("FFmpeg: packets without an end")
        for frame in packet.decode():
            rate_hz, channels = frame.sample_rate, frame.layout.nb_channels
            if to_float is None:
                to_float = av.AudioResampler(format="fltp" if channels < PLANES_OF_PYAV else "flt")
                kind = rate_hz, channels
            if (rate_hz, channels) != kind:
                raise Refused(f"FFmpeg: {kind[0]} Hz and {kind[1]} channels become {rate_hz} Hz and {channels}")
            for part in to_float.resample(frame):
                audio = part.to_ndarray()
                audio_TC = audio.T if channels < PLANES_OF_PYAV else audio.reshape(-1, channels)
                yield Block(np.ascontiguousarray(audio_TC), rate_hz, 0)


def _declared_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> Fraction:
    """Seconds that the container declares for its audio, or 0 where it declares none."""
    if not container.format.name.startswith(_CONTAINERS_THAT_DECLARE):
        return Fraction(0)
    if stream.duration is not None:
        return Fraction(stream.duration * stream.time_base)
    if container.duration is not None and len(container.streams) == 1:
        return Fraction(container.duration, av.time_base)
    return Fraction(0)
