"""The sinc front end: the published numbers, exact fusion with the stem, and what the honest bank does instead."""

from __future__ import annotations

import math

import pytest
import torch
from parity_vectors import FORWARD, GRADIENT, assert_close, load, to_torch
from pydantic import ValidationError
from test_parity_encoders import assert_encoder
from torch import nn
from torch.nn import functional

from atose_ray.audio import sinc
from atose_ray.audio.sinc import SincBank, compose, direct_conv, fft_conv, mel_bands_hz, sinc_stem
from atose_ray.encoders import TagSincNetConfig
from atose_ray.types import DataSpec

SETS = {"A": (256, 2501, 22050, "A_output_every8"), "B": (128, 251, 16000, "B_output_every2")}
CONVS = {"direct": direct_conv, "fft": fft_conv}


def spec(clip_samples: int, sample_rate_hz: int = 16000) -> DataSpec:
    return DataSpec(sample_rate_hz=sample_rate_hz, clip_samples=clip_samples, tags=("a", "b"), exclusive=False)


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def two_convolutions(audio_BT: torch.Tensor, bank_SL: torch.Tensor, stem: nn.Conv1d) -> torch.Tensor:
    """What the fused operator must equal: pad, bank without change of length, stem."""
    half = bank_SL.shape[1] // 2
    padded_BT = functional.pad(audio_BT, (half, half))
    return stem(functional.conv1d(padded_BT[:, None], bank_SL[:, None], padding=half))


@pytest.mark.parametrize("name", SETS)
def test_bank(name: str) -> None:
    vectors = load("sinc")
    filters, length, rate_hz, output = SETS[name]
    bank = SincBank(filters, length, rate_hz, published=True)
    for edge_hz, key in zip(mel_bands_hz(filters, rate_hz), ("B1_hz", "B2_hz"), strict=True):
        assert_close(edge_hz[:, None], vectors[f"{name}_{key}"], 1e-12, key)
    assert_close(bank.filt_b1, vectors[f"{name}_filt_b1"], FORWARD, "lower edges")
    assert_close(bank.filt_band, vectors[f"{name}_filt_band"], FORWARD, "widths")
    assert_close(bank.window, vectors[f"{name}_window"], FORWARD, "window")
    assert_close(bank().T, vectors[f"{name}_filters"], FORWARD, "filters")
    every = int(output.rpartition("every")[2])
    heard = functional.conv1d(vectors["input"].transpose(1, 2), bank()[:, None], padding=length // 2)
    assert_close(heard.transpose(1, 2)[:, ::every], vectors[output], FORWARD, "output")


def test_bank_gradients() -> None:
    vectors = load("sinc")
    bank = SincBank(12, 101, 16000, published=True)
    bank.load_state_dict({name: vectors[f"C_{name}"] for name in ("filt_b1", "filt_band")})
    audio = vectors["C_input"].transpose(1, 2).requires_grad_()
    heard = functional.conv1d(audio, bank()[:, None], padding=50)
    assert_close(heard.transpose(1, 2), vectors["C_output"], FORWARD, "output")
    total = heard.square().sum()
    grads = torch.autograd.grad(total, [audio, bank.filt_b1, bank.filt_band])
    assert_close(total[None], vectors["C_sumsq"], FORWARD, "sum of squares")
    assert_close(grads[0].transpose(1, 2), vectors["C_grad_input"], GRADIENT, "audio")
    assert_close(grads[1], vectors["C_grad_b1"], GRADIENT, "lower edges")
    assert_close(grads[2], vectors["C_grad_band"], GRADIENT, "widths")


# Sums of 39532 terms whose magnitudes add up to 16 times the result: the published float32 is 1.8e-4 and 1.4e-4 from
# our float64 here (all others: below 1e-4), and our own float32 is 4e-4 from it.
NOISY = {"block1.conv2.bias", "block1.bn2.bias"}


def assert_noisy_gradients(module: nn.Module, wanted: dict[str, torch.Tensor]) -> None:
    """`parity_vectors.assert_gradients`, with twice the tolerance for two biases."""
    gradients = dict(to_torch(name, value) for name, value in wanted.items())
    assert gradients.keys() == dict(module.named_parameters()).keys() and gradients.keys() > NOISY
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert_close(parameter.grad.float(), gradients[name], (1 + (name in NOISY)) * GRADIENT, name)


@pytest.mark.parametrize("path", CONVS)
def test_tag_sinc_net(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of 253 taps, once by each path. The vectors' bank is a published one, but for 16000 Hz."""
    monkeypatch.setattr("test_parity_encoders.assert_gradients", assert_noisy_gradients)
    monkeypatch.setattr("atose_ray.encoders.tag_sinc_net.PUBLISHED_RATE_HZ", 16000)
    monkeypatch.setattr(sinc, "FFT_FROM_TAPS", 254 if path == "direct" else 253)
    config = TagSincNetConfig(channels=8, filters=16, filter_length=251)
    assert_encoder(config, "enc_ms_rese_c8", load("wave59049")["wave"])


def test_parameter_counts() -> None:
    for config, total, trainable in (
        (TagSincNetConfig(), 27_040_384, 27_027_328),
        (TagSincNetConfig(filters=128, filter_length=251), 26_990_976, 26_977_920),
    ):
        with torch.device("meta"):
            encoder = config.build(spec(59049))
        assert sum(p.numel() for p in encoder.parameters()) == trainable
        counted = {key: value for key, value in encoder.state_dict().items() if not key.endswith("num_batches_tracked")}
        assert sum(value.numel() for value in counted.values()) == total


@pytest.mark.parametrize(("samples", "length"), [(81, 31), (81, 2501), (1000, 3), (4001, 101), (16000, 401)])
@pytest.mark.parametrize("path", CONVS)
def test_fused_equals_two_convolutions(samples: int, length: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, edges included: output and the gradients of audio, bank, stem and bias."""
    monkeypatch.setattr(sinc, "FFT_FROM_TAPS", 1 if path == "fft" else 10**9)
    stem = nn.Conv1d(6, 5, 3, stride=3).double()
    audio_BT, bank_SL = noise(2, samples).requires_grad_(), noise(6, length).requires_grad_()
    inputs = [audio_BT, bank_SL, stem.weight, stem.bias]
    got, want = sinc_stem(audio_BT, bank_SL, stem), two_convolutions(audio_BT, bank_SL, stem)
    assert got.shape == (2, 5, (samples + length - 1) // 3)
    assert_close(got, want.detach(), 1e-12, "output")
    cotangent = noise(*want.shape)
    grads = zip(torch.autograd.grad(got, inputs, cotangent), torch.autograd.grad(want, inputs, cotangent), strict=True)
    for name, (mine, theirs) in zip(("audio", "bank", "stem", "bias"), grads, strict=True):
        assert_close(mine, theirs, 1e-12, name)


def test_published_size_in_float32() -> None:
    """256 filters of 2501 taps on the published crop: the FFT's rounding stays below the published vectors' own."""
    bank_SL = SincBank(256, 2501, 22050, published=True)().detach()
    audio_BT, kernel_CL = noise(1, 59049 + 5000), compose(bank_SL, 0.05 * noise(4, 256, 3, dtype=torch.float32))
    want = direct_conv(audio_BT, kernel_CL.double(), torch.zeros(4, dtype=torch.float64))
    assert want.shape == (1, 4, 20516)
    assert_close(fft_conv(audio_BT.float(), kernel_CL, torch.zeros(4)).double(), want, 2e-6)


@pytest.mark.parametrize("path", CONVS)
@pytest.mark.parametrize("block_frames", [2048, 7])
def test_gradcheck(path: str, block_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one block and in seven, with a remainder in frames, taps and samples."""
    monkeypatch.setattr(sinc, "MIN_BLOCK_FRAMES", block_frames)
    monkeypatch.setattr(sinc, "BLOCK_PHASE_KERNELS", 1)
    inputs = [noise(2, 158).requires_grad_(), noise(3, 20).requires_grad_(), noise(3).requires_grad_()]
    assert torch.autograd.gradcheck(CONVS[path], inputs)


def test_blocks_cover_every_frame_once() -> None:
    for samples in (20, 23, 6000, 64049, 640_490, 50_000_001):
        blocks = sinc._blocks(samples, 20)
        spans = [blocks.span(block) for block in range(blocks.count)]
        assert [span.start for span in spans[1:]] == [span.stop for span in spans[:-1]]
        assert spans[0].start == 0 and spans[-1].stop == blocks.frames == (samples - 20) // 3 + 1
        assert all(span.start < span.stop for span in spans)
        assert blocks.size >= blocks.step + 7 - 1  # 20 taps are 7 of a phase: nothing wraps around


def test_bank_gradcheck() -> None:
    bank = SincBank(4, 21, 16000, published=False).double()
    bank.filt_b1.data.neg_()  # edges are magnitudes
    stem = nn.Conv1d(4, 3, 3, stride=3).double()
    audio_BT = noise(1, 60)

    def heard(low: torch.Tensor, band: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        filters = torch.func.functional_call(bank, {"filt_b1": low, "filt_band": band})
        return fft_conv(audio_BT, compose(filters, weight), stem.bias)

    assert torch.autograd.gradcheck(heard, [bank.filt_b1, bank.filt_band, stem.weight])


def half_power_hz(taps: torch.Tensor, rate_hz: int) -> tuple[float, float]:
    """Where a filter's magnitude crosses half of its maximum, from below and from above."""
    magnitude = torch.fft.rfft(taps.double(), n=1 << 17).abs()
    above = (magnitude > magnitude.max() / 2).nonzero().flatten()
    return float(above[0]) * rate_hz / (1 << 17), float(above[-1]) * rate_hz / (1 << 17)


def test_published_bank_lacks_a_pi() -> None:
    """FACTS A2: filter 128 of 256 passes 733 to 769 Hz and says 2302 to 2417, both at 22050 Hz."""
    bank = SincBank(256, 2501, 22050, published=True)
    low_hz, high_hz = half_power_hz(bank()[128].detach(), 22050)
    assert (round(low_hz), round(high_hz)) == (733, 769)
    says_hz = [22050 * float(edge[128].detach()) for edge in bank.edges()]
    assert [low_hz * math.pi, high_hz * math.pi] == pytest.approx(says_hz, rel=2e-3)


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 44100])
def test_honest_bank_passes_what_it_says(rate_hz: int) -> None:
    bank = SincBank(64, 2501, rate_hz, published=False)
    for index in (5, 30, 55):
        says_hz = [rate_hz * float(edge[index].detach()) for edge in bank.edges()]
        assert half_power_hz(bank()[index].detach(), rate_hz) == pytest.approx(says_hz, abs=0.1 * rate_hz / 2501)
    assert rate_hz * float(bank.edges()[1].detach().max()) > 0.97 * rate_hz / 2


def test_rate_of_the_bank() -> None:
    """The honest bank follows the data's rate; the published one never does, or its parameters would mean another."""
    rates = {
        published: [
            TagSincNetConfig(channels=4, filters=8, filter_length=31, published_filters=published)
            .build(spec(8000, rate_hz))
            .sinc.rate_hz
            for rate_hz in (8000, 16000)
        ]
        for published in (True, False)
    }
    assert rates == {True: [22050, 22050], False: [8000, 16000]}


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"at least 303, .* but got 302; resample"):
        SincBank(8, 31, 302, published=False)
    assert SincBank(8, 31, 303, published=False)().isfinite().all()
    with pytest.raises(ValidationError, match=r"filter_length must be odd, .* but got 30"):
        TagSincNetConfig(filter_length=30)


def test_float32_under_autocast() -> None:
    stem = nn.Conv1d(6, 5, 3, stride=3)
    audio_BT, bank_SL = noise(2, 4000, dtype=torch.float32), noise(6, 401, dtype=torch.float32)
    want = sinc_stem(audio_BT, bank_SL, stem)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sinc_stem(audio_BT, bank_SL, stem), want)
