"""One process at a time is at work on a folder: a small file says which, and is written anew every few seconds.

Whoever comes next watches the file: as long as it changes, its owner lives. No clocks of two machines are compared. The
owner on this machine is looked up among the processes, so that a restart after a crash waits for nothing.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atose_ray.storage import Store, StoreError

EVERY_S, OLD_S, GIVE_UP_S = 4.0, 15.0, 60.0
RUN_LEASE, STUDY_LEASE, PROMOTION_LEASE = "lease.json", "driver.json", "promoting.json"


class LeaseError(RuntimeError):
    """Another process is at work on the folder. The message says where it runs."""


def here() -> str:
    """This machine, for telling whether a process id is one of ours: its name, start and process namespace."""
    boot, space = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    marks = [boot.read_text().strip()[:8] if boot.exists() else "", str(space.readlink()) if space.is_symlink() else ""]
    return ":".join([socket.gethostname(), *marks])


def read_lease(store: Store, name: str) -> dict[str, Any] | None:
    """What the file says, or None where there is none (or half of one)."""
    try:
        return dict(json.loads(store.read(name)))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def is_dead(owner: dict[str, Any]) -> bool:
    """Whether the owner ran on this machine and is no more."""
    if owner["host"] != here():
        return False
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    stat = Path(f"/proc/{owner['pid']}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] in "ZX"


def is_free(owner: dict[str, Any] | None) -> bool:
    """Whether nobody holds the folder, or only what this process itself did before."""
    return owner is None or is_dead(owner) or (owner["host"], owner["pid"]) == (here(), os.getpid())


def describe(owner: dict[str, Any]) -> str:
    """An owner, for a person."""
    return f"process {owner['pid']} on {owner['host'].split(':')[0]}"


class Lease:
    """Holds `name` in a folder from `take` to `release`. lost: somebody else took it meanwhile, so stop writing."""

    def __init__(self, store: Store, name: str = RUN_LEASE) -> None:
        self.store, self.name, self.token = store, name, uuid.uuid4().hex
        self.lost, self.beats = False, 0
        self.finished = threading.Event()

    def take(self, give_up_s: float = GIVE_UP_S, say: Callable[[str], None] = lambda text: None) -> Lease:
        """Wait until nobody else holds the folder, and hold it.

        An owner that has not renewed for OLD_S seconds is gone. Raises LeaseError when one still renews after
        `give_up_s` seconds.
        """
        began = since = time.monotonic()
        owner, renewed = read_lease(self.store, self.name), False
        if owner is not None and not is_free(owner):
            say(f"{describe(owner)} held {self.store.uri}; waiting until it has been silent for {OLD_S:.0f} s")
        while owner is not None and not is_free(owner) and time.monotonic() - since < OLD_S:
            if renewed and time.monotonic() - began >= give_up_s:
                raise LeaseError(
                    f"{describe(owner)} is at work on {self.store.uri} and renews {self.name}; stop it first, or wait"
                )
            time.sleep(0.5)
            seen = read_lease(self.store, self.name)
            if seen != owner:
                owner, renewed, since = seen, True, time.monotonic()
        self._write()
        threading.Thread(target=self._renew, daemon=True, name=f"lease {self.name}").start()
        return self

    def check(self) -> None:
        """Raise LeaseError where somebody else took the folder meanwhile."""
        if self.lost:
            raise LeaseError(f"another process has taken over {self.store.uri} while this one was silent")

    def release(self) -> None:
        """Let go; done twice is fine."""
        if self.finished.is_set():
            return
        self.finished.set()
        owner = None if self.lost else read_lease(self.store, self.name)
        if owner is not None and owner["token"] == self.token:
            self.store.delete(self.name)

    def _write(self) -> None:
        self.beats += 1
        owner = {"token": self.token, "host": here(), "pid": os.getpid(), "beat": self.beats, "time": time.time()}
        self.store.write_json(self.name, owner)

    def _renew(self) -> None:
        while not self.finished.wait(EVERY_S):
            try:
                owner = read_lease(self.store, self.name)
                if owner is None or self.finished.is_set():
                    return  # the run was ended for us
                if owner["token"] != self.token:
                    self.lost = True
                    return
                self._write()
            except StoreError:
                continue  # away for a while: whoever comes next waits for us, or the trial fails by itself
