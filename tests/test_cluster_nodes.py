"""Which nodes a plan counts on: those that run, and those that the autoscaler of this very cluster may start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from processes import wait_for

from atose_ray.runtime import cluster, ray_private
from atose_ray.search.cluster_file import NodeTypes
from atose_ray.search.nodes import NodeKind

TYPES = {"head": {"resources": {"CPU": 2}}, "card": {"resources": {"CPU": 2, "GPU": 1}, "max_workers": 2}}
FILE = {"head_node_type": "head", "max_workers": 2, "available_node_types": TYPES}


def monitor(folder: Path, logs: str, *more: str) -> subprocess.Popen[bytes]:
    """A process with the command line of Ray's monitor."""
    (folder / "monitor.py").write_text("import sys; print(); sys.stdout.flush(); sys.stdin.read()")
    command = [sys.executable, str(folder / "monitor.py"), f"--logs-dir={logs}", *more]
    found = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert found.stdout is not None and found.stdout.readline()  # it runs, and not the fork before it
    return found


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Path]:
    """The monitor of a cluster whose logs are in `ours`, beside one of another cluster."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(FILE))
    running = [monitor(tmp_path, "theirs", "--autoscaling-config=no.yaml")]
    running += [monitor(tmp_path, str(tmp_path / "ours"), "--autoscaling-config=c.yaml")]
    running += [monitor(tmp_path, str(tmp_path / "none"))]
    yield tmp_path
    for one in running:
        one.kill()
        one.communicate()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="command lines are found through /proc")
def test_the_file_of_this_clusters_autoscaler_is_found_by_its_command_line(ours: Path, monkeypatch) -> None:
    for logs, expected in (
        (ours / "ours", ours / "c.yaml"),
        (ours / "none", None),
        (ours / "other", None),
        (None, None),
    ):
        monkeypatch.setattr(ray_private, "logs_folder", lambda logs=logs: logs)
        assert ray_private.autoscaler_file() == expected
    monkeypatch.setattr(ray_private, "logs_folder", lambda: ours / "ours")
    types = cluster.types_of_this_node()
    assert types == NodeTypes((NodeKind("card", 2, 1, 0, 2),), NodeKind("head", 2), 2)


def test_a_cluster_without_autoscaler_has_the_nodes_that_run(ray_cluster) -> None:
    nodes = cluster.cluster_nodes()
    (head,) = nodes.kinds
    assert head.head and (head.up, head.most) == (1, 1) and nodes.cpus == 4


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="command lines are found through /proc")
def test_a_driver_elsewhere_asks_the_head(ray_cluster, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(FILE))
    logs = ray_private.logs_folder()
    process = monitor(tmp_path, str(logs), "--autoscaling-config=c.yaml")
    monkeypatch.setattr(cluster, "own_node", lambda: "another")
    monkeypatch.setattr(ray_private, "logs_folder", lambda: None)  # here, but not where the task runs
    try:
        nodes = wait_for("the head's answer", cluster.cluster_nodes)
    finally:
        process.kill()
        process.communicate()
    assert nodes.text().endswith("to be started up to 2 x card (2 CPUs, 1 GPU)") and nodes.most_started == 2


def test_what_a_manager_told_ray_counts_without_its_head(ray_cluster, monkeypatch) -> None:
    monkeypatch.setattr(cluster, "autoscaler_node_types", lambda: [("h", 4.0, 0.0, 1), ("card", 2.0, 1.0, 3)])
    nodes = cluster.cluster_nodes()
    assert [(kind.name, kind.up, kind.most) for kind in nodes.kinds] == [("", 1, 1), ("card", 0, 3)]


def test_the_users_file_counts_more_than_the_autoscalers(ray_cluster, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(FILE))
    monkeypatch.setattr(cluster, "autoscaler_node_types", lambda: [("other", 2.0, 8.0, 3)])
    nodes = cluster.cluster_nodes(str(tmp_path / "c.yaml"))
    assert nodes.text() == "1 x head (4 CPUs); to be started up to 2 x card (2 CPUs, 1 GPU)"  # its head is as it runs


def test_a_ray_that_was_too_slow_to_start_is_tried_again_on_other_ports(monkeypatch) -> None:
    ports: list[int] = []
    slow = Exception("The current node timed out during startup. This could happen because ...")

    def init(**options: object) -> None:
        ports.append(options["dashboard_port"])  # type: ignore[arg-type]
        if len(ports) < 3:
            raise slow

    monkeypatch.setattr(cluster.ray, "init", init)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    cluster.start({"num_cpus": 1})
    assert len(set(ports)) == 3
    monkeypatch.setattr(cluster, "START_TRIES", 1)
    ports.clear()
    with pytest.raises(Exception, match="timed out during startup"):
        cluster.start({})
    assert len(ports) == 1
    monkeypatch.setattr(cluster.ray, "init", lambda **options: (_ for _ in ()).throw(ValueError("no such port")))
    with pytest.raises(ValueError, match="no such port"):
        cluster.start({})


def test_where_packages_of_the_dashboard_are_missing_ray_starts_without(monkeypatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(cluster.ray, "init", lambda **options: asked.append(options["include_dashboard"]))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")
    cluster.start({})
    monkeypatch.delitem(sys.modules, "ray.dashboard.optional_deps")
    monkeypatch.setitem(sys.modules, "aiohttp_cors", None)  # as it is with `ray` without [default]
    cluster.start({})
    assert asked == [True, None]


def test_the_winner_is_scored_in_this_process_where_its_cpus_are_all_there_is(ray_cluster, monkeypatch) -> None:
    from atose_ray.runtime import tune

    def who_and_threads() -> tuple[int, int]:
        return os.getpid(), torch.get_num_threads()

    plan, before = SimpleNamespace(trial_cpus=2.0, worker_gpus=0.0), torch.get_num_threads()
    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: False)
    assert tune.as_one_trial(plan, who_and_threads) == (os.getpid(), 2)
    assert torch.get_num_threads() == before
    assert not cluster.is_only_node(5.0), "a head that trials do not run on"
    monkeypatch.setattr(tune, "is_only_node", lambda cpus: False)
    assert tune.as_one_trial(plan, who_and_threads)[0] != os.getpid()
