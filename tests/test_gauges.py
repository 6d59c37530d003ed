# ruff: noqa: F811  (fixtures of other test files)
"""What is shown of trials while they run: Ray's metrics, TensorBoard files, logs and names in Ray's dashboard."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest
from processes import PATIENCE_S, environment, wait_for
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event
from test_ray import run, store, study  # noqa: F401
from test_s3 import Bucket, bucket  # noqa: F401

from atose_ray.runtime.gauges import GAUGES, TAGS, Gauges
from atose_ray.search.board import Board, upload_board
from atose_ray.search.record import study_store, trial_store
from atose_ray.storage import Store
from atose_ray.training.record import EpochRecord, RunFolder

CLUSTER = Path(__file__).resolve().parents[1] / "cluster"


def record(epoch: int) -> EpochRecord:
    valid = {"pr_auc_macro": 0.1 * epoch, "clips": 12.0}
    return EpochRecord(epoch, "classify", 2.0, 1.0 / epoch, 1e-3, valid, 0.1 * epoch, 1_700_000_000.0 + epoch)


def events(folder: Path) -> list[Event]:
    """The events of all files of a folder, read by the format's own rules (TFRecord: length, CRC, data, CRC)."""
    found = []
    for file in sorted(folder.iterdir()):
        content, at = file.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            data = content[at + 12 : at + 12 + length]
            assert masked(content[at : at + 8]) == struct.unpack_from("<I", content, at + 8)[0]
            assert masked(data) == struct.unpack_from("<I", content, at + 12 + length)[0]
            found.append(Event.FromString(data))
            at += 16 + length
    return found


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, round(v.simple_value, 6)) for e in events(folder) for v in e.summary.value if v.tag == tag]


def test_the_gauges_are_those_that_grafana_asks_for() -> None:
    asked = json.loads((CLUSTER / "grafana" / "metrics.json").read_text())
    assert asked == {name: {"help": text, "tags": list(TAGS)} for name, text in GAUGES.items()}


def test_curves_lie_in_the_run_folder_and_a_run_that_goes_on_adds_to_them(tmp_path: Path) -> None:
    folder = RunFolder(Store(str(tmp_path)))
    shown = Board(folder, "003-x", "pr_auc_macro")
    for epoch in (1, 2):
        folder.add_epoch(record(epoch))
        shown.add(record(epoch))
    board = tmp_path / "tensorboard" / "003-x"
    assert curve(board, "valid/pr_auc_macro") == [(1, 0.1), (2, 0.2)]  # on disk while the trial runs
    again = Board(folder, "003-x", "pr_auc_macro")
    for epoch in (2, 3):  # the last epoch is yielded again
        again.add(record(epoch))
    again.close("ended")
    assert sorted(curve(board, "objective")) == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert sorted(curve(board, "train/loss")) == [(1, 1.0), (2, 0.5), (3, 0.333333)]
    assert {e.file_version for e in events(board) if not e.summary.value} == {"brain.Event:2"}


def test_on_object_storage_the_curves_are_made_from_the_log_when_the_trial_ends(tmp_path: Path, bucket: Bucket) -> None:
    for place in (Store(str(tmp_path / "local")), Store(bucket.uri("run"))):
        folder = RunFolder(place)
        for epoch in (1, 2, 3):
            folder.add_epoch(record(epoch))
        for _ in range(2):
            upload_board(folder, "003-x", "pr_auc_macro")
    assert not (tmp_path / "local" / "tensorboard").exists()  # a local run folder has them already
    board = folder.store.child("tensorboard", "003-x")
    (name,) = board.names()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / name).write_bytes(board.read(name))
    assert curve(tmp_path / "copy", "valid/pr_auc_macro") == [(1, 0.1), (2, 0.2), (3, 0.3)]
    shown = Board(folder, "003-x", "pr_auc_macro")
    shown.add(record(4))
    shown.close("ended")
    assert board.names() == [name]


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_shows_its_trials_in_rays_metrics_logs_and_actors(ray_cluster, store) -> None:
    import ray
    from ray.util.state import list_actors

    found = run(study(trials=2, concurrency=1, pruner={"kind": "none"}), "shown", store)
    names = {trial.name for trial in found.trials}
    actors = [actor for actor in list_actors(detail=True, limit=1000) if actor.repr_name]
    assert any(actor.repr_name == f"trial {name}" for actor in actors for name in names)
    [job] = json.loads(
        urllib.request.urlopen(f"{os.environ['RAY_API_SERVER_ADDRESS']}/api/jobs/", timeout=PATIENCE_S).read()
    )
    assert job["metadata"] == {"study": "those of these tests"}
    node = ray.nodes()[0]
    page = f"{os.environ['RAY_API_SERVER_ADDRESS']}/api/v0/logs?node_id={node['NodeID']}&glob=trial-*"

    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    for trial in found.trials:
        text = (logs / f"trial-{trial.name}.log").read_text()
        assert [f"epoch {e.epoch} (" in text for e in trial.epochs] == [True] * len(trial.epochs)
        board = trial_store(study_store(store, "shown"), trial).child("tensorboard", trial.name).local_path
        assert [step for step, _ in curve(board, "objective")] == [epoch.epoch for epoch in trial.epochs]
    answers = ["none"]

    def listed() -> bool:
        """What the dashboard's Logs page asks; the node's agent comes up seconds after the node."""
        try:
            answers.append(urllib.request.urlopen(page, timeout=30).read().decode())
        except OSError as error:  # an HTTPError holds what the dashboard said
            answers.append(f"{error}: {getattr(error, 'read', bytes)().decode(errors='replace')}")
            return False
        return True

    try:
        wait_for("an answer of the node's agent", listed, every=1)
    except TimeoutError as error:
        agent = (logs / "dashboard_agent.log").read_text(errors="replace")[-2000:]
        raise AssertionError(f"{error}: {answers[-1]}\n{agent}") from error
    assert [f"trial-{name}.log" in answers[-1] for name in names] == [True] * len(names), answers[-1]
    Gauges("shown", "pr_auc_macro")("003-x", dataclasses.replace(record(2), objective=0.25))
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"

    def scraped() -> str:
        text = urllib.request.urlopen(address, timeout=PATIENCE_S).read().decode()
        wanted = [f"ray_{name}{{" for name in GAUGES]
        return text if all(want in text for want in wanted) and 'trial="003-x"' in text else ""

    text = wait_for("the gauges at the node's metrics port", scraped, every=1)
    line = next(one for one in text.splitlines() if one.startswith("ray_atose_trial_objective{") and "003-x" in one)
    assert 'study="shown"' in line and 'metric="pr_auc_macro"' in line and line.endswith(" 0.25")


SECOND = """
import os, time, urllib.error, urllib.request
from atose_ray.runtime.cluster import cluster
with cluster(cpus=1):
    import ray
    address = os.environ["RAY_API_SERVER_ADDRESS"] + "/api/v0/logs?node_id=" + ray.nodes()[0]["NodeID"]
    for _ in range(400):
        try:
            print(urllib.request.urlopen(address, timeout=600).status)
            break
        except urllib.error.HTTPError:
            time.sleep(1)  # its agent comes up seconds after the node
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_second_ray_on_one_machine_lists_its_logs_too(tmp_path: Path) -> None:
    """The first one's agent holds Ray's default port; Ray says nothing when the second cannot have it."""
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as folder, socket.socket() as first:
        with contextlib.suppress(OSError):  # another Ray of these tests, or of this machine, has it
            first.bind(("", 52365))
            first.listen()
        variables = environment(RAY_TMPDIR=folder, RAY_AUTH_MODE="disabled")
        command = [sys.executable, "-c", SECOND]
        done = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == "200\n", done.stdout + done.stderr
