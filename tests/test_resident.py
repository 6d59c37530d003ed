"""Clips in memory: the very batches that streaming gives, kept where they fit, refused where they do not."""

from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import RATE

from atose_ray.data import memory, resident, shard_writer
from atose_ray.data.batches import LocalBatches, StoreError
from atose_ray.data.memory import ResidencyError, choose_residency, free_host_bytes
from atose_ray.data.prepare import prepare
from atose_ray.data.resident import ResidentBatches
from atose_ray.data.shards import load_manifest
from atose_ray.datasets import dataset_config
from atose_ray.ranks import local_world
from atose_ray.storage import Store
from atose_ray.training.run import Job, finish_run, make_batches, open_run

CPU, GPU = torch.device("cpu"), torch.device("cuda")
MIB = 2**20
AUGMENT = {"gain_db": 6.0, "shift": 0.5, "mixup": 0.4, "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def fine_store(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny set in row groups of five clips."""
    store = Store(str(tmp_path_factory.mktemp("fine")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_writer, "MAX_ROW_GROUP_CLIPS", 5)
        prepare(dataset_config("folder", source=str(tiny_source), sample_rate_hz=RATE), store)
    return store


def data(**changes: object) -> dict:
    tree = {"dataset": "folder", "crop_seconds": 0.6, "batch_size": 8, "eval_crops": 3, "shuffle_row_groups": 2}
    return {**tree, **changes}


def sources(run, store: Store, residency: str, rank: int = 0, world: int = 1, device: torch.device = CPU):
    """LocalBatches and ResidentBatches of the same run; `device` on a CPU gathers as a GPU does."""
    manifest = load_manifest(store, "folder")
    streamed = make_batches(run, manifest, store.uri, LocalBatches, rank, world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resident, "place", lambda *_: residency)
        kept = make_batches(run, manifest, store.uri, LocalBatches, rank, world, device)
    assert type(kept) is ResidentBatches and type(streamed) is LocalBatches
    return streamed, kept


def assert_same(ours, theirs) -> int:
    pairs = list(zip(ours, theirs, strict=True))
    for one, other in pairs:
        for a, b in zip(one, other, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b.cpu())
    return len(pairs)


@pytest.mark.parametrize("residency", ["host", "device"])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("crop_seconds", "share"), [(0.3, 1.0), (0.6, 1.0), (0.6, 0.4), (2.0, 0.7)])
@pytest.mark.parametrize(("crops", "changes"), [(1, {}), (3, {"noise": {"blank": 0.3}}), (2, {"augment": AUGMENT})])
def test_batches_are_those_of_streaming(
    residency, world, crop_seconds, share, crops, changes, tiny_run, fine_store
) -> None:
    """Crops shorter than every clip, between, and longer; the first has clips cut at both ends of what is held."""
    sizes = data(crop_seconds=crop_seconds, train_share=share, crops_per_clip=crops, **changes)
    run = tiny_run(data=sizes, execution={"eval_batch_size": 4})
    for rank in range(world):
        streamed, kept = sources(run, fine_store, residency, rank, world)
        for epoch in (0, 1, 5):
            assert assert_same(streamed.train(epoch), kept.train(epoch)) == streamed.steps() == kept.steps()
        assert assert_same(streamed.evaluate("valid"), kept.evaluate("valid")) > 0
        assert assert_same(streamed.evaluate("test"), kept.evaluate("test")) > 0


@pytest.mark.gpu
@pytest.mark.parametrize("residency", ["host", "device"])
def test_batches_on_a_gpu_are_those_of_streaming(residency, tiny_run, fine_store) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    streamed, kept = sources(
        tiny_run(data=data(noise={"blank": 0.3}, augment=AUGMENT)), fine_store, residency, device=GPU
    )
    assert isinstance(kept.train_clips.parts[0], torch.Tensor) == (residency == "device")
    assert all(batch.inputs.device.type == "cuda" for batch in kept.train(0))
    assert_same(streamed.train(1), kept.train(1))
    assert_same(streamed.evaluate("valid"), kept.evaluate("valid"))


def test_a_rank_without_validation_clips_has_none(tiny_run, tiny_store) -> None:
    _, kept = sources(tiny_run(data=data()), tiny_store, "host", 1, 2)
    assert list(kept.evaluate("valid")) == []


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_share_is_the_same_through_ray_data(ray_cluster, world, tiny_run, fine_store) -> None:
    from atose_ray.runtime.ingest import RayBatches

    chosen = data(train_share=0.5, crops_per_clip=2, noise={"blank": 0.3}, augment=AUGMENT)
    run, manifest = tiny_run(data=chosen), load_manifest(fine_store, "folder")
    for rank in range(world):
        streamed, kept = sources(run, fine_store, "host", rank, world)
        ray_data = make_batches(run, manifest, fine_store.uri, RayBatches, rank, world, CPU)
        assert type(ray_data) is RayBatches and ray_data.residency == "stream"
        assert assert_same(streamed.train(2), ray_data.train(2)) == assert_same(streamed.train(2), kept.train(2))


def test_only_the_share_is_read_and_held(tiny_run, fine_store) -> None:
    _, whole = sources(tiny_run(data=data()), fine_store, "host")
    _, share = sources(tiny_run(data=data(train_share=0.25)), fine_store, "host")
    assert len(whole.train_clips.clip_id_N) == 36 and len(share.train_clips.clip_id_N) == 9
    assert len(share.train_clips.parts[0]) == share.train_clips.n_samples_N.sum()
    assert set(share.train_clips.clip_id_N) < set(whole.train_clips.clip_id_N)
    ids = [set(torch.cat([batch.clip_id_B for batch in share.train(epoch)]).tolist()) for epoch in (0, 1)]
    assert ids[0] == ids[1] == set(share.train_clips.clip_id_N.tolist())


def test_a_share_too_small_for_the_workers_is_refused(tiny_run, tiny_store) -> None:
    run, manifest = tiny_run(data=data(train_share=0.01)), load_manifest(tiny_store, "folder")
    assert make_batches(run, manifest, tiny_store.uri).sizes == [2]
    with pytest.raises(StoreError, match=r"train_share=0\.01 leaves 2 of 36 clips.*2 workers needs at least 4"):
        make_batches(run, manifest, tiny_store.uri, LocalBatches, 0, 2)


def test_a_run_says_where_its_clips_were(tiny_run, tiny_store, tmp_path, monkeypatch) -> None:
    for residency, chosen in (("auto", "host"), ("host", "host"), ("stream", "stream")):
        run = tiny_run(data=data(residency=residency), execution={"device": "cpu"})
        job = Job(run, tiny_store.uri, str(tmp_path / residency), {"name": "x"})
        assert open_run(job).batches.residency == chosen
        assert json.loads((tmp_path / residency / "about.json").read_text())["residency"] == chosen
    gc.collect()
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 1 * MIB)
    run = tiny_run(execution={"device": "cpu"})
    assert type(open_run(Job(run, tiny_store.uri, str(tmp_path / "small"), {})).batches) is LocalBatches


def test_residency_changes_no_weight_and_no_score(tiny_run, tiny_store, tmp_path) -> None:
    from atose_ray.training.loop import fit

    results = []
    for residency in ("stream", "host"):
        run = tiny_run(data=data(residency=residency), execution={"device": "cpu"})
        job = Job(run, tiny_store.uri, str(tmp_path / residency), {})
        opened = open_run(job)
        fit(opened.run, opened.method, opened.batches, opened.folder)
        epochs = [(e.train_loss, e.valid) for e in opened.folder.epochs()]
        test = finish_run(job, Store(str(tmp_path / f"best-{residency}")))["test"]
        results.append((epochs, test, [value.tolist() for value in opened.method.state_dict().values()]))
    assert results[0] == results[1]


def test_runs_of_one_process_share_what_is_held(tiny_run, tiny_store, monkeypatch) -> None:
    """As in a search's actor: the next run opens while the last is still there, and reads nothing, whatever is free."""
    run, manifest = tiny_run(data=data(residency="auto")), load_manifest(tiny_store, "folder")
    gc.collect()
    first = make_batches(run, manifest, tiny_store.uri, device=CPU)
    other = run.model_copy(update={"seed": 9, "data": run.data.model_copy(update={"batch_size": 4})})
    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_host_bytes", lambda: 0)
        patch.setattr(resident, "read_clips", lambda *_: pytest.fail("read again"))
        second = make_batches(other, manifest, tiny_store.uri, device=CPU)
    assert second.train_clips is first.train_clips and second.valid_clips is first.valid_clips
    del first, second
    gc.collect()
    assert not resident._IN_MEMORY


def test_shards_changed_after_prepare_are_noticed(tiny_run, tiny_store, tmp_path) -> None:
    manifest = load_manifest(tiny_store, "folder")
    with pytest.raises(StoreError, match=r"cannot read .*train-00000\.parquet"):
        make_batches(tiny_run(data=data(residency="host")), manifest, str(tmp_path), device=CPU)
    others = [shard for shard in manifest.shards if shard.split != "train"]
    train = [shard for shard in manifest.shards if shard.split == "train"]
    fewer = [shard.model_copy(update={"row_groups": (shard.row_groups[0] - 1,)}) for shard in train]
    changed = manifest.model_copy(update={"shards": (*fewer, *others)})
    with pytest.raises(StoreError, match=r"has \d+ clips in row group .*the shards were changed after prepare"):
        make_batches(tiny_run(data=data(residency="host")), changed, tiny_store.uri, device=CPU)


@pytest.fixture
def free(monkeypatch):
    """A function: sets the free host and device bytes, on a machine whose cores are all this process's."""

    def set_free(host: int, device: int = 0) -> None:
        monkeypatch.setattr(memory, "free_host_bytes", lambda: host)
        monkeypatch.setattr(memory, "free_device_bytes", lambda _: device)
        monkeypatch.setattr(memory.os, "cpu_count", lambda: torch.get_num_threads())

    return set_free


def test_auto_takes_device_then_host_then_stream(free) -> None:
    free(host=800, device=400)
    assert choose_residency("auto", 100, 1, GPU) == "device"
    assert choose_residency("auto", 100, 1, CPU) == "host"
    assert choose_residency("auto", 101, 1, GPU) == choose_residency("auto", 101, 1, CPU) == "stream"
    free(host=808, device=400)
    assert choose_residency("auto", 101, 1, GPU) == "host"
    assert choose_residency("stream", 1, 1, GPU) == "stream"


def test_auto_counts_every_worker_and_leaves_room_for_other_runs(free, monkeypatch) -> None:
    free(host=800)
    assert local_world(4) == 4, "all of them, where nobody says"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert local_world(4) == 2 and local_world(1) == 1
    assert choose_residency("auto", 50, 2, CPU) == "host" and choose_residency("auto", 51, 2, CPU) == "stream"
    monkeypatch.setattr(memory.os, "cpu_count", lambda: 16 * torch.get_num_threads())
    assert choose_residency("auto", 50, 1, CPU) == "host" and choose_residency("auto", 51, 1, CPU) == "stream"
    assert memory.host_part(1) == 1 / 16 and memory.host_part(2) == memory.host_part(4) == 1 / 8


def test_what_is_asked_for_by_name_and_does_not_fit_is_refused(free, tiny_run, tiny_store) -> None:
    free(host=10 * MIB, device=5 * MIB)
    assert choose_residency("host", 10 * MIB, 1, CPU) == "host"
    assert choose_residency("device", 5 * MIB, 4, GPU) == "device"
    with pytest.raises(ResidencyError, match=r"host needs 12\.0 MiB \(2 workers of 6\.0 MiB\), but 10\.0 MiB of host"):
        choose_residency("host", 6 * MIB, 2, CPU)
    with pytest.raises(ResidencyError, match=r"device needs 6\.0 MiB, but 5\.0 MiB of device.*use data\.residency=str"):
        choose_residency("device", 6 * MIB, 1, GPU)
    with pytest.raises(ResidencyError, match=r"residency is device, but this run trains on cpu"):
        choose_residency("device", 1, 1, CPU)
    gc.collect()
    free(host=1000)
    manifest = load_manifest(tiny_store, "folder")
    with pytest.raises(ResidencyError, match=r"needs 0\.\d MiB, but 0\.0 MiB of host memory is free"):
        make_batches(tiny_run(data=data(residency="host")), manifest, tiny_store.uri, device=CPU)


def test_the_need_is_the_samples_and_little_more(tiny_run, tiny_store, monkeypatch) -> None:
    needs = []
    monkeypatch.setattr(resident, "choose_residency", lambda wanted, need, world, device: needs.append(need) or "host")
    gc.collect()
    kept = make_batches(tiny_run(), load_manifest(tiny_store, "folder"), tiny_store.uri, device=CPU)
    exact = kept.train_clips.nbytes + kept.valid_clips.nbytes
    assert exact <= needs[0] <= exact + 48 * 512


def cgroup(root: Path, folder: str, version: int, limit: str, used: int, cache: int) -> None:
    names = (
        ("memory.max", "memory.current", "")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
    )
    group = root / "sys/fs/cgroup" / folder
    group.mkdir(parents=True, exist_ok=True)
    (group / names[0]).write_text(f"{limit}\n")
    (group / names[1]).write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon 7\n{names[2]}inactive_file {cache}\n{names[2]}active_file 1\n")


def test_free_memory_respects_control_groups(tmp_path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:  8000 kB\n")
    assert free_host_bytes(tmp_path) == 8000 * 1024
    (tmp_path / "proc/self/cgroup").write_text("0::/pod/task\n")
    cgroup(tmp_path, "pod/task", 2, "max", 100, 0)
    assert free_host_bytes(tmp_path) == 8000 * 1024
    cgroup(tmp_path, "pod", 2, "5000", 3000, 999)
    assert free_host_bytes(tmp_path) == 3000  # an outer group's limit; page cache counts as free
    cgroup(tmp_path, "memory/job", 1, "4000", 2500, 499)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu:/x\n4:memory:/job\n0::/\n")
    assert free_host_bytes(tmp_path) == 2000
    cgroup(tmp_path, "memory/job", 1, "4000", 9000, 499)
    assert free_host_bytes(tmp_path) == 0
    assert 0 < free_host_bytes() < 2**50 and free_host_bytes(tmp_path / "nothing") > 0


def test_gather_is_zero_outside_the_clip() -> None:
    pcm_S = torch.arange(1, 11, dtype=torch.int16)  # clips of 4, 1 and 5 samples
    first_B, n_samples_B = torch.tensor([0, 4, 5]), torch.tensor([4, 1, 5])
    out_BT = resident.gather_crops(pcm_S, first_B, n_samples_B, torch.tensor([2, -1, 0]), 3)
    assert out_BT.tolist() == [[3, 4, 0], [0, 5, 0], [6, 7, 8]] and out_BT.dtype == torch.int16
    assert np.array_equal(resident.first_clips([]), [])
