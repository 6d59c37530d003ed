"""Processes of a test's own: started in a session of their own, found and ended by that session's id, never by name."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 600.0  # for whatever a test waits for: a slow machine needs it, and it costs nothing when all is well


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child: this checkout's code, one thread, no other Ray."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ATOSE_"))}
    path = os.pathsep.join(filter(None, [str(ROOT), kept.get("PYTHONPATH")]))
    fair = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    return {**kept, "PYTHONPATH": path, **fair, **extra}


def verb(name: str, *arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """`python -m atose_ray.<name>` to its end, with what it wrote."""
    command = [sys.executable, "-m", f"atose_ray.{name}", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(**extra), capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def members(session: int) -> list[int]:
    """Pids of a session and of all that its processes started, sessions of their own included; no zombies."""
    parent_of, found = {}, set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent, _, sid = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it ended meanwhile
        if state not in "ZX":
            parent_of[int(entry.name)] = int(parent)
            if int(sid) == session:
                found.add(int(entry.name))
    grown = True
    while grown:
        fresh = {pid for pid, parent in parent_of.items() if parent in found} - found
        found, grown = found | fresh, bool(fresh)
    return sorted(found - {os.getpid()})


def end(session: int, seconds: float = PATIENCE_S) -> list[int]:
    """SIGKILL a session and all that it started. Returns the pids that are still there after `seconds`."""
    ours: set[int] = set()
    until = time.monotonic() + seconds
    while True:
        fresh = set(members(session)) - ours
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        ours |= fresh
        left = [pid for pid in sorted(ours) if alive(pid)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(what: str, condition: Callable[[], T], every: float = 0.1) -> T:
    """The first true value of `condition()`. Raises TimeoutError."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        value = condition()
        if value:
            return value
        time.sleep(every)
    raise TimeoutError(f"waited {PATIENCE_S:g} s for {what}")
