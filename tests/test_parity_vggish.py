"""VGGish against the published code (shared/parity: vggish_*): names and layouts, activations, gradients, quantiser."""

from __future__ import annotations

import pytest
import torch
from parity_vectors import FORWARD, GRADIENT, assert_close, below, form, load, vggish_weights

from atose_ray.encoders import VGGishConfig
from atose_ray.encoders.frames import from_bytes
from atose_ray.encoders.vggish import CONVS, POOL_AFTER, VGGish, VGGishNet, byte_scale, pca, quantise
from atose_ray.types import DataSpec

SPEC = DataSpec(sample_rate_hz=16_000, clip_samples=47_200, tags=("a", "b"), exclusive=False)


def activations(net: VGGishNet, mel_XFM: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every layer's output behind its ReLU, channels last, and those of the pools."""
    found: dict[str, torch.Tensor] = {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda _, __, out, name=name: found.update({name: out}))
    found["embedding"] = net(mel_XFM)
    for name in CONVS:
        out = found[name].relu()
        found[name] = out.permute(0, 2, 3, 1)
        if name in POOL_AFTER:
            pool = f"pool{name[4]}"
            found[pool] = torch.nn.functional.max_pool2d(out, 2).permute(0, 2, 3, 1)
    return found


def test_small_net() -> None:
    arrays = load("vggish_net_small")
    widths = (4, 8, 12, 12, 16, 16, 20, 20, 10)
    net = VGGishNet(widths, final_relu=False)
    encoder = VGGish(VGGishConfig(channels=1, hidden=2, embedding=2), 16_000)
    own = encoder.from_published({f"vggish/{name}:0": value for name, value in below(arrays, "w").items()})
    net.load_state_dict({name.removeprefix("net."): value for name, value in own.items()})
    inputs = arrays["inputs"].clone().requires_grad_()
    found = activations(net, inputs)
    for name in ("conv1", "pool1"):
        assert_close(found[name][:, ::6, ::4], arrays[f"act/{name}"], FORWARD, name)
    for name in ("pool2", "pool3", "pool4"):
        assert_close(found[name], arrays[f"act/{name}"], FORWARD, name)
    for name in ("fc1_1", "fc1_2"):
        assert_close(found[name].relu(), arrays[f"act/{name}"], FORWARD, name)
    assert_close(found["embedding"], arrays["act/embedding_2023_preactivation"], FORWARD)
    net.final_relu = True
    assert_close(net(inputs), arrays["act/embedding_2018_relu"], FORWARD)
    found["embedding"].square().sum().backward()
    assert_close(inputs.grad, arrays["grad/input"], GRADIENT, "input")
    wanted = encoder.from_published(below(arrays, "grad"))
    assert len(wanted) == 19 and wanted.pop("input") is not None
    for name, want in wanted.items():
        assert_close(net.get_parameter(name.removeprefix("net.")).grad, want, GRADIENT, name)


def test_full_net() -> None:
    """72.1 M parameters; the log-mels come from the front end's own vectors."""
    arrays = load("vggish_net")
    encoder = VGGish(VGGishConfig(), 16_000)
    assert sum(p.numel() for p in encoder.parameters()) == int(arrays["param_total"]) == 72_141_184
    encoder.load_state_dict(vggish_weights(VGGishConfig().widths))
    inputs = arrays["inputs"]
    assert_close(inputs[3:], form((1, 96, 64), 999, 2, -2), 0.0, "formula")
    with torch.no_grad():
        found = activations(encoder.net, inputs)
    for name, want in below(arrays, "act_sub").items():
        act = found[name][:2]
        time, mel = 8 if act.shape[1] > 24 else 3, 8 if act.shape[2] > 16 else 2
        assert_close(act[:, ::time, ::mel, ::16], want, FORWARD, name)
    for name in ("fc1_1", "fc1_2"):
        assert_close(found[name].relu()[:, ::8], arrays[f"{name}_every8"], FORWARD, name)
    assert_close(found["embedding"], arrays["embedding_2023_preactivation"], FORWARD)
    assert_close(found["embedding"].relu(), arrays["embedding_2018_relu"], FORWARD)
    first = inputs[:1].clone().requires_grad_()
    encoder.requires_grad_(False).net(first).square().sum().backward()
    assert_close(first.grad[0], arrays["grad_of_sum_sq_preact_wrt_input0"], GRADIENT)


def test_wave_to_examples() -> None:
    arrays = load("vggish_logmel")
    encoder = VGGish(VGGishConfig(channels=1, hidden=2), 16_000)
    examples = encoder.front_end(arrays["wave_int16"].float()[None] / 32768)
    assert examples.shape == (1, *arrays["examples"].shape) and encoder.hop_seconds == 0.96
    assert (examples[0] - arrays["examples"]).abs().max() < 5e-5
    sine = torch.sin(2 * torch.pi * 1000 * torch.arange(48_000, dtype=torch.float64) / 16_000).float()
    examples = encoder.front_end(sine[None])[0]
    assert torch.allclose(examples[0, [0, 40, 95]], arrays["sine1k_3s_example0_frames_0_40_95"], atol=5e-3)
    want_mean, want_std = arrays["sine1k_3s_mean_std"].tolist()
    assert (examples.mean().item(), examples.std(correction=0).item()) == pytest.approx((want_mean, want_std), abs=1e-4)


def test_post_processing() -> None:
    arrays = load("vggish_postprocess")
    vectors, means = arrays["pca_eigen_vectors"], arrays["pca_means"]
    cut = pca(arrays["embeddings"], vectors, means)
    assert torch.equal(quantise(cut), arrays["uint8_params_float32"])
    smooth = ((cut + 2) * 63.75).double()
    assert torch.allclose(smooth, arrays["pre_quantise_f64"], atol=2e-4)
    identity = pca(arrays["identity_in"], torch.eye(128), torch.zeros(128))
    assert torch.equal(quantise(identity), arrays["identity_out"])
    assert torch.equal(byte_scale(cut, quantised=True), arrays["tagger_float_of_out"])
    assert (byte_scale(cut, quantised=False) - arrays["tagger_float_of_out"]).abs().max() <= 1 / 128 + 1e-6
    assert torch.equal(quantise(torch.zeros(1)), torch.tensor([127], dtype=torch.uint8))  # cut off, not rounded


def test_stored_bytes() -> None:
    arrays = load("audiotagger_pieces")
    assert torch.equal(from_bytes(arrays["uint8/u"].float()), arrays["uint8/float32"])


def test_quantised_training_has_a_gradient_and_the_pca_loads_from_the_same_file() -> None:
    small = {"channels": 2, "hidden": 8, "embedding": 6}
    encoder = VGGishConfig(postprocess="quantised", **small).build(SPEC)
    state = {**encoder.state_dict(), "pca_means": torch.arange(6.0)[:, None], "global_step": torch.tensor(3)}
    encoder.load_state_dict({**state, "vggish/conv1/weights/Adam": torch.zeros(1)})
    assert torch.equal(encoder.pca_means, torch.arange(6.0))
    audio_BT = 0.1 * torch.randn(2, 47_200, generator=torch.Generator().manual_seed(0))
    out = encoder.sequence(encoder.front_end(audio_BT))
    assert out.shape == (2, 3, 6) and torch.equal(out, (out * 128).round() / 128)
    encoder.load_state_dict({**state, "pca_means": torch.zeros(6)})
    encoder(audio_BT).sum().backward()
    assert encoder.net.conv1.weight.grad.abs().max() > 0
    with pytest.raises(RuntimeError, match=r"net\.conv1\.weight"):
        encoder.load_state_dict({"conv9/kernel": torch.zeros(1)})
    plain = VGGishConfig(**small).build(SPEC)
    plain.load_state_dict({name: value for name, value in state.items() if name.startswith(("net", "pca"))})
