"""AudioSet's stored features: packed HDF5 and the released TFRecords give the same clips, labels and bytes."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atose_ray import evaluate, train
from atose_ray.data.batches import CropSettings, LocalBatches
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import unit_of
from atose_ray.datasets import DatasetConfig, DatasetError, audioset_frames, dataset_config
from atose_ray.datasets.base import SourceError
from atose_ray.datasets.tfrecord import context, embedding, fields, varints
from atose_ray.evaluation.audioset import d_prime
from atose_ray.storage import Store

NAMES = ("Speech", "Male speech, man speaking", 'Say "ah"', "Music", "Silence")
COUNTS = {"bal_train": 24, "unbal_train": 60, "eval": 20}


def write_labels(folder: Path) -> None:
    with (folder / "class_labels_indices.csv").open("w", newline="") as file:
        table = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        table.writerow(["index", "mid", "display_name"])
        table.writerows([index, f"/m/{index}", name] for index, name in enumerate(NAMES))


def content(part: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """x, y and ids of a part; every label occurs, and a clip has one label or more."""
    rng = np.random.default_rng(len(part))
    count = COUNTS[part]
    y = rng.random((count, len(NAMES))) < 0.3
    y[np.arange(count), np.arange(count) % len(NAMES)] = True
    ids = [f"{part[:3]}-{index:06d}" for index in range(count)]
    if part == "unbal_train":
        ids[3] = "eva-000001"
    return rng.integers(0, 256, (count, 10, 128), dtype=np.uint8), y, ids


def write_packed(folder: Path) -> Path:
    h5py = pytest.importorskip("h5py")
    write_labels(folder)
    for part in COUNTS:
        x, y, ids = content(part)
        with h5py.File(folder / f"{part}.h5", "w") as file:
            file["x"], file["y"], file["video_id_list"] = x, y, np.array(ids, "S20")
    return folder


def make_audioset_frames(folder: Path) -> DatasetConfig:
    return dataset_config("audioset_frames", source=str(write_packed(folder)), valid_share=0.2)


def varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def block(field: int, payload: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(payload)) + payload


def example(x: np.ndarray, labels: list[int], video: str, packed: bool) -> bytes:
    """A tf.SequenceExample as AudioSet's, with the fields that are not read as well."""
    ints = block(1, b"".join(map(varint, labels))) if packed else b"".join(b"\x08" + varint(one) for one in labels)
    times = block(1, struct.pack("<f", 30.0)) if packed else b"\x0d" + struct.pack("<f", 30.0)
    features = {"video_id": block(1, block(1, video.encode())), "labels": block(3, ints)}
    features |= {"start_time_seconds": block(2, times)}
    entries = [block(1, block(1, key.encode()) + block(2, value)) for key, value in features.items()]
    rows = b"".join(block(1, block(1, block(1, row.tobytes()))) for row in x)
    lists = block(1, block(1, b"audio_embedding") + block(2, rows))
    return block(1, b"".join(entries)) + block(2, lists)


def write_released(folder: Path) -> Path:
    write_labels(folder)
    for part in COUNTS:
        x, y, ids = content(part)
        (folder / part).mkdir()
        for number, rows in enumerate(np.array_split(np.arange(len(x)), 3)):
            with (folder / part / f"{number:02d}.tfrecord").open("wb") as file:
                for row in rows.tolist():
                    message = example(x[row], np.flatnonzero(y[row]).tolist(), ids[row], packed=row % 2 == 0)
                    file.write(struct.pack("<Q", len(message)) + b"crc1" + message + b"crc2")
    return folder


def stored(config: DatasetConfig, store: Store) -> tuple[Any, dict[int, np.ndarray]]:
    manifest, _ = prepare(config, store)
    spec = manifest.data_spec
    settings = CropSettings(manifest.folder(store).uri, len(spec.tags), 10, 0, unit_of(spec.input))
    batches = LocalBatches(manifest, settings, batch_size=8, eval_crops=1, eval_batch_size=64, mix=2)
    found = {}
    for split in ("valid", "test"):
        for batch in batches.evaluate(split):
            found |= dict(zip(batch.clip_id_B.tolist(), batch.inputs.numpy(), strict=True))
    return manifest, found


def test_both_forms_are_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audioset_frames, "ROWS", 7)
    folders = [tmp_path / "packed", tmp_path / "released"]
    for folder, write in zip(folders, (write_packed, write_released), strict=True):
        folder.mkdir()
        write(folder)
    configs = [dataset_config("audioset_frames", source=str(folder), valid_share=0.2) for folder in folders]
    one, other = (config.list_clips() for config in configs)
    assert [(c.tags, c.split, c.group) for c in one.clips] == [(c.tags, c.split, c.group) for c in other.clips]
    assert one.tags == other.tags == NAMES
    assert dict(one.left_out) == {"in a training file and in the evaluation set": 1}
    counts = {split: sum(clip.split == split for clip in one.clips) for split in ("train", "valid", "test")}
    assert counts["test"] == 20 and counts["train"] + counts["valid"] == 83 and 6 < counts["valid"] < 30
    _, y, ids = content("unbal_train")
    last = next(clip for clip in one.clips if clip.group == ids[59])
    assert last.tags == tuple(name for name, has in zip(NAMES, y[59], strict=True) if has)
    prepared = [stored(config, Store(str(tmp_path / f"store{i}"))) for i, config in enumerate(configs)]
    (manifest, first), (_, second) = prepared
    assert manifest.data_spec.input.model_dump() == {
        "kind": "frames", "frames": 10, "bins": 128, "frame_hop_seconds": 1.0, "dtype": "uint8",
    }  # fmt: skip
    assert first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
    tested = [bytes(value.astype(np.uint8)) for key, value in first.items() if key >= 83]
    assert sorted(tested) == sorted(map(bytes, content("eval")[0]))


def test_which_clips_are_for_validation(tmp_path: Path) -> None:
    """None of the evaluation part, by the video's id, the same in every choice of parts; another seed, others."""
    folder = write_packed(tmp_path)

    def valid(**options: object) -> set[str | None]:
        clips = dataset_config("audioset_frames", source=str(folder), **options).list_clips().clips
        return {clip.group for clip in clips if clip.split == "valid"}

    both, balanced = valid(valid_share=0.3), valid(valid_share=0.3, train="balanced")
    assert balanced and balanced == {video for video in both if str(video).startswith("bal")}
    assert valid(valid_share=0.3, seed=1) != both and not valid(valid_share=0.0)
    assert len(valid()) < 0.25 * 83 and not any(str(video).startswith("eva") for video in both)


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    config = dataset_config("audioset_frames", source=str(tmp_path))
    write_labels(tmp_path)
    with pytest.raises(DatasetError, match=r"neither eval\.h5 nor eval/\*\.tfrecord"):
        config.list_clips()
    write_packed(tmp_path)
    with h5py.File(tmp_path / "bal_train.h5", "w") as file:
        file["x"], file["y"], file["video_id_list"] = np.zeros((3, 10, 64), np.uint8), np.zeros((3, 5)), ["a", "b", "c"]
    with pytest.raises(DatasetError, match=r"expected x \[N, 10, 128\].* but got \[3, 10, 64\], \[3, 5\] and 3"):
        config.list_clips()
    (tmp_path / "bal_train.h5").write_bytes(b"no HDF5")
    with pytest.raises(DatasetError, match="is not the packed HDF5"):
        config.list_clips()


@pytest.mark.parametrize("fault", ["cut", "huge", "labels", "text"])
def test_damaged_records(fault: str, tmp_path: Path) -> None:
    write_released(tmp_path)
    path = tmp_path / "bal_train" / "01.tfrecord"
    good = path.read_bytes()
    other = example(np.zeros((10, 128), np.uint8), [77], "x", packed=True)
    message = {"cut": good[:-9], "huge": b"\xff" * 40, "text": struct.pack("<Q", 5) + b"crc1\x0fabcdcrc2"}
    labels = struct.pack("<Q", len(other)) + b"crc1" + other + b"crc2"
    path.write_bytes(message.get(fault, labels))
    with pytest.raises(DatasetError, match=r"01\.tfrecord"):
        dataset_config("audioset_frames", source=str(tmp_path)).list_clips()


def test_the_wire() -> None:
    """Varints of several bytes and below zero; numbers of 4 and 8 bytes; a message that breaks off."""
    assert varints(varint(300) + varint(-2) + varint(0)) == [300, -2, 0]
    message = b"\x09" + struct.pack("<d", 0.5) + b"\x15" + struct.pack("<f", 1.5) + b"\x18\x96\x01"
    assert list(fields(message)) == [(1, 0.5), (2, 1.5), (3, 150)]
    whole = example(np.ones((2, 4), np.uint8), [1, 300], "ab", packed=False)
    assert context(whole)["labels"] == [1, 300] and context(whole)["video_id"] == [b"ab"]
    assert context(whole)["start_time_seconds"] == [30.0] and embedding(whole) == [b"\1" * 4] * 2
    with pytest.raises(SourceError, match="breaks off"):
        context(whole[:20])
    with pytest.raises(SourceError):
        list(fields(b"\x80"))


def test_from_the_files_to_the_three_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prepared, trained on the published recipe made small, scored with --protocol audioset: it learns."""
    h5py = pytest.importorskip("h5py")
    folder = write_packed(tmp_path)
    means = np.random.default_rng(0).normal(0, 60, (len(NAMES), 128))
    for part in COUNTS:
        with h5py.File(folder / f"{part}.h5", "r+") as file:
            file["x"][...] = (128 + (file["y"][...] @ means)[:, None] + np.zeros((1, 10, 1))).clip(0, 255)
    store = str(tmp_path / "store")
    prepare(dataset_config("audioset_frames", source=str(folder), valid_share=0.2), Store(store))
    small = ["method.width=16", "method.stages=[{name: attend, epochs: 25}]", "data.batch_size=20", "optim.lr=0.01"]
    train.main(["audioset_frames", "--store", store, *(word for one in small for word in ("--set", one))])
    (run,) = (tmp_path / "store" / "runs").iterdir()
    capsys.readouterr()
    evaluate.main([str(run / "best"), "--store", store, "--protocol", "audioset", "--json"])
    result = json.loads(capsys.readouterr().out)
    found = result["metrics"]
    assert result["protocol"] == "audioset" and found["clips"] == 20 and found["tags_scored"] == len(NAMES)
    assert found["roc_auc_macro"] > 0.9 and found["d_prime"] == pytest.approx(d_prime(found["roc_auc_macro"]))
    assert result["published"] is None  # those are of 527 labels


def test_published_figures_stand_beside_ours_and_gaps_are_gaps() -> None:
    published = evaluate.beside("audioset_frames", 527, "test", "audioset")
    assert published is not None
    ours = {"metrics": {"pr_auc_macro": 0.3, "roc_auc_macro": 0.95, "d_prime": 2.3}, "published": published}
    lines = "\n".join(evaluate.published_lines([ours], ["this model"], "[audioset]"))
    assert "multi-level 2018" in lines and "0.3600              -        -  [audioset]" in lines
    assert "this model                     0.3000         0.9500   2.3000  [audioset]" in lines
