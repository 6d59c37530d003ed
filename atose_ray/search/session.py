"""One session of a search: its driver holds the study folder, and is asked to stop by a file there, Ctrl-C or SIGTERM.

A request names the driver it is meant for, so that one that came too late stops no other session.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal

from atose_ray.config import ConfigError
from atose_ray.storage import Store, StoreError, folder_of
from atose_ray.storage.lease import OLD_S, STUDY_LEASE, Lease, LeaseError, describe, is_dead, read_lease

STOP = "stop.json"
LOOK_EVERY_S, LOOK_AT_DISK_EVERY_S = 2.0, 0.25
LEAVE_S = 60.0  # after a SIGTERM, Ray may end too
Request = Literal["", "stop", "now"]


class Session:
    """Begins when it is made, before anything is read that another driver may write, and ends with its `with` block.
    asked: what was asked of the driver so far. Raises ConfigError when another driver of this study is at work.
    """

    def __init__(self, folder: Store) -> None:
        self.folder, self.asked, self.looked = folder, "", 0.0
        try:
            say = functools.partial(print, flush=True)  # waiting for another driver takes seconds
            self.lease = Lease(folder, STUDY_LEASE).take(give_up_s=0, say=say)
        except LeaseError as error:
            raise ConfigError(
                f"this study is being searched: {error}. To stop it: python -m atose_ray.stop "
                f"{folder_of(folder.uri)[1]}"
            ) from error

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    @contextmanager
    def listening(self, ray_is_gone: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """While trials run, the first Ctrl-C (or SIGTERM) is a request like that of `python -m atose_ray.stop`; the
        second ends the process at once. So does a SIGTERM that Ray got too, as a batch system sends it to all processes
        of a job: Ray's own wait for what has ended takes a minute."""
        self.ray_is_gone = ray_is_gone
        before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            before = {number: signal.signal(number, self._signalled) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = "stop"
        if number == signal.SIGTERM:
            threading.Thread(target=self._leave_with_ray, daemon=True, name="leave with ray").start()

    def _leave_with_ray(self) -> None:
        """End this process soon after Ray's node here, which a SIGTERM to all processes of a job ends."""
        until = time.monotonic() + LEAVE_S
        while time.monotonic() < until:
            if self.ray_is_gone():
                print("stop   Ray was ended too; the epochs on record are kept, the same command goes on", flush=True)
                self.end()
                os._exit(143)
            time.sleep(LOOK_AT_DISK_EVERY_S)

    def request(self) -> Request:
        """What is asked of this driver; looks into the folder every two seconds, on a local disk more often. One that
        was silent so long that another took the study over stops at once."""
        if self.lease.lost:
            self.asked = "now"
        now = time.monotonic()
        if now - self.looked >= (LOOK_AT_DISK_EVERY_S if self.folder.local_path else LOOK_EVERY_S):
            self.looked = now
            asked = read_lease(self.folder, STOP)
            if asked and asked["token"] == self.lease.token:
                self.asked = "now" if asked["now"] else "stop"
        found: Request = self.asked  # type: ignore[assignment]
        return found

    def end(self) -> None:
        """Give the folder back."""
        try:
            asked = read_lease(self.folder, STOP)
            if asked and asked["token"] == self.lease.token:
                self.folder.delete(STOP)
            self.lease.release()
        except StoreError:
            return  # it is away: the lease grows old, and the request is meant for nobody any more


def ask_to_stop(folder: Store, name: str, now: bool) -> str:
    """Ask the driver of a study to stop; returns its token. Raises ValueError where none is at work."""
    owner = read_lease(folder, STUDY_LEASE)
    if owner is None or is_dead(owner):
        raise ValueError(f"no search of the study {name!r} is running on the store of {folder.uri}: nothing to stop")
    folder.write_json(STOP, {"token": owner["token"], "now": now})
    return str(owner["token"])


def wait_for_end(folder: Store, token: str) -> str:
    """Wait until the driver of that token has left; says how it went."""
    before, since = read_lease(folder, STUDY_LEASE), time.monotonic()
    while before is not None and before["token"] == token:
        if is_dead(before) or time.monotonic() - since > 2 * OLD_S:
            return f"{describe(before)} is gone without a word: killed, or its machine is"
        time.sleep(0.5)
        seen = read_lease(folder, STUDY_LEASE)
        if seen != before:
            before, since = seen, time.monotonic()
    return "stopped"
