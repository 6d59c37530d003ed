"""A model as one graph gives the model's numbers, on real sound, for any number of crops; every encoder and every
method is here once. And the card that goes with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import resolved, tiny_tree

from atose_ray import export
from atose_ray.apps import graph
from atose_ray.apps.predict import crops_of
from atose_ray.audio.io import decode
from atose_ray.config import run_config
from atose_ray.encoders import ENCODERS
from atose_ray.evaluation.card import model_card
from atose_ray.methods import METHODS
from atose_ray.storage import Store
from atose_ray.training.checkpoint import Model, load_model, save_model
from atose_ray.types import AudioInput, DataSpec, FrameInput, TagSet

TAGS = ("one", "two", "three")
LINEAR, WORDS = {"head": {"kind": "linear"}}, {"tag_vectors": {"kind": "random", "size": 8}}
AUDIO: dict[str, tuple[int, int]] = {"16 kHz": (16000, 16000), "22 kHz": (22050, 66048), "coala": (22000, 66000)}
MODELS: dict[str, dict[str, Any]] = {
    "sample_cnn": {
        "encoder": {"kind": "sample_cnn", "block": "rese", "channels": 8, "se_ratio": 1},
        "method": {"kind": "joint_embedding", "latent": 8, "stages": [{"name": "embed", "epochs": 1}], **LINEAR},
    },
    "harmonic_cnn": {
        "encoder": {"kind": "harmonic_cnn", "channels": 4},
        "method": {"kind": "zero_shot", "latent": 8},
        **WORDS,
    },
    "tag_sinc_net": {
        "encoder": {"kind": "tag_sinc_net", "channels": 4, "filters": 16, "filter_length": 251, "block": "basic"},
        "method": {"kind": "supervised"},
    },
    "mel_cnn": {"encoder": {"kind": "mel_cnn", "channels": 8}, "method": {"kind": "probe", **LINEAR}, "rate": "22 kHz"},
    "pann_cnn": {"encoder": {"kind": "pann_cnn", "channels": 4}, "method": {"kind": "supervised", **LINEAR}},
    "coala_cnn": {
        "encoder": {"kind": "coala_cnn", "channels": 4, "pooling": "mean_max", "scaler": "published"},
        "method": {"kind": "coala", "latent": 8, "hidden": 8},
        "rate": "coala",
    },
    "vggish": {
        "encoder": {"kind": "vggish", "channels": 4, "hidden": 16, "embedding": 8, "postprocess": "pca"},
        "method": {"kind": "multi_level_attention", "width": 12},
    },
    "frames": {
        "encoder": {"kind": "frames", "context": "gru", "width": 8},
        "method": {"kind": "coala", "tag_side": "vectors", "hidden": 8, "stages": [{"name": "e_c", "epochs": 1}]},
        **WORDS,
    },
}


def model_of(name: str) -> Model:
    """With weights, and running statistics, as they are drawn."""
    tree = dict(MODELS[name])
    rate, length = AUDIO[tree.pop("rate", "16 kHz")]
    audio = AudioInput(sample_rate_hz=rate, clip_samples=length)
    frames = FrameInput(frames=10, bins=16, frame_hop_seconds=0.5, dtype="uint8")
    spec = DataSpec(input=frames if name == "frames" else audio, tags=TAGS, exclusive=False)
    run = run_config({**tiny_tree(), "data": {"dataset": "folder"}, "tag_vectors": None, **tree})
    run = run.model_copy(
        update={"data": run.data.model_copy(update={"crop_seconds": spec.input.length / spec.input.rate_hz})}
    )
    torch.manual_seed(3)
    vectors_CV = torch.randn(3, 8) if run.tag_vectors is not None else None
    method = run.encoder.build(spec)
    method = run.method.build(method, spec, TagSet(TAGS, vectors_CV)).eval()
    for key, value in method.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            value.add_(0.1 * torch.rand(value.shape))
    return Model(method, run, spec, run.method.stages[-1].name, {})


def real_crops(model: Model, shared: Path) -> np.ndarray:
    """Crops of ESC-10: animals, rain, engines; of frames bytes."""
    if model.spec.input.kind == "frames":
        return export.crops(model, None)
    files, rate = sorted((shared / "data" / "esc10" / "audio").glob("*.ogg"))[::80], model.spec.audio.sample_rate_hz
    heard = [decode(str(file), sample_rate_hz=rate).audio_T for file in files]
    assert len(heard) == 5 and all(np.abs(one).max() > 0.01 for one in heard)
    return np.concatenate([crops_of(model, one, 2) for one in heard])


def test_every_encoder_and_method_is_here() -> None:
    pretrained = {"pretrained"}  # which becomes the encoder of its folder
    made_up = {name for name in {*ENCODERS, *METHODS} if name.startswith("made_up")}
    assert {tree["encoder"]["kind"] for tree in MODELS.values()} == set(ENCODERS) - pretrained - made_up
    assert {tree["method"]["kind"] for tree in MODELS.values()} == set(METHODS) - made_up


@pytest.mark.parametrize("name", MODELS)
def test_onnx_gives_the_numbers_of_the_model(name: str, shared: Path) -> None:
    model = model_of(name)
    crops = real_crops(model, shared)
    content = graph.onnx_export(model)
    for some in (crops, crops[:1]):
        assert graph.difference(model, content, "onnx", some) < graph.TOLERANCE
    scores, embedding = graph.run(content, "onnx", crops)
    assert scores.shape == (len(crops), 3) and len(embedding) == len(crops) and np.ptp(scores, axis=0).max() > 0
    silent = graph.run(content, "onnx", np.zeros_like(crops[:2]))
    assert all(np.isfinite(one).all() for one in silent)
    properties = graph.session_of(content).get_modelmeta().custom_metadata_map
    assert json.loads(properties["tags"]) == list(TAGS) and properties["stage"] == model.stage
    if name != "frames":
        assert json.loads(properties["sample_rate"]) == model.spec.audio.sample_rate_hz


@pytest.mark.parametrize("name", ["tag_sinc_net", pytest.param("coala_cnn", marks=pytest.mark.slow)])
def test_torch_export_gives_the_numbers_of_the_model(name: str, shared: Path) -> None:
    model = model_of(name)
    crops = real_crops(model, shared)
    content = graph.torch_export(model)
    for some in (crops, crops[:1]):
        assert graph.difference(model, content, "torch_export", some) < graph.TOLERANCE


@pytest.mark.parametrize("taps", [33, 251])  # below and above the length from which the model takes the FFT
def test_the_plain_sinc_stem_equals_the_one_that_is_trained(taps: int) -> None:
    model = model_of("tag_sinc_net")
    config = model.run.encoder.model_copy(update={"filter_length": taps})
    encoder = config.build(model.spec).eval()
    audio_BT = 0.1 * torch.randn(2, 16000, generator=torch.Generator().manual_seed(1))
    plain = graph.PlainSincStem(encoder.stem, encoder.sinc())
    with torch.no_grad():
        assert torch.allclose(plain(audio_BT, encoder.sinc()), encoder.stem(audio_BT, encoder.sinc()), atol=1e-5)


def test_the_command_writes_what_it_compared(tmp_path: Path, shared: Path, capsys, monkeypatch) -> None:
    model, folder = model_of("mel_cnn"), Store(str(tmp_path / "best"))
    run = resolved(model.run, model.spec)
    save_model(folder, model.method, run, model.spec, {"stage": "probe", "epoch": 1, "number": 0})
    sound = next((shared / "data" / "spoken_digits" / "raw").rglob("*.wav"))
    export.main([folder.uri, "--to", "onnx", "--sound", str(sound)])
    said = capsys.readouterr().out
    assert "model.onnx" in said and "of the model" in said
    assert {"model.onnx", "README.md"} <= set(folder.names())
    loaded = load_model(folder)
    assert graph.difference(loaded, folder.read("model.onnx"), "onnx", export.crops(loaded, None)) < graph.TOLERANCE
    with monkeypatch.context() as patch:
        patch.setattr(graph, "difference", lambda *_: 0.5)
        patch.setitem(graph.EXPORTS, "onnx", ("model.onnx", lambda _: b""))
        with pytest.raises(ValueError, match=r"the onnx graph differs from the model by 5\.0e-01"):
            export.main([folder.uri, "--to", "onnx", "--out", str(tmp_path / "other")])
    assert not (tmp_path / "other" / "model.onnx").exists()
    monkeypatch.setattr(graph, "NEEDS", ("onnx", "no_such_package"))
    with pytest.raises(ValueError, match=r"needs no_such_package; install them: pip install 'atose_ray\[onnx\]'"):
        graph.onnx_export(loaded)


def test_a_card_says_what_is_known_and_what_is_not() -> None:
    model = model_of("sample_cnn")
    metrics = {
        "protocol": "clip",
        "valid": {"pr_auc_macro": 0.5},
        "test": {"pr_auc_macro": 0.4321, "accuracy": 0.9, "clips": 9.0},
        "test_prevalence_mean": 0.125,
        "test_intervals": {"pr_auc_macro": [0.4, 0.46], "accuracy": [0.8, 0.95]},
        "test_scorings": [{}, {}],
        "per_tag": [
            {"tag": "one", "average_precision": 0.25, "roc_auc": 0.5, "positives": 3, "clips": 9},
            {"tag": "two", "average_precision": None, "roc_auc": None, "positives": 0, "clips": 9},
        ],
    }
    spec = model.spec.model_copy(update={"counts": {"train": 7, "test": 9}})
    card = model_card(model.run, spec, metrics)
    assert card.startswith("---\nlicense: unknown") and "`folder`" in card and "7 train, 9 test" in card
    assert "| pr_auc_macro | 0.4321 | 0.4000 to 0.4600, bootstrap over clips | 0.5000 |" in card
    assert "| accuracy | 0.9000 | 0.8000 to 0.9500, Wilson |  |" in card and "was scored 2 times" in card
    assert "| clips | 9 |" in card and "pr_auc_macro 0.1250 (mean tag prevalence)" in card
    assert "| one | 0.2500 | 0.5000 | 3 | 9 |" in card and "Tags without a positive test clip: two" in card
    bare = model_card(model.run, model.spec, {"stage": "embed"})
    assert "None: this model was not evaluated" in bare and "one, two, three" in bare
    folds = model_card(model.run, spec, {**metrics, "folds": [{}, {}]})
    assert "means over 2 folds, of which this is the model of one" in folds and "Student over 2 folds" in folds
