"""Decoding: formats, parts, resampling; every bad file named with a way out; int16 storage."""

from __future__ import annotations

import io
import math
import os
import resource
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from atose_ray.audio import resample
from atose_ray.audio.io import AudioError, clipped_share, decode, decode_parts, to_pcm16

RATE = 16000
SECONDS = 3.0


def tone(rate_hz: int = RATE, seconds: float = SECONDS, hz: float = 440.0) -> np.ndarray:
    """A tone that gets louder, so that a shifted or cut part is not mistaken for another."""
    time_s = np.arange(round(rate_hz * seconds)) / rate_hz
    return (0.1 + 0.2 * time_s / seconds) * np.sin(2 * np.pi * hz * time_s)


def encoded(audio: np.ndarray, kind: str = "WAV", rate_hz: int = RATE, subtype: str | None = None) -> bytes:
    """A file of libsndfile's."""
    file = io.BytesIO()
    soundfile.write(file, audio, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()


def encoded_by_av(
    path: Path, audio: np.ndarray, kind: str, codec: str, rate_hz: int, quality: int | None = None, **options: str
) -> bytes:
    """A file of FFmpeg's; `quality` asks for a variable bit rate."""
    with av.open(str(path), "w", format=kind, options=options) as container:
        stream = container.add_stream(codec, rate=rate_hz)
        stream.layout = "mono"
        if quality is not None:
            stream.codec_context.qscale = True
            stream.codec_context.global_quality = quality * 118
        frame = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        size = stream.frame_size or 960
        to_codec = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate_hz, frame_size=size)
        for part in (*to_codec.resample(frame), *to_codec.resample(None), None):
            container.mux(stream.encode(part))
    return path.read_bytes()


def correlation(got: np.ndarray, want: np.ndarray) -> float:
    """Best correlation of the two, up to a shift by a codec's delay."""
    length = min(len(got), len(want))
    spectrum = np.fft.rfft(got[:length], 2 * length) * np.conj(np.fft.rfft(want[:length], 2 * length))
    return float(np.fft.irfft(spectrum).max() / (np.linalg.norm(got[:length]) * np.linalg.norm(want[:length])))


@pytest.mark.parametrize(
    ("kind", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 1e-4),
        ("WAV", "PCM_24", 1e-6),
        ("WAV", "FLOAT", 1e-7),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.03),
        ("MP3", None, 0.03),
    ],
)
def test_round_trip(kind: str, subtype: str | None, tolerance: float) -> None:
    decoded = decode(encoded(tone(), kind, subtype=subtype), sample_rate_hz=RATE)
    assert decoded.source_rate_hz == RATE
    assert decoded.audio_T.dtype == np.float32 and decoded.audio_T.shape == tone().shape
    assert np.abs(decoded.audio_T - tone()).max() < tolerance


@pytest.mark.parametrize(
    ("kind", "codec", "rate_hz"), [("ipod", "aac", 44100), ("adts", "aac", 44100), ("webm", "libopus", 48000)]
)
def test_formats_of_pyav(tmp_path: Path, kind: str, codec: str, rate_hz: int) -> None:
    decoded = decode(encoded_by_av(tmp_path / "a", tone(rate_hz), kind, codec, rate_hz), sample_rate_hz=RATE)
    assert decoded.source_rate_hz == rate_hz
    assert abs(len(decoded.audio_T) - RATE * SECONDS) < 2000
    assert correlation(decoded.audio_T, tone()) > 0.98


def test_path_and_bytes_agree(tmp_path: Path) -> None:
    data = encoded(tone(), "FLAC")
    (tmp_path / "a.raw").write_bytes(data)  # the name's ending decides nothing
    assert np.array_equal(
        decode(str(tmp_path / "a.raw"), sample_rate_hz=8000).audio_T, decode(data, sample_rate_hz=8000).audio_T
    )


def test_resampling_keeps_the_tone() -> None:
    decoded = decode(encoded(tone(44100), rate_hz=44100), sample_rate_hz=RATE)
    assert decoded.source_rate_hz == 44100
    assert np.abs(decoded.audio_T - tone())[200:-200].max() < 2e-3


def test_mono_is_the_mean_and_loud_is_clipped() -> None:
    stereo = np.stack([tone(), 0.5 * tone()], axis=1)
    assert np.abs(decode(encoded(stereo, subtype="FLOAT"), sample_rate_hz=RATE).audio_T - 0.75 * tone()).max() < 1e-6
    loud = decode(encoded(10 * tone(), subtype="FLOAT"), sample_rate_hz=RATE).audio_T
    assert loud.max() == 1.0 and loud.min() == -1.0


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_part(kind: str) -> None:
    data = encoded(tone(), kind)
    whole = decode(data, sample_rate_hz=RATE).audio_T
    part = decode(data, sample_rate_hz=RATE, start_s=1.0, end_s=1.5).audio_T
    assert np.abs(part - whole[RATE : RATE + RATE // 2]).max() < 1e-4
    rest = decode(data, sample_rate_hz=RATE, start_s=2.25).audio_T
    assert len(rest) == RATE * 3 // 4


def test_part_by_pyav(tmp_path: Path) -> None:
    data = encoded_by_av(tmp_path / "a", tone(44100), "ipod", "aac", 44100)
    whole = decode(data, sample_rate_hz=44100).audio_T
    part = decode(data, sample_rate_hz=44100, start_s=1.0, end_s=1.5).audio_T
    assert np.array_equal(part, whole[44100 : 44100 + 22050])


def test_end_just_behind_the_file_is_rounding() -> None:
    assert len(decode(encoded(tone()), sample_rate_hz=RATE, start_s=2.0, end_s=3.05).audio_T) == RATE


@pytest.mark.parametrize("order", [1, -1])
def test_mp3_without_a_length_is_read_whole(tmp_path: Path, order: int) -> None:
    """Variable bit rate and no Xing tag: the length can only be guessed, and libsndfile stops at its guess."""
    quiet_loud = np.concatenate([np.zeros(10 * 44100), np.random.default_rng(0).uniform(-0.9, 0.9, 10 * 44100)])
    data = encoded_by_av(tmp_path / "a", quiet_loud[::order], "mp3", "libmp3lame", 44100, quality=4, write_xing="0")
    assert b"Xing" not in data and b"Info" not in data
    assert soundfile.info(io.BytesIO(data)).duration < 19 or order == 1  # the trap is there
    assert abs(len(decode(data, sample_rate_hz=44100).audio_T) / 44100 - 20) < 0.1


def test_silence_is_no_error() -> None:
    assert not decode(encoded(np.zeros(100)), sample_rate_hz=RATE).audio_T.any()


BAD = {
    "empty": (b"", r"is empty \(0 bytes\)"),
    "no frames": (encoded(tone()[:0]), "holds no samples"),
    "html": (b"\n <!DOCTYPE html><html><body>404</body></html>", "is an HTML page, not audio.*fetch it again"),
    "bare html": (b"<HTML><head>", "is an HTML page, not audio"),
    "xml": (b'<?xml version="1.0"?><Error/>', "is an XML document"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer.*git lfs pull"),
    "garbage": (np.random.default_rng(0).bytes(20_000), r"cannot be decoded \(libsndfile: .*; FFmpeg: .*\)"),
    "zeros": (bytes(20_000), "cannot be decoded"),
    "id3 only": (b"ID3\x03\0\0\0\0\0\x0a" + bytes(10), r"cannot be decoded \(FFmpeg: "),
    "nan": (
        encoded(np.where(np.arange(RATE) == 8000, np.nan, tone(seconds=1)), subtype="FLOAT"),
        "1 of 16000 .* 0.500 s",
    ),
    "infinite": (encoded(np.full(100, np.inf), subtype="FLOAT"), "100 of 100 samples are NaN or infinite"),
    "cut wav": (encoded(tone())[: RATE * 2], "decodes to 1.00 s where its header declares 3.00 s.*cut off; fetch it"),
    "cut mp3": (encoded(tone(), "MP3")[:2100], r"where its header declares 3.00 s: the file is cut off"),
    "cut flac": (encoded(tone(), "FLAC")[:20_000], "cut off|cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("as_path", [False, True])
def test_bad_file(name: str, as_path: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, message = BAD[name]
    source: str | bytes = data
    if as_path:
        source = str(tmp_path / "song.mp3")
        Path(source).write_bytes(data)
    with pytest.raises(AudioError, match=message) as caught:
        decode(source, sample_rate_hz=RATE)
    assert str(caught.value).startswith(source if isinstance(source, str) else f"<{len(data)} bytes>")
    assert capfd.readouterr().err == ""


def test_cut_m4a(tmp_path: Path) -> None:
    data = encoded_by_av(tmp_path / "a", tone(48000, 10), "webm", "libopus", 48000)
    with pytest.raises(AudioError, match=r"where its header declares 10\.\d\d s: the file is cut off"):
        decode(data[: len(data) // 2], sample_rate_hz=RATE)
    data = encoded_by_av(tmp_path / "b", tone(44100), "ipod", "aac", 44100, movflags="faststart")
    with pytest.raises(AudioError, match=r"cut off|cannot be decoded"):
        decode(data[: len(data) // 2], sample_rate_hz=RATE)


def test_part_of_a_cut_mp3() -> None:
    cut = encoded(tone(), "MP3")[:2100]
    assert len(decode(cut, sample_rate_hz=RATE, end_s=0.5).audio_T) == RATE // 2  # what is there can be had
    with pytest.raises(AudioError, match="cut off"):
        decode(cut, sample_rate_hz=RATE, start_s=2.0, end_s=2.9)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"start_s": 3.0}, "from 3 s to its end was asked for, but the file is 3.00 s long"),
        ({"start_s": 1.0, "end_s": 4.0}, "from 1 s to 4 s was asked for, but the file is 3.00 s long"),
        ({"start_s": -1.0}, "0 <= start_s < end_s, but it goes from -1 s"),
        ({"start_s": 2.0, "end_s": 2.0}, "0 <= start_s < end_s"),
        ({"start_s": 2.0, "end_s": 2.00001}, "shorter than one sample at 16000 Hz"),
    ],
)
def test_part_outside(part: dict[str, float], message: str) -> None:
    with pytest.raises(AudioError, match=message):
        decode(encoded(tone()), sample_rate_hz=RATE, **part)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"none\.wav: no such file"):
        decode(str(tmp_path / "none.wav"), sample_rate_hz=RATE)
    with pytest.raises(AudioError, match="is a directory"):
        decode(str(tmp_path), sample_rate_hz=RATE)


def test_stderr_is_silent_meanwhile_and_back_afterwards(capfd: pytest.CaptureFixture[str]) -> None:
    """Four threads decode MP3s whose first half is missing, over which libmpg123 complains on file descriptor 2."""
    tail = encoded(tone(44100), "MP3", 44100)
    cut = tail[: len(tail) // 2]
    with soundfile.SoundFile(io.BytesIO(cut)) as file:
        file.read()
    assert "Xing" in capfd.readouterr().err  # it does complain

    def work() -> None:
        for _ in range(5):
            with pytest.raises(AudioError):
                decode(cut, sample_rate_hz=RATE)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"here again")
    assert capfd.readouterr().err == "here again"


# ---------------------------------------------------------------- pieces, streams, long files


def noise(seconds: float, rate_hz: int, channels: int = 1) -> np.ndarray:
    """[T, C] noise, some of it clipped."""
    return np.random.default_rng(3).normal(0, 0.5, (round(seconds * rate_hz), channels)).clip(-1, 1)


def long_file(kind: str, folder: Path) -> bytes:
    """50 s: several blocks of the decoders and of the resampler."""
    if kind == "ipod":
        return encoded_by_av(folder / "a", noise(50, 44100)[:, 0], kind, "aac", 44100)
    if kind == "tagless":
        return encoded_by_av(folder / "a", noise(50, 44100)[:, 0], "mp3", "libmp3lame", 44100, write_xing="0")
    return encoded(noise(50, 44100, 2), kind, 44100)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "ipod", "tagless"])
def test_pieces_are_the_whole(kind: str, tmp_path: Path) -> None:
    data = long_file(kind, tmp_path)
    part = {"sample_rate_hz": RATE, "start_s": 1.25, "end_s": 48.3}
    whole = decode(data, **part)
    pieces = list(decode_parts(data, **part, max_seconds=15.00001))
    size = 240000
    assert [len(piece.audio_T) for piece in pieces] == [size, size, size, len(whole.audio_T) - 3 * size]
    assert [piece.start_s for piece in pieces] == [1.25, 16.25, 31.25, 46.25] and whole.start_s == 1.25
    assert np.abs(np.concatenate([piece.audio_T for piece in pieces]) - whole.audio_T).max() <= 1e-6
    assert {piece[1:3] for piece in pieces} == {whole[1:3]} == {(44100, 2 if kind in ("WAV", "FLAC", "MP3") else 1)}
    assert max(piece.source_peak for piece in pieces) == whole.source_peak
    [seconds] = {end - piece.start_s for piece, end in zip(pieces[:3], (16.25, 31.25, 46.25), strict=True)}
    assert seconds == 15 and whole.clipped == pytest.approx(
        np.average([piece.clipped for piece in pieces], weights=[15, 15, 15, 2.05]), rel=0.01
    )


def test_levels_of_a_piece_are_of_its_own_samples() -> None:
    audio_TC = noise(60, 44100, 2).astype(np.float32)
    audio_TC[44100 * 29 : 44100 * 31] = 1.0  # a run that goes on behind a piece's and a block's end
    audio_TC[44100 * 40 :] *= 0.1
    pieces = list(decode_parts(encoded(audio_TC, "WAV", 44100, "FLOAT"), sample_rate_hz=RATE, max_seconds=10))
    assert len(pieces) == 6
    for index, piece in enumerate(pieces):
        own_TC = audio_TC[441000 * index : 441000 * (index + 1)]
        assert (piece.clipped, piece.source_peak) == (clipped_share(own_TC), np.abs(own_TC).max())
    assert [piece.clipped > 0.09 for piece in pieces] == [False, False, True, True, False, False]
    whole = decode(encoded(audio_TC, "WAV", 44100, "FLOAT"), sample_rate_hz=RATE)
    assert whole.clipped == clipped_share(audio_TC)


@pytest.mark.parametrize("max_seconds", [3.0, 1.0, 1 / RATE, 2.9999])
def test_number_of_pieces(max_seconds: float) -> None:
    data = encoded(tone(seconds=0.01) if max_seconds < 0.1 else tone())
    pieces = list(decode_parts(data, sample_rate_hz=RATE, max_seconds=max_seconds))
    seconds = 0.01 if max_seconds < 0.1 else SECONDS
    assert len(pieces) == math.ceil(round(seconds * RATE) / round(max_seconds * RATE))
    assert np.array_equal(
        np.concatenate([piece.audio_T for piece in pieces]), decode(data, sample_rate_hz=RATE).audio_T
    )


def test_a_piece_has_a_sample() -> None:
    with pytest.raises(ValueError, match="max_seconds must be at least one sample"):
        next(decode_parts(encoded(tone()), sample_rate_hz=RATE, max_seconds=1e-9))


@pytest.mark.parametrize("kind", ["cut", "nan"])
def test_damage_at_the_end_is_found_after_some_pieces(kind: str) -> None:
    audio = noise(60, 44100)
    if kind == "nan":
        audio[-5] = np.nan
    data = encoded(audio, "WAV", 44100, "FLOAT")
    pieces = decode_parts(data[: len(data) * 9 // 10] if kind == "cut" else data, sample_rate_hz=8000, max_seconds=5)
    assert [len(next(pieces).audio_T) for _ in range(3)] == [40000] * 3
    with pytest.raises(AudioError, match=r"cut off" if kind == "cut" else r"1 of 2646000 samples .* 60\.000 s"):
        list(pieces)


RATES = [(44100, 16000), (16000, 22050), (48000, 16000), (8000, 16000), (22050, 16000), (96000, 22050), (48001, 16000)]


@pytest.mark.parametrize(("source_hz", "target_hz"), RATES)
@pytest.mark.parametrize("block", [777, 1_300_001])
def test_resampling_in_blocks_is_resampling_the_whole(source_hz: int, target_hz: int, block: int) -> None:
    audio_T = noise(300_017 / source_hz, source_hz)[:, 0].astype(np.float32)
    whole, stream = resample.Resampler(source_hz, target_hz), resample.Resampler(source_hz, target_hz)
    want_T = np.concatenate([whole.push(audio_T), whole.finish()])
    got_T = np.concatenate([*map(stream.push, np.split(audio_T, range(block, len(audio_T), block))), stream.finish()])
    assert len(want_T) == -(-len(audio_T) * target_hz // source_hz) and np.array_equal(got_T, want_T)


@pytest.mark.parametrize(("hertz", "low_db", "high_db"), [(440, -0.01, 0.01), (7000, -0.1, 0.01), (8200, -200, -100)])
def test_resampling_keeps_the_pass_band_and_stops_aliases(hertz: float, low_db: float, high_db: float) -> None:
    stream = resample.Resampler(44100, RATE)
    tone_T = np.sin(2 * np.pi * hertz * np.arange(88200) / 44100).astype(np.float32)
    out_T = np.concatenate([stream.push(tone_T), stream.finish()])[2000:-2000]
    assert low_db <= 10 * np.log10(2 * np.mean(out_T.astype(float) ** 2) + 1e-20) <= high_db


def test_rates_without_a_common_divisor() -> None:
    decoded = decode(encoded(tone(48001), rate_hz=48001), sample_rate_hz=RATE)
    assert decoded.source_rate_hz == 48001 and np.abs(decoded.audio_T - tone())[200:-200].max() < 2e-3


class Endless(io.RawIOBase):
    """A WAV of any length, 44.1 kHz, stereo, 16 bit, that is made while it is read; gives few bytes at a time."""

    def __init__(self, hours: float) -> None:
        data = round(hours * 3600 * 44100) * 4
        sizes = struct.pack("<IQQQI", 28, data + 72, data, data // 4, 0)
        shape = struct.pack("<IHHIIHH", 16, 1, 2, 44100, 44100 * 4, 4, 16)
        self.head = b"RF64\xff\xff\xff\xffWAVEds64" + sizes + b"fmt " + shape + b"data\xff\xff\xff\xff"
        self.second = (noise(1, 44100, 2) * 30000).astype("<i2").tobytes()
        self.size, self.at = len(self.head) + data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        wanted = min(self.size - self.at, size)
        start = (self.at - len(self.head)) % len(self.second)
        part = self.head[self.at :][:wanted] if self.at < len(self.head) else self.second[start : start + wanted]
        self.at += len(part)
        return part


def memory_of_long_files() -> None:
    """Run in a process of its own: prints by how many MB it grew."""
    decode(encoded(noise(1, 44100, 2), rate_hz=44100), sample_rate_hz=RATE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first = decode_parts(Endless(10), sample_rate_hz=RATE, max_seconds=60, name="ten hours")
    assert [next(first).start_s for _ in range(4)] == [0, 60, 120, 180]
    first.close()
    middle = decode(Endless(10), sample_rate_hz=RATE, start_s=5 * 3600, end_s=5 * 3600 + 10)
    assert len(middle.audio_T) == 10 * RATE
    samples = sum(len(piece.audio_T) for piece in decode_parts(Endless(0.25), sample_rate_hz=RATE, max_seconds=60))
    assert samples == 0.25 * 3600 * RATE
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


def test_a_long_file_takes_little_memory() -> None:
    """15 minutes, which are 318 MB as float, and the first and the middle of ten hours."""
    code = "import test_audio_io; test_audio_io.memory_of_long_files()"
    run = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 150


@pytest.mark.parametrize("kind", ["WAV", "MP3", "ipod"])
def test_an_open_file(kind: str, tmp_path: Path) -> None:
    data = encoded_by_av(tmp_path / "a", tone(44100), kind, "aac", 44100) if kind == "ipod" else encoded(tone(), kind)
    (tmp_path / "b").write_bytes(data)
    with open(tmp_path / "b", "rb", buffering=0) as file:
        file.seek(100)
        got = decode(file, sample_rate_hz=RATE, name="bucket/b")
        assert not file.closed
    assert np.array_equal(got.audio_T, decode(data, sample_rate_hz=RATE).audio_T)
    with pytest.raises(AudioError, match=r"^bucket/b: the part from 9 s"):
        decode(io.BytesIO(data), sample_rate_hz=RATE, start_s=9, name="bucket/b")
    with pytest.raises(AudioError, match=f"^<{len(data)} bytes>: the part"):
        decode(io.BytesIO(data), sample_rate_hz=RATE, start_s=9)


@pytest.mark.parametrize("kind", ["WAV", "MP3", "ipod"])
def test_storage_that_fails_is_no_bad_file(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its own error comes through the C libraries, so that whoever reads can try again."""
    long = noise(20, 44100)[:, 0]
    data = encoded_by_av(tmp_path / "a", long, kind, "aac", 44100) if kind == "ipod" else encoded(long, kind, 44100)

    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if size is None or size < 0 or self.tell() + size > len(data) // 2:
                raise ConnectionResetError("the bucket is gone")
            return super().read(size)

    with pytest.raises(ConnectionResetError, match="the bucket is gone"):
        decode(Failing(data), sample_rate_hz=RATE)
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------- headers that lie


def wav(rate_hz: int = RATE, channels: int = 1, data: bytes = bytes(32000)) -> bytes:
    """A WAV whose header says so."""
    width = 2 * channels % 65536
    shape = struct.pack("<IHHIIHH", 16, 1, channels, rate_hz, rate_hz * width % 2**32, width, 16)
    return (
        b"RIFF"
        + struct.pack("<I", 36 + len(data))
        + b"WAVEfmt "
        + shape
        + b"data"
        + struct.pack("<I", len(data))
        + data
    )


def flac_of(samples: int, audio: np.ndarray | None = None) -> bytes:
    """A FLAC whose header declares so many samples; 0 means unknown, as of a stream."""
    data = bytearray(encoded(tone() if audio is None else audio, "FLAC"))
    data[21:26] = ((data[21] >> 4 << 36) | samples).to_bytes(5, "big")
    return bytes(data)


LIES = {
    "4e9 Hz": (wav(4_000_000_000), "cannot be decoded"),
    "1 Hz": (wav(1), "a rate of 1 Hz, where 1000 to 768000 Hz are plausible"),
    "1 MHz": (wav(1_000_000), "a rate of 1000000 Hz"),
    "65535 channels": (wav(channels=65535), "cannot be decoded"),
    "300 channels": (wav(channels=300), "300 channels, where 1 to 256 are plausible"),
    "433 hours": (flac_of(2**36 - 1), "1193 h of audio are declared, more than the 24 h that are read at a time"),
    "hls": (b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/a.wav\n", "is a playlist, not audio"),
    "concat": (b"ffconcat version 1.0\nfile /etc/hostname\n", "is a playlist, not audio"),
    "subtitles": (b"1\n00:00:00,000 --> 00:00:05,000\nhello\n\n" * 9, "not one of the audio formats that are read"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(4000), "cannot be decoded"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies(name: str) -> None:
    data, message = LIES[name]
    with pytest.raises(AudioError, match=message):
        decode(data, sample_rate_hz=RATE)


def test_a_file_that_points_elsewhere_is_not_followed() -> None:
    """An SDP file tells FFmpeg to listen on a port; nobody may listen there."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"
    with pytest.raises(AudioError, match="not one of the audio formats that are read"):
        decode(sdp.encode(), sample_rate_hz=RATE)


@pytest.mark.parametrize("order", [1, -1])
def test_a_flac_of_unknown_length_is_read_whole(order: int) -> None:
    audio = np.concatenate([np.zeros(10 * RATE), noise(10, RATE)[:, 0]])[::order]
    got = decode(flac_of(0, audio), sample_rate_hz=RATE).audio_T
    assert len(got) == 20 * RATE and np.abs(got - audio).max() < 1e-4


@pytest.mark.parametrize("kind", ["RF64", "W64", "AIFF", "AU"])
def test_cut_off_in_other_containers(kind: str) -> None:
    data = encoded(tone(), kind)
    assert len(decode(data, sample_rate_hz=RATE).audio_T) == RATE * SECONDS
    with pytest.raises(AudioError, match=r"decodes to 1\.00 s where its header declares 3\.00 s: the file is cut off"):
        decode(data[: RATE * 2], sample_rate_hz=RATE)


@pytest.mark.parametrize("layout", ["7.1", "hexadecagonal"])
def test_many_channels_by_pyav(layout: str, tmp_path: Path) -> None:
    """PyAV reads behind the last of eight planes: a memory fault in this process if it were asked for them."""
    with av.open(str(tmp_path / "a"), "w", format="mov") as container:
        stream = container.add_stream("pcm_s16le", rate=RATE)
        stream.layout = layout
        channels = stream.layout.nb_channels
        samples_TC = (np.tile(tone()[:, None], channels) * 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples_TC.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = RATE
        for part in (frame, None):
            container.mux(stream.encode(part))
    decoded = decode(str(tmp_path / "a"), sample_rate_hz=RATE)
    assert decoded.channels == channels and np.abs(decoded.audio_T - tone()).max() < 1e-4


# ---------------------------------------------------------------- storage


@pytest.mark.parametrize("gain", [1.0, 1e-3, 3.0])
def test_pcm16(gain: float) -> None:
    audio_T = (gain * tone()).astype(np.float32)
    pcm_T, scale = to_pcm16(audio_T, peak_normalize=False)
    assert pcm_T.dtype == np.int16 and np.abs(pcm_T.astype(np.int32)).max() == 32767
    assert np.abs(pcm_T.astype(np.float32) * scale - audio_T).max() <= 0.51 * np.abs(audio_T).max() / 32767
    normal_T, scale = to_pcm16(audio_T, peak_normalize=True)
    assert np.array_equal(normal_T, pcm_T) and scale == 1 / 32767


@pytest.mark.parametrize("audio_T", [np.zeros(10, np.float32), np.full(10, 1e-40, np.float32), np.zeros(0, np.float32)])
@pytest.mark.parametrize("peak_normalize", [False, True])
def test_pcm16_of_silence(audio_T: np.ndarray, peak_normalize: bool) -> None:
    pcm_T, scale = to_pcm16(audio_T, peak_normalize)
    assert pcm_T.dtype == np.int16 and len(pcm_T) == len(audio_T) and not pcm_T.any() and scale == 1 / 32767


def test_pcm16_refuses_nan() -> None:
    with pytest.raises(AudioError, match="finite"):
        to_pcm16(np.array([0.1, np.nan], np.float32), peak_normalize=False)


def test_without_pyav_only_what_needs_it_is_refused_by_name(tmp_path: Path) -> None:
    """A lent GPU machine has PyTorch and no PyAV: what libsndfile reads is read there."""
    (tmp_path / "a.wav").write_bytes(encoded(tone()))
    (tmp_path / "a.m4a").write_bytes(encoded_by_av(tmp_path / "b", tone(44100), "ipod", "aac", 44100))
    script = """
import sys
sys.modules["av"] = None
from atose_ray.audio.io import AudioError, decode
print(len(decode("a.wav", sample_rate_hz=16000).audio_T))
try:
    decode("a.m4a", sample_rate_hz=16000)
except AudioError as error:
    print(error)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    length, refused = ran.stdout.splitlines()
    assert int(length) == round(RATE * SECONDS)
    assert "PyAV" in refused and "pip install av" in refused, refused
