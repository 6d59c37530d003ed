"""Which parameters mattered: Optuna's fANOVA over the trials of a study, with the level that chance reaches beside it.

A conditional parameter (`encoder[sample_cnn].block`) exists in a part of the trials only. Parameters that occur in the
same trials are judged together, next to every parameter that all these trials share, so that no value is ever made up
for a trial that did not have it. Complete and pruned trials count, both with their best objective; to leave the pruned
ones out would hide the very choices that were bad.
"""

import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, json_to_distribution

from atose_ray.search.record import TrialRecord

MIN_TRIALS = 8  # below this a forest only learns the trials by heart
MIN_DISTINCT = 4  # distinct values of a number
MAX_TRIALS = 150  # a forest over more costs seconds and says the same
_SHADOW = "shuffled "
_Column = tuple[BaseDistribution, list[Any]]


@dataclass(frozen=True)
class Importance:
    """One parameter. value: share of the variance of the objective that it explains alone (main effect), or None with
    the reason in `note`. chance: the largest share it reached in `shuffles` repeats with the objectives shuffled."""

    path: str
    trials: int
    value: float | None
    chance: float | None
    note: str | None


@dataclass(frozen=True)
class _Rows:
    params: list[dict[str, Any]]
    values: list[float]
    distributions: dict[str, BaseDistribution]

    def having(self, path: str) -> tuple[int, ...]:
        return tuple(i for i, params in enumerate(self.params) if path in params)


def parameter_importances(trials: Sequence[TrialRecord]) -> tuple[Importance, ...]:
    """The importance of every parameter that any trial has, most important first, the unknown ones last."""
    rows = _usable_rows(trials)
    groups: dict[tuple[int, ...], list[str]] = {}
    results = []
    for path in sorted({path for trial in trials for path in trial.params}):
        having = rows.having(path)
        note = _too_little(rows, path, having)
        if note is None:
            groups.setdefault(having, []).append(path)
        else:
            results.append(Importance(path, len(having), None, None, note))
    for having, paths in groups.items():
        results += _group_importances(rows, having, paths)
    return tuple(sorted(results, key=lambda one: (one.value is None, -(one.value or 0.0), one.path)))


def _usable_rows(trials: Sequence[TrialRecord]) -> _Rows:
    ended = [one for one in trials if one.state in ("complete", "pruned") and one.value is not None]
    ended = [trial for trial in ended if math.isfinite(trial.value or 0.0)]
    distributions: dict[str, BaseDistribution] = {}
    for trial in ended:
        for path, text in trial.distributions.items():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                distributions[path] = json_to_distribution(text)  # the last trial's range, where a range was changed
    known = [{path: value for path, value in one.params.items() if path in one.distributions} for one in ended]
    kept = [{path: v for path, v in row.items() if _fits(distributions.get(path), v)} for row in known]
    return _Rows(kept, [float(one.value or 0.0) for one in ended], distributions)


def _fits(distribution: BaseDistribution | None, value: Any) -> bool:
    if distribution is None:
        return False
    try:
        inner = distribution.to_internal_repr(value)
    except (ValueError, TypeError):
        return False
    return isinstance(distribution, CategoricalDistribution) or bool(distribution.low <= inner <= distribution.high)


def _too_little(rows: _Rows, path: str, having: tuple[int, ...]) -> str | None:
    """Why no honest number can be given for this parameter, or None."""
    if len(having) < MIN_TRIALS:
        return f"not enough trials ({len(having)} of {MIN_TRIALS})"
    if len({rows.values[i] for i in having}) < 2:
        return "all trials have the same objective"
    counts = Counter(repr(rows.params[i][path]) for i in having)
    if isinstance(rows.distributions[path], CategoricalDistribution):
        often = sum(count >= 2 for count in counts.values())
        return None if often >= 2 else "not enough trials (fewer than 2 choices tried twice)"
    if len(counts) < MIN_DISTINCT:
        return f"not enough distinct values ({len(counts)} of {MIN_DISTINCT})"
    return None


def _group_importances(rows: _Rows, having: tuple[int, ...], paths: list[str]) -> list[Importance]:
    together = [path for path in rows.distributions if set(having) <= set(rows.having(path))]
    random = np.random.default_rng(0)
    chosen = having if len(having) <= MAX_TRIALS else tuple(sorted(random.permutation(having)[:MAX_TRIALS].tolist()))
    values = [rows.values[i] for i in chosen]
    columns = {path: _column(rows, path, chosen) for path in together}
    try:
        measured = _fanova(columns, values)
        repeats = [_fanova(columns | _shadows(columns, random), values) for _ in range(shuffles(len(chosen)))]
    except Exception as error:  # a report of a two-day search must not be lost to one plot
        return [Importance(path, len(having), None, None, f"could not be computed: {error}") for path in paths]
    note = None if chosen is having else f"computed on {MAX_TRIALS} of them, drawn at random"
    chance = {path: max(found[_SHADOW + path] for found in repeats) for path in paths}
    return [Importance(path, len(having), measured[path], chance[path], note) for path in paths]


def shuffles(trials: int) -> int:
    """How many shuffled repeats measure chance: more where trials are few and chance is high."""
    return 20 if trials <= 30 else 8 if trials <= 60 else 3


def _column(rows: _Rows, path: str, chosen: Sequence[int]) -> _Column:
    """One parameter over the chosen trials. A log range becomes a plain range of logarithms: Optuna's fANOVA would
    spread it evenly over the plain values, where nearly all of 1e-5 to 1e-2 is its last decade."""
    distribution, values = rows.distributions[path], [rows.params[i][path] for i in chosen]
    if not getattr(distribution, "log", False):
        return distribution, values
    low, high = math.log10(distribution.low), math.log10(distribution.high)
    return FloatDistribution(low, high), [min(max(math.log10(value), low), high) for value in values]


def _shadows(columns: dict[str, _Column], random: np.random.Generator) -> dict[str, _Column]:
    """A copy of every column with its values dealt to other trials: what it gets explains nothing."""
    return {
        _SHADOW + path: (distribution, [values[i] for i in random.permutation(len(values))])
        for path, (distribution, values) in columns.items()
    }


def _fanova(columns: dict[str, _Column], values: list[float]) -> dict[str, float]:
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances  # here: scikit-learn, a second

    distributions = {path: distribution for path, (distribution, _) in columns.items()}
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.create_study(direction="maximize")
        for i, value in enumerate(values):
            params = {path: column[i] for path, (_, column) in columns.items()}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=value))
        evaluator = FanovaImportanceEvaluator(n_trees=32, max_depth=8, seed=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = get_param_importances(study, evaluator=evaluator, params=list(columns), normalize=False)
    finally:
        optuna.logging.set_verbosity(before)
    return {path: float(found[path]) for path in columns}
