"""Decoding: formats, parts, resampling; every bad file named with a way out; int16 storage."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from atose_ray.audio.io import AudioError, decode, to_pcm16

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
