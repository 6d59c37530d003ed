"""Asking for the next trial to train, past those that are settled at once, and when to stop asking."""

from collections.abc import Callable

import optuna

from atose_ray.search.events import Asked, Settled
from atose_ray.search.listeners import Listeners
from atose_ray.search.trials import TrialSetup

IN_A_ROW = 20  # configurations that cannot be built, before anything else came, end the search
Configure = Callable[[optuna.Trial, int], TrialSetup | Settled]


class Asking:
    """wanted: trials to ask for, settled ones included. stopped: whether the search was asked to stop."""

    def __init__(
        self, configure: Configure, listeners: Listeners, wanted: int, stopped: Callable[[], object] = lambda: False
    ) -> None:
        self.configure, self.listeners, self.wanted, self.stopped = configure, listeners, wanted, stopped
        self.asked, self.cut = 0, False  # cut: asking ended as the search was asked to stop
        self.impossible: list[Settled] = []

    def next(self) -> TrialSetup | None:
        """The next trial to train, or None when no other one is to be asked for."""
        settled = False
        while self.asked < self.wanted and len(self.impossible) < IN_A_ROW and self.listeners.log.allows():
            if settled and self.stopped():
                self.cut = True
                return None
            found = self.listeners.optuna.ask(self.configure, self.listeners.log.next_number)
            self.asked += 1
            settled = isinstance(found, Settled)
            event = found if isinstance(found, Settled) else Asked(found.job.about["number"], found.job)
            for listener in self.listeners:
                listener.on_event(event)
            if any(trial.state != "infeasible" for trial in self.listeners.log.trials.values()):
                self.impossible.clear()  # the space holds something: it goes on to the number that is wanted
            elif isinstance(found, Settled):
                self.impossible.append(found)
            if not isinstance(found, Settled):
                return found
        return None

    def hopeless(self) -> str | None:
        """Why this space has nothing to train, where every trial so far was a configuration that cannot be built."""
        if not self.impossible:
            return None
        last = self.impossible[-1]
        return (
            f"none of the {len(self.impossible)} configurations that were asked for can be built; the last one, "
            f"{last.name}: {last.reason}. Take what does not go together out of the study's space or base, and give it "
            "another --name"
        )
