"""What an epoch of a trial counts for beside other trials': like is ranked with like.

A method says which of its stages are scored as other methods' stages are (COMPARABLE). The first stage of joint
embedding is scored through a decoder: its trials would be given up for a number that says nothing of their classifier.
Such an epoch is on record and told to the sampler, but ranked with none; a trial's comparable epochs are counted from
its first one, and its best score is that over them."""

import math
from collections.abc import Iterable
from typing import Any

from atose_ray.config import RunConfig
from atose_ray.data.downstream import OF_PROBE
from atose_ray.methods.base import MethodConfig
from atose_ray.search.record import TrialRecord
from atose_ray.training.record import EpochRecord

RUNG, RANKED = "comparable_epochs", "comparable_best"  # of what Tune is told of an epoch, beside the metric and `epoch`


def rung_of(method: MethodConfig, epoch: int) -> int:
    """How many comparable epochs a run has behind it with its `epoch`; 0 for an epoch that is not comparable."""
    counted, end = 0, 0
    for stage in method.stages:
        start, end = end, end + stage.epochs
        comparable = stage.name in method.COMPARABLE
        if epoch <= end or stage is method.stages[-1]:
            return counted + epoch - start if comparable else 0
        counted += stage.epochs if comparable else 0
    return 0


class Ranking:
    """Of one trial, epoch after epoch. before: those that it had when it goes on."""

    def __init__(self, run: RunConfig, before: Iterable[EpochRecord] = ()) -> None:
        self.run, self.best = run, -math.inf
        for record in before:
            self.rank(record)

    def rank(self, record: EpochRecord) -> dict[str, Any]:
        """What to rank the trial by after this epoch: RUNG, and RANKED where that is not 0."""
        of_probe = self.run.metric in OF_PROBE  # which is the same measure in every stage of every method
        rung = record.epoch if of_probe else rung_of(self.run.method, record.epoch)
        if not rung:
            return {RUNG: 0}
        self.best = max(self.best, record.valid[self.run.metric])
        return {RUNG: rung, RANKED: self.best}

    def line(self, record: EpochRecord) -> dict[str, Any]:
        """What Tune is told of an epoch: of the metric the best so far, which is never NaN."""
        return {self.run.metric: record.objective, "epoch": record.epoch, "record": record, **self.rank(record)}


def ranked_epochs(trial: TrialRecord) -> list[dict[str, Any]]:
    """What Tune was told of the epochs of a trial that ended; none of one whose configuration this version lacks."""
    try:
        ranking = Ranking(RunConfig.model_validate(trial.config))
    except ValueError:
        return []
    return [ranking.line(record) for record in trial.epochs]
