"""What is asked of a training from outside: to save itself now, or to stop. From another thread, or a signal's handler;
the loop looks after every step whose loss it reads, and all ranks of a run do the same after the same step."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

LOOK_EVERY_S, SAVE_EVERY_S = 2.0, 30.0  # of a Watch
PATIENCE_S = 10.0  # for the step that runs when a stop is asked for; what is not training then is ended


class Ask(IntEnum):
    """What is asked; of several things the greater one counts."""

    NOTHING = 0
    SAVE = 1
    STOP = 2


class StoppedError(RuntimeError):
    """The training was asked to stop, and has: its checkpoint is of the step that the message names."""


class Notice:
    """Holds what is asked until the loop takes it."""

    def __init__(self) -> None:
        self.asked = Ask.NOTHING

    def ask(self, what: Ask) -> None:
        """Ask for something: soon all ranks of the run do it."""
        self.asked = max(self.asked, what)

    def take(self) -> Ask:
        """What is asked; it is asked no more, but for a stop."""
        asked = self.asked
        if asked is Ask.SAVE:
            self.asked = Ask.NOTHING
        return asked


class Watch:
    """Until it is closed, a thread asks the training to save itself, at once and then often, while this machine is to
    be taken away. leaves: whether it is."""

    def __init__(self, leaves: Callable[[], bool]) -> None:
        self.leaves, self.notice, self.closed = leaves, Notice(), threading.Event()
        threading.Thread(target=self._look, daemon=True, name="watch for notice").start()

    def close(self) -> None:
        """Look no more."""
        self.closed.set()

    def _look(self) -> None:
        asked = float("-inf")
        while not self.closed.wait(LOOK_EVERY_S):
            if time.monotonic() - asked >= SAVE_EVERY_S and self.leaves():
                asked = time.monotonic()
                self.notice.ask(Ask.SAVE)


@contextmanager
def stopped_by_sigterm(notice: Notice) -> Iterator[None]:
    """In here SIGTERM asks for a stop, and so does that of a batch system that ends a job. A second one, or what is not
    training within some seconds (it reads data, validates), raises StoppedError at once."""
    main = threading.main_thread().ident
    assert main is not None
    again = threading.Timer(PATIENCE_S, lambda: signal.pthread_kill(main, signal.SIGTERM))
    again.daemon = True

    def signalled(number: int, frame: FrameType | None) -> None:
        if notice.asked is Ask.STOP:
            raise StoppedError("stopped; what was trained since the last checkpoint will be trained again")
        notice.ask(Ask.STOP)
        again.start()

    before = signal.signal(signal.SIGTERM, signalled)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        again.cancel()
