"""Data that stays: what a run was resolved with outlives another prepare, and what is old goes only on request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, render_tiny
from test_s3 import Bucket, bucket  # noqa: F401  (a fixture)

from atose_ray import evaluate, train
from atose_ray import prepare as verb
from atose_ray.data.prepare import PREPARING, prepare, run_here
from atose_ray.data.prepared import old_contents
from atose_ray.data.shards import CURRENT, MANIFEST, data_store, load_manifest, read_row_group
from atose_ray.datasets import dataset_config
from atose_ray.storage import Store, StoreError
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, finish_run, open_run, resolve

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return render_tiny(tmp_path / "raw", 30)


def config(source: Path):
    return dataset_config("folder", source=str(source), sample_rate_hz=RATE)


def change(source: Path) -> None:
    """One file sounds otherwise from now on."""
    soundfile.write(source / "clip_000.wav", np.random.default_rng(9).normal(0, 0.1, RATE).astype(np.float32), RATE)


def every_file(folder: Store) -> dict[str, bytes]:
    return {file.name: folder.read(file.name) for file in folder.files()}


def test_a_later_prepare_changes_nothing_that_stood_there(source, tmp_path) -> None:
    store = Store(str(tmp_path / "store"))
    before, _ = prepare(config(source), store, name="loops")
    was = every_file(before.folder(store))
    change(source)
    after, written = prepare(config(source), store, name="loops")
    assert written and after.content_hash != before.content_hash
    assert every_file(before.folder(store)) == was
    assert load_manifest(store, "loops") == after
    assert load_manifest(store, "loops", before.content_hash) == before
    assert data_store(store, "loops").uri == after.folder(store).uri != before.folder(store).uri


def test_what_was_prepared_before_is_found_again(source, tmp_path) -> None:
    store = Store(str(tmp_path / "store"))
    first, _ = prepare(config(source), store)
    other = dataset_config("folder", source=str(source), sample_rate_hz=2 * RATE)
    second, _ = prepare(other, store)
    again, written = prepare(config(source), store, lambda jobs: pytest.fail("nothing is decoded again"))
    assert again == first and not written and load_manifest(store, "folder") == first != second


def test_files_of_other_dates_with_the_same_content_are_the_same_set(source, tmp_path) -> None:
    store = Store(str(tmp_path / "store"))
    first, _ = prepare(config(source), store)
    shutil.copytree(source, tmp_path / "copy")
    for number, file in enumerate(sorted((tmp_path / "copy").glob("*.wav"))):
        import os

        os.utime(file, (1e9 + number, 1e9))
    moved = config(tmp_path / "copy")
    second, written = prepare(moved, store)
    assert written and second.content_hash == first.content_hash
    assert store.child("data", "folder").names() == sorted([first.content_hash[:16], CURRENT])
    assert prepare(moved, store, lambda jobs: pytest.fail("known by now"))[1] is False
    assert load_manifest(store, "folder") == first


def test_two_names_hold_two_sets(source, tmp_path) -> None:
    store = Store(str(tmp_path / "store"))
    one, _ = prepare(config(source), store, name="one")
    change(source)
    two, _ = prepare(config(source), store, name="two")
    assert [load_manifest(store, name).name for name in ("one", "two")] == ["one", "two"]
    assert load_manifest(store, "one") == one and load_manifest(store, "two") == two
    with pytest.raises(StoreError, match=r"no prepared data set 'three' in the store .*\(it holds: one, two\)"):
        load_manifest(store, "three")


def test_another_tag_name_is_another_content(source, tmp_path) -> None:
    store = Store(str(tmp_path / "store"))
    first, _ = prepare(config(source), store)
    table = (source / "tags.csv").read_text()
    (source / "tags.csv").write_text(table.replace("loud", "lout"))
    second, _ = prepare(config(source), store)
    assert [shard.sha256 for shard in first.shards] == [shard.sha256 for shard in second.shards]
    assert first.content_hash != second.content_hash and first.folder(store).exists(MANIFEST)


def test_a_run_opens_goes_on_and_is_scored_with_the_data_it_began_with(source, tmp_path, tiny_run) -> None:
    store = Store(str(tmp_path / "store"))
    manifest, _ = prepare(config(source), store)
    run = resolve(tiny_run(), store, manifest)
    jobs = [Job(run, store.uri, str(tmp_path / name)) for name in ("undisturbed", "disturbed")]
    for number, job in enumerate(jobs):
        opened = open_run(job)
        if number:  # prepared anew while the run is open
            change(source)
            prepare(config(source), store)
        fit(opened.run, opened.method, opened.batches, opened.folder, device=CPU)
        finish_run(job, Store(job.folder_uri).child("best"))
    left, right = (Store(job.folder_uri).child("best") for job in jobs)
    assert left.read("model.safetensors") == right.read("model.safetensors")
    assert left.read_json("metrics.json")["test"] == right.read_json("metrics.json")["test"]


def test_of_a_content_that_is_gone_the_message_says_what_to_do(source, tmp_path, capsys) -> None:
    place = tmp_path / "store"
    store = Store(str(place))
    manifest, _ = prepare(config(source), store)
    method = {"kind": "joint_embedding", "stages": [{"name": "embed", "epochs": 1}, {"name": "classify", "epochs": 1}]}
    tree = {"data": {"dataset": "folder", "crop_seconds": 0.3, "batch_size": 8}, "method": method}
    (tmp_path / "one.json").write_text(json.dumps(tree))
    train.main([str(tmp_path / "one.json"), "--store", str(place), "--set", "encoder.channels=4"])
    (best,) = place.glob("runs/*/best")
    capsys.readouterr()
    change(source)
    prepare(config(source), store)
    evaluate.main([str(best), "--store", str(place)])  # with the data it was trained on
    assert "note" not in capsys.readouterr().err
    data_store(store, "folder", manifest.content_hash).delete(MANIFEST)
    with pytest.raises(StoreError, match=r"does not hold the content .*resolved with; give the store"):
        load_manifest(store, "folder", manifest.content_hash)
    evaluate.main([str(best), "--store", str(place)])
    assert "not those that the model was trained on" in capsys.readouterr().err


def test_old_contents_are_listed_with_their_users_and_removed_on_request(source, tmp_path, capsys) -> None:
    place = tmp_path / "store"
    store = Store(str(place))
    manifest, _ = prepare(config(source), store, name="loops")
    store.child("studies", "mine").write_json("data.json", {"content_hash": manifest.content_hash})
    data = {"dataset": "loops", "content_hash": manifest.content_hash}
    store.child("runs", "abc").write_json("config.json", {"data": data})
    verb.main(["loops", "--remove-old", "--store", str(place)])
    assert "nothing but what the name means" in capsys.readouterr().out
    change(source)
    after, _ = prepare(config(source), store, name="loops")

    def dead(jobs):
        list(run_here(jobs[:1]))
        raise KeyboardInterrupt

    (source / "clip_001.wav").unlink()
    with pytest.raises(KeyboardInterrupt):
        prepare(config(source), store, dead, name="loops")
    cut, old = sorted(old_contents(store, "loops"), key=lambda one: one.content_hash or "")
    assert cut.folder.startswith(PREPARING) and cut.content_hash is None
    assert old.content_hash == manifest.content_hash and old.clips == 30
    assert old.used_by == ("studies/mine", "runs/abc")
    with pytest.raises(ValueError, match="nothing is deleted without a yes"):
        verb.main(["loops", "--remove-old", "--store", str(place)])
    out = capsys.readouterr().out
    assert "30 clips" in out and "used by studies/mine, runs/abc" in out and "a prepare that was cut short" in out
    assert manifest.folder(store).exists(MANIFEST)
    verb.main(["loops", "--remove-old", "--yes", "--store", str(place)])
    assert store.child("data", "loops").names() == sorted([after.content_hash[:16], CURRENT])
    assert load_manifest(store, "loops") == after
    with pytest.raises(StoreError, match="no prepared data set 'loop' in"):
        verb.main(["loop", "--remove-old", "--store", str(place)])


def as_written_by_0_1_0(source: Path, store: Store):
    """A prepared set as the first release left it: one folder per name, and its audio facts at the top."""
    manifest, _ = prepare(config(source), store)
    folder, place = manifest.folder(store), store.child("data", "folder")
    for name in folder.names():
        folder.move(name, place)
    place.delete(folder.uri.rpartition("/")[2])
    place.delete(CURRENT)
    tree = {**manifest.model_dump(mode="json"), "version": 2}
    sound = tree["data_spec"].pop("input")
    tree["data_spec"] |= {key: sound[key] for key in ("sample_rate_hz", "clip_samples")}
    del tree["folds"]
    for shard in tree["shards"]:
        del shard["fold"]
    place.write_json(MANIFEST, tree)
    return load_manifest(store, "folder")


def test_a_set_that_0_1_0_prepared_is_read_and_stays_beside_a_new_one(source, tmp_path, tiny_run) -> None:
    store = Store(str(tmp_path / "store"))
    old = as_written_by_0_1_0(source, store)
    assert old.version == 2 and old.folder(store).uri == store.child("data", "folder").uri
    run = resolve(tiny_run(), store, old)
    change(source)
    new, _ = prepare(config(source), store)
    assert load_manifest(store, "folder") == new and load_manifest(store, "folder", old.content_hash) == old
    opened = open_run(Job(run, store.uri, str(tmp_path / "run")))
    assert len(list(opened.batches.train(0))) > 0
    groups = old.row_groups("train")
    assert len(read_row_group(old.folder(store), groups[0], 4).stored_N) == groups[0].clips
    (flat,) = old_contents(store, "folder")
    assert "(as 0.1.0 wrote it)" in flat.line()
    verb.main(["folder", "--remove-old", "--yes", "--store", store.uri])
    assert store.child("data", "folder").names() == sorted([new.content_hash[:16], CURRENT])
    assert load_manifest(store, "folder") == new


def test_names_that_are_no_folder_are_refused(source, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"--name is a folder name .* but got '\.\./x'"):
        verb.main(["folder", "--source", str(source), "--name", "../x", "--store", str(tmp_path)])


def test_on_object_storage_a_set_is_moved_by_the_storage_itself(source, bucket: Bucket) -> None:  # noqa: F811
    store = Store(bucket.uri_with_endpoint("stay"))
    first, _ = prepare(config(source), store, name="loops")
    change(source)
    second, _ = prepare(config(source), store, name="loops")
    assert load_manifest(store, "loops") == second and load_manifest(store, "loops", first.content_hash) == first
    assert not any(PREPARING in name for name in bucket.objects())
    group = first.row_groups("train")[0]
    assert len(read_row_group(first.folder(store), group, 4).stored_N) == group.clips
