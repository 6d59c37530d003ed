"""`ray job submit -- python -m atose_ray.tune ...` from a laptop to a real head with token authentication on.

The head's environment holds the cloud's keys, the laptop's does not; both hold the token, each in its own home.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import SystemRandom

import pytest
import yaml
from processes import PATIENCE_S, ROOT, alive, end, environment, members
from test_image import health_command
from test_ray import study

from atose_ray.search.record import load_study_record
from atose_ray.storage import Store
from atose_ray.training.checkpoint import load_model

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through /proc"),
]

PORTS = 40  # one block: eight for the head's services, the rest for workers
PLANTED = {  # what must appear nowhere; made here, so that the uploaded tests do not hold it
    name: f"planted{secrets.token_hex(16)}"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
}
TOKEN = secrets.token_hex(32)


@dataclass(frozen=True)
class Head:
    """A head node started by `ray start`. folder: its logs are in there; laptop: the environment of who submits."""

    port: int
    folder: Path
    laptop: dict[str, str]

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.port + 1}"

    def get(self, path: str, **headers: str) -> bytes:
        request = urllib.request.Request(self.dashboard + path, headers=headers)
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return bytes(answer.read())

    def jobs(self) -> list[dict]:
        return list(json.loads(self.get("/api/jobs/", Authorization=f"Bearer {TOKEN}")))

    def submit(
        self, *entrypoint: str, folder: Path = ROOT, options: tuple[str, ...] = ("--working-dir", "."), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        command = [ray_command(), "job", "submit", "--address", self.dashboard, *options, "--", *entrypoint]
        environment = {**self.laptop, **variables}
        return subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
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
        homes = {name: home_with_token(Path(folder) / name) for name in ("head", "laptop")}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        variables = environment(RAY_TMPDIR=folder, RAY_AUTH_MODE="token", RAY_USAGE_STATS_ENABLED="0", PATH=path)
        command = [ray_command(), "start", "--head", "--num-cpus=2", f"--temp-dir={folder}", *ports, *workers]
        with (Path(folder) / "start.log").open("w+") as log:
            starting = subprocess.Popen(
                [*command, "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1"],
                env={**variables, **PLANTED, "HOME": str(homes["head"])},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                assert starting.wait(timeout=PATIENCE_S) == 0, log.seek(0) or log.read()
                yield Head(port, Path(folder), {**variables, "HOME": str(homes["laptop"])})
            finally:
                before = members(starting.pid)
                left = end(starting.pid)
    assert before and not left and not any(alive(pid) for pid in before)


def home_with_token(folder: Path) -> Path:
    (folder / ".ray").mkdir(parents=True)
    (folder / ".ray" / "auth_token").write_text(TOKEN)
    return folder


def leaks(folder: Path) -> list[str]:
    """Files below a folder that hold something planted, but for the token files themselves."""
    planted = [value.encode() for value in (*PLANTED.values(), TOKEN)]
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "auth_token")
    return [str(path) for path in files if any(value in path.read_bytes() for value in planted)]


def test_without_the_token_nobody_gets_in(head: Head, tmp_path: Path) -> None:
    assert b"<html" in head.get("/").lower()  # the page that asks for the token
    for path in ("/api/jobs/", "/api/version", "/nodes", "/metrics"):
        for headers, answer in (({}, 401), ({"Authorization": "Bearer wrong"}, 403)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                head.get(path, **headers)
            assert refused.value.code == answer
    stranger = head.submit("touch", str(tmp_path / "been"), options=(), HOME=str(tmp_path), RAY_AUTH_MODE="disabled")
    assert stranger.returncode != 0 and "Missing authentication token" in stranger.stdout + stranger.stderr
    assert head.jobs() == [] and not (tmp_path / "been").exists()


def test_the_images_health_check_tells_a_live_node_from_none(head: Head) -> None:
    for port, well in ((head.port + 3, True), (head.port + 9, False)):
        command = [word.replace(":52365/", f":{port}/") for word in health_command()]
        done = subprocess.run([sys.executable, *command[1:]], capture_output=True, timeout=PATIENCE_S, check=False)
        assert command != health_command() and (done.returncode == 0) is well


def test_a_submitted_job_searches_and_reports(head: Head, tiny_store: Store, tmp_path: Path) -> None:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "store" / "data")
    store = Store(str(tmp_path / "store"))
    file = tmp_path / "submitted.yaml"
    file.write_text(yaml.safe_dump(study(trials=2, pruner={"kind": "none"}).model_dump(mode="json")))
    done = head.submit("python", "-m", "atose_ray.tune", str(file), "--store", store.uri)
    assert done.returncode == 0, done.stdout + done.stderr

    (job,) = head.jobs()
    assert job["status"] == "SUCCEEDED" and "atose_ray.tune" in job["entrypoint"]

    events = re.findall(r"^\[ +\d/2 \d\d:\d\d\] (\w+) +(\S+)", done.stdout, flags=re.MULTILINE)
    record = load_study_record(store, "submitted")
    names = sorted(trial.name for trial in record.trials)
    assert len(names) == 2
    assert sorted(name for event, name in events if event == "start") == names
    assert sorted(name for event, name in events if event == "complete") == names
    assert "plan: 2 x (1 trial" in done.stdout and "test scored, with" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr

    folder = tmp_path / "store" / "studies" / "submitted"
    assert "<html" in (folder / "report.html").read_text()
    assert load_model(str(folder / "best")).metrics["number"] == record.best.number

    said = done.stdout + done.stderr + json.dumps(job)
    assert not any(value in said for value in (*PLANTED.values(), TOKEN))
    assert leaks(tmp_path) == []


def test_rays_own_logs_of_the_search_hold_no_key_and_no_token(head: Head) -> None:
    assert "SUCCEEDED" in {job["status"] for job in head.jobs()}  # so there is something to look at
    assert leaks(head.folder) == []


def test_the_upload_holds_the_code_and_no_more_and_a_mistake_fails_with_its_message(head: Head, tmp_path: Path) -> None:
    """What `make demo` and a prepared data set leave behind must stay here; the job's environment is the head's."""
    for name in ("atose_ray", "search_spaces", "cluster"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, tmp_path)
    for name in (".git", ".venv", "venv", "atose_store", "atose_store_2", ".mypy_cache", ".pytest_cache", "build"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "large.bin").write_bytes(b"0" * 1000)
    script = 'ls -Am; python -c \'import os; print(len(os.environ["AWS_SESSION_TOKEN"]), "characters")\''
    options = ("--runtime-env", "cluster/runtime_env.yaml")
    done = head.submit("sh", "-c", f"{script}; python -m atose_ray.tune mtta", folder=tmp_path, options=options)
    assert ".gitignore, .rayignore, atose_ray, cluster, search_spaces\n" in done.stdout
    assert f"{len(PLANTED['AWS_SESSION_TOKEN'])} characters\n" in done.stdout
    assert done.returncode != 0
    assert "error: unknown study 'mtta'; known: " in done.stdout and "Traceback" not in done.stdout
