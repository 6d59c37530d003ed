"""A real autoscaling cluster on this machine: Ray's fake provider starts nodes whose GPUs do not exist.

`ray job submit -- python -m atose_ray.tune demo`, with no flag, makes nodes start, trains one trial on each of their
GPUs (on the CPU, as PyTorch sees none, and says so), and the nodes go when they are idle.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import PATIENCE_S, alive, end, environment, members, verb
from test_job_submit import PORTS, free_block, ray_command
from test_ray import study

from atose_ray.search.record import load_study_record
from atose_ray.storage import Store

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through /proc"),
]

COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
HEAD = {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0}
CARD = {"resources": {"CPU": 2, "GPU": 1, "object_store_memory": 10**8}, "node_config": {}, "max_workers": 2}


def autoscaler_config(port: int, idle_s: float = 10.0) -> dict[str, Any]:
    """What `ray up` leaves on a head, for Ray's fake provider: a node is a process here, with the GPU it states."""
    provider = {"type": "fake_multinode", "gcs_address": f"127.0.0.1:{port}", "use_node_id_as_ip": True}
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "idle_timeout_minutes": idle_s / 60,
        "upscaling_speed": 1.0,
        "provider": {**provider, "disable_node_updaters": True, "disable_launch_config_check": True},
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": HEAD, "card": {**CARD, "min_workers": 0}},
        **{f"{name}_commands": [] for name in COMMANDS},
        **{name: {} for name in ("docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


@dataclass(frozen=True)
class Fake:
    """The cluster: where its dashboard is, and the environment of who speaks to it."""

    port: int
    variables: dict[str, str]

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.port + 1}"

    def state(self, what: str) -> list[dict[str, Any]]:
        """`nodes` or `actors`, as Ray's state API lists them."""
        with urllib.request.urlopen(f"{self.dashboard}/api/v0/{what}?detail=1", timeout=60) as answer:
            return list(json.loads(answer.read())["data"]["result"]["result"])

    def cards(self) -> list[str]:
        """Ids of the nodes with a GPU that run."""
        return [
            one["node_id"] for one in self.state("nodes") if one["state"] == "ALIVE" and "GPU" in one["resources_total"]
        ]

    def trials(self) -> list[str]:
        """Ids of the nodes on which a trial's process is, once for each."""
        actors = [one for one in self.state("actors") if one["state"] == "ALIVE"]
        return [one["node_id"] for one in actors if one["class_name"].endswith("Trial")]


@pytest.fixture(scope="module")
def fake() -> Iterator[Fake]:
    port = free_block(PORTS)
    services = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port")
    services += ("dashboard-agent-grpc-port", "runtime-env-agent-port", "metrics-export-port", "node-manager-port")
    ports = [f"--{service}={port + number}" for number, service in enumerate(services)]
    workers = [f"--min-worker-port={port + len(services)}", f"--max-worker-port={port + PORTS - 1}"]
    local = ("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--autoscaling-config=cluster.yaml")
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as folder:  # sockets need a short path
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        quiet = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        variables = environment(RAY_TMPDIR=folder, PATH=path, RAY_FAKE_CLUSTER="1", **quiet)
        (Path(folder) / "cluster.yaml").write_text(yaml.safe_dump(autoscaler_config(port)))
        with (Path(folder) / "start.log").open("w+") as log:
            starting = subprocess.Popen(
                [ray_command(), "start", "--head", "--num-cpus=2", f"--temp-dir={folder}", *ports, *workers, *local],
                env=variables,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                assert starting.wait(timeout=PATIENCE_S) == 0, log.seek(0) or log.read()
                yield Fake(port, variables)
            finally:
                before = members(starting.pid)
                left = end(starting.pid)
    assert before and not left and not any(alive(pid) for pid in before)


class Timeline:
    """What was seen, whenever it was something new, with the seconds from the beginning."""

    def __init__(self) -> None:
        self.began, self.seen = time.monotonic(), list[tuple[float, tuple[int, int, str]]]()

    def note(self, cards: int, trials: int, job: str) -> None:
        if not self.seen or self.seen[-1][1] != (cards, trials, job):
            self.seen.append((time.monotonic() - self.began, (cards, trials, job)))

    def text(self) -> str:
        row = "{:7.1f} s  {} nodes with a GPU, {} processes of trials, job {}\n".format
        return "".join(row(seconds, *what) for seconds, what in self.seen)


def test_a_job_with_no_flag_starts_nodes_trains_on_each_and_they_go(fake: Fake, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    made = verb("prepare", "demo", "--store", store.uri, cwd=tmp_path)
    assert made.returncode == 0, made.stdout + made.stderr
    assert fake.cards() == []
    times = Timeline()
    command = [ray_command(), "job", "submit", "--address", fake.dashboard, "--", "env", f"ATOSE_STORE={store.uri}"]
    with (tmp_path / "out.txt").open("w+") as out:
        job = subprocess.Popen(
            [*command, "python", "-m", "atose_ray.tune", "demo"],
            env=fake.variables,
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        while job.poll() is None:
            assert time.monotonic() - times.began < 3 * PATIENCE_S
            cards, at = fake.cards(), fake.trials()
            times.note(len(cards), len(at), "runs")
            assert len(set(at)) == len(at), "two trials on one GPU"
            assert set(at) <= set(fake.cards()) | set(cards), "a trial is on the head"
            time.sleep(0.5)
        said = (tmp_path / "out.txt").read_text()
    assert job.returncode == 0, said
    while not times.seen or times.seen[-1][1] != (0, 0, "is over"):
        assert time.monotonic() - times.began < 4 * PATIENCE_S
        times.note(len(fake.cards()), len(fake.trials()), "is over")
        time.sleep(0.5)
    print(times.text(), said)
    seen = [what[:2] for _, what in times.seen]
    assert seen[0] == seen[-1] == (0, 0) and (2, 2) in seen and max(cards for cards, _ in seen) == 2

    assert "study demo: 12 trials, 2 at a time" in said
    assert "plan: 2 x (1 trial + 0 x 1 worker + 0 data) = 2 of 6 CPUs; 2 x 1 = 2 of 2 GPUs" in said
    kind = r"card \(2 CPUs, 1 GPU\)"
    assert re.search(
        rf"nodes: 1 x ray.head.default \(2 CPUs\); to be started up to 2 x {kind}. For this plan 2 x", said
    )
    assert re.search(rf"nodes  {kind}: 1 of 2 up after \d+ s", said) and re.search(rf"{kind}: 2 of 2 up after", said)
    assert said.count("Ray gave 1 GPU, but PyTorch sees none here") == 1
    record = load_study_record(store, "demo")
    assert record.best is not None and len(record.trials) == 12
    assert {one.resources["gpus"] for one in record.trials} == {1}
    assert {one.device.split(",")[0] for one in record.trials if one.epochs} == {"CPU"}


SHORT = """
import sys
from atose_ray.search import awaited
from atose_ray.tune import main
awaited.NODE_WAIT_S = 15.0
main(sys.argv[1:])
"""


def tune(fake: Fake, folder: Path, name: str, trials: int, *more: str) -> subprocess.CompletedProcess[str]:
    """A small search from the head, which waits 15 s for a node type."""
    (folder / "short.py").write_text(SHORT)
    tree = study(trials=trials, pruner={"kind": "none"}).model_dump(mode="json", exclude_none=True)
    (folder / "mine.yaml").write_text(yaml.safe_dump(tree))
    return subprocess.run(
        [sys.executable, "short.py", "mine.yaml", "--name", name, *more],
        env={**fake.variables, "RAY_ADDRESS": f"127.0.0.1:{fake.port}"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def users_file(path: Path, **types: dict[str, Any]) -> tuple[str, str]:
    """What the user says of a cluster, more than its autoscaler may start: as a cloud without quota is."""
    kinds = {"ray.head.default": HEAD, **types}
    file = {"head_node_type": "ray.head.default", "max_workers": 4, "available_node_types": kinds}
    path.write_text(yaml.safe_dump(file))
    return "--cluster", str(path)


def test_a_search_goes_on_with_the_nodes_that_come(fake: Fake, tiny_store: Store, tmp_path: Path) -> None:
    file = users_file(tmp_path / "many.yaml", card={**CARD, "max_workers": 4})
    ended = tune(fake, tmp_path, "some", 3, "--store", tiny_store.uri, *file, "--epochs", "400")
    said = ended.stdout + ended.stderr
    assert ended.returncode == 0, said
    assert "study some: 3 trials, 3 at a time" in said and "card (2 CPUs, 1 GPU): 2 of 3 up after" in said
    assert "card (2 CPUs, 1 GPU) has not come in 1" in said and "s (2 of 3 up): no quota, no spot" in said, said
    assert [one.state for one in load_study_record(tiny_store, "some").trials] == ["complete"] * 3


def test_a_type_that_does_not_come_ends_the_search_with_its_name_and_the_next_command_goes_on(
    fake: Fake, tiny_store: Store, tmp_path: Path
) -> None:
    file = users_file(tmp_path / "large.yaml", large={**CARD, "resources": {"CPU": 2, "GPU": 4}})

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return tune(fake, tmp_path, "away", 2, "--store", tiny_store.uri, *more)

    ended = run("--set", "search.gpus_per_worker=4", *file)
    said = ended.stdout + ended.stderr
    assert ended.returncode != 0 and "Traceback" not in said, said
    assert "large (2 CPUs, 4 GPUs) has not come in 15 s (0 of 2 up)" in said, said
    assert "error: no trial can run: none of large (2 CPUs, 4 GPUs) came in 15 s" in said
    record = load_study_record(tiny_store, "away")
    assert [one.state for one in record.trials] == ["running"] * 2 and record.best is None
    refused = run("--set", "search.gpus_per_worker=4")
    assert "no node has that: 1 x ray.head.default (2 CPUs); to be started up to 2 x card" in refused.stderr
    went_on = run("--set", "search.gpus_per_worker=0")
    assert went_on.returncode == 0, went_on.stdout + went_on.stderr
    assert [one.state for one in load_study_record(tiny_store, "away").trials] == ["complete"] * 2
