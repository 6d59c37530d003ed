"""COALA's published files: HDF5 patches, the vocabulary beside them, and checkpoints; written here in their form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from atose_ray.config import ConfigError, RunConfig, run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import Manifest
from atose_ray.datasets import DatasetError, dataset_config
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, make_batches, open_run, resolve

WORDS = ("close", "closing", "drawer", "hiss")
HIDDEN, CHANNELS = 6, 2


def write_coala(folder: Path, suffix: str = "") -> Path:
    """Both files: random patches whose level is their tag, one row that was never written, one without a tag."""
    h5py = pytest.importorskip("h5py")
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, rows, first in (("spec_tags_top_1000", 24, 100), ("spec_tags_top_1000_val", 16, 500)):
        label = np.zeros((rows, len(WORDS)), np.int16)
        label[np.arange(rows), np.arange(rows) % 4] = 1
        label[np.arange(rows), np.arange(rows) // 4 % 4] = 1
        data = (rng.uniform(0, 0.5, (rows, 96, 96)) + 0.1 * label[:, :1, None]).astype(np.float32)
        ids = np.arange(first, first + rows, dtype=np.int32)[:, None]
        data[3], label[3], ids[3] = 0, 0, 0
        label[5] = 0
        with h5py.File(folder / f"{name}{suffix}", "w") as file:
            group = file.create_group("dataset")
            group["id"], group["data"], group["label"] = ids, data, label
    (folder / "json").mkdir(exist_ok=True)
    (folder / "json" / "id2token_top_1000.json").write_text(json.dumps(dict(enumerate(WORDS))))
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coala(tmp_path_factory.mktemp("coala"), ".hdf5")


@pytest.fixture(scope="module")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(str(tmp_path_factory.mktemp("store")))
    prepare(dataset_config("coala_hdf5", source=str(source)), store)
    return store


@pytest.fixture(scope="module")
def manifest(store: Store) -> Manifest:
    from atose_ray.data.shards import load_manifest

    return load_manifest(store, "coala_hdf5")


def test_patches_come_as_frames_by_bands_with_their_words(source: Path, store: Store, manifest: Manifest) -> None:
    import h5py

    listing = dataset_config("coala_hdf5", source=str(source)).list_clips()
    assert listing.tags == WORDS and dict(listing.left_out) == {
        "rows that were never written": 2,
        "rows without a tag": 2,
    }
    assert {clip.split for clip in listing.clips} == {"train", "valid", "test"} and not manifest.skipped
    assert manifest.data_spec.input.shape == (96, 96)
    run = resolve(run_config(tree()), store, manifest)
    batch = next(iter(make_batches(run, manifest, store.uri).evaluate("test")))
    clip = listing.clips[int(batch.clip_id_B[0])]
    row = int(clip.name.rpartition("/")[2].removesuffix(".T"))
    with h5py.File(clip.source, "r", locking=False) as file:
        mel_by_time, label = file["dataset/data"][row], file["dataset/label"][row]
    assert clip.split == "test" and np.array_equal(batch.inputs[0].numpy(), mel_by_time.T)
    assert np.array_equal(batch.tags_BC[0].numpy(), label)


def test_what_is_not_the_published_form_is_named(tmp_path: Path) -> None:
    folder = write_coala(tmp_path / "a")
    assert len(dataset_config("coala_hdf5", source=str(folder)).list_clips().clips) == 36  # without .hdf5, as published
    words = folder / "json" / "id2token_top_1000.json"
    for content, message in (
        ('{"0": "close"}', r"expected data \[24, 96, 96\] and label \[24, 1\]"),
        ('{"0": "a", "1": "a", "2": "b", "3": "c"}', "4 columns have 3 words"),
        ('{"1": "a"}', "must be an object of column -> word"),
    ):
        words.write_text(content)
        with pytest.raises(DatasetError, match=message):
            dataset_config("coala_hdf5", source=str(folder)).list_clips()
    words.unlink()
    with pytest.raises(DatasetError, match=r"needs id2token_top_1000\.json"):
        dataset_config("coala_hdf5", source=str(folder)).list_clips()


def tree(**changes: Any) -> dict[str, Any]:
    return {
        "data": {"dataset": "coala_hdf5", "batch_size": 8},
        "encoder": {"kind": "coala_cnn", "channels": CHANNELS, "scaler": "none"},
        "method": {"kind": "coala", "hidden": HIDDEN, "stages": [{"name": "ae_c", "epochs": 1}]},
        "optim": {"kind": "sgd", "lr": 0.005, "momentum": 0},
        **changes,
    }


class Net(nn.Module):
    """Layers under the published names."""

    def __init__(self, name: str, layers: dict[int, nn.Module], fc: str | None = None) -> None:
        super().__init__()
        self.add_module(name, nn.ModuleDict({str(place): layer for place, layer in layers.items()}))
        if fc:
            self.add_module(fc, nn.Sequential(nn.Linear(9 * CHANNELS, 9 * CHANNELS, bias=False)))


def published() -> dict[str, nn.Module]:
    """The audio encoder, tag encoder and CNN as the published code saves them, small."""
    convs = {4 * i: nn.Conv2d(CHANNELS if i else 1, CHANNELS, 4) for i in range(5)}
    norms = {4 * i + 1: nn.BatchNorm2d(CHANNELS) for i in range(5)}
    sizes = ((len(WORDS), HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 9 * CHANNELS))
    words = {4 * i: nn.Linear(*size) for i, size in enumerate(sizes)}
    words |= {4 * i + 1: nn.BatchNorm1d(size[1]) for i, size in enumerate(sizes)}
    cnn = Net("encoder", {**convs, **norms})
    cnn.fc = nn.Sequential(nn.Linear(9 * CHANNELS, 9 * CHANNELS), nn.ReLU(), nn.Linear(9 * CHANNELS, len(WORDS)))
    return {
        "audio_encoder": Net("audio_encoder", {**convs, **norms}, "fc_audio"),
        "tag_encoder": Net("tag_encoder", words, "fc_tag"),
        "cnn": cnn,
    }


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved_models")
    torch.manual_seed(1)
    for name, net in published().items():
        state = net.state_dict()
        for key, value in state.items():  # of no tensor the value that a new one has
            state[key] = value.abs() + torch.rand(value.shape) / 10 if value.is_floating_point() else value + 7
        torch.save(state, folder / f"{name}_epoch_{20 if name == 'cnn' else 200}.pt")
    return folder


def begun(run: RunConfig, store: Store, folder: Path) -> nn.Module:
    return open_run(Job(run, store.uri, str(folder), {})).method


def test_published_checkpoints_begin_a_run(store: Store, manifest: Manifest, checkpoints: Path, tmp_path: Path) -> None:
    """Audio and tag encoder by one name with a star; decoders, which were never published, are new."""
    init = {"uri": f"{checkpoints}/*_encoder_epoch_200.pt"}
    run = resolve(run_config(tree(init_from=init)), store, manifest)
    plain = resolve(run_config(tree()), store, manifest)
    assert run.init_from is not None and run.init_from.sha256 and run.signature() != plain.signature()
    now, fresh = (begun(one, store, tmp_path / name).state_dict() for one, name in ((run, "a"), (plain, "b")))
    audio, words = (torch.load(checkpoints / f"{name}_encoder_epoch_200.pt") for name in ("audio", "tag"))
    assert torch.equal(now["encoder.audio_encoder.4.weight"], audio["audio_encoder.4.weight"])
    assert torch.equal(now["audio_projection.0.weight"], audio["fc_audio.0.weight"])
    assert torch.equal(now["tag_encoder.5.running_var"], words["tag_encoder.5.running_var"])
    assert torch.equal(now["tag_projection.0.weight"], words["fc_tag.0.weight"])
    changed = {key.split(".")[0] for key in now if not torch.equal(now[key], fresh[key])}
    assert changed == {"encoder", "audio_projection", "tag_encoder", "tag_projection"}
    opened = open_run(Job(run, store.uri, str(tmp_path / "c"), {}))
    assert fit(run, opened.method, opened.batches, opened.folder).state == "complete"


def test_published_cnn_and_an_encoder_alone(store: Store, manifest: Manifest, checkpoints: Path, tmp_path) -> None:
    cnn = {"kind": "coala", "stages": [{"name": "cnn", "epochs": 1}]}
    init = {"uri": str(checkpoints / "cnn_epoch_20.pt")}
    whole = begun(resolve(run_config(tree(method=cnn, init_from=init)), store, manifest), store, tmp_path / "a")
    saved = torch.load(checkpoints / "cnn_epoch_20.pt")
    assert torch.equal(whole.state_dict()["classifier.2.bias"], saved["fc.2.bias"])
    assert torch.equal(whole.state_dict()["encoder.audio_encoder.16.weight"], saved["encoder.16.weight"])
    probe = {"kind": "probe", "stages": [{"name": "probe", "epochs": 1}]}
    init = {"uri": str(checkpoints / "audio_encoder_epoch_200.pt")}
    alone = begun(resolve(run_config(tree(method=probe, init_from=init)), store, manifest), store, tmp_path / "b")
    saved = torch.load(checkpoints / "audio_encoder_epoch_200.pt")
    assert torch.equal(alone.state_dict()["encoder.audio_encoder.0.weight"], saved["audio_encoder.0.weight"])


def test_checkpoints_that_do_not_fit_are_named(store: Store, manifest: Manifest, checkpoints: Path, tmp_path) -> None:
    with pytest.raises(ConfigError, match="no file fits"):
        resolve(run_config(tree(init_from={"uri": f"{checkpoints}/*_epoch_7.pt"})), store, manifest)
    torch.save({"other.weight": torch.zeros(2)}, tmp_path / "other.pt")
    run = resolve(run_config(tree(init_from={"uri": str(tmp_path / "other.pt")})), store, manifest)
    with pytest.raises(ConfigError, match="has no part 'encoder'"):
        begun(run, store, tmp_path / "d")
    wide = tree(init_from={"uri": f"{checkpoints}/*_encoder_epoch_200.pt"})
    wide["method"]["hidden"] = HIDDEN + 1
    with pytest.raises(ConfigError, match="does not fit the tag_encoder"):
        begun(resolve(run_config(wide), store, manifest), store, tmp_path / "e")
