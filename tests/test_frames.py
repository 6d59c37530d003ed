"""Matrices instead of sound: from .npy, .npz and HDF5 to batches, the same bits by every way of reading."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from test_doctor import data_of

from atose_ray.data import batches as module
from atose_ray.data.batches import CropSettings, LocalBatches
from atose_ray.data.doctor.checks import as_lines, examine
from atose_ray.data.doctor.page import PAGE, write_examination
from atose_ray.data.prepare import PrepareError, prepare, run_here
from atose_ray.data.resident import ResidentBatches, gather_crops
from atose_ray.data.shards import Manifest, data_store, load_manifest, read_row_group, unit_of
from atose_ray.datasets import DatasetError, dataset_config
from atose_ray.encoders import FramesConfig as EncoderFramesConfig
from atose_ray.prepare import summary
from atose_ray.storage import Store
from atose_ray.types import Batch, DataSpec, FrameInput

BINS, HOP_S = 6, 0.5
SPLITS = ("train", "train", "train", "valid", "test")


def matrix(index: int, dtype: str = "float32", frames: int | None = None) -> np.ndarray[Any, Any]:
    """[F, 6] of 3 to 22 frames, like no other."""
    rng = np.random.default_rng(index)
    values = rng.integers(0, 256, (frames or 3 + index % 20, BINS))
    return values.astype(dtype) if dtype == "uint8" else (values / 17 - 3).astype(dtype)


def write_table(folder: Path, paths: list[str]) -> None:
    rows = [f"{path},{SPLITS[i % 5]},{'ab'[i // 5 % 2]}|c,g{i}\n" for i, path in enumerate(paths)]
    (folder / "tags.csv").write_text("path,split,tags,group\n" + "".join(rows))


def write_source(folder: Path, form: str, dtype: str, clips: int = 40) -> list[np.ndarray[Any, Any]]:
    """The matrices of a source, written as files of one form, and its table."""
    folder.mkdir(parents=True, exist_ok=True)
    matrices = [matrix(i, dtype, 7 if "packed" in form else None) for i in range(clips)]
    if form == "npy":
        for i, one in enumerate(matrices):
            np.save(folder / f"{i}.npy", one)
        paths = [f"{i}.npy" for i in range(clips)]
    elif form == "npz":
        np.savez(folder / "all.npz", **{f"m{i}": one for i, one in enumerate(matrices)})
        paths = [f"all.npz#m{i}" for i in range(clips)]
    elif form == "packed npy":
        np.save(folder / "all.npy", np.stack(matrices))
        paths = [f"all.npy#{i}" for i in range(clips)]
    else:
        h5py = pytest.importorskip("h5py")
        with h5py.File(folder / "all.h5", "w") as file:
            if form == "h5":
                for i, one in enumerate(matrices):
                    file[f"part/{i}"] = one
            else:
                file["x/features"] = np.stack(matrices)
        paths = [f"all.h5#part/{i}" if form == "h5" else f"all.h5#x/features/{i}" for i in range(clips)]
    write_table(folder, paths)
    return matrices


def prepared(source: Path, store: Store, **options: Any) -> Manifest:
    manifest, _ = prepare(dataset_config("frames", source=str(source), frame_hop_seconds=HOP_S, **options), store)
    return manifest


def settings_of(store: Store, manifest: Manifest, crop: int) -> CropSettings:
    spec = manifest.data_spec
    return CropSettings(manifest.folder(store).uri, len(spec.tags), crop, 3, unit_of(spec.input))


SIZES: dict[str, Any] = {"batch_size": 8, "eval_crops": 3, "eval_batch_size": 7, "mix": 2, "crops_per_clip": 2}


def equal(left: Iterator[Batch], right: Iterator[Batch]) -> bool:
    pairs = list(itertools.zip_longest(left, right))
    return all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True)) and bool(pairs)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("form", ["npy", "npz", "packed npy", "h5", "packed h5"])
def test_what_is_read_back_is_what_was_there(form: str, dtype: str, tmp_path: Path) -> None:
    matrices = write_source(tmp_path / "raw", form, dtype)
    store = Store(str(tmp_path / "store"))
    manifest = prepared(tmp_path / "raw", store)
    longest = max(map(len, matrices))
    assert manifest.data_spec.input == FrameInput(frames=longest, bins=BINS, frame_hop_seconds=HOP_S, dtype=dtype)
    assert manifest.data_spec.counts == {"train": 24, "valid": 8, "test": 8} and not manifest.skipped
    found = {}
    for split in manifest.data_spec.counts:
        for group in manifest.row_groups(split):
            clips = read_row_group(data_store(store, "frames"), group, 3, unit_of(manifest.data_spec.input))
            assert set(clips.scale_N) == {1.0}
            found |= dict(zip(clips.clip_id_N.tolist(), clips.stored_N, strict=True))
    assert all(found[i].dtype == dtype and np.array_equal(found[i], one) for i, one in enumerate(matrices))
    assert load_manifest(store, "frames") == manifest


@pytest.mark.parametrize("crop", [2, 9, 30])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_crops_are_the_same_bits_by_every_way(dtype: str, crop: int, tmp_path: Path) -> None:
    """Seeking in the shards, whole row groups, and clips in memory; short clips have zeros around them."""
    matrices = write_source(tmp_path / "raw", "npy", dtype)
    store = Store(str(tmp_path / "store"))
    manifest = prepared(tmp_path / "raw", store)
    settings = settings_of(store, manifest, crop)
    stream = LocalBatches(manifest, settings, **SIZES)
    host = ResidentBatches(manifest, settings, residency="host", device=torch.device("cpu"), **SIZES)
    for epoch in (0, 1):
        assert equal(stream.train(epoch), host.train(epoch))
    assert equal(stream.evaluate("valid"), host.evaluate("valid"))
    for batch in [*stream.train(0), *stream.evaluate("test")]:
        assert batch.inputs.dtype == torch.float32 and batch.inputs.shape[1:] == (crop, BINS)
        for inputs_FM, clip_id in zip(batch.inputs.numpy(), batch.clip_id_B.tolist(), strict=True):
            whole = matrices[clip_id].astype(np.float32)
            padded = np.concatenate([np.zeros((crop, BINS)), whole, np.zeros((crop, BINS))]).astype(np.float32)
            places = range(len(padded) - crop + 1)
            assert any(np.array_equal(padded[at : at + crop], inputs_FM) for at in places)


def test_a_short_crop_reads_no_whole_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_source(tmp_path / "raw", "npy", "float32")
    store = Store(str(tmp_path / "store"))
    manifest = prepared(tmp_path / "raw", store)
    source = LocalBatches(manifest, settings_of(store, manifest, 2), **{**SIZES, "crops_per_clip": 1})
    whole = [batch.inputs for batch in source.train(5)]
    monkeypatch.setattr(module, "read_row_group", lambda *_: pytest.fail("a whole row group was read"))
    assert all(map(torch.equal, whole, (batch.inputs for batch in source.train(5))))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_gather_of_a_device_is_the_slice_of_the_host(dtype: torch.dtype) -> None:
    all_SM = torch.arange(60).view(20, 3).to(dtype)
    starts = torch.tensor([-2, 0, 3])
    out_BTM = gather_crops(all_SM, torch.tensor([0, 5, 12]), torch.tensor([5, 7, 8]), starts, 6)
    assert out_BTM.dtype == dtype and out_BTM.shape == (3, 6, 3)
    zeros = torch.zeros(2, 3, dtype=dtype)
    assert torch.equal(out_BTM[0], torch.cat([zeros, all_SM[:4]]))
    assert torch.equal(out_BTM[1], all_SM[5:11])
    assert torch.equal(out_BTM[2], torch.cat([all_SM[15:20], zeros[:1]]))


@pytest.mark.slow
@pytest.mark.ray
def test_ray_writes_the_same_shards_and_streams_the_same_batches(ray_cluster: None, tmp_path: Path) -> None:
    from atose_ray.runtime.ingest import RayBatches
    from atose_ray.runtime.prepare import run_on_ray

    write_source(tmp_path / "raw", "npy", "float32")
    config = dataset_config("frames", source=str(tmp_path / "raw"), frame_hop_seconds=HOP_S)
    store = Store(str(tmp_path / "store"))
    manifest, _ = prepare(config, store, run_on_ray)
    assert manifest.content_hash == prepared(tmp_path / "raw", Store(str(tmp_path / "here"))).content_hash
    settings = settings_of(store, manifest, 5)
    sizes = {**SIZES, "mix": 1}
    assert equal(RayBatches(manifest, settings, **sizes).train(1), LocalBatches(manifest, settings, **sizes).train(1))


def test_a_prepare_that_was_cut_short_goes_on(tmp_path: Path) -> None:
    write_source(tmp_path / "raw", "npy", "float32")
    (whole, broken) = (Store(str(tmp_path / name)) for name in ("whole", "broken"))
    expected = prepared(tmp_path / "raw", whole)
    config = dataset_config("frames", source=str(tmp_path / "raw"), frame_hop_seconds=HOP_S)

    def dies(jobs: Any) -> Iterator[Any]:
        yield from run_here(jobs[:1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config, broken, dies)
    manifest, written = prepare(config, broken)
    assert written and manifest.content_hash == expected.content_hash
    assert prepare(config, broken)[1] is False


def test_a_long_matrix_becomes_several_clips(tmp_path: Path) -> None:
    write_source(tmp_path, "npy", "float32")
    long = matrix(7, frames=25)
    np.save(tmp_path / "0.npy", long)
    store = Store(str(tmp_path / "store"))
    manifest = prepared(tmp_path, store, max_clip_seconds=5)
    assert manifest.data_spec.input.length == 10
    found = examine(store, "frames")
    parts = {clip.name: clip.facts.samples for clip in found.clips if clip.name.startswith("0.npy")}
    assert parts == {"0.npy#t=0,5": 10, "0.npy#t=5,10": 10, "0.npy#t=10,12.5": 5}


BAD: dict[str, tuple[Any, str, str]] = {
    "missing": (None, "no such file", "missing"),
    "empty": (np.zeros((0, BINS)), "holds no frames", "empty"),
    "bins": (np.zeros((4, 5)), "has 5 bins where the first matrix of the set has 6", "broken"),
    "row": (np.zeros(6), r"must be a matrix \[frames, bins\] of numbers, but it is \[6\] of float64", "broken"),
    "text": (np.array([["a", "b"]]), "must be a matrix", "broken"),
    "pickle": (
        np.array([[None, {}]], dtype=object),
        r"cannot be read \(Array can't be memory-mapped: Python objects",
        "broken",
    ),
    "nan": (np.full((3, BINS), np.nan), "18 values are NaN or infinite", "not finite"),
    "too large": (np.full((3, BINS), 1e300), "18 values are NaN or infinite", "not finite"),
    "no array": (b"hello", "cannot be read", "broken"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_matrix_is_skipped_with_its_reason(name: str, tmp_path: Path) -> None:
    content, said, problem = BAD[name]
    write_source(tmp_path, "npy", "float32")
    (tmp_path / "5.npy").unlink()
    if isinstance(content, bytes):
        (tmp_path / "5.npy").write_bytes(content)
    elif content is not None:
        np.save(tmp_path / "5.npy", content)
    store = Store(str(tmp_path / "store"))
    manifest = prepared(tmp_path, store)
    [skipped] = manifest.skipped
    assert skipped.name == "5.npy"
    with pytest.raises(PrepareError, match=said):
        raise PrepareError(skipped.reason)
    assert [one.kind for one in examine(store, "frames").findings if one.flags] == [problem]


def test_numbers_that_a_set_of_bytes_cannot_hold_are_refused(tmp_path: Path) -> None:
    write_source(tmp_path, "npy", "uint8")
    np.save(tmp_path / "5.npy", matrix(5))
    store = Store(str(tmp_path / "store"))
    assert "5.npy: is float32, but the set is stored as uint8" in prepared(tmp_path, store).skipped[0].reason
    manifest = prepared(tmp_path, store, dtype="float32")
    assert not manifest.skipped and manifest.data_spec.input.dtype == "float32"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("all.npz#nothing", "all.npz#nothing: has no array 'nothing', but m0, m1, m2, m3, m4, ...; write FILE#NAME"),
        ("all.npz", "has no array '', but m0"),
        ("all.npz#m1/99", "m1 has the rows 0 to 3, but '99' was asked for"),
    ],
)
def test_an_array_that_a_file_has_not(path: str, said: str, tmp_path: Path) -> None:
    write_source(tmp_path, "npz", "float32")
    with (tmp_path / "tags.csv").open("a") as table:
        table.write(f"{path},train,c,\n")
    [skipped] = prepared(tmp_path, Store(str(tmp_path / "store"))).skipped
    assert said in skipped.reason


def test_hdf5_without_h5py_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "all.h5").write_bytes(b"x")
    write_table(tmp_path, [f"all.h5#{i}" for i in range(10)])
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DatasetError, match=r'HDF5 files need h5py: pip install "atose_ray\[hdf5\]"'):
        prepared(tmp_path, Store(str(tmp_path / "store")))


def test_options_and_sources_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"frame_hop_seconds\n.*required"):
        dataset_config("frames", source=str(tmp_path))
    with pytest.raises(DatasetError, match="holds no matrices; give the folder of your matrices and its tags CSV"):
        prepared(tmp_path, Store(str(tmp_path / "store")))
    for i in range(5):
        (tmp_path / f"{i}.npy").write_bytes(b"no")
    write_table(tmp_path, [f"{i}.npy" for i in range(5)])
    with pytest.raises(DatasetError, match=r"none of the 5 matrices can be read; of the last one: .*4\.npy: cannot be"):
        prepared(tmp_path, Store(str(tmp_path / "store")))


def test_the_doctor_and_the_summary_speak_of_frames(tmp_path: Path) -> None:
    write_source(tmp_path, "npy", "float32")
    np.save(tmp_path / "1.npy", np.full((9, BINS), 2.5, np.float32))
    np.save(tmp_path / "2.npy", matrix(3))
    store = Store(str(tmp_path / "store"))
    manifest = prepared(tmp_path, store)
    assert "6 bins of float32, 2 frames a second, longest 11.0 s" in summary(manifest, store, True)
    found = examine(store, "frames")
    text = "\n".join(as_lines(found))
    assert "1 clip is one value throughout (1.npy)" in text and "copy" in text
    assert not any(word in text for word in ("clipped", "rate", "offset", "recorded"))
    write_examination(store, found)
    page = data_of(data_store(store, "frames").read(PAGE).decode())
    described = {"bins": 6, "dtype": "float32", "rate_hz": 2}
    assert described.items() <= page["facts"]["input"].items() and not page["players"]
    about_frames = ["Length", "Tags per clip", "Mean of a clip", "Standard deviation of a clip"]
    assert [plot["title"] for plot in page["plots"]] == about_frames


def test_facts_that_are_lost_are_measured_from_the_shards(tmp_path: Path) -> None:
    write_source(tmp_path, "npy", "uint8")
    store = Store(str(tmp_path / "store"))
    prepared(tmp_path, store)
    before = examine(store, "frames").clips
    data_store(store, "frames").delete("facts.jsonl")
    assert examine(store, "frames").clips == before


def test_frames_behind_a_uri(tmp_path: Path) -> None:
    """In object storage, the tables are listed there and each file is fetched when it is read."""
    write_source(tmp_path / "raw", "npz", "float32")
    here, there = (Store(str(tmp_path / name)) for name in ("here", "there"))
    expected = prepared(tmp_path / "raw", here)
    config = dataset_config("frames", source=f"fsspec+file://{tmp_path / 'raw'}", frame_hop_seconds=HOP_S)
    assert prepare(config, there)[0].content_hash == expected.content_hash


def test_matrices_of_bins_by_frames_are_turned(tmp_path: Path) -> None:
    """`.T` behind a file, an array of it, or a row of that; an array that is called so is itself."""
    from atose_ray.datasets.frames import read_matrix
    from atose_ray.types import ClipRef

    one, packed = matrix(1, frames=4), np.stack([matrix(i, frames=4) for i in range(3)])
    np.save(tmp_path / "one.npy", one)
    np.savez(tmp_path / "all.npz", packed=packed, **{"odd.T": one})
    for name, wanted in (
        ("one.npy#.T", one.T), ("one.npy", one), ("all.npz#packed/2.T", packed[2].T), ("all.npz#odd.T", one)
    ):  # fmt: skip
        source = str(tmp_path / name.partition("#")[0])
        assert np.array_equal(read_matrix(source, ClipRef(source, name, (), "train")), wanted)


@pytest.mark.parametrize(("context", "width"), [("none", 128), ("gru", 5), ("gru", 7)])
def test_encoder_of_frames(context: str, width: int) -> None:
    """Bytes around 0, float32 as it is; a row does not depend on its neighbours; every parameter gets a gradient."""
    for dtype in ("uint8", "float32"):
        spec = DataSpec(
            input=FrameInput(frames=7, bins=BINS, frame_hop_seconds=HOP_S, dtype=dtype), tags=("a",), exclusive=False
        )
        torch.manual_seed(0)
        encoder = EncoderFramesConfig(context=context, width=width).build(spec)
        frames_BFM = torch.from_numpy(np.stack([matrix(i, "uint8", 7) for i in range(3)])).float()
        seq_BSE = encoder.sequence(encoder.front_end(frames_BFM))
        assert encoder.hop_seconds == HOP_S and seq_BSE.shape == (3, 7, BINS if context == "none" else 2 * width)
        embed_BE = encoder(frames_BFM)
        assert torch.allclose(embed_BE[1:2], encoder(frames_BFM[1:2]), atol=1e-6)
        if context == "none":
            want = (frames_BFM - 128) / 128 if dtype == "uint8" else frames_BFM
            assert torch.equal(seq_BSE, want) and torch.equal(embed_BE, want.mean(dim=1))
        else:
            embed_BE.square().sum().backward()
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.parameters())
