"""Shards: what goes in comes out, the same bytes every time, and every bad file is listed with its reason."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import RATE, TINY_TAGS, render_tiny

from atose_ray import prepare as verb
from atose_ray.data.batches import check_trainable
from atose_ray.data.prepare import PrepareError, prepare, run_here
from atose_ray.data.shards import SCHEMA, data_store, load_manifest, read_row_group, read_tags
from atose_ray.datasets import dataset_config
from atose_ray.store import Store, StoreError


def folder_config(source: Path, **options: object):
    return dataset_config("folder", source=str(source), sample_rate_hz=RATE, **options)


def test_round_trip(tiny_source: Path, tiny_store: Store, tiny_manifest) -> None:
    spec = tiny_manifest.data_spec
    assert spec.tags == tuple(sorted(TINY_TAGS)) and spec.counts == {"train": 36, "valid": 12, "test": 12}
    assert spec.clip_samples == int(RATE * 1.5) and not tiny_manifest.skipped
    rows = {row["path"]: row for row in csv.DictReader((tiny_source / "tags.csv").open())}
    folder = data_store(tiny_store, "folder")
    seen = []
    for split in ("train", "valid", "test"):
        for group in tiny_manifest.row_groups(split):
            clips = read_row_group(folder, group, len(spec.tags))
            names = pq.read_table(folder.path(group.file))["name"].to_pylist()
            for pcm, scale, tags, name in zip(clips.pcm_N, clips.scale_N, clips.tags_NC, names, strict=True):
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
