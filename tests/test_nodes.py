"""A Ray cluster of three nodes on this machine: work spreads, and a node that dies costs its share and no more.

The cluster's processes belong to this file; what uses it runs in children, as this process may have joined another Ray.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from conftest import RATE, tiny_tree
from processes import PATIENCE_S, environment, wait_for

from atose_ray.data.prepare import PREPARING, prepare
from atose_ray.data.shard_job import PARTS
from atose_ray.data.shards import load_manifest
from atose_ray.datasets import dataset_config
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, open_run, resolve

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through /proc"),
]
CLIPS, SECONDS, EPOCHS = 160, 12, 8


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long files under many names: enough to decode for a node to die meanwhile."""
    folder = tmp_path_factory.mktemp("long")
    rng, rows = np.random.default_rng(3), ["path,split,tags"]
    for kind, tone_hz in (("low", 150.0), ("high", 900.0)):
        time = np.arange(44100 * SECONDS) / 44100
        audio_TC = (0.3 * np.sin(2 * np.pi * tone_hz * time) + 0.05 * rng.standard_normal(len(time)))[:, None]
        soundfile.write(folder / f"{kind}.flac", np.repeat(audio_TC, 2, 1), 44100)
    for index in range(CLIPS):
        kind, name = ("low", "high")[index % 2], f"clip_{index:03d}.flac"
        os.link(folder / f"{kind}.flac", folder / name)
        rows.append(f"{name},{('train', 'train', 'valid', 'train', 'test')[index % 5]},{kind}")
    (folder / "tags.csv").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def store(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The set, prepared in this process."""
    store = Store(str(tmp_path_factory.mktemp("whole") / "store"))
    prepare(dataset_config("folder", source=str(source), sample_rate_hz=RATE), store)
    return store


class Nodes:
    """A head without CPUs, for drivers, and two nodes of two CPUs."""

    def __init__(self, folder: str) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.fill()

    def fill(self) -> None:
        """Two nodes again."""
        while len(self.cluster.worker_nodes) < 2:
            self.cluster.add_node(num_cpus=2)

    def running(self, title: str) -> list[Any]:
        """The nodes on which a process of this title runs, the busiest first."""
        counts = {}
        for node in self.cluster.worker_nodes:
            titles = titles_below(node.all_processes["raylet"][0].process.pid)
            counts[node] = sum(title in found for found in titles)
        return sorted((node for node in counts if counts[node]), key=lambda node: -counts[node])

    def kill(self, node: Any) -> None:
        """As if its machine were gone."""
        self.cluster.remove_node(node, allow_graceful=False)

    @contextmanager
    def child(self, *command: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
        """A python of this cluster's; ended with the block."""
        variables = environment(RAY_TMPDIR=self.folder, RAY_AUTH_MODE="disabled", RAY_ADDRESS=self.cluster.address)
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    from ray.experimental import internal_kv

    with (
        tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_MODE", "disabled")
        # A Cluster takes this process's one client of Ray's key-value store, and leaves None: given back afterwards.
        patch.setattr(internal_kv, "global_gcs_client", internal_kv.global_gcs_client)
        found = Nodes(folder)
        try:
            yield found
        finally:
            found.cluster.shutdown()


def titles_below(pid: int) -> list[str]:
    """What the children of a process call themselves."""
    titles = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # it ended meanwhile
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                titles.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return titles


def content(folder: Path) -> dict[str, bytes]:
    """All files but what a write that was cut short left; the next prepare removes that."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


PREPARE = """
import sys, time
from pathlib import Path
import ray
from atose_ray.data.prepare import prepare
from atose_ray.datasets import dataset_config
from atose_ray.runtime.cluster import cluster
from atose_ray.runtime.prepare import run_on_ray
from atose_ray.storage import Store
place, parts, go = Path(sys.argv[3], "data/folder"), f"preparing-*/{sys.argv[4]}/*.json", Path("go")

def hold():  # in every worker: when two shards are done no other is begun until there is a file `go`
    from atose_ray.data import shard_job
    decode = shard_job.decode_shard
    def held(job):
        while len(list(place.glob(parts))) >= 2 and not go.exists():
            time.sleep(0.05)
        return decode(job)
    shard_job.decode_shard = held

go = go.absolute()
ray.init(runtime_env={"worker_process_setup_hook": hold}, log_to_driver=False, logging_level="ERROR")
with cluster():
    config = dataset_config("folder", source=sys.argv[1], sample_rate_hz=int(sys.argv[2]))
    prepare(config, Store(sys.argv[3]), run_on_ray)
"""


def test_a_node_that_dies_costs_prepare_its_share_only(nodes: Nodes, source, store, tmp_path) -> None:
    data = tmp_path / "store/data/folder"
    with nodes.child("-c", PREPARE, str(source), str(RATE), str(tmp_path / "store"), PARTS, cwd=tmp_path) as child:

        def midway() -> bool:
            assert child.poll() is None, child.communicate()[0]
            seen.update(nodes.running("ray::Map(_write)"))
            return len(seen) == 2 and len(list(data.glob(f"{PREPARING}*/{PARTS}/*.json"))) >= 2

        seen: set[Any] = set()  # the work is on both
        wait_for("a prepare midway", midway, every=0.02)
        done = {path.stem for path in data.glob(f"{PREPARING}*/{PARTS}/*.json")}
        stamps = {path.name: path.stat().st_mtime_ns for path in data.glob("*/*.parquet") if path.stem in done}
        nodes.kill((nodes.running("ray::Map(_write)") or list(seen))[0])
        (tmp_path / "go").touch()
        out, _ = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 0, out
    shards = {path.name: path.stat().st_mtime_ns for path in data.glob("*/*.parquet")}  # a moved file keeps its time
    assert 0 < len(stamps) < len(shards)
    assert {name: shards[name] for name in stamps} == stamps
    assert content(tmp_path / "store") == content(Path(store.root))


STREAM = """
import collections, pathlib, sys
import pyarrow as pa, ray, torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from atose_ray.data.shards import load_manifest
from atose_ray.runtime.cluster import cluster
from atose_ray.search.cluster_file import PlanError
from atose_ray.runtime.ingest import RayBatches, near_here
from atose_ray.runtime.nodes import check_nodes
from atose_ray.data.views import View
from atose_ray.runtime.shared import share_clips
from atose_ray.storage import Store
from atose_ray.training.run import make_batches
from atose_ray.config import RunConfig

def where(table):
    return pa.table({"node": [ray.get_runtime_context().get_node_id()]})

class Consumer:
    def nodes(self):
        ray.data.DataContext.get_current().enable_progress_bars = False
        items = ray.data.from_items([{"i": i} for i in range(6)], override_num_blocks=6)
        tasks = items.map_batches(where, batch_size=1, batch_format="pyarrow", num_cpus=0.5, **near_here())
        return {row["node"] for row in tasks.iter_rows()}

store = Store(sys.argv[1])
run = RunConfig.model_validate_json(pathlib.Path(sys.argv[2]).read_text())
manifest = load_manifest(store, "folder")
with cluster():
    check_nodes(store, store, manifest)
    hidden = Store("/proc/self/cwd/store")  # another folder in every process: the way to hide one on a single machine
    try:
        check_nodes(hidden, hidden, manifest)
    except PlanError as error:
        print("refused:", error)
    first, second = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    there = NodeAffinitySchedulingStrategy(first, soft=False)
    consumer = ray.remote(num_cpus=0)(Consumer).options(scheduling_strategy=there).remote()
    near = ray.get(consumer.nodes.remote())
    filler = ray.remote(num_cpus=2)(Consumer).options(scheduling_strategy=there).remote()
    ray.get(filler.__ray_ready__.remote())
    print("near", near == {first}, "full", ray.get(consumer.nodes.remote()) == {second})
    ray.kill(filler)
    copy = share_clips(store, View(manifest, len(manifest.data_spec.tags)), [first, second])
    local = make_batches(run, manifest, store.uri)
    streamed = make_batches(run, manifest, store.uri, lambda *a, **k: RayBatches(*a, stream_bytes=10**6, **k))
    for epoch in (0, 1):
        same = 0
        for number, (ours, theirs) in enumerate(zip(streamed.train(epoch), local.train(epoch), strict=True)):
            same += all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
            if (epoch, number) == (1, 2):
                print("midway", flush=True)
                sys.stdin.readline()
        print("epoch", epoch, same, local.steps(), flush=True)
    print("shared", [held.nbytes for held in copy.clips().splits.values()])
"""


def test_streams_stay_near_and_survive_the_node_that_reads(nodes: Nodes, store, tmp_path) -> None:
    nodes.fill()
    data = {"dataset": "folder", "crop_seconds": 10.0, "batch_size": 8, "shuffle_row_groups": 1}
    config = resolved(store, data=data)
    (tmp_path / "run.json").write_text(config.model_dump_json())
    (tmp_path / "store").symlink_to(store.root)
    with nodes.child("-c", STREAM, store.uri, str(tmp_path / "run.json"), cwd=tmp_path) as child:
        assert child.stdout is not None and child.stdin is not None
        lines = []
        while not lines or lines[-1] != "midway":
            line = child.stdout.readline()
            assert line, lines
            lines.append(line.strip())
        victim = wait_for("a data task", lambda: nodes.running("ray::MapBatches(") or nodes.running("ray::"))[0]
        nodes.kill(victim)
        out, _ = child.communicate("go on\n", timeout=PATIENCE_S)
        assert child.returncode == 0, out
    assert lines[0].startswith("refused: the Ray node ") and "--store s3://bucket/prefix" in lines[0]
    assert "cannot work with the store /proc/self/cwd/store: no prepared data set 'folder'" in lines[0]
    assert lines[1] == "near True full True"
    steps = lines[-2].split()[-1]
    assert f"epoch 0 {steps} {steps}" in lines and f"epoch 1 {steps} {steps}" in out.splitlines()
    sizes = [clips * SECONDS * RATE * 2 for clips in (CLIPS * 3 // 5, CLIPS // 5)]
    assert f"shared {sizes}" in out.splitlines()  # the part that died with the node was read again


def resolved(store: Store, **changes: object):
    from atose_ray.config import run_config

    manifest = load_manifest(store, "folder")
    return resolve(run_config({**tiny_tree(), **changes}), store, manifest)


@pytest.mark.skipif("ATOSE_CHAOS" not in os.environ, reason="takes a minute: run it with ATOSE_CHAOS=1")
def test_a_training_whose_node_dies_ends_with_the_same_scores(nodes: Nodes, store, tmp_path) -> None:
    nodes.fill()
    method = {"kind": "supervised", "head": {"kind": "mlp", "hidden": 8}}
    tree = {**tiny_tree(), "method": {**method, "stages": [{"name": "classify", "epochs": EPOCHS}]}}
    tree["execution"] = {"threads": 1, "device": "cpu"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"base": tree}))
    config = resolved(store, **tree)
    opened = open_run(Job(config, store.uri, str(tmp_path / "alone"), {}))
    torch.set_num_threads(1)
    fit(opened.run, opened.method, opened.batches, opened.folder)
    folder = RunFolder(store.child("runs", config.signature()))
    command = ("-m", "atose_ray.train", str(tmp_path / "study.yaml"), "--workers", "1", "--store", store.uri)
    with nodes.child(*command, cwd=tmp_path) as child:

        def midway() -> bool:
            assert child.poll() is None, child.communicate()[0]
            return 2 <= len(folder.epochs()) < EPOCHS

        wait_for("a training midway", midway, every=0.02)
        (victim,) = nodes.running("RayTrainWorker")
        nodes.kill(victim)
        out, _ = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 0, out
    ours, theirs = opened.folder.epochs(), folder.epochs()
    assert [(e.epoch, e.train_loss, e.valid) for e in theirs] == [(e.epoch, e.train_loss, e.valid) for e in ours]
    assert len(ours) == EPOCHS and "test, scored with" in out
