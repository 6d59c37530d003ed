"""A node that is to be taken away: what trains there saves itself at once, and often, until it goes."""

import threading
import time

from atose_ray.runtime.ray_private import own_node_is_draining
from atose_ray.training.notice import Ask, Notice

LOOK_EVERY_S, SAVE_EVERY_S = 2.0, 30.0


class DrainWatch:
    """While it is open, a thread asks a training in this process to save itself when its node gets notice."""

    def __init__(self) -> None:
        self.notice, self.closed = Notice(), threading.Event()
        threading.Thread(target=self._look, daemon=True, name="drain watch").start()

    def close(self) -> None:
        """Look no more."""
        self.closed.set()

    def _look(self) -> None:
        asked = float("-inf")
        while not self.closed.wait(LOOK_EVERY_S):
            if time.monotonic() - asked >= SAVE_EVERY_S and own_node_is_draining():
                asked = time.monotonic()
                self.notice.ask(Ask.SAVE)
