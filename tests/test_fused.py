"""What stands behind a convolution as one operator: equal to PyTorch's own layers, forward and backward.

Triton's interpreter runs the kernels on a CPU. The tests marked `gpu` run them where they belong."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from atose_ray import gpu
from atose_ray.audio import sinc
from atose_ray.encoders import EncoderConfig, HarmonicCNNConfig, SampleCNNConfig, TagSincNetConfig, fused
from atose_ray.encoders.blocks import ConvBlock2d, ResidualBlock1d, ResidualBlock2d, Stem1d, block_1d, norm_relu
from atose_ray.types import AudioInput, DataSpec

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = 5e-3 if DEVICE == "cuda" else 2e-5  # of the largest value; cuDNN multiplies in TF32
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: then it is decided
pytest.importorskip("triton")


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Turn the operator on and off; on a CPU Triton interprets it."""
    monkeypatch.setattr(fused, "TILE", 256)

    def switch(on: bool) -> None:
        monkeypatch.setattr(gpu, "DEVICES", {"cpu", "cuda"} if on else set())

    yield switch


def shaken(module: nn.Module) -> nn.Module:
    """With weights, biases and statistics that are none of the initial ones."""
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand_like(tensor))
    return module


def ran(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients of weights and input, and what the buffers became."""
    module, x = copy.deepcopy(module), x.clone().requires_grad_()
    y = module(x)
    torch.manual_seed(3)
    (y * torch.randn(y.shape).to(y)).sum().backward()
    grads = {f"grad of {name}": weight.grad for name, weight in module.named_parameters() if weight.grad is not None}
    found = {"y": y.detach(), "grad of x": x.grad, **grads, **dict(module.named_buffers())}
    return {name: tensor.double().cpu() for name, tensor in found.items() if tensor is not None}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    """Equal up to `tolerance` of the largest value; a bias in front of BatchNorm has no gradient but rounding."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        no_gradient = "conv" in name and name.endswith("bias") and name.startswith("grad")
        scale = 1.0 if no_gradient else float(other[name].abs().max().clamp_min(1e-3))
        torch.testing.assert_close(
            tensor, other[name], rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


BLOCKS = {
    "basic": (lambda: block_1d("basic", 8, 8, 0, 0.0), (3, 8, 1, 29)),
    "se": (lambda: block_1d("se", 6, 12, 2, 0.0), (2, 6, 1, 30)),
    "res": (lambda: block_1d("res", 8, 8, 0, 0.0), (3, 8, 1, 100)),
    "rese": (lambda: block_1d("rese", 8, 8, 2, 0.0), (3, 8, 1, 31)),
    "rese, wider": (lambda: block_1d("rese", 4, 10, 2, 0.0), (2, 4, 1, 47)),
    "2-D": (lambda: ConvBlock2d(6, 8, (2, 2)), (2, 6, 9, 14)),
    "2-D, last": (lambda: ConvBlock2d(8, 16, (2, 3)), (3, 8, 2, 5)),
    "2-D residual": (lambda: ResidualBlock2d(8, (2, 3)), (2, 8, 8, 7)),
    "2-D, not pooled": (lambda: ResidualBlock2d(8, (1, 1)), (2, 8, 3, 5)),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_the_plain_one(name: str, interpreted: Callable[[bool], None]) -> None:
    """Training: output, every gradient, running statistics."""
    build, shape = BLOCKS[name]
    module, x = shaken(build()).train(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    interpreted(False)
    plain = ran(module.double(), x.double())
    interpreted(True)
    same(ran(module.float().to(DEVICE), x.to(DEVICE)), plain, ROUNDING)


@pytest.mark.parametrize("name", BLOCKS)
def test_inference_is_the_plain_one(name: str, interpreted: Callable[[bool], None]) -> None:
    """Running statistics, no gradients."""
    build, shape = BLOCKS[name]
    module, x = shaken(build()).eval(), torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        interpreted(False)
        plain = module(x)
        interpreted(True)
        found = module.to(DEVICE)(x.to(DEVICE)).cpu()
    torch.testing.assert_close(found, plain, rtol=0, atol=ROUNDING * float(plain.abs().max()))


def test_a_stem_is_the_plain_one(interpreted: Callable[[bool], None]) -> None:
    """Rows that lie as the dense layer leaves them."""
    module, audio = shaken(Stem1d(8)).train(), torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    interpreted(False)
    plain = ran(module.double(), audio.double())
    interpreted(True)
    same(ran(module.float().to(DEVICE), audio.to(DEVICE)), plain, ROUNDING)


def test_places_in_another_order(interpreted: Callable[[bool], None]) -> None:
    """The harmonic STFT gives frames before rows in memory: neither x nor its gradient is copied for that."""
    norm = shaken(nn.BatchNorm2d(6)).train().to(DEVICE)
    x = torch.randn(2, 7, 5, 6, generator=torch.Generator().manual_seed(0)).to(DEVICE).permute(0, 3, 2, 1)

    def forward(x: torch.Tensor) -> torch.Tensor:
        after = fused.After(relu=False)
        return fused.normalise(x, norm, None, after) if fused.fuses(x, norm) else norm(x)

    found = []
    for on in (False, True):
        interpreted(on)
        norm.zero_grad()
        leaf = x.clone().requires_grad_()
        y = forward(leaf)
        (y * torch.arange(y.numel(), device=DEVICE).view(y.shape).sin()).sum().backward()
        found.append([y.detach(), leaf.grad, norm.weight.grad, norm.bias.grad])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_nan_is_not_lost(interpreted: Callable[[bool], None]) -> None:
    """Comparisons with NaN are false: a pool that takes the larger value must not step over it."""
    interpreted(True)
    x = torch.randn(2, 8, 1, 9, device=DEVICE)
    x[1, 3, 0, 4] = torch.nan
    y = block_1d("basic", 8, 8, 0, 0.0).to(DEVICE).train()(x)
    assert y.isnan().any(dim=(0, 2, 3)).all()  # a convolution hears all channels, a BatchNorm all clips


def test_dropout_drops_its_share_and_the_gradient_knows(interpreted: Callable[[bool], None]) -> None:
    """Every value stays with its own chance, scaled by 1 / (1 - p); another call draws others."""
    interpreted(True)
    norm = nn.BatchNorm2d(16).train().to(DEVICE)
    x = (torch.rand(2, 16, 1, 500) + 5).to(DEVICE).requires_grad_()
    norm.weight.data.fill_(0.0)
    norm.bias.data.fill_(1.0)  # so that what goes into the dropout is 1
    after = fused.After(dropout=0.2)
    y = fused.normalise(x, norm, None, after)
    assert sorted(set(y.unique().tolist())) == [0.0, 1.25]
    assert 0.17 < float((y == 0).float().mean()) < 0.23
    for rows in (y[0], y[1], y[:, :8], y[:, :, :, :250], y[..., ::2]):
        assert 0.15 < float((rows == 0).float().mean()) < 0.25
    y.sum().backward()
    assert norm.bias.grad is not None
    torch.testing.assert_close(norm.bias.grad, y.detach().sum(dim=(0, 2, 3)))
    assert not torch.equal(y, fused.normalise(x, norm, None, after))


def test_what_is_left_to_pytorch(interpreted: Callable[[bool], None]) -> None:
    """Frozen statistics under gradients, one value a channel, an affine-less norm, a large window."""
    x, norm = torch.randn(2, 4, 1, 9, device=DEVICE), nn.BatchNorm2d(4)
    interpreted(True)
    assert fused.fuses(x, norm)
    assert not fused.fuses(x, norm.eval())
    with torch.no_grad():
        assert fused.fuses(x, norm)
    norm.train()
    assert not fused.fuses(x[:1, :, :, :1], norm)
    assert not fused.fuses(x, nn.BatchNorm2d(4, affine=False))
    assert not fused.fuses(x, nn.SyncBatchNorm(4))
    assert not fused.fuses(torch.randn(2, 4, 9, 9, device=DEVICE), norm, (4, 4))
    interpreted(False)
    assert not fused.fuses(x, norm)


def test_what_autocast_says(interpreted: Callable[[bool], None]) -> None:
    """bfloat16 is read and written, and summed up in float32."""
    interpreted(True)
    norm = nn.BatchNorm2d(8).train().to(DEVICE)
    x = 3 + torch.randn(2, 8, 1, 40, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = norm_relu(x, norm)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(norm.running_mean, 0.1 * x.mean(dim=(0, 2, 3)), rtol=1e-5, atol=1e-6)


def test_dropped_blocks_train(interpreted: Callable[[bool], None]) -> None:
    """With dropout there is no equal other: the loss of a block that is trained goes down."""
    interpreted(True)
    torch.manual_seed(0)
    block = ResidualBlock1d(8, 8, 2, 0.2).train().to(DEVICE)
    x, target = torch.randn(4, 8, 1, 30, device=DEVICE), torch.randn(4, 8, 1, 10, device=DEVICE)
    optimizer = torch.optim.Adam(block.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (block(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_products_of_spectra_are_the_plain_ones(interpreted: Callable[[bool], None]) -> None:
    """TagSincNet's front end: the convolution and the gradient of its kernel, over several blocks and odd sizes."""
    audio, kernel = torch.randn(3, 9000).to(DEVICE), torch.randn(6, 200).to(DEVICE)
    found = []
    for on in (False, True):
        interpreted(on)
        leaf = kernel.clone().requires_grad_()
        y = sinc.fft_conv(audio, leaf, torch.zeros(6, device=DEVICE))
        (y * torch.arange(y.numel(), device=DEVICE).view(y.shape).sin()).sum().backward()
        found.append((y.detach(), leaf.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
@pytest.mark.parametrize(
    "config",
    [HarmonicCNNConfig(), SampleCNNConfig(block="rese", dropout=0), TagSincNetConfig(block="rese", dropout=0)],
    ids=lambda config: config.kind,
)
def test_a_published_encoder_is_the_plain_one(config: EncoderConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole encoders at published width on four clips, in float32 without TF32: output and gradients."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    sound = AudioInput(sample_rate_hz=16000, clip_samples=config.published_length)
    spec = DataSpec(input=sound, tags=("a", "b"), exclusive=False)
    torch.manual_seed(0)
    encoder = config.build(spec).train().to(DEVICE)
    audio = 0.1 * torch.randn(4, config.published_length, device=DEVICE)
    found = []
    for devices in (set[str](), {"cuda"}):
        monkeypatch.setattr(gpu, "DEVICES", devices)
        found.append(ran(encoder, audio))
    plain, ours = found
    apart = {n: float((ours[n] - plain[n]).norm() / plain[n].norm()) for n in plain if plain[n].norm() > 1e-4}
    assert apart["y"] < 1e-4, apart
    assert sorted(apart.values())[len(apart) // 2] < 1e-3, apart


def test_where_triton_does_not_work_it_is_said_once_and_pytorch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler, no driver, an old GPU: found before the first step, by a kernel that does nothing."""

    def fails(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler")

    device, tried = torch.device("cuda", 7), "atose_ray.gpu_trial.run_on"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    gpu.why_not.cache_clear()
    assert "8.0" in str(gpu.why_not(device))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tried, fails)
    gpu.why_not.cache_clear()
    with pytest.warns(UserWarning, match=r"Failed to find C compiler.*install gcc"):
        assert gpu.why_not(device) == "Failed to find C compiler"
    monkeypatch.setattr(tried, lambda device: None)
    gpu.why_not.cache_clear()
    assert gpu.why_not(device) is None
    gpu.why_not.cache_clear()


def test_the_trial_kernel_runs() -> None:
    """And says so where it left nothing."""
    importlib.import_module("atose_ray.gpu_trial").run_on(torch.device(DEVICE))
