"""When a trial is pruned: Ray Tune's schedulers on comparable epochs (search/ranking.py), told of earlier trials."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from atose_ray.config import StudyConfig
from atose_ray.search.ranking import RANKED, RUNG, ranked_epochs
from atose_ray.search.record import TrialRecord
from atose_ray.search.space import longest_run

MEDIAN_OF = 3  # trials that must have come as far before their median says anything


@dataclass(frozen=True)
class Earlier:
    """Stands for a trial of an earlier session."""

    trial_id: str


class KnowsLoop:
    """A scheduler that can say in which of Tune's loops it works."""

    loop: Any = None

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial came."""
        self.loop = tune_controller
        super().on_trial_add(tune_controller, trial)  # type: ignore[misc]


class Unpruned(KnowsLoop, FIFOScheduler):  # type: ignore[misc]
    """Ray's, which ends no trial."""


class OwnMetric(KnowsLoop):
    """A scheduler that has its metric already and knows earlier trials by it. It ranks comparable epochs alone: a trial
    goes on with one that is not, whatever its score."""

    metric: str

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        """Tune's, which are those that it was made with."""
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """An epoch of a trial that runs."""
        if result.get(RUNG) == 0:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, self.ranked(result)))  # type: ignore[misc]

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """The last result of a trial that ended by itself, or any of an earlier one; none where it has no value."""
        if result.get(RUNG) != 0 and "epoch" in result and self.metric in result:
            super().on_trial_complete(tune_controller, trial, self.ranked(result))  # type: ignore[misc]

    def ranked(self, result: Mapping[str, Any]) -> dict[str, Any]:
        """A result by its comparable epochs and the best of them."""
        if RUNG not in result or RANKED not in result:
            return dict(result)
        return {**result, "epoch": result[RUNG], self.metric: result[RANKED]}


class MedianRule(OwnMetric, MedianStoppingRule):  # type: ignore[misc]
    """Ray's median stopping rule; a trial that ended without a comparable value is no part of it."""


class Halving(OwnMetric, ASHAScheduler):  # type: ignore[misc]
    """Ray's successive halving."""


def scheduler(study: StudyConfig, told: Iterable[TrialRecord]) -> Unpruned | MedianRule | Halving:
    """The pruner of a study, with what it knew of the trials that ended before. Several objectives are not pruned."""
    pruner, metric = study.search.pruner, study.search.metric
    if pruner.kind == "none" or study.search.costs:
        return Unpruned()
    longest = longest_run(study)
    common = {"time_attr": "epoch", "metric": metric, "mode": "max", "grace_period": min(pruner.grace_epochs, longest)}
    if pruner.kind == "median":
        # A slice of infinite length: a trial that cannot be judged yet goes on, and is not paused for another.
        rule: MedianRule | Halving = MedianRule(**common, min_samples_required=MEDIAN_OF, min_time_slice=float("inf"))
    else:
        # at max_t itself ASHA would stop every trial that finishes
        rule = Halving(**common, max_t=longest + 1, reduction_factor=pruner.reduction_factor)
    tell = rule.on_trial_complete if pruner.kind == "median" else rule.on_trial_result
    for trial in told:
        stand_in = Earlier(f"earlier-{trial.number}")
        rule.on_trial_add(None, stand_in)
        for line in ranked_epochs(trial):
            tell(None, stand_in, line)
        if pruner.kind != "median":
            rule.on_trial_remove(None, stand_in)
    return rule
