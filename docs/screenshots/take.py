"""Takes the pictures of this folder from a search that runs: `python docs/screenshots/take.py STORE [--chromium PATH]`.

STORE must hold the demo data (`python -m atose_ray.prepare demo --store STORE`). Needs Chromium, and optuna-dashboard
(`pip install optuna-dashboard`; --optuna-dashboard names another environment's). Starts a Ray head on the loopback
interface with ports and a temporary folder of its own, submits a search as a job, and ends all that it started.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).resolve().parent
JOB = "demo-search"
T = TypeVar("T")


def free_port() -> int:
    """A TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, condition: Callable[[], T], seconds: float) -> T:
    """The first true value. Raises TimeoutError."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            value = condition()
            if value:
                return value
        time.sleep(0.5)
    raise TimeoutError(f"waited {seconds:g} s for {what}")


@contextlib.contextmanager
def process(command: list[str], **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, ended with all of it."""
    quiet = subprocess.DEVNULL
    started = subprocess.Popen(
        command, env={**os.environ, **variables}, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        yield started
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)


def shoot(chromium: str, url: str, name: str, height: int = 900, wait_ms: int = 12_000) -> None:
    """One page as a picture of this folder. Raises RuntimeError when Chromium wrote none."""
    (HERE / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        flags += ["--disable-component-update", "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}"]
        flags += [f"--window-size=1360,{height}", f"--virtual-time-budget={wait_ms}", f"--screenshot={HERE / name}"]
        ran = subprocess.run([chromium, *flags, url], check=True, capture_output=True, text=True, timeout=180)
    if not (HERE / name).exists():
        raise RuntimeError(f"no picture of {url}: {ran.stderr[-1000:]}")
    print(f"{name}: {url}", flush=True)


def ended(folder: Path) -> list[str]:
    """Names of the trials that have ended."""
    names = []
    for log in folder.glob("trials/*/log.jsonl"):
        if '"end"' in log.read_text():
            names.append(json.loads(log.with_name("about.json").read_text())["name"])
    return sorted(names)


def answers(url: str) -> bool:
    """Whether a server is up. Raises OSError while it is not."""
    with urllib.request.urlopen(url, timeout=5) as reply:
        return bool(reply.status == 200)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--chromium", default="chromium")
    parser.add_argument("--optuna-dashboard", default="optuna-dashboard")
    parser.add_argument("--trials", type=int, default=20)
    return parser.parse_args()


def pictures(options: argparse.Namespace, url: str, folder: Path, names: list[str]) -> None:
    """Ray's dashboard, optuna-dashboard and the report, while the search runs; the report once more at its end."""
    chromium = options.chromium
    with urllib.request.urlopen(f"{url}/api/v0/nodes", timeout=30) as reply:
        [node] = json.loads(reply.read())["data"]["result"]["result"]
    logs = f"{url}/#/logs/?nodeId={node['node_id']}"
    for page, name in (("jobs", "ray_jobs"), ("actors", "ray_actors")):
        shoot(chromium, f"{url}/#/{page}", f"{name}.png")
    shoot(chromium, f"{logs}&fileName=trial-", "ray_logs.png")
    viewer = logs.replace("/logs/", "/logs/viewer")
    shoot(chromium, f"{viewer}&fileName=trial-{names[0]}.log", "ray_trial_log.png")
    port = free_port()
    with process([options.optuna_dashboard, "--port", str(port), str(folder / "optuna.journal")]):
        board = f"http://127.0.0.1:{port}"
        wait_for("optuna-dashboard", lambda: answers(board), 60)
        shoot(chromium, f"{board}/dashboard/studies/0", "optuna_dashboard.png", 1400)
    report = (folder / "report.html").as_uri()
    wait_for("the report", (folder / "report.html").exists, 1200)
    best = json.loads((folder / "best" / "metrics.json").read_text())["number"]
    shoot(chromium, report, "report.png", 2600)
    shoot(chromium, f"{report}#trial-{best}", "report_trial.png", 2600)


def main() -> None:
    """Start a head, submit a search, wait until there is something to see, take the pictures."""
    options = arguments()
    store = options.store.resolve()
    folder, ray = store / "studies" / "demo", str(Path(sys.executable).with_name("ray"))
    if folder.exists():
        sys.exit(f"error: {folder} is there already; take another store, whose search is still to run")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = {"RAY_AUTH_MODE": "disabled", "PATH": path}
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        port = free_port()
        head = [ray, "start", "--head", "--block", "--num-cpus=2", f"--temp-dir={scratch}", f"--port={free_port()}"]
        with process([*head, "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"], **variables):
            url = f"http://127.0.0.1:{port}"
            wait_for("Ray's dashboard", lambda: answers(f"{url}/api/version"), 90)
            search = ["python", "-m", "atose_ray.tune", "demo", "--store", str(store)]
            submit = [ray, "job", "submit", "--address", url, "--no-wait", "--submission-id", JOB, "--", *search]
            submit += ["--trials", str(options.trials)]
            subprocess.run(submit, env={**os.environ, **variables}, check=True, capture_output=True, timeout=120)
            wait_for("half of the trials", lambda: len(ended(folder)) >= options.trials // 2, 1200)
            pictures(options, url, folder, ended(folder))


if __name__ == "__main__":
    main()
