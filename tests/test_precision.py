"""bfloat16 where the machine has it, float32 where it was asked for; layout and compilation change speed only."""

from __future__ import annotations

import copy
import functools
import shutil

import pytest
import torch
from conftest import tiny_tree
from test_encoders import ENCODERS, build, noise_BT, spec
from torch import nn

from atose_ray.config import ExecutionConfig, run_config
from atose_ray.encoders import Encoder, SampleCNNConfig, TagSincNetConfig
from atose_ray.encoders.blocks import ReluDropout
from atose_ray.encoders.norm import BiasedBatchNorm
from atose_ray.methods.base import Method
from atose_ray.optim import AdamConfig, SGDConfig
from atose_ray.training import precision
from atose_ray.training.loop import fit
from atose_ray.training.precision import choose, prepare_encoder, prepare_for, prepare_to_score
from atose_ray.training.run import Job, open_run, resolve
from benchmarks.plain_encoders import PlainBody

FLAT = (SampleCNNConfig, TagSincNetConfig)  # encoders whose 1-D stacks run as 2-D ones
CPU = torch.device("cpu")
FLOAT32 = ExecutionConfig(precision="float32")
SAMPLES = 16000


@pytest.fixture
def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any CPU computes bfloat16, if slowly: what it gives is tested everywhere."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)


@pytest.fixture
def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)


@pytest.mark.parametrize(
    ("avx512", "amx", "onednn", "wanted"),
    [
        (True, False, True, "bfloat16"),
        (False, True, True, "bfloat16"),
        (False, False, True, "float32"),
        (True, True, False, "float32"),
    ],
)
def test_auto_on_a_cpu(avx512: bool, amx: bool, onednn: bool, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(precision, "onednn_has_avx512", lambda: onednn)
    assert choose(ExecutionConfig(), CPU) == wanted
    assert choose(FLOAT32, CPU) == "float32"


@pytest.mark.parametrize("supported", [True, False])
def test_auto_on_a_gpu(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    assert choose(ExecutionConfig(), torch.device("cuda")) == ("bfloat16" if supported else "float32")


@pytest.mark.parametrize(("device", "needs"), [("cpu", "AMX or AVX512-BF16"), ("cuda", "compute capability 8.0")])
def test_bfloat16_is_refused_where_it_is_not(device: str, needs: str, without_bfloat16: None) -> None:
    with pytest.raises(
        ValueError, match=rf"execution.precision is bfloat16, but .* lacks {needs} .*use auto or float32"
    ):
        choose(ExecutionConfig(precision="bfloat16"), torch.device(device))


def test_a_model_is_used_where_it_cannot_be_trained(tiny_run, tiny_manifest, without_bfloat16: None) -> None:
    method = tiny_run().build(tiny_manifest.data_spec)
    execution = ExecutionConfig(precision="bfloat16", compile=True)
    assert prepare_to_score(method, execution, CPU) == "float32"
    assert method.encoder.autocast_dtype is None


def test_compile_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    encoder = build(ENCODERS["sample_cnn basic"], SAMPLES)
    with pytest.raises(ValueError, match=r"execution.compile needs a C\+\+ compiler .*install g\+\+"):
        prepare_encoder(encoder, ExecutionConfig(compile=True), CPU)


def similarity(one_BE: torch.Tensor, other_BE: torch.Tensor) -> float:
    """Cosine of the two outputs, all clips together."""
    return nn.functional.cosine_similarity(one_BE.flatten(), other_BE.flatten(), dim=0).item()


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ENCODERS)
def test_bfloat16_is_near_float32(name: str, mode: str, with_bfloat16: None) -> None:
    """bfloat16 has 8 bits and an encoder up to 20 layers: outputs differ by a few percent, never in kind.

    More in training, where BatchNorm divides by the spread of eight clips.
    """
    encoder = build(ENCODERS[name], SAMPLES).train(mode == "train")
    for module in encoder.modules():
        if isinstance(module, (ReluDropout, nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    half = copy.deepcopy(encoder)
    assert prepare_encoder(half, ExecutionConfig(), CPU) == "bfloat16"
    audio_BT = noise_BT(8, SAMPLES)
    outs = [one(audio_BT) for one in (encoder, half)]
    assert outs[1].dtype == torch.float32
    assert not torch.equal(*outs)
    few = 0.96 if name == "pann_cnn" else 0.99  # its last of eight BatchNorms sees a handful of values of alike clips
    assert similarity(*outs) > (few if mode == "train" else 0.999)
    outs[1].square().mean().backward()
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in half.parameters()
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_float32_is_the_unprepared_encoder(name: str) -> None:
    encoder = build(ENCODERS[name], SAMPLES).eval()
    prepared = copy.deepcopy(encoder)
    assert prepare_encoder(prepared, FLOAT32.model_copy(update={"channels_last": False}), CPU) == "float32"
    with torch.no_grad():
        assert torch.equal(encoder(noise_BT(2, SAMPLES)), prepared(noise_BT(2, SAMPLES)))


@pytest.mark.parametrize("name", ENCODERS)
def test_channels_last_is_a_layout(name: str) -> None:
    """The same state_dict, the same output up to rounding, and a state_dict of either layout loads into the other."""
    encoder = build(ENCODERS[name], SAMPLES).eval()
    prepared = copy.deepcopy(encoder)
    prepare_encoder(prepared, FLOAT32, CPU)
    before, after = encoder.state_dict(), prepared.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) and value.shape == after[key].shape for key, value in before.items())
    assert encoder.load_state_dict(after) and prepared.load_state_dict(before)
    planes = [p for p in prepared.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in planes)
    with torch.no_grad():
        outs = [one(noise_BT(2, SAMPLES)) for one in (encoder, prepared)]
    assert torch.allclose(*outs, rtol=0, atol=1e-5 * float(outs[0].max()))


@pytest.mark.parametrize("name", [name for name in ENCODERS if isinstance(ENCODERS[name], FLAT)])
def test_flat_form_equals_the_one_dimensional(name: str) -> None:
    """Height 1 and in place, or nn.Conv1d as written down: one function, in training, with the same gradients."""
    config = ENCODERS[name]
    assert isinstance(config, FLAT)
    encoder = config.model_copy(update={"dropout": 0.0}).build(spec(SAMPLES)).double()
    plain = PlainBody(copy.deepcopy(encoder).float(), 0.0).double()
    audio_BT = noise_BT(4, SAMPLES).double()
    outs = [one.train()(audio_BT) for one in (encoder, plain)]
    assert torch.allclose(*outs, rtol=1e-6, atol=1e-7)
    for out in outs:
        out.square().sum().backward()
    mine = encoder.block2.conv if hasattr(encoder.block2, "conv") else encoder.block2.conv1
    block = plain.blocks[1]
    theirs = block.conv if hasattr(block, "conv") else block.conv1
    assert torch.allclose(
        mine.weight.grad, theirs.weight.grad, rtol=1e-5, atol=1e-7 * float(theirs.weight.grad.abs().max())
    )


def test_dropout_keeps_the_mean_and_its_gradient() -> None:
    layer = ReluDropout(0.2).train()
    torch.manual_seed(0)
    leaf = torch.rand(7, 5, 3, 10_001).sub(0.5).requires_grad_()
    for x in (leaf * 1, (leaf * 1).contiguous(memory_format=torch.channels_last)):
        before = x.detach().clone()
        out = layer(x)
        kept = out > 0
        assert float(kept.sum() / (before > 0).sum()) == pytest.approx(0.8, abs=0.005)
        assert torch.allclose(out[kept], before[kept] / 0.8, rtol=1e-4)
        (grad,) = torch.autograd.grad(out.sum(), leaf)
        assert torch.allclose(grad, kept / 0.8, rtol=1e-4)
        again = layer(leaf * 1)
        assert not torch.equal(again > 0, kept)
        assert torch.equal(layer.eval()(leaf * 1), leaf.relu())
        layer.train()


@pytest.mark.parametrize("config", [AdamConfig(lr=1e-2, weight_decay=0.1), SGDConfig(lr=1e-2, weight_decay=0.1)])
def test_fused_optimizers_update_alike(config: AdamConfig | SGDConfig) -> None:
    torch.manual_seed(0)
    one = nn.Parameter(torch.randn(50))
    other = nn.Parameter(one.detach().clone())
    fused = config.build(iter([one]))
    assert fused.param_groups[0]["fused"] is True
    looped = config.build([other])
    looped.param_groups[0] |= {"fused": False, "foreach": False}
    for _ in range(5):
        one.grad = torch.randn(50)
        other.grad = one.grad.clone()
        fused.step()
        looped.step()
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_biased_norm_in_bfloat16_tracks_in_float32() -> None:
    norm = BiasedBatchNorm(3).train()
    x = torch.randn(4, 3, 1, 50).bfloat16()
    assert norm(x).dtype == torch.bfloat16
    want = 0.9 + 0.1 * x.float().var(dim=(0, 2, 3), unbiased=False)
    assert torch.allclose(norm.running_var, want, rtol=1e-3)
    assert int(norm.num_batches_tracked) == 1


def opened(manifest, store, folder, **execution):
    tree = tiny_tree(encoder={"kind": "sample_cnn", "block": "rese", "channels": 8, "se_ratio": 1, "bn_momentum": 0.1})
    tree["method"]["stages"] = [{"name": "classify", "epochs": 10}]
    run = resolve(run_config(tree | {"execution": execution}), store, manifest)
    return run, open_run(Job(run, store.uri, str(folder), {}))


def test_training_in_bfloat16_learns_as_in_float32(tiny_manifest, tiny_store, tmp_path, with_bfloat16: None) -> None:
    curves = {}
    for name in ("float32", "bfloat16"):
        run, open_ = opened(tiny_manifest, tiny_store, tmp_path / name, precision=name)
        curves[name] = []
        fit(run, open_.method, open_.batches, open_.folder, report=curves[name].append)
        assert open_.folder.about()["precision"] == name
    for one, other in zip(*curves.values(), strict=True):
        assert other.train_loss == pytest.approx(one.train_loss, abs=0.06)
    scores = [max(record.valid["pr_auc_macro"] for record in curve) for curve in curves.values()]
    assert min(scores) > 0.75  # chance is 0.5
    assert scores[1] == pytest.approx(scores[0], abs=0.08)  # a seed moves it as much


def test_open_run_follows_the_settings(tiny_manifest, tiny_store, tmp_path, without_bfloat16: None) -> None:
    _, open_ = opened(tiny_manifest, tiny_store, tmp_path)
    assert open_.method.encoder.autocast_dtype is None
    assert open_.folder.about()["precision"] == "float32"
    with pytest.raises(ValueError, match="use auto or float32"):
        opened(tiny_manifest, tiny_store, tmp_path / "other", precision="bfloat16")


@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++")), reason="needs a C++ compiler")
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_encoder_is_the_encoder(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "eager" traces and splits the model as any backend does, and calls no C++ compiler, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    encoder: Encoder = build(SampleCNNConfig(block="rese", channels=4, se_ratio=1), 243)
    compiled = copy.deepcopy(encoder)
    prepare_encoder(compiled, FLOAT32.model_copy(update={"compile": True}), CPU)
    assert compiled.state_dict().keys() == encoder.state_dict().keys()
    compiled.train()(noise_BT(4, 243)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in compiled.parameters())
    compiled.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        outs = [one.eval()(noise_BT(4, 243)) for one in (encoder, compiled)]
    assert torch.allclose(*outs, rtol=0, atol=1e-4 * float(outs[0].max()))


def test_prepare_for_reaches_the_encoder_of_every_method(tiny_run, tiny_manifest, with_bfloat16: None) -> None:
    for name in ("supervised", "joint_embedding"):
        method: Method = tiny_run(name).build(tiny_manifest.data_spec)
        keys = method.state_dict().keys()
        assert prepare_for(method, ExecutionConfig(), CPU) == "bfloat16"
        assert method.encoder.autocast_dtype == torch.bfloat16
        assert method.state_dict().keys() == keys
