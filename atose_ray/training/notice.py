"""What is asked of a training from outside: to save itself now, or to stop. From another thread, or a signal's handler;
the loop looks after every step whose loss it reads, and all ranks of a run do the same after the same step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

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
