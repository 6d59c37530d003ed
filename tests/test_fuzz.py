"""500 damaged files: each becomes audio or an AudioError that names it; none crashes, hangs or bloats the process.

They are decoded in one child process, so that a memory fault of libsndfile or FFmpeg is a failed test and not the end
of all. The child writes each file before it decodes it: after a crash it is the last one in the folder.
"""

from __future__ import annotations

import faulthandler
import json
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_audio_io import encoded, encoded_by_av, tone

from atose_ray.audio.io import AudioError, decode, decode_parts

FILES, SEED = 500, 20
FILE_LIMIT_S, LIMIT_S = 120, 600
PEAK_LIMIT_MB = 300
RATE = 22050
VALUES = (
    0,
    1,
    0xFF,
    0xFFFF,
    48001,
    0xFFFFFF,
    0x7FFFFFFF,
    0x80000000,
    4_000_000_000,
    0xFFFFFFFF,
    1 << 60,
    (1 << 63) - 1,
)
# Known header fields: what to find, how far behind its beginning the field lies, how many bytes, which come first
FIELDS = {
    "wav": [
        (b"RIFF", 4, 4, "little"),  # length
        (b"fmt ", 10, 2, "little"),  # channels
        (b"fmt ", 12, 4, "little"),  # rate
        (b"fmt ", 20, 2, "little"),  # bytes per sample of all channels
        (b"fmt ", 22, 2, "little"),  # bits
        (b"data", 4, 4, "little"),  # length
    ],
    "flac": [
        (b"fLaC", 8, 2, "big"),  # shortest block
        (b"fLaC", 18, 4, "big"),  # rate, channels, bits
        (b"fLaC", 21, 5, "big"),  # samples
    ],
    "ogg": [
        (b"vorbis", 11, 4, "little"),
        (b"vorbis", 10, 1, "big"),
        (b"OggS", 6, 8, "little"),
        (b"OggS", 26, 1, "big"),
    ],
    "mp3": [(b"Xing", 8, 4, "big"), (b"Info", 8, 4, "big"), (b"ID3", 6, 4, "big")],
    "m4a": [
        (b"stsz", 8, 8, "big"),  # size of all samples, or how many there are
        (b"stsc", 12, 8, "big"),
        (b"stts", 8, 8, "big"),
        (b"stco", 8, 4, "big"),
        (b"mdhd", 16, 4, "big"),  # ticks per second
        (b"mdhd", 20, 4, "big"),
        (b"moov", -4, 4, "big"),
        (b"mdat", -4, 4, "big"),
        (b"mp4a", 20, 2, "big"),  # channels
        (b"mp4a", 28, 4, "big"),  # rate
    ],
}
NAMES = ("song.wav", "song.mp3", "song.m3u8", "song.jpg", "song", "song.raw", "song.sdp")


def originals(folder: Path) -> dict[str, bytes]:
    """A short file of every format; the first word of its name is the key of FIELDS."""
    mono = tone(RATE, 0.3)
    stereo = np.stack([mono, mono], axis=1)
    made = folder / "made"
    return {
        "wav pcm16": encoded(stereo, "WAV", RATE, "PCM_16"),
        "wav pcm24": encoded(mono, "WAV", RATE, "PCM_24"),
        "wav float": encoded(stereo, "WAV", RATE, "FLOAT"),
        "wav adpcm": encoded(mono, "WAV", RATE, "IMA_ADPCM"),
        "rf64": encoded(mono, "RF64", RATE),
        "aiff": encoded(stereo, "AIFF", RATE),
        "flac": encoded(stereo, "FLAC", RATE),
        "ogg vorbis": encoded(mono, "OGG", RATE),
        "ogg opus": encoded(tone(48000, 0.3), "OGG", 48000, "OPUS"),
        "mp3": encoded(stereo, "MP3", RATE),
        "mp3 info": encoded_by_av(made, mono, "mp3", "libmp3lame", RATE),
        "mp3 tagless": encoded_by_av(made, mono, "mp3", "libmp3lame", RATE, write_xing="0"),
        "m4a": encoded_by_av(made, mono, "ipod", "aac", RATE),
        "m4a first": encoded_by_av(made, mono, "ipod", "aac", RATE, movflags="faststart"),
        "m4a parts": encoded_by_av(made, mono, "ipod", "aac", RATE, movflags="frag_keyframe+empty_moov"),
        "adts": encoded_by_av(made, mono, "adts", "aac", RATE),
        "webm": encoded_by_av(made, tone(48000, 0.3), "webm", "libopus", 48000),
        "avi": encoded_by_av(made, mono, "avi", "pcm_s16le", RATE),
        "mpegts": encoded_by_av(made, mono, "mpegts", "mp2", RATE),
    }


def flip(data: bytearray, until: int, most: int, rng: np.random.Generator) -> None:
    """Up to `most` bits, in the first `until` bytes."""
    for _ in range(rng.integers(1, most + 1)):
        data[rng.integers(min(len(data), until))] ^= 1 << rng.integers(8)


def damaged(kind: str, name: str, files: dict[str, bytes], rng: np.random.Generator) -> bytes:
    """A copy of the file `name` with one kind of damage."""
    data = bytearray(files[name])
    at, length = int(rng.integers(len(data))), int(rng.integers(1, 4000))
    if kind == "cut":
        return bytes(data[:at])
    if kind == "header bits":
        flip(data, 256, 8, rng)
    elif kind == "bits":
        flip(data, len(data), 64, rng)
    elif kind == "field":
        for tag, offset, width, order in FIELDS.get(name.split()[0], [(b"", int(rng.integers(128)), 4, "little")]):
            start = data.find(tag) + offset
            if tag in data and start >= 0 and rng.random() < 0.4:
                value = VALUES[rng.integers(len(VALUES))] % (1 << 8 * width)
                data[start : start + width] = value.to_bytes(width, order)
    elif kind == "inserted":
        data[at:at] = rng.bytes(length)
    elif kind == "zeroed":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "repeated":
        data[at:at] = data[at : at + length] * int(rng.integers(2, 20))
    elif kind == "spliced":
        other = files[list(files)[rng.integers(len(files))]]
        data[at:] = other[rng.integers(len(other)) :]
    return bytes(data)


KINDS = ("cut", "header bits", "bits", "field", "field", "inserted", "zeroed", "repeated", "spliced", "renamed")


def outcome(source: str | bytes, name: str, in_parts: bool) -> str:
    """What decoding came to, in a word or, for what may not be, in a sentence."""
    try:
        pieces = list(decode_parts(source, sample_rate_hz=16000, max_seconds=0.1 if in_parts else None, name=name))
    except AudioError as error:
        return "refused" if str(error).startswith(f"{name}: ") and len(str(error)) > len(name) + 20 else str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    audio_T = np.concatenate([piece.audio_T for piece in pieces])
    sound = len(audio_T) > 0 and audio_T.dtype == np.float32 and bool((np.abs(audio_T) <= 1).all())
    return "audio" if sound else f"{len(audio_T)} samples of {audio_T.dtype}, not all in [-1, 1]"


def peak_mb() -> int:
    """Highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def child(folder: Path) -> dict[str, object]:
    """Decode all; returns how many came to what, and the memory it took."""
    rng = np.random.default_rng(SEED)
    files = originals(folder)
    for name, data in files.items():
        assert outcome(data, name, False) == "audio", name
    before = peak_mb()
    counts: Counter[str] = Counter()
    wrong = []
    for index in range(FILES):
        kind, name = KINDS[index % len(KINDS)], list(files)[rng.integers(len(files))]
        data = b"" if index == 0 else damaged(kind, name, files, rng)
        path = folder / f"{index:03d}_{NAMES[rng.integers(len(NAMES))]}"
        path.write_bytes(data)
        faulthandler.dump_traceback_later(FILE_LIMIT_S, exit=True)
        came = outcome(str(path) if index % 2 else data, path.name, index % 3 == 0)
        counts[came] += 1
        if came not in ("audio", "refused"):
            wrong.append(f"{path.name}, {name}, {kind}: {came}")
        path.unlink()
    faulthandler.cancel_dump_traceback_later()
    return {"counts": counts, "wrong": wrong, "grown_mb": peak_mb() - before}


@pytest.mark.slow
def test_no_file_crashes_hangs_or_bloats(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, str(tmp_path)], capture_output=True, text=True, timeout=LIMIT_S
    )
    last = max(tmp_path.glob("[0-9]*"), default=None)
    assert run.returncode == 0, f"the child died of {last}:\n{run.stderr[-3000:]}"
    report = json.loads(run.stdout.splitlines()[-1])
    assert not report["wrong"]
    assert set(report["counts"]) == {"audio", "refused"} and min(report["counts"].values()) > FILES // 10
    assert sum(report["counts"].values()) == FILES
    assert report["grown_mb"] < PEAK_LIMIT_MB
    assert run.stderr == ""  # no library wrote past Python


def test_a_small_file_that_decodes_to_hours_is_refused() -> None:
    """FLAC says `65535 times the same sample` in 14 bytes; two thousand such frames are 50 minutes, and the mean of
    real recordings, silence included, stays far below."""
    bomb = constant_flac(frames=2000)
    with pytest.raises(AudioError, match=r"2\d{4} bytes decode to more than 1024 samples a byte"):
        decode(bomb, sample_rate_hz=16000)
    assert len(decode(constant_flac(frames=2), sample_rate_hz=44100).audio_T) == 2 * 65535


def constant_flac(frames: int) -> bytes:
    """A FLAC file, 44.1 kHz mono 16 bit, of frames of 65535 zeros each."""
    shape = (44100 << 44) | (15 << 36) | 65535 * frames
    file = b"fLaC\x80\0\0\x22" + b"\xff" * 4 + bytes(6) + shape.to_bytes(8, "big") + bytes(16)
    for index in range(frames):
        header = b"\xff\xf8\x79\x08" + chr(index).encode() + (65534).to_bytes(2, "big")
        frame = header + bytes([checksum(header, 8, 0x07)]) + bytes(3)
        file += frame + checksum(frame, 16, 0x8005).to_bytes(2, "big")
    return file


def checksum(data: bytes, width: int, polynomial: int) -> int:
    """Cyclic redundancy check as FLAC's, most significant bit first."""
    value = 0
    for byte in data:
        value ^= byte << (width - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (width - 1) else 0)
            value &= (1 << width) - 1
    return value


if __name__ == "__main__":
    print(json.dumps(child(Path(sys.argv[1]))))
