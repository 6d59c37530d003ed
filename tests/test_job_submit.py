"""`ray job submit -- python -m atose_ray.tune ...` on a real head node with its dashboard on, as on a cluster."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import pytest
import yaml
from processes import ROOT, alive, end, environment, members
from test_ray import study

from atose_ray.search.record import load_study_record
from atose_ray.store import Store
from atose_ray.training.checkpoint import load_model

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through /proc"),
]

PORTS = 40  # one block: eight for the head's services, the rest for workers


@dataclass(frozen=True)
class Head:
    """A head node started by `ray start`. session: id of the session that all its processes are in."""

    dashboard: str
    session: int
    environment: dict[str, str]

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.dashboard + path, timeout=20) as answer:
            return bytes(answer.read())

    def submit(self, *entrypoint: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
        runtime_env = json.dumps({"env_vars": {"OMP_NUM_THREADS": "1"}})
        options = ["--address", self.dashboard, "--working-dir", ".", "--runtime-env-json", runtime_env]
        command = [ray_command(), "job", "submit", *options, "--", *entrypoint]
        return subprocess.run(
            command, cwd=folder, env=self.environment, capture_output=True, text=True, timeout=180, check=False
        )


def ray_command() -> str:
    return str(Path(sys.executable).with_name("ray"))


def free_block(size: int) -> int:
    """First of `size` neighbouring free ports, below those that the system gives out by itself."""
    for _ in range(100):
        first = SystemRandom().randrange(20_000, 30_000)
        try:
            for port in range(first, first + size):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first
    raise OSError(f"found no {size} neighbouring free ports")


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    port = free_block(PORTS)
    services = (
        "port",
        "dashboard-port",
        "ray-client-server-port",
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
        "node-manager-port",
    )
    ports = [f"--{service}={port + number}" for number, service in enumerate(services)]
    workers = [f"--min-worker-port={port + len(services)}", f"--max-worker-port={port + PORTS - 1}"]
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as folder:  # sockets need a short path
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        variables = environment(RAY_TMPDIR=folder, RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0", PATH=path)
        command = [ray_command(), "start", "--head", "--num-cpus=2", f"--temp-dir={folder}", *ports, *workers]
        with (Path(folder) / "start.log").open("w+") as log:
            starting = subprocess.Popen(
                [*command, "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"],
                env=variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                assert starting.wait(timeout=60) == 0, log.seek(0) or log.read()
                yield Head(f"http://127.0.0.1:{port + 1}", starting.pid, variables)
            finally:
                before = members(starting.pid)
                left = end(starting.pid)
    assert before and not left and not any(alive(pid) for pid in before)


def test_a_submitted_job_searches_and_reports(head: Head, tiny_store: Store, tmp_path: Path) -> None:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "store" / "data")
    store = Store(str(tmp_path / "store"))
    file = tmp_path / "submitted.yaml"
    file.write_text(yaml.safe_dump(study(trials=2, pruner={"kind": "none"}).model_dump(mode="json")))
    done = head.submit("python", "-m", "atose_ray.tune", str(file), "--store", store.uri)
    assert done.returncode == 0, done.stdout + done.stderr

    (job,) = json.loads(head.get("/api/jobs/"))
    assert job["status"] == "SUCCEEDED" and "atose_ray.tune" in job["entrypoint"]
    assert b"<html" in head.get("/").lower()

    events = re.findall(r"^\[ +\d/2 \d\d:\d\d\] (\w+) +(\S+)", done.stdout, flags=re.MULTILINE)
    record = load_study_record(store, "submitted")
    names = sorted(trial.name for trial in record.trials)
    assert len(names) == 2
    assert sorted(name for event, name in events if event == "start") == names
    assert sorted(name for event, name in events if event == "complete") == names
    assert "plan: 2 x (1 trial" in done.stdout and "test scored once" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr

    folder = tmp_path / "store" / "studies" / "submitted"
    assert "<html" in (folder / "report.html").read_text()
    assert load_model(str(folder / "best")).metrics["number"] == record.best.number


def test_the_upload_holds_the_code_and_no_more_and_a_mistake_fails_with_its_message(head: Head, tmp_path: Path) -> None:
    """Ray leaves out .git and .venv by itself, and what .gitignore names: what `make demo` leaves must be in there."""
    for name in ("atose_ray", "search_spaces"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    for name in (".git", ".venv", "atose_store", ".mypy_cache", ".pytest_cache", "build"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "large.bin").write_bytes(b"0" * 1000)
    done = head.submit("sh", "-c", "ls -Am; python -m atose_ray.tune mtta", folder=tmp_path)
    assert ".gitignore, atose_ray, search_spaces\n" in done.stdout
    assert done.returncode != 0
    assert "error: unknown study 'mtta'; known: " in done.stdout and "Traceback" not in done.stdout
