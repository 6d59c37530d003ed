"""Memory of a process and all that it started, read from /proc while it runs (Linux)."""

from __future__ import annotations

import threading
from pathlib import Path


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue  # it ended meanwhile
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def pss_mb(pid: int) -> float:
    """Proportional set size: what a process holds alone, and its share of what it shares."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


class PeakMemory(threading.Thread):
    """The highest sum over a family, and the highest of its first process alone, until `stop`; in MB."""

    def __init__(self, pid: int, every_s: float = 0.25) -> None:
        super().__init__(daemon=True)
        self.pid, self.every_s, self.ended = pid, every_s, threading.Event()
        self.family_mb = self.first_mb = 0.0
        self.start()

    def run(self) -> None:
        """Sample until the end."""
        while not self.ended.wait(self.every_s):
            first, *rest = (pss_mb(pid) for pid in family(self.pid))
            self.first_mb = max(self.first_mb, first)
            self.family_mb = max(self.family_mb, first + sum(rest))

    def stop(self) -> dict[str, float]:
        """The two peaks."""
        self.ended.set()
        self.join()
        return {"family_mb": round(self.family_mb, 1), "process_mb": round(self.first_mb, 1)}
