"""What a study left behind, read back from its folder: the only source of the report.

A study folder holds

    study.json                      the StudyConfig, the data's facts, versions
    trials/<number>-<signature>/    one run folder per trial (training/record.py)
    best/                           the chosen model and its one test score
    report.html
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from atose_ray.types import DataSpec

TrialState = Literal["running", "complete", "pruned", "diverged", "failed"]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of one trial. `epoch` counts from 1 over all stages; `valid` maps metric name to value."""

    epoch: int
    stage: str
    seconds: float
    train_loss: float
    lr: float
    valid: dict[str, float]
    objective: float
    time: float


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `params` maps config path (`encoder[sample_cnn].block`) to the value Optuna chose;
    `distributions` maps the same paths to Optuna's JSON of the range. `objective` of an epoch is best so far."""

    number: int
    name: str
    signature: str
    params: dict[str, Any]
    distributions: dict[str, str]
    config: dict[str, Any]
    state: TrialState
    reason: str | None
    started: float
    finished: float | None
    device: str
    parameters: int
    epochs: tuple[EpochRecord, ...]

    @property
    def value(self) -> float | None:
        """Best objective so far, or None when no epoch was finished."""
        return self.epochs[-1].objective if self.epochs else None


@dataclass(frozen=True)
class BestRecord:
    """The chosen model. `metrics` is best/metrics.json: {"protocol", "stage", "epoch", "valid": {name: value},
    "test": {name: value}, "test_prevalence_mean", "per_tag": [{"tag", "average_precision", "roc_auc", "positives",
    "clips"}], "tag_embedding_cosine_CC": [[float]] or None, "tag_embedding_collapsed": bool or None}. A tag without
    positives in test has average_precision and roc_auc None."""

    number: int
    config: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class StudyRecord:
    """Everything the report shows. `tag_correlation_CC`: Pearson (phi) correlation of the tags over the train split."""

    name: str
    metric: str
    config: dict[str, Any]
    data_spec: DataSpec
    tag_counts: dict[str, dict[str, int]]
    tag_correlation_CC: list[list[float]]
    trials: tuple[TrialRecord, ...]
    best: BestRecord | None
    rerun_command: str | None
    versions: dict[str, str]
    skipped: tuple[tuple[str, str], ...] = ()
