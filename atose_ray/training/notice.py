"""What is asked of a training from outside: to save itself now, or to stop. From another thread, or a signal's handler;
the loop looks after every step whose loss it reads, and all ranks of a run do the same after the same step."""

from enum import IntEnum


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
