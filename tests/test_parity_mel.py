"""Log-mel front ends give the numbers of the published ones: zero-shot (Choi et al.), COALA, VGGish."""

from __future__ import annotations

import pytest
import torch
from parity_vectors import FORWARD, assert_close, load
from pydantic import ValidationError

from atose_ray.audio.mel import CHOI, COALA, VGGISH, LogMel, LogMelConfig, mel_bank
from atose_ray.encoders.mel_cnn import DEVIATION, MEAN


def choi(wave_T: torch.Tensor, **changes: object) -> torch.Tensor:
    return LogMel(CHOI.model_copy(update=changes), 22_050)(wave_T[None])[0]


def test_zero_shot_front_end() -> None:
    arrays = load("zsl_mel")
    wave_T = arrays["wave_int16"].float() / 32768
    assert_close(mel_bank(CHOI, int(arrays["sample_rate"])).T, arrays["mel_basis"], FORWARD, "basis")
    mel_FM = choi(wave_T)
    assert_close(mel_FM, arrays["mel"], FORWARD, "mel")
    stereo_T = (wave_T + wave_T.roll(int(arrays["stereo_shift"]))) / 2
    assert_close(choi(stereo_T)[:20], arrays["mel_of_stereo_first_20_frames"], FORWARD, "stereo")
    tiled_T = wave_T.repeat(int(arrays["msd_tiles"]))[: int(arrays["msd_samples_used"])]
    long_FM = choi(tiled_T)
    assert len(long_FM) == arrays["msd_num_frames"] == CHOI.frames_of(len(tiled_T))
    assert_close(long_FM[arrays["msd_frame_index"]], arrays["msd_mel_at_index"], FORWARD, "MSD")
    assert float(long_FM.mean()) == pytest.approx(float(arrays["msd_mel_mean"]), rel=1e-5)
    assert float(long_FM.std()) == pytest.approx(float(arrays["msd_mel_std"]), rel=1e-4)
    assert (float(arrays["global_mel_mean"]), float(arrays["global_mel_std"])) == (MEAN, DEVIATION)
    segment_FM = (mel_FM[:130] - MEAN) / DEVIATION
    assert len(mel_FM) // 130 == arrays["num_segments"]
    assert_close(segment_FM[None, ::13, ::8], arrays["segments_normalised"], FORWARD, "segment")


def test_reflected_and_zero_padding_differ_in_two_frames() -> None:
    arrays = load("zsl_mel")
    wave_T = arrays["wave_int16"].float() / 32768
    reflect_FM, zeros_FM, none_FM = (choi(wave_T, padding=name) for name in ("reflect", "zeros", "none"))
    ends = arrays["zero_padding_frame_index"]
    assert_close(zeros_FM[ends], arrays["zero_padding_mel_at_index"], FORWARD, "zero padding")
    assert (reflect_FM[ends] - zeros_FM[ends]).abs().max() > 0.1
    assert torch.equal(reflect_FM[1:-1], zeros_FM[1:-1])
    assert torch.allclose(none_FM, reflect_FM[1 : 1 + len(none_FM)], atol=1e-6)  # those of the track, without its ends


def test_coala_front_end() -> None:
    arrays = load("coala_frontend")
    rate, wave_T = int(arrays["wave/sample_rate_hz"]), arrays["wave/short_int16"].float() / 32768
    assert_close(mel_bank(COALA, rate).T, arrays["mel/filterbank_96x513"], FORWARD, "bank")
    long_T = wave_T.repeat(int(arrays["wave/long_is_short_tiled"]))
    logmel_MF = LogMel(COALA, rate)(long_T[None])[0].T
    assert (logmel_MF - arrays["logmel/long_unpadded"]).abs().max() < 2e-4
    assert_close(logmel_MF.exp(), arrays["logmel/long_unpadded"].exp(), FORWARD, "linear")
    single_MF = LogMel(COALA.model_copy(update={"double": False}), rate)(long_T[None])[0].T
    assert (single_MF - logmel_MF).abs().max() > 1e-3  # what `double` is for


def test_vggish_front_end() -> None:
    arrays = load("vggish_logmel")
    assert_close(mel_bank(VGGISH, 16_000), arrays["mel_matrix_257x64"].float(), FORWARD, "bank")
    wave_T = arrays["wave_int16"].float() / 32768
    logmel_FM = LogMel(VGGISH, 16_000)(wave_T[None])[0]
    assert len(logmel_FM) == VGGISH.frames_of(len(wave_T))
    examples = logmel_FM.unfold(0, 96, 96).transpose(1, 2)
    assert (examples - arrays["examples"]).abs().max() < 5e-5


@pytest.mark.parametrize("config", [CHOI, COALA, VGGISH, CHOI.model_copy(update={"padding": "zeros"})])
def test_frames_and_samples(config: LogMelConfig) -> None:
    front = LogMel(config, 22_050)
    for frames in (3, 17):
        samples = config.samples_for(frames)
        assert front(torch.zeros(1, samples)).shape == (1, config.frames_of(samples), config.mels)
        assert config.frames_of(samples) == frames
    silence_BT = torch.zeros(2, 4096, requires_grad=True)
    front(silence_BT).sum().backward()
    assert silence_BT.grad is not None and silence_BT.grad.isfinite().all()


def test_bands_that_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"0 to 2000 Hz at a rate of 4000 Hz, but go from 125 to 7500; set highest_hz"):
        LogMel(VGGISH, 4000)
    with pytest.raises(ValidationError, match="must hold the window, but got 512 for 1024"):
        LogMelConfig(fft_samples=512)
