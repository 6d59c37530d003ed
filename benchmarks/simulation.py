"""A search with many workers, simulated over recorded trainings (benchmarks/search_scale.py says what for).

Every worker trains one configuration at a time; an epoch takes as long as it did when it was recorded, and its score is
known when it ends, not before. Sampler, pruner and ranking are the classes that `tune` runs. Starting a trial takes no
time. Two things answer for a configuration that is suggested:

table      the nearest recorded one (search_quality.nearest). 200 rows, of which 10 are in the top 5 % and 2 in the top
           1 %: with 64 workers and more all of them are seen at once, so it is asked with up to 16.
surrogate  a random forest on the table, parameters -> curve and seconds, and on top of that the error that the forest
           made on a row that it was not fitted on, drawn by the configuration's hash: two that are alike differ by the
           luck that is in a score and by what the forest does not know.
"""

from __future__ import annotations

import heapq
import json
import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna

from atose_ray.config import StudyConfig
from atose_ray.search.parameters import Choice, Range, asked_of
from atose_ray.search.space import compose, longest_run, walk
from benchmarks.search_quality import Running, line_of, nearest

TREES, SLOW = 60, 3.0


class Training(NamedTuple):
    """What a configuration's training gives: a score after every epoch, each of which takes `epoch_s` seconds."""

    curve: list[float]
    epoch_s: float


Answer = Callable[[Mapping[str, Any], Any], Training]


class Seen(NamedTuple):
    """An epoch of a simulated search, at its end: its trial and score, the best score so far, and the trials so far."""

    time_s: float
    trial: int
    epoch: int
    score: float
    best: float
    trials: int


def training_of(row: Mapping[str, Any], slowest_s: float) -> Training:
    """Of a recorded configuration. slowest_s: of a whole training; one took 40 times as long as its like, on a machine
    that was busy otherwise."""
    curve = list(row["valid"]) or [0.0]
    return Training(curve, min(row.get("cpu_seconds", row["seconds"]), slowest_s) / len(curve))


def slowest(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of a whole training that no row is said to take more than."""
    return SLOW * float(np.median([row.get("cpu_seconds", row["seconds"]) for row in rows]))


def table_answer(rows: Sequence[dict[str, Any]]) -> Answer:
    """The nearest recorded configuration's."""
    limit_s = slowest(rows)
    return lambda params, trial: training_of(nearest(rows, trial), limit_s)


class Surrogate:
    """A random forest on a table, with the errors that it made out of bag. r2, spearman: of best scores, out of bag."""

    def __init__(self, study: StudyConfig, rows: Sequence[dict[str, Any]]) -> None:
        from scipy.stats import spearmanr
        from sklearn.ensemble import RandomForestRegressor

        self.study, limit_s = study, slowest(rows)
        self.columns = columns_of(study, rows)
        found = [training_of(row, limit_s) for row in rows]
        targets_NE = np.array([[*one.curve, math.log(one.epoch_s)] for one in found])
        features_NF = np.array([self.features(row["params"]) for row in rows], dtype=np.float32)
        forest = RandomForestRegressor(TREES, min_samples_leaf=2, max_features=0.6, oob_score=True, random_state=0)
        forest.fit(features_NF, targets_NE)
        self.trees = [tree.tree_ for tree in forest.estimators_]
        self.errors_NE = targets_NE - forest.oob_prediction_
        best_N, guess_N = targets_NE[:, :-1].max(axis=1), forest.oob_prediction_[:, :-1].max(axis=1)
        self.r2 = 1 - float(((best_N - guess_N) ** 2).sum() / ((best_N - best_N.mean()) ** 2).sum())
        self.spearman = float(spearmanr(best_N, guess_N).statistic)

    def features(self, params: Mapping[str, Any]) -> list[float]:
        """A configuration as numbers: a column per choice, and per range its (log) value, -1 where there is none."""
        row = []
        for name, value, log in self.columns:
            if value is not None:
                row.append(float(params.get(name) == value))
            elif name not in params:
                row.append(-1.0)
            else:
                row.append(math.log(params[name]) if log else float(params[name]))
        return row

    def predict(self, many: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """[N, E + 1]: the curves and the logarithms of the seconds of an epoch, errors included."""
        features_NF = np.array([self.features(params) for params in many], dtype=np.float32)
        mean_NE = np.mean([tree.predict(features_NF)[:, :, 0] for tree in self.trees], axis=0)
        keys = [zlib.crc32(json.dumps(params, sort_keys=True).encode()) for params in many]
        return np.asarray(mean_NE + self.errors_NE[np.array(keys) % len(self.errors_NE)])

    def __call__(self, params: Mapping[str, Any], trial: Any) -> Training:
        found_E = self.predict([params])[0]
        return Training(found_E[:-1].clip(0, 1).tolist(), math.exp(found_E[-1]))

    def drawn(self, count: int) -> np.ndarray:
        """Best scores of so many configurations drawn at random."""
        chance, many = random.Random(0), []
        for _ in range(count):
            chosen: dict[str, Any] = {}
            walk(draws(chance, chosen), self.study.space)
            many.append(chosen)
        return np.asarray(self.predict(many)[:, :-1].clip(0, 1).max(axis=1))


def columns_of(study: StudyConfig, rows: Sequence[dict[str, Any]]) -> list[tuple[str, Any, bool]]:
    """(parameter, choice or None for a range, whether it is logarithmic) of all that the rows' configurations have."""
    found: dict[tuple[str, str], tuple[str, Any, bool]] = {}
    for row in rows:
        trial = optuna.trial.FixedTrial(row["params"])
        walk(asked_of(trial), study.space)
        for name, kind in trial.distributions.items():
            values = kind.choices if isinstance(kind, optuna.distributions.CategoricalDistribution) else (None,)
            found |= {(name, repr(value)): (name, value, getattr(kind, "log", False)) for value in values}
    return [found[key] for key in sorted(found)]


def draws(chance: random.Random, chosen: dict[str, Any]) -> Callable[[str, Range | Choice], Any]:
    """What chooses at random for `walk`, faster than a sampler, and notes what it chose. Of ranges without steps."""

    def choose(name: str, node: Range | Choice) -> Any:
        if isinstance(node, Choice):
            chosen[name] = chance.choice(node.values)
        elif node.log:
            chosen[name] = math.exp(chance.uniform(math.log(node.low), math.log(node.high)))
        else:
            chosen[name] = chance.uniform(node.low, node.high)
        return chosen[name]

    return choose


def pruner_of(study: StudyConfig, kind: str) -> Any:
    """Of a study: none, its halving, or Hyperband without its waits: its rungs, all but the first, all but the first
    two, ..., a trial's bracket drawn as Ray's scheduler draws it."""
    from atose_ray.runtime.schedulers import Halving, scheduler

    pruner = study.search.pruner.model_copy(update={"kind": "none" if kind == "none" else "asha"})
    study = study.model_copy(update={"search": study.search.model_copy(update={"pruner": pruner})})
    made = scheduler(study, [])
    if kind == "hyperband":
        assert isinstance(made, Halving)
        rungs, longest = len(made._brackets[0]._rungs), longest_run(study)
        common = {"time_attr": "epoch", "metric": study.search.metric, "mode": "max", "max_t": longest + 1}
        more = {"grace_period": pruner.grace_epochs, "reduction_factor": pruner.reduction_factor}
        made = Halving(**common, **more, brackets=rungs + 1)
    made.set_search_properties(study.search.metric, "max")
    return made


def simulate(
    study: StudyConfig, answer: Answer, workers: int, seed: int, sampler: str = "tpe", pruner: str = "halving"
) -> Iterator[Seen]:
    """The epochs of a search, in the order in which they end. It has no end."""
    from atose_ray.search import samplers

    np.random.seed(seed)  # of which Ray's scheduler draws brackets
    judge = pruner_of(study, pruner)
    settings = study.search.model_copy(update={"sampler": sampler})
    made = optuna.create_study(direction="maximize", sampler=samplers.sampler(settings, seed))
    due: list[tuple[float, int, Running, float]] = []  # epochs that run: when each ends, and on which worker
    begun, best = 0, 0.0

    def begin(worker: int, now_s: float) -> None:
        nonlocal begun
        begun += 1
        asked = made.ask()
        method = compose(study, walk(asked_of(asked), study.space)).method
        curve, epoch_s = answer(asked.params, asked)
        trial = Running(asked, curve, str(asked.number), method)
        judge.on_trial_add(None, trial)
        heapq.heappush(due, (now_s + epoch_s, worker, trial, epoch_s))

    for worker in range(workers):
        begin(worker, 0.0)
    while True:
        now_s, worker, trial, epoch_s = heapq.heappop(due)
        trial.epoch += 1
        score = trial.curve[trial.epoch - 1]
        best = max(best, score)
        yield Seen(now_s, trial.asked.number, trial.epoch, score, best, begun)
        result, value = line_of(study, trial), max(trial.curve[: trial.epoch])
        verdict = judge.on_trial_result(None, trial, result)
        if verdict != "STOP" and trial.epoch < len(trial.curve):
            heapq.heappush(due, (now_s + epoch_s, worker, trial, epoch_s))
            continue
        made.tell(trial.asked, value)
        judge.on_trial_complete(None, trial, result)
        begin(worker, now_s)
