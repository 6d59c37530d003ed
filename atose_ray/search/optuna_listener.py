"""Optuna's part of a search: it is asked for every trial and told how each one ended.

The trials' run folders are the truth, and the study that is asked is rebuilt from them when a search goes on. So a
storage that is away for a while (a database that restarts) delays the search, and ends it only after minutes.
"""

import itertools
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import DBAPIError

from atose_ray.search.costs import FLOOR, costs_of
from atose_ray.search.events import Ended, Epoch, Event
from atose_ray.search.record import load_trial
from atose_ray.search.study_storage import NUMBER, StudyStorage
from atose_ray.storage import Store

T = TypeVar("T")
PAUSES_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 60)  # three minutes for a database to come back


class OptunaListener:
    """Asks `study` for trials and tells it their values. kept: where the study is stored. costs: what is minimised
    beside the metric; then Optuna is told no value of single epochs, which it has for one objective only."""

    def __init__(self, study: optuna.Study, kept: StudyStorage, costs: Sequence[str] = ()) -> None:
        self.study, self.kept, self.costs = study, kept, costs
        self.taken: set[int] = set()  # Optuna's numbers of all trials that were asked for here
        self.open: dict[int, optuna.Trial] = {}
        self.best: dict[int, float] = {}

    def ask(self, configure: Callable[[optuna.Trial, int], T], next_number: int) -> T:
        """Ask for a trial and configure it under its number: `next_number`, or its own if it was begun before."""
        tries = itertools.count()

        def attempt() -> optuna.Trial:
            if next(tries):  # one that was begun when the storage went away is taken up, so that none is lost
                for begun in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    if begun.number not in self.taken:
                        return optuna.Trial(self.study, begun._trial_id)
            return self.study.ask()

        trial = patiently(attempt)
        self.taken.add(trial.number)
        number = int(trial.user_attrs.get(NUMBER, next_number))
        patiently(lambda: trial.set_user_attr(NUMBER, number))
        self.open[number] = trial
        return patiently(lambda: configure(trial, number))

    def on_event(self, event: Event) -> None:
        """Report an epoch's value, so that a dashboard shows the curve; tell how a trial ended: one that was pruned
        with its best value so far, one without values as failed. One that was paused has not ended."""
        if isinstance(event, Epoch):
            trial, record = self.open[event.number], event.record
            self.best[event.number] = record.objective
            if not self.costs:
                patiently(lambda: trial.report(record.objective, record.epoch))
        elif isinstance(event, Ended) and event.state != "paused":
            trial, value = self.open.pop(event.number), self.best.get(event.number)
            value = FLOOR if value is None and event.state == "diverged" else value
            ended = load_trial(Store(event.job.folder_uri)) if self.costs else None
            costs = costs_of(ended, self.costs) if ended else {}
            values: list[float] | None = None
            if event.state != "failed" and value is not None and costs is not None:
                values = [value, *costs.values()]
            state = TrialState.FAIL if values is None else TrialState.COMPLETE
            patiently(lambda: self.study.tell(trial, values, state=state, skip_if_finished=True))
            self.kept.keep()


def patiently(call: Callable[[], T]) -> T:
    """What `call` gives, tried anew while the study's storage is away. Raises what the last try raised."""
    for pause in PAUSES_S:
        try:
            return call()
        except (DBAPIError, optuna.exceptions.StorageInternalError):
            time.sleep(pause)
    return call()
