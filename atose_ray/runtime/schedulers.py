"""When a trial is given up: Ray Tune's schedulers on the run's own epoch count, told of earlier trials."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from atose_ray.config import StudyConfig
from atose_ray.search.record import TrialRecord
from atose_ray.search.space import longest_run

MEDIAN_OF = 3  # trials that must have come as far before their median says anything


class MedianRule(MedianStoppingRule):  # type: ignore[misc]
    """Ray's median stopping rule; a trial that ended without a value is no part of it."""

    def __init__(self, metric: str, grace_epochs: int) -> None:
        # A slice of infinite length: a trial that cannot be judged yet goes on, and is not paused for another.
        super().__init__(
            time_attr="epoch",
            grace_period=grace_epochs,
            min_samples_required=MEDIAN_OF,
            min_time_slice=float("inf"),
        )
        self.value = metric

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> None:
        """The last result of a trial that ended by itself."""
        if "epoch" in result and self.value in result:
            super().on_trial_complete(tune_controller, trial, result)

    def fill(self, trial: TrialRecord) -> None:
        """Take over what an earlier trial reported."""
        if trial.epochs:
            name = f"earlier-{trial.number}"
            self._results[name] = [{"epoch": one.epoch, self.value: one.objective} for one in trial.epochs]


def scheduler(study: StudyConfig, told: Iterable[TrialRecord]) -> TrialScheduler:
    """The pruner of a study, with what it knew of the trials that ended before. Several objectives are not pruned."""
    pruner, metric = study.search.pruner, study.search.metric
    if pruner.kind == "none" or study.search.costs:
        return FIFOScheduler()
    longest = longest_run(study)
    grace = min(pruner.grace_epochs, longest)
    if pruner.kind == "median":
        rule = MedianRule(metric, grace)
        for trial in told:
            rule.fill(trial)
        return rule
    return _halving(metric, grace, pruner.reduction_factor, longest, told)


def _halving(metric: str, grace: int, factor: float, longest: int, told: Iterable[TrialRecord]) -> ASHAScheduler:
    asha = ASHAScheduler(
        time_attr="epoch",
        metric=metric,
        mode="max",
        max_t=longest + 1,  # at max_t itself ASHA would stop every trial that finishes
        grace_period=grace,
        reduction_factor=factor,
    )
    for trial in told:
        stand_in = SimpleNamespace(trial_id=f"earlier-{trial.number}")
        asha.on_trial_add(None, stand_in)
        for epoch in trial.epochs:
            asha.on_trial_result(None, stand_in, {"epoch": epoch.epoch, metric: epoch.objective})
        asha.on_trial_remove(None, stand_in)
    # Tune sets metric and mode itself and refuses to be overruled
    asha._metric, asha._mode = None, None
    return asha
