"""A service under load on this machine: `python benchmarks/serve_load.py MODEL [--requests N] [--clients C]`.

MODEL: a model folder. Each row is a service of its own: in one process and on Ray Serve with and without batches, with
two replicas, and with two of which one is killed in the middle of the requests. Clients are threads of this process
on the same cores, so the figures are a floor. Prints a table; ends all that it started, by process id.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

REPLICA = "ServeReplica:atose_ray:models"
UP_S = 180.0
ROWS: list[tuple[str, list[str], bool]] = [
    ("one process, no batches", ["--local", "--set", "batch=0"], False),
    ("one process, batches", ["--local"], False),
    ("Ray Serve, 1 replica, no batches", ["--set", "replicas=1", "--set", "batch=0"], False),
    ("Ray Serve, 1 replica, batches", ["--set", "replicas=1"], False),
    ("Ray Serve, 2 replicas, batches", ["--set", "replicas=2"], False),
    ("Ray Serve, 2 replicas, one killed", ["--set", "replicas=2"], True),
]


def form_of(seconds: float, rate_hz: int) -> bytes:
    """A request body with so much noise as WAV."""
    content = io.BytesIO()
    noise = np.random.default_rng(0).normal(0, 3000, int(seconds * rate_hz)).astype("<i2")
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes(noise.tobytes())
    head = b'--limit\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    return head + content.getvalue() + b"\r\n--limit--\r\n"


def descendants(root: int) -> dict[int, str]:
    """Pid -> command line of a process and all below it."""
    parent_of, name_of = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent_of[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                name_of[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    found = {root}
    while fresh := {pid for pid, parent in parent_of.items() if parent in found} - found:
        found |= fresh
    return {pid: name_of[pid] for pid in found & name_of.keys()}


@contextlib.contextmanager
def service(words: list[str], folder: str) -> Iterator[tuple[int, int]]:
    """Pid and port of a service that is up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "atose_ray.serve", *words, "--port", str(port), "--set", "per_minute=10000000"]
    with (Path(folder) / "log").open("ab") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + UP_S
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).close()
                break
            if time.monotonic() > until or process.poll() is not None:
                raise RuntimeError((Path(folder) / "log").read_text()[-3000:])
            time.sleep(0.5)
        yield process.pid, port
    finally:
        process.send_signal(signal.SIGINT)
        left = descendants(process.pid)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def load(pid: int, port: int, body: bytes, requests: int, clients: int, kill: bool) -> str:
    """Ask so often -> a row of the table."""
    line, lock, done = threading.local(), threading.Lock(), [0]
    headers = {"Content-Type": "multipart/form-data; boundary=limit"}

    def ask(_: int) -> tuple[int, float]:
        begun = time.perf_counter()
        try:
            if not hasattr(line, "to"):
                line.to = http.client.HTTPConnection("127.0.0.1", port, timeout=150)
            line.to.request("POST", "/tag", body, headers)
            response = line.to.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            status = 0
            del line.to
        with lock:
            done[0] += 1
            if kill and done[0] == requests // 2:
                victim = next(one for one, name in descendants(pid).items() if REPLICA in name)
                os.kill(victim, signal.SIGKILL)
        return status, time.perf_counter() - begun

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, range(min(100, requests // 10))))  # warm
        done[0] = 0
        begun = time.perf_counter()
        answers = list(pool.map(ask, range(requests)))
        seconds = time.perf_counter() - begun
    good = sum(status == 200 for status, _ in answers)
    p50, p90, p99 = np.percentile([1000 * taken for _, taken in answers], [50, 90, 99])
    return f"{good} of {requests} | {requests / seconds:.0f} | {p50:.0f} | {p90:.0f} | {p99:.0f}"


def main() -> None:
    """Every row of ROWS."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0, help="of the sound that is sent")
    parser.add_argument("--rows", type=int, nargs="*", default=list(range(len(ROWS))), help="of the table, from 0")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    body = form_of(options.seconds, 16000)
    print("service | answered | requests/s | p50 ms | p90 ms | p99 ms", flush=True)
    for name, words, kill in (ROWS[row] for row in options.rows):
        cpus = [] if "--local" in words else ["--cpus", "4", "--set", "cpus=0.5"]
        with tempfile.TemporaryDirectory(prefix="sl-", ignore_cleanup_errors=True) as folder:
            model = f"m={Path(options.model).resolve()}"
            with service([model, *words, *cpus], folder) as (pid, port):
                row = load(pid, port, body, options.requests, options.clients, kill)
        print(f"{name} | {row}", flush=True)


if __name__ == "__main__":
    main()
