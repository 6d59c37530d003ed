"""Optuna's study as a search algorithm of Ray Tune: Optuna is asked and told, Ray only executes.

The trials' run folders are the truth; the study that is asked is rebuilt from them when a search goes on. So nothing of
it is saved by Tune, and a storage that is away for a while (a database that restarts) delays the search and ends it
only after minutes.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher
from sqlalchemy.exc import DBAPIError

from atose_ray.runtime.ledger import Ledger
from atose_ray.search.gpu_share import GpuShare
from atose_ray.search.study_storage import NUMBER, StudyStorage
from atose_ray.training.run import Job

T = TypeVar("T")
PAUSES_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 60)  # three minutes for a database to come back
Configure = Callable[[optuna.Trial, int], tuple[Job, dict[str, Any]]]
Values = Callable[[Job, Mapping[str, Any]], Sequence[float] | None]


class StudySearch(Searcher):  # type: ignore[misc]
    """Asks `study` for every trial and tells it how the trial ended.

    configure: an Optuna trial and its number -> the run, and the config that Tune hands to the trainable. values: a run
    and its last result -> what Optuna is told; None of a trial that failed. ledger: asked before every trial whether
    it may begin, and told of all. kept: where the study is stored. may_launch: whether a trial may begin just now.
    share: told what trials hold of a GPU's memory, and asked whether one more has room.
    """

    def __init__(
        self,
        study: optuna.Study,
        metric: str,
        configure: Configure,
        values: Values,
        ledger: Ledger,
        kept: StudyStorage,
        may_launch: Callable[[], bool] = lambda: True,
        share: GpuShare | None = None,
    ) -> None:
        super().__init__(metric=metric, mode="max")
        self.study, self.configure, self.values, self.ledger, self.kept = study, configure, values, ledger, kept
        self.may_launch, self.share = may_launch, share
        self.several = len(study.directions) > 1
        self.taken: set[int] = set()  # Optuna's numbers of all trials that were asked for here
        self.asked: dict[str, tuple[optuna.Trial, int, Job]] = {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Tune's way of naming a space; the space is ours."""
        return not config

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial, FINISHED, or None when it is not the time for one."""
        if not self.may_launch() or (self.share and not self.share.may_launch(len(self.asked))):
            return None
        if not self.ledger.allows():
            return str(Searcher.FINISHED)
        trial = self.ask()
        number = int(trial.user_attrs.get(NUMBER, self.ledger.next_number))
        patiently(lambda: trial.set_user_attr(NUMBER, number))
        job, config = patiently(lambda: self.configure(trial, number))
        self.asked[trial_id] = trial, number, job
        self.ledger.begin(number, job)
        return config

    def ask(self) -> optuna.Trial:
        """Optuna's next trial. One that was begun when the storage went away is taken up, so that none is lost."""

        tries = itertools.count()

        def attempt() -> optuna.Trial:
            if next(tries):
                for begun in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    if begun.number not in self.taken:
                        return optuna.Trial(self.study, begun._trial_id)
            return self.study.ask()

        trial = patiently(attempt)
        self.taken.add(trial.number)
        return trial

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Report an epoch's value, so that a dashboard shows the curve. Optuna has none for several objectives."""
        if trial_id not in self.asked or result.get(self.metric) is None or "epoch" not in result:
            return
        trial, number, _ = self.asked[trial_id]
        if self.share:
            self.share.note(float(result.get("gpu_memory", 0.0)))
        self.ledger.add_epoch(number, result)
        if not self.several:
            patiently(lambda: trial.report(result[self.metric], result["epoch"]))

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell how a trial ended. One without values failed; one that was pruned is told its best value so far. One
        that was only stopped has not ended: the next session goes on with it."""
        if trial_id not in self.asked or (result and "stopped" in result):
            return
        trial, number, job = self.asked.pop(trial_id)
        values = None if error or not result or "failed" in result else self.values(job, result)
        state = TrialState.FAIL if values is None else TrialState.COMPLETE
        patiently(lambda: self.study.tell(trial, values, state=state, skip_if_finished=True))
        self.ledger.end(number, job, result, failed=values is None)
        self.kept.keep()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from its run folders."""
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None:
        """Not used: see above."""
        raise NotImplementedError("a search goes on from its run folders, not from Ray Tune's experiment state")


def patiently(call: Callable[[], T]) -> T:
    """What `call` gives, tried anew while the study's storage is away. Raises what the last try raised."""
    for pause in PAUSES_S:
        try:
            return call()
        except (DBAPIError, optuna.exceptions.StorageInternalError):
            time.sleep(pause)
    return call()
