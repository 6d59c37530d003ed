"""Shards: what goes in comes out, the same bytes every time, and every bad file is listed with its reason."""

from __future__ import annotations

import csv
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from conftest import RATE, TINY_TAGS, render_tiny

from atose_ray import prepare as verb
from atose_ray.data.batches import LocalBatches, check_trainable
from atose_ray.data.prepare import PrepareError, prepare, run_here
from atose_ray.data.shards import SCHEMA, data_store, load_manifest, read_row_group, read_tags
from atose_ray.datasets import dataset_config
from atose_ray.storage import Store, StoreError
from atose_ray.training.run import make_batches


def folder_config(source: Path, **options: object):
    return dataset_config("folder", source=str(source), sample_rate_hz=RATE, **options)


def test_round_trip(tiny_source: Path, tiny_store: Store, tiny_manifest) -> None:
    spec = tiny_manifest.data_spec
    assert spec.tags == tuple(sorted(TINY_TAGS)) and spec.counts == {"train": 36, "valid": 12, "test": 12}
    assert spec.input.length == int(RATE * 1.5) and not tiny_manifest.skipped
    rows = {row["path"]: row for row in csv.DictReader((tiny_source / "tags.csv").open())}
    folder = data_store(tiny_store, "folder")
    seen = []
    for split in ("train", "valid", "test"):
        for group in tiny_manifest.row_groups(split):
            clips = read_row_group(folder, group, len(spec.tags))
            names = pq.read_table(folder.path(group.file))["name"].to_pylist()
            for pcm, scale, tags, name in zip(clips.stored_N, clips.scale_N, clips.tags_NC, names, strict=True):
                audio, _ = soundfile.read(tiny_source / name, dtype="float32")
                assert np.abs(pcm * scale - audio).max() <= np.abs(audio).max() / 32767
                assert {spec.tags[i] for i in np.flatnonzero(tags)} == set(rows[name]["tags"].split("|"))
                assert rows[name]["split"] == split
                seen.append(name)
    assert sorted(seen) == sorted(rows)
    counts = {
        tag: int(n) for tag, n in zip(spec.tags, read_tags(folder, tiny_manifest, "train").sum(axis=0), strict=True)
    }
    assert counts == {tag: tiny_manifest.tag_counts[tag]["train"] for tag in spec.tags}


def test_schema_is_frozen(tiny_store: Store, tiny_manifest) -> None:
    stored = pq.read_schema(data_store(tiny_store, "folder").path(tiny_manifest.shards[0].name))
    assert stored.equals(SCHEMA)
    assert str(SCHEMA).splitlines() == [
        "clip_id: int64",
        "name: string",
        "group: string",
        "tags: list<element: int32>",
        "  child 0, element: int32",
        "n_samples: int32",
        "scale: float",
        "pcm: binary",
    ] or SCHEMA.names == ["clip_id", "name", "group", "tags", "n_samples", "scale", "pcm"]


def test_same_inputs_same_bytes_whatever_the_order(tiny_source: Path, tiny_manifest, tmp_path: Path) -> None:
    def backwards(jobs):
        return reversed([*run_here(jobs[::-1])][::-1])

    again, written = prepare(folder_config(tiny_source), Store(str(tmp_path)), backwards)
    assert written and again.content_hash == tiny_manifest.content_hash
    assert again == tiny_manifest


def test_second_prepare_does_nothing_and_a_change_prepares_again(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    source, store = render_tiny(tmp_path / "raw", clips=20), Store(str(tmp_path / "store"))
    config = folder_config(source)
    prepare(config, store)
    stamp = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.parquet")}
    _, written = prepare(config, store)
    assert not written and stamp == {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("*.parquet")}
    soundfile.write(source / "clip_000.wav", np.zeros(900, np.float32), RATE)
    changed, written = prepare(config, store)
    assert written and len(changed.shards) == len(stamp)


def spoil(folder: Path) -> dict[str, str]:
    """Break some clips of a tiny source; file -> what its reason must say."""
    good = (folder / "clip_001.wav").read_bytes()
    (folder / "clip_000.wav").write_text("<!DOCTYPE html><html><body>404</body></html>")
    (folder / "clip_002.wav").write_bytes(b"")
    (folder / "clip_003.wav").write_bytes(good[:44])
    broken, _ = soundfile.read(folder / "clip_004.wav", dtype="float32")
    broken[10] = np.nan
    soundfile.write(folder / "clip_004.wav", broken, RATE, subtype="FLOAT")
    (folder / "clip_005.wav").unlink()
    return {
        "clip_000.wav": "HTML",
        "clip_002.wav": "empty",
        "clip_003.wav": "",
        "clip_004.wav": "NaN",
        "clip_005.wav": "",
    }


def test_broken_files_are_listed_with_reasons_and_the_rest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    source = render_tiny(tmp_path / "raw")
    reasons = spoil(source)
    manifest, _ = prepare(folder_config(source), Store(str(tmp_path / "store")))
    skipped = {clip.name: clip.reason for clip in manifest.skipped}
    assert set(skipped) == set(reasons)
    for name, word in reasons.items():
        assert word.lower() in skipped[name].lower() and len(skipped[name]) > 10, (name, skipped[name])
    assert sum(manifest.data_spec.counts.values()) == 60 - len(reasons)


def test_a_folder_with_no_decodable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    source = render_tiny(tmp_path / "raw", clips=10)
    for path in source.glob("*.wav"):
        path.write_text("<html>not found</html>")
    store = Store(str(tmp_path / "store"))
    with pytest.raises(PrepareError, match=r"none of the 10 clips.*could be decoded(.|\n)*HTML(.|\n)*--source"):
        prepare(folder_config(source), store)
    with pytest.raises(StoreError, match="no prepared data set 'folder'"):
        load_manifest(store, "folder")


def test_a_tag_lost_with_its_broken_files_is_named_before_training(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    source = render_tiny(tmp_path / "raw", clips=40)
    rows = (source / "tags.csv").read_text().replace("clip_001.wav,train,high", "clip_001.wav,train,high|gong")
    (source / "tags.csv").write_text(rows)
    (source / "clip_001.wav").write_bytes(b"")
    manifest, _ = prepare(folder_config(source), Store(str(tmp_path / "store")))
    with pytest.raises(StoreError, match="no clip of the train split of 'folder' carries gong"):
        check_trainable(manifest, 1)


def test_missing_store_names_what_is_there(tiny_store: Store) -> None:
    with pytest.raises(StoreError, match=r"no prepared data set 'mtat'.*it holds: folder.*atose_ray\.prepare mtat"):
        load_manifest(tiny_store, "mtat")


def test_changed_shards_are_noticed(tiny_source: Path, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    manifest, _ = prepare(folder_config(tiny_source), store)
    folder = data_store(store, "folder")
    group = manifest.row_groups("train")[0]
    other = manifest.row_groups("valid")[0]
    shutil.copy(folder.path(other.file), folder.path(group.file))
    with pytest.raises(StoreError, match="changed after prepare"):
        read_row_group(folder, group, 4)
    Path(folder.path(group.file)).write_bytes(b"nonsense")
    with pytest.raises(StoreError, match="cannot read row group 0"):
        read_row_group(folder, group, 4)


def test_unwritable_store_is_named_before_any_work(tmp_path: Path, tiny_source: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write .*--store"):
        verb.main(["folder", "--source", str(tiny_source), "--store", str(tmp_path / "file" / "store")])


def test_unknown_dataset_and_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown dataset 'mtta'.*mtat"):
        verb.main(["mtta", "--store", str(tmp_path)])
    with pytest.raises(ValueError, match="NAME=VALUE"):
        verb.main(["demo", "--store", str(tmp_path), "--option", "seed"])


def long_source(folder: Path, seconds: float = 3.4) -> Path:
    """One long file, and the tiny set that a data set needs around it."""
    render_tiny(folder)
    rng = np.random.default_rng(1)
    soundfile.write(folder / "long.wav", (0.1 * rng.standard_normal(int(RATE * seconds))).astype(np.float32), RATE)
    with (folder / "tags.csv").open("a") as table:
        table.write("long.wav,train,low|loud\n")
    return folder


def rows_of(store: Store, manifest) -> dict[str, dict]:
    folder = data_store(store, manifest.name)
    tables = [pq.read_table(folder.path(shard.name)) for shard in manifest.shards]
    return {row["name"]: row for table in tables for row in table.to_pylist()}


def test_a_long_file_becomes_several_clips_with_its_tags(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    source, store = long_source(tmp_path / "raw"), Store(str(tmp_path / "store"))
    manifest, _ = prepare(folder_config(source, max_clip_seconds=1), store)
    rows = rows_of(store, manifest)
    parts = [rows[f"long.wav#t={part}"] for part in ("0,1", "1,2", "2,3", "3,3.4")]
    audio, _ = soundfile.read(source / "long.wav", dtype="float32")
    heard = np.concatenate([np.frombuffer(row["pcm"], "<i2") * np.float32(row["scale"]) for row in parts])
    assert np.abs(heard - audio).max() <= np.abs(audio).max() / 32767
    assert {tuple(row["tags"]) for row in parts} == {
        tuple(sorted(manifest.data_spec.tags.index(t) for t in ("low", "loud")))
    }
    ids = [row["clip_id"] for row in rows.values()]
    assert len(set(ids)) == len(ids) and [row["clip_id"] >> 32 for row in parts] == [0, 1, 2, 3]
    assert manifest.data_spec.counts["train"] == sum(row["clip_id"] & 0xFFFFFFFF < 36 for row in rows.values()) + 4
    assert (
        manifest.tag_counts["loud"]["train"]
        == sum(
            manifest.data_spec.tags.index("loud") in row["tags"]
            for name, row in rows.items()
            if row["clip_id"] & 0xFFFF < 36
        )
        + 4
    )
    assert all(row["n_samples"] <= RATE for row in rows.values())
    assert len(data_store(store, "folder").read("facts.jsonl").decode().splitlines()) == len(rows)


def test_of_a_long_file_that_is_cut_off_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    source, store = long_source(tmp_path / "raw"), Store(str(tmp_path / "store"))
    whole = (source / "long.wav").read_bytes()
    (source / "long.wav").write_bytes(whole[: len(whole) // 2])
    manifest, _ = prepare(folder_config(source, max_clip_seconds=1), store)
    assert [clip.name for clip in manifest.skipped] == ["long.wav"] and "cut off" in manifest.skipped[0].reason
    assert not any(name.startswith("long.wav") for name in rows_of(store, manifest))


def test_what_is_too_long_for_one_shard_goes_on_in_another(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "raw").mkdir()
    source = long_source(tmp_path / "raw", seconds=40)
    config = folder_config(source, max_clip_seconds=2)
    one, _ = prepare(config, Store(str(tmp_path / "one")))
    monkeypatch.setattr("atose_ray.data.shard_job.MAX_SHARD_BYTES", 100_000)
    several, _ = prepare(config, Store(str(tmp_path / "several")))
    assert len(one.shards) < len(several.shards) and all(shard.bytes < 130_000 for shard in several.shards)
    assert one.data_spec == several.data_spec and one.tag_counts == several.tag_counts
    assert rows_of(Store(str(tmp_path / "one")), one) == rows_of(Store(str(tmp_path / "several")), several)
    for shard in several.shards:
        content = several.folder(Store(str(tmp_path / "several"))).read(shard.name)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard.bytes, shard.sha256)


def test_crops_are_read_alone_and_a_changed_shard_is_noticed(tiny_source: Path, tmp_path: Path, tiny_run) -> None:
    store = Store(str(tmp_path))
    manifest, _ = prepare(folder_config(tiny_source), store)
    run = tiny_run(data={"dataset": "folder", "crop_seconds": 0.1, "batch_size": 8})
    batches = make_batches(run, manifest, store.uri)
    whole = LocalBatches.train(batches, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("atose_ray.data.batches.read_row_group", lambda *_: pytest.fail("a whole row group was read"))
        alone = list(batches.train(3))
    for one, other in zip(alone, whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    file = Path(manifest.folder(store).path(manifest.row_groups("train")[0].file))
    content = bytearray(file.read_bytes())
    content[manifest.row_groups("train")[0].pcm_offset - 4] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="not what the manifest says"):
        list(batches.train(3))
    file.write_bytes(content[: len(content) // 3])
    with pytest.raises(StoreError, match=r"manifest says|cannot read"):
        list(batches.train(3))
