"""Blocks, front end and encoders give the numbers of the published code: forward, gradients, BatchNorm updates."""

from __future__ import annotations

import pytest
import torch
from parity_vectors import FORWARD, GRADIENT, assert_close, assert_gradients, below, load, load_weights
from torch import nn

from atose_ray.audio.harmonic import HarmonicSTFT, decibel, frames_of, harmonic_centres_hz
from atose_ray.encoders import EncoderConfig, HarmonicCNNConfig, SampleCNNConfig
from atose_ray.encoders.blocks import ConvBlock2d, ResidualBlock2d, block_1d
from atose_ray.encoders.norm import BN_EPS, batch_norm_1d, batch_norm_2d
from atose_ray.types import DataSpec

BLOCKS_1D = [(kind, cout) for kind in ("basic", "se", "res", "rese") for cout in (8, 16)]
BLOCKS_2D = {
    "conv3_2d_8_p2": lambda: ConvBlock2d(6, 8, (2, 2)),
    "conv3_2d_8_p23": lambda: ConvBlock2d(6, 8, (2, 3)),
    "resmp_6_p2": lambda: ResidualBlock2d(6, (2, 2)),
    "resmp_6_p23": lambda: ResidualBlock2d(6, (2, 3)),
}


def spec(clip_samples: int) -> DataSpec:
    return DataSpec(sample_rate_hz=16000, clip_samples=clip_samples, tags=("a", "b"), exclusive=False)


def input_gradient(module: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Output, and the gradient of the sum of its squares by the input."""
    x = x.clone().requires_grad_()
    y = module(x)
    (grad,) = torch.autograd.grad(y.square().sum(), x)
    return y, grad


def assert_running_statistics(module: nn.Module, after: dict[str, torch.Tensor]) -> None:
    """Running mean and variance after one step."""
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)
    norms = {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}
    assert {key.rpartition(".")[0] for key in after} == norms.keys()
    for name, norm in norms.items():
        assert_close(norm.running_mean, after[f"{name}.moving_mean"], FORWARD, f"{name} mean")
        assert_close(norm.running_var, after[f"{name}.moving_variance"], FORWARD, f"{name} variance")


def flat(published_BTC: torch.Tensor) -> torch.Tensor:
    """[B, T, C], as published, -> [B, C, 1, T], as the 1-D blocks have it."""
    return published_BTC.transpose(1, 2)[:, :, None]


@pytest.mark.parametrize(("kind", "cout"), BLOCKS_1D)
def test_block_1d(kind: str, cout: int) -> None:
    arrays = load("blocks1d")
    vectors = below(arrays, f"{kind}_8_{cout}")
    weights = below(vectors, "w")
    block = block_1d(kind, 8, cout, se_ratio=16, dropout=0.2)
    load_weights(block, weights)
    block.eval()
    for length in (81, 83):
        y, grad = input_gradient(block, flat(arrays[f"x{length}"]))
        assert_close(y, flat(vectors[f"y{length}"]), FORWARD, f"y{length}")
        assert_close(grad, flat(vectors[f"gradx{length}"]), GRADIENT, f"gradx{length}")

    block = block_1d(kind, 8, cout, se_ratio=16, dropout=0.0)
    load_weights(block, weights)
    train = below(vectors, "train_nodropout")
    y, grad = input_gradient(block.train(), flat(arrays["x81"]))
    assert_close(y, flat(train["y81"]), FORWARD, "training y81")
    assert_close(grad, flat(train["gradx81"]), GRADIENT, "training gradx81")
    assert_running_statistics(block, below(train, "after"))


@pytest.mark.parametrize("name", BLOCKS_2D)
def test_block_2d(name: str) -> None:
    arrays = load("blocks2d")
    vectors = below(arrays, name)
    weights = below(vectors, "w")
    x = arrays["x"].permute(0, 3, 1, 2)
    block = BLOCKS_2D[name]()
    for mode, wanted in (("eval", vectors), ("train", below(vectors, "train"))):
        load_weights(block, weights)
        y, grad = input_gradient(block.train(mode == "train"), x)
        assert_close(y, wanted["y"].permute(0, 3, 1, 2), FORWARD, f"{mode} y")
        assert_close(grad, wanted["gradx"].permute(0, 3, 1, 2), GRADIENT, f"{mode} gradx")
    assert_running_statistics(block, below(below(vectors, "train"), "after"))


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_batch_norm_update(rank: int) -> None:
    """Dense and 1-D: the running variance is the biased one; 2-D: the unbiased one."""
    vectors = {
        key.removeprefix(f"rank{rank}").lstrip("_/"): value
        for key, value in load("bn_update").items()
        if key.startswith(f"rank{rank}")
    }
    x, wanted = (vectors[key].movedim(-1, 1) for key in ("x", "y_train"))
    norm = batch_norm_2d(x.shape[1]) if rank == 4 else batch_norm_1d(x.shape[1])
    assert norm.eps == BN_EPS
    assert_close(norm(x), wanted, FORWARD)
    after = {
        f".{key.removesuffix('_after1').replace('var', 'variance')}": value
        for key, value in vectors.items()
        if key.startswith("moving")
    }
    assert_running_statistics(norm, after)


def test_harmonic_filters() -> None:
    vectors = load("harmonic_stft")
    hstft = HarmonicSTFT(16000)
    assert_close(hstft.window, vectors["hann_window"], FORWARD, "window")
    assert_close(hstft.bin_hz, vectors["fft_bins"], FORWARD, "bins")
    assert_close(harmonic_centres_hz(16000), vectors["f0"], FORWARD, "centres")
    assert_close(hstft.filterbank(), vectors["fb_q1"], FORWARD, "Q = 1")
    assert int((hstft.filterbank().sum(dim=0) == 0).sum()) == 1  # the one filter that no FFT bin falls into
    hstft.bw_Q.data.fill_(1.7)
    assert_close(hstft.filterbank()[:, ::4], vectors["fb_q1p7_every4"], FORWARD, "Q = 1.7")


def test_harmonic_stft() -> None:
    vectors = load("harmonic_stft")
    hstft = HarmonicSTFT(16000)
    wave_BT = vectors["wave"].clone().requires_grad_()
    assert_close(hstft.magnitude(wave_BT), vectors["magnitude_q1"], FORWARD, "magnitude")
    out = hstft(wave_BT)
    assert out.shape == (2, 6, 128, frames_of(80000)) == (2, 6, 128, 312)
    assert_close(out, vectors["out_q1"].permute(0, 3, 1, 2), FORWARD, "out")
    mean_sq = out.square().mean()
    grad_wave, grad_q = torch.autograd.grad(mean_sq, [wave_BT, hstft.bw_Q])
    assert_close(mean_sq[None], vectors["mean_sq_q1"], FORWARD, "mean square")
    assert_close(grad_q, vectors["grad_bwQ_q1"], GRADIENT, "bw_Q")
    assert_close(grad_wave[:, :2000], vectors["grad_wave_q1_first2000"], GRADIENT, "wave")


def test_harmonic_stft_sharper_and_short() -> None:
    vectors = load("harmonic_stft")
    hstft = HarmonicSTFT(16000)
    short_BT = vectors["wave_short"].clone().requires_grad_()
    assert_close(hstft.magnitude(short_BT), vectors["short_magnitude"], FORWARD, "short magnitude")
    out = hstft(short_BT)
    assert_close(out, vectors["short_out"].permute(0, 3, 1, 2), FORWARD, "short")
    mean_sq = out.square().mean()
    grad_wave, grad_q = torch.autograd.grad(mean_sq, [short_BT, hstft.bw_Q])
    assert_close(mean_sq[None], vectors["short_mean_sq"], FORWARD, "short mean square")
    assert_close(grad_wave, vectors["short_grad_wave"], GRADIENT, "short wave")
    assert_close(grad_q, vectors["short_grad_bwQ"], GRADIENT, "short bw_Q")

    hstft.bw_Q.data.fill_(1.7)
    out = hstft(vectors["wave"][:1])
    assert_close(out[..., ::4], vectors["out_q1p7_clip0"].permute(0, 3, 1, 2), FORWARD, "Q = 1.7")
    mean_sq = out.square().mean()
    (grad_q,) = torch.autograd.grad(mean_sq, hstft.bw_Q)
    assert_close(mean_sq[None], vectors["mean_sq_q1p7_clip0"], FORWARD, "mean square, Q = 1.7")
    assert_close(grad_q, vectors["grad_bwQ_q1p7_clip0"], GRADIENT, "bw_Q, Q = 1.7")


def test_decibel() -> None:
    vectors = load("decibel")
    assert_close(decibel(vectors["x"]), vectors["y"], FORWARD)
    assert float(vectors["y"].min()) < -40  # the floor is in the vectors, or this tests little


@pytest.mark.parametrize("block", ["basic", "se", "res", "rese"])
def test_sample_cnn(block: str) -> None:
    config = SampleCNNConfig(block=block, channels=8)
    assert_encoder(config, f"enc_sc_{block}_c8", load("wave59049")["wave"])


def test_harmonic_cnn() -> None:
    assert_encoder(HarmonicCNNConfig(channels=4), "enc_hc_c4", load("harmonic_stft")["wave"])


def assert_encoder(config: EncoderConfig, name: str, wave_BT: torch.Tensor) -> None:
    """Every activation, the output and every gradient (of the sum of the output's squares) of a published encoder.

    Gradients in float64: those of early biases sum 40 000 terms that cancel, and the published float32 is noisy enough.
    """
    vectors = load(name)
    encoder = config.build(spec(wave_BT.shape[1]))
    load_weights(encoder, below(vectors, "w"))
    seen: dict[str, torch.Tensor] = {}
    for child_name, child in encoder.named_children():
        child.register_forward_hook(lambda _module, _args, out, key=child_name: seen.update({key: out.detach()}))
    with torch.no_grad():
        out_BE = encoder.eval()(wave_BT)
    for key, want in below(vectors, "act").items():
        child_name, _, first = key.partition("_first_")
        got = seen[child_name].movedim(1, -1)[: want.shape[0]]
        got = got.squeeze(1) if want.dim() == 3 else got  # the height of 1 that the 1-D blocks have
        assert_close(got[:, : int(first)] if first else got, want, FORWARD, key)
    assert_close(out_BE, vectors["out"], FORWARD, "out")
    encoder.double()(wave_BT.double()).square().sum().backward()
    assert_gradients(encoder, below(vectors, "grad"))


def test_harmonic_cnn_shapes() -> None:
    """At the published clip every stage has the published shape, at every width."""
    wanted = load("blocks2d")["wave_resnet_shapes"][1:].tolist()
    encoder = HarmonicCNNConfig(channels=4).build(spec(80000)).eval()
    shapes = []
    for i in range(1, 8):
        getattr(encoder, f"res{i}").register_forward_hook(lambda _m, _a, out: shapes.append(tuple(out.shape[1:])))
    encoder(torch.zeros(1, 80000))
    assert shapes == [(channels * 4 // 128, rows, frames) for rows, frames, channels in wanted]


PARAMETERS = {
    "hc": (HarmonicCNNConfig(), 80000, 4_442_777, 4_437_901),
    "basic": (SampleCNNConfig(block="basic"), 59049, 2_639_104, 2_632_192),
    "se": (SampleCNNConfig(block="se"), 59049, 24_698_368, 24_691_456),
    "res": (SampleCNNConfig(block="res"), 59049, 4_882_688, 4_869_632),
    "rese": (SampleCNNConfig(block="rese"), 59049, 26_941_952, 26_928_896),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    """Total (with BatchNorm's running statistics) and trainable numbers at the published width."""
    config, clip_samples, total, trainable = PARAMETERS[name]
    with torch.device("meta"):
        encoder = config.build(spec(clip_samples))
    assert encoder.embed_dim == 1024
    assert sum(p.numel() for p in encoder.parameters()) == trainable
    counted = {key: value for key, value in encoder.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert sum(value.numel() for value in counted.values()) == total
