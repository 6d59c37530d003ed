"""One copy of the clips for all trials of a node: the very batches of streaming, no sample copied, and a way on when
the copy is lost. What the object store must hold is said before the first trial, and what it spilled, after it."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE
from processes import PATIENCE_S, environment, wait_for
from test_ray import run, study

from atose_ray.config import RunConfig, SearchConfig
from atose_ray.data import resident
from atose_ray.data.batches import CropSettings, LocalBatches
from atose_ray.data.in_memory import joined, read_clips
from atose_ray.data.prepare import prepare
from atose_ray.data.resident import ResidentBatches, SharedClips, kept_in, shared_files
from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.data.views import View
from atose_ray.datasets import dataset_config
from atose_ray.runtime import object_store, shared
from atose_ray.runtime.object_store import Spilling
from atose_ray.runtime.shared import PART_BYTES, SharedClipsLostError, SharedRefs, parts_of, share_clips, source_of
from atose_ray.search.clip_plan import BLOCKS, NodeStore, plan_clips
from atose_ray.search.nodes import NodeKind, Nodes
from atose_ray.search.plan import Plan
from atose_ray.storage import Store, StoreError
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, make_batches, open_run

CPU = torch.device("cpu")
MIB = 2**20


def whole(manifest: Manifest) -> View:
    """The view that is all of a set."""
    return View(manifest, len(manifest.data_spec.tags))


@pytest.fixture
def small_parts(monkeypatch) -> None:
    """The tiny set in several parts."""
    monkeypatch.setattr(shared, "PART_BYTES", 30_000)


def lent(store: Store, manifest: Manifest) -> SharedClips:
    """The clips as a trial gets them: in parts, read-only."""
    settings, splits = CropSettings(manifest.folder(store).uri, len(manifest.data_spec.tags), 0, 0), {}
    for split in shared.SPLITS:
        pieces = [
            read_clips(settings, groups, np.ones(sum(g.clips for g in groups), bool), CPU)
            for groups in parts_of(manifest, split)
        ]
        for piece in pieces:
            piece.parts[0].setflags(write=False)
        splits[split] = joined(pieces)
    return SharedClips(shared_files(manifest), None, splits)


@pytest.fixture(scope="module")
def long_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Clips long enough that Ray keeps them in the object store, and not in the memory of who made them."""
    source, store = tmp_path_factory.mktemp("long"), Store(str(tmp_path_factory.mktemp("store")))
    rng, rows = np.random.default_rng(1), ["path,split,tags"]
    for index, split in enumerate(["train"] * 6 + ["valid"] * 2 + ["test"] * 2):
        soundfile.write(source / f"{index}.wav", 0.1 * rng.standard_normal(40 * RATE), RATE)
        rows.append(f"{index}.wav,{split},{('low', 'high')[index % 2]}")
    (source / "tags.csv").write_text("\n".join(rows))
    prepare(dataset_config("folder", source=str(source), sample_rate_hz=RATE), store)
    return store


@pytest.fixture
def no_host_room(monkeypatch) -> None:
    """Every other place but streaming is full, and holds nothing of the tests before."""
    monkeypatch.setattr(resident, "_IN_MEMORY", WeakValueDictionary())
    monkeypatch.setattr(resident, "choose_residency", lambda *_: "stream")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("place", ["stream", "device"])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("crop_seconds", "share", "crops"), [(0.3, 1.0, 1), (0.6, 0.4, 3), (2.0, 0.7, 1)])
def test_batches_are_those_of_streaming(
    place, world, crop_seconds, share, crops, tiny_run, tiny_store, tiny_manifest, small_parts, monkeypatch
) -> None:
    clips = lent(tiny_store, tiny_manifest)
    assert len(clips.splits["train"].parts) > 2
    monkeypatch.setattr(resident, "place", lambda wanted, *_: place if wanted == "auto" else "stream")
    sizes = {"crop_seconds": crop_seconds, "train_share": share, "crops_per_clip": crops, "batch_size": 8}
    config = tiny_run(data={"dataset": "folder", "eval_crops": 3, "shuffle_row_groups": 2, **sizes})
    for rank in range(world):
        streamed = make_batches(config, tiny_manifest, tiny_store.uri, LocalBatches, rank, world)
        kept = make_batches(config, tiny_manifest, tiny_store.uri, LocalBatches, rank, world, CPU, clips)
        assert isinstance(kept, ResidentBatches) and kept_in(kept) == ("shared" if place == "stream" else "device")
        for epoch in (0, 3):
            assert_same(streamed.train(epoch), kept.train(epoch))
        for split in ("valid", "test"):
            assert_same(streamed.evaluate(split), kept.evaluate(split))
        same = [a is b for a, b in zip(kept.train_clips.parts, clips.splits["train"].parts, strict=False)]
        assert all(same) if place == "stream" else not any(same)  # the very arrays: nothing is copied


def assert_same(ours, theirs) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_clips_are_taken_only_where_they_are_asked_for_and_of_this_data(
    tiny_run, tiny_store, tiny_manifest, no_host_room
) -> None:
    clips = lent(tiny_store, tiny_manifest)

    def place(given: SharedClips, **data) -> str:
        config = tiny_run(data={"dataset": "folder", "crop_seconds": 0.6, "batch_size": 8, **data})
        return kept_in(make_batches(config, tiny_manifest, tiny_store.uri, LocalBatches, 0, 1, CPU, given))

    assert place(clips) == "shared" and place(clips, residency="stream") == "stream"
    assert place(SharedClips(("another",), None, clips.splits)) == "stream"


# the driver reads, and tasks do where it is more than the limit; the other one is gone
@pytest.mark.parametrize(("limit", "other"), [(PART_BYTES, "_read_there"), (1 << 20, "_put_here")])
def test_one_copy_serves_every_process_of_a_node(limit, other, ray_cluster, long_store, monkeypatch) -> None:
    import ray

    monkeypatch.setattr(shared, "PART_BYTES", limit)
    monkeypatch.delattr(shared, other)
    home = settled_store()
    copy = share_clips(long_store, whole(load_manifest(long_store, "folder")), [home.node_id])
    (filled,) = object_store.node_stores()

    class Trial:
        def take(self, given: SharedRefs) -> tuple[int, bool]:
            self.clips = given.clips()
            parts = [part for held in self.clips.splits.values() for part in held.parts]
            return sum(part.nbytes for part in parts), any(part.flags.writeable or part.flags.owndata for part in parts)

    trials = [ray.remote(num_cpus=0)(Trial).remote() for _ in range(2)]
    for nbytes, own in ray.get([trial.take.remote(copy) for trial in trials]):
        assert not own and nbytes == 8 * 40 * RATE * 2
    (mapped,) = object_store.node_stores()
    assert filled.used - home.used >= nbytes and mapped.used - filled.used < nbytes / 2
    del copy, trials
    wait_for("the copy to go, every part of it", lambda: filled.used - object_store.node_stores()[0].used >= nbytes)


def settled_store() -> NodeStore:
    """The object store of the shared Ray's one node, when what earlier tests had put there is no longer leaving."""
    gc.collect()

    def settled() -> NodeStore | None:
        (before,) = object_store.node_stores()
        time.sleep(1)
        (after,) = object_store.node_stores()
        return after if after.used == before.used else None

    return wait_for("the object store to settle", settled)


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_streams_scores_as_one_that_keeps_its_clips(ray_cluster, tiny_store, tmp_path) -> None:
    """tests/test_ray.py has the same of trials that share theirs."""
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "data")
    data = {"dataset": "folder", "crop_seconds": 0.6, "batch_size": 8, "residency": "stream"}
    config = study(base={"data": data, "execution": {"ingest": "ray_data"}}, trials=1, pruner={"kind": "none"})
    (trial,) = run(config, "s", Store(str(tmp_path))).trials
    (about,) = tmp_path.glob("studies/s/trials/*/about.json")
    assert json.loads(about.read_text())["residency"] == "stream"
    alone = RunConfig.model_validate(trial.config)
    alone = alone.model_copy(update={"data": alone.data.model_copy(update={"residency": "host"})})
    opened = open_run(Job(alone, tiny_store.uri, str(tmp_path / "alone"), {}), LocalBatches)
    assert kept_in(opened.batches) == "host"
    fit(opened.run, opened.method, opened.batches, opened.folder)
    assert [e.train_loss for e in opened.folder.epochs()] == [e.train_loss for e in trial.epochs]


def test_lost_clips_are_read_again_by_the_run_that_says_so(ray_cluster, tiny_run, tiny_store, long_store, tmp_path):
    import ray

    class Owner:
        def share(self, *arguments) -> SharedRefs:
            return share_clips(*arguments)

    (home,) = object_store.node_stores()
    owner = ray.remote(num_cpus=0)(Owner).remote()
    arguments = long_store, whole(load_manifest(long_store, "folder")), [home.node_id]
    copy = ray.get(owner.share.remote(*arguments))
    ray.kill(owner)

    def lost() -> bool:
        try:
            copy.clips()
        except SharedClipsLostError:
            return True
        return False

    wait_for("the copy to go with its owner", lost)
    job = Job(tiny_run(), tiny_store.uri, str(tmp_path / "run"), {"number": 0})
    opened = open_run(job, **source_of("local", copy, None))
    assert kept_in(opened.batches) in ("host", "stream")
    about = json.loads((tmp_path / "run/about.json").read_text())
    alone = open_run(Job(tiny_run(), tiny_store.uri, str(tmp_path / "alone")))
    assert about["note"].startswith("the shared clips were lost (OwnerDiedError") and about["number"] == 0
    assert_same(opened.batches.train(1), alone.batches.train(1))


def test_a_copy_that_never_came_is_read_without_ray_data(tiny_run, tiny_store, tmp_path) -> None:
    job = Job(tiny_run(execution={"ingest": "ray_data"}), tiny_store.uri, str(tmp_path), {})
    refs = SharedRefs((), None, {}, "the object store is full")
    opened = open_run(job, **source_of("ray_data", refs, None))
    assert type(opened.batches) in (LocalBatches, ResidentBatches)
    assert "lost (the object store is full)" in json.loads((tmp_path / "about.json").read_text())["note"]


def test_a_node_that_came_later_with_too_small_a_store_reads_alone(ray_cluster, tiny_run, tiny_store, tmp_path) -> None:
    (home,) = object_store.node_stores()
    refs = SharedRefs((), None, {}, need=home.total // 2 + 1)
    assert "are more than half of this node's store of" in source_of("local", refs, None)["note"]
    assert "lent" in source_of("local", SharedRefs((), None, {}, need=home.total // 2), None)


@pytest.mark.parametrize(("limit", "other"), [(PART_BYTES, "_read_there"), (1 << 10, "_put_here")])
def test_a_shard_that_cannot_be_read_ends_the_search_at_once(
    limit, other, ray_cluster, tiny_store, tiny_manifest, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(shared, "PART_BYTES", limit)
    monkeypatch.delattr(shared, other)
    (home,) = object_store.node_stores()
    with pytest.raises(StoreError, match=r"^cannot read .*\.parquet: "):
        share_clips(Store(str(tmp_path)), whole(tiny_manifest), [home.node_id])


def node(free: int, name: str = "10.0.0.1", cpus: float = 4, gpus: float = 0) -> NodeStore:
    return NodeStore(name, name, cpus, gpus, free + 7, 7, 0, 0)


def planned(config: RunConfig, manifest: Manifest, stores: list[NodeStore], concurrency: int = 2, **search: object):
    available = Nodes(tuple(NodeKind("", s.cpus, s.gpus) for s in stores))
    clips = plan_clips(config, SearchConfig(**search), manifest, available, stores)
    return clips, clips.line(Plan(concurrency, 0, 1, 1, 0, 0, available))


def test_the_plan_says_where_clips_will_be_and_why(tiny_run, tiny_manifest) -> None:
    need = sum(s.bytes for s in tiny_manifest.shards if s.split != "test")
    config, roomy = tiny_run(), [node(2 * need), node(9 * need, "10.0.0.2"), node(8, "10.0.0.3", cpus=0)]
    clips, line = planned(config, tiny_manifest, roomy)
    assert clips.shared and [home.address for home in clips.homes] == ["10.0.0.1", "10.0.0.2"]
    assert line.startswith("data: shared: ") and "each of 2 node(s)" in line and "10.0.0.1" in line
    clips, line = planned(config, tiny_manifest, [node(2 * need - 1), node(9 * need)])
    assert not clips.shared and "more than half of the" in line and "--object-store 2" in line
    named = config.model_copy(update={"data": config.data.model_copy(update={"residency": "host"})})
    clips, line = planned(named, tiny_manifest, roomy)
    assert not clips.shared and line == "data: host, as data.residency says"
    clips, line = planned(config, tiny_manifest, [node(9 * need, cpus=1)], cpus_per_worker=2)
    assert not clips.shared and "each trial for itself, as no node that can train is up yet" in line


def test_clips_are_shared_on_the_nodes_that_run_and_later_ones_fetch_them(tiny_run, tiny_manifest) -> None:
    need = sum(s.bytes for s in tiny_manifest.shards if s.split != "test")
    gpu = NodeKind("gpu", 4, 1, 1, 3)
    nodes = Nodes((NodeKind("head", 4, head=True), gpu))
    stores = [node(9 * need, "10.0.0.1"), node(9 * need, "10.0.0.2", gpus=1)]
    clips = plan_clips(tiny_run(), SearchConfig(), tiny_manifest, nodes, stores)
    assert clips.shared and [home.address for home in clips.homes] == ["10.0.0.2"]  # the head trains nothing here
    assert "each of 1 node(s)" in clips.why and "a node that starts later fetches them" in clips.why
    clips = plan_clips(tiny_run(), SearchConfig(), tiny_manifest, nodes, stores[:1])
    assert not clips.shared and not clips.homes


def test_streams_share_out_the_object_store_and_what_cannot_fit_is_said(tiny_run, tiny_manifest) -> None:
    config = tiny_run(data={"dataset": "folder", "residency": "stream"}, execution={"ingest": "ray_data"})
    clips, line = planned(config, tiny_manifest, [node(800 * MIB), node(900 * MIB)], concurrency=4)
    plan = Plan(4, 0, 1, 1, 0, 0.5, Nodes((NodeKind("", 4, 0, 2, 2),)))
    assert clips.streams and clips.stream_bytes(plan) == 200 * MIB  # half of it, two trials on each node
    assert "per node 2 x " in line and "800.0 MiB free" in line and "spill" not in line
    clips, line = planned(config, tiny_manifest, [node(clips.block * 3)], concurrency=4)
    assert clips.stream_bytes(plan) == BLOCKS * clips.block
    assert "does not fit and will spill to disk: lower search.concurrency" in line and "--object-store" in line


def test_spilling_is_said_when_it_is_new_and_once_a_minute(monkeypatch) -> None:
    now, stores = [100.0], [NodeStore("a", "a", 1, 0, 9, 0, 5 * MIB, 0), NodeStore("b", "b", 1, 0, 9, 0, 0, 0)]
    monkeypatch.setattr(object_store.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(object_store, "node_stores", lambda: stores)
    spilling = Spilling()
    now[0] += 61
    assert spilling.line() is None  # what was spilled before is not ours
    stores[1] = NodeStore("b", "b", 1, 0, 9, 0, 3 * MIB, 2 * MIB)
    assert spilling.line() is None
    now[0] += 61
    line = spilling.line()
    assert line is not None and "of 1 node(s) was full: 3.0 MiB were written to disk and 2.0 MiB read back" in line
    assert "search.concurrency" in line and spilling.line(last=True) is None
    stores[1] = NodeStore("b", "b", 1, 0, 9, 0, 4 * MIB, 2 * MIB)
    assert spilling.line() is None and "4.0 MiB" in str(spilling.line(last=True))


SPILLS = """
import numpy as np, ray
from atose_ray.runtime.cluster import cluster
from atose_ray.runtime.object_store import Spilling, node_stores
with cluster(1, object_store_bytes=80 << 20):
    spilling = Spilling()
    (store,) = node_stores()
    print(store.total >> 20, store.spilled, spilling.line(last=True))
    held = [ray.put(np.full(10 << 20, i, np.uint8)) for i in range(16)]
    print([int(ray.get(one)[0]) for one in held])
    print(spilling.line(last=True))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_full_object_store_spills_is_noticed() -> None:
    disk = shutil.disk_usage(tempfile.gettempdir())
    if disk.free < 0.06 * disk.total:
        pytest.skip("the disk is more than 94 % full, and Ray does not spill to one of 95 %")
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as folder:
        variables = environment(RAY_TMPDIR=folder, RAY_AUTH_MODE="disabled")
        done = subprocess.run(
            [sys.executable, "-c", SPILLS],
            env=variables,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
    before, values, line = done.stdout.splitlines()[-3:]
    assert before == "80 0 None" and values == str(list(range(16)))
    words = line.split()
    written = float(words[words.index("MiB") - 1])
    assert "of 1 node(s) was full" in line and 80 <= written <= 1000
