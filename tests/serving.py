"""A service in a process of its own, as a person starts it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from processes import end, environment, wait_for


class Served(NamedTuple):
    """pid: of the process, and of the session of all that it starts."""

    port: int
    pid: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(folder: Path, *words: str, port: int = 0, **variables: str) -> Iterator[Served]:
    """`python -m atose_ray.serve WORDS` in `folder`, once it is up; ended with all that it started."""
    port = port or free_port()
    command = [sys.executable, "-m", "atose_ray.serve", *words, "--port", str(port)]
    log = folder / f"serve-{port}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, env=environment(**variables), stdout=out, stderr=out, start_new_session=True
        )
        try:

            def up() -> bool:
                assert process.poll() is None, log.read_text()
                with contextlib.suppress(OSError, urllib.error.URLError, http.client.HTTPException):
                    return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10).status == 200)
                return False

            wait_for("the service", up)
            yield Served(port, process.pid)
        finally:
            end(process.pid)
            process.wait()
