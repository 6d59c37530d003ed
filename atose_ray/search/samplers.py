"""Who suggests: Optuna's samplers as a study file names them, and what they are told before they begin."""

import heapq
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from atose_ray.config import ConfigError, SearchConfig, StudyConfig
from atose_ray.data.downstream import OF_PROBE, DownstreamConfig
from atose_ray.search.costs import values_of
from atose_ray.search.parameters import asked_of
from atose_ray.search.points import Point, arm_points, fits, grid_points
from atose_ray.search.record import TrialRecord, existing_study, load_trials, study_store
from atose_ray.search.space import walk
from atose_ray.storage import Store

SOURCE = "warm_start"  # user attribute of a trial that another study made
NEWEST, BEST = 500, 25  # finished trials that tpe learns from; 25 is the most that it counts among the good ones


class Part:
    """A study as `PartTPE` sees it for one trial: of those that finished the newest and the best, and all that run."""

    def __init__(self, study: Study, number: int) -> None:
        self._study, self.number = study, number
        self._seen: dict[Any, list[FrozenTrial]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._study, name)

    def _get_trials(self, deepcopy: bool = True, states: Any = (), use_cache: bool = False) -> list[FrozenTrial]:
        """Optuna's, which is asked some twenty times for one trial, between which nothing changes."""
        asked = tuple(states)
        if asked not in self._seen:
            trials = self._study._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
            done = [trial for trial in trials if trial.state != TrialState.RUNNING]
            best = heapq.nlargest(BEST, done[:-NEWEST], key=lambda trial: trial.values[0])
            kept = {trial.number for trial in (*best, *done[-NEWEST:])}
            self._seen[asked] = [trial for trial in trials if trial.state == TrialState.RUNNING or trial.number in kept]
        return self._seen[asked]


class PartTPE(TPESampler):  # type: ignore[misc]
    """TPE of one objective whose suggestions take little longer after 10,000 trials than after 500: its time grows with
    the trials that it looks at, to 0.15 to 0.25 s at 2,000 of them. What it counts among the good is all there; what it
    holds that against is the newest."""

    part: Part | None = None

    def _part(self, study: Study, trial: FrozenTrial) -> Any:
        if self.part is None or self.part.number != trial.number:
            self.part = Part(study, trial.number)
        return self.part

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Optuna's."""
        found: dict[str, BaseDistribution] = super().infer_relative_search_space(self._part(study, trial), trial)
        return found

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Optuna's."""
        found: dict[str, Any] = super().sample_relative(self._part(study, trial), trial, search_space)
        return found

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Optuna's."""
        return super().sample_independent(self._part(study, trial), trial, param_name, param_distribution)


def sampler(settings: SearchConfig, seed: int) -> BaseSampler:
    """Optuna's sampler of a kind. A grid's points are queued as points, so that its sampler has nothing to choose.

    tpe works over the conditional groups and is told of trials still running.
    """
    first, by_chance = settings.startup_trials, RandomSampler(seed=seed)
    if settings.sampler == "tpe":
        kind = TPESampler if settings.costs else PartTPE
        return kind(seed=seed, n_startup_trials=first, multivariate=True, group=True, constant_liar=True)
    if settings.sampler == "nsga2":
        return NSGAIISampler(population_size=max(2, first), seed=seed)
    if settings.sampler == "cmaes":
        independent = {"independent_sampler": by_chance, "warn_independent_sampling": False}
        return CmaEsSampler(seed=seed, n_startup_trials=first, **independent)
    return by_chance


def points_to_try(study: StudyConfig, earlier: Sequence[TrialRecord]) -> Iterator[Point]:
    """The study's points, and those of a grid, that no trial has tried. A trial answers for one point only."""
    left = {trial.number: trial.params for trial in earlier}
    for point in study.search.points:
        answer = next((number for number, params in left.items() if point.items() <= params.items()), None)
        if answer is None:
            yield dict(point)
        else:
            del left[answer]
    if study.search.sampler == "grid":
        tried = {_key(trial.params) for trial in earlier} | {_key(point) for point in study.search.points}
        yield from (point for point in grid_points(study.space) if _key(point) not in tried)


def arms_to_try(study: StudyConfig, tried: Iterable[Mapping[str, Any]]) -> Iterator[Point]:
    """For a sampler that narrows: points that name arms of a `one_of` which nothing of `tried` has, in an order of the
    search's seed. They are part of its first trials by chance (`startup_trials`), and take the place of as many."""
    search, tried = study.search, list(tried)
    seen = {pair for point in tried for pair in point.items() if pair[0].endswith(".kind")}
    points = arm_points(study.space) if search.sampler not in ("random", "grid") else []
    random.Random(search.seed).shuffle(points)
    room = search.startup_trials - len(tried)
    for point in points:
        if room > 0 and not seen.issuperset(point.items()):
            seen.update(point.items())
            room -= 1
            yield point


def _key(point: Mapping[str, Any]) -> str:
    return repr(sorted(point.items()))


def warm_trials(study: StudyConfig, store: Store) -> list[FrozenTrial]:
    """The finished trials of the studies of `search.warm_start` that are points of this space, as Optuna's.

    Says how many fit. Raises ConfigError for a study that is not there or was searched for another metric.
    """
    check_warm_start(study, store)
    result: list[FrozenTrial] = []
    for name in study.search.warm_start:
        told, finished = len(result), 0
        for trial in load_trials(study_store(store, name)):
            if trial.state in ("running", "failed", "infeasible") or trial.same_as is not None:
                continue
            finished += 1
            values = values_of(trial, study.search.costs)
            if values is not None and fits(trial.params, study.space):
                fixed = FixedTrial(trial.params)
                walk(asked_of(fixed), study.space)  # it now has the ranges and choices of this space
                result.append(frozen(trial.params, fixed.distributions, values, {SOURCE: f"{name}/{trial.number}"}))
        print(f"warm start: {len(result) - told} of {finished} finished trials of {name} fit this space", flush=True)
    return result


def check_warm_start(study: StudyConfig, store: Store) -> None:
    """Raises ConfigError as `warm_trials` does, and reads no trial."""
    for name in study.search.warm_start:
        try:
            folder = existing_study(store, name)
        except ValueError as error:
            raise ConfigError(f"warm start: {error}") from error
        config = folder.read_json("study.json")["config"]
        metric, both = config["search"]["metric"], (config["base"].get("probe"), study.base.get("probe"))
        theirs, ours = (probe and DownstreamConfig.model_validate(probe) for probe in both)
        if metric in OF_PROBE and metric == study.search.metric and theirs != ours:
            raise ConfigError(
                f"warm start: the study {name!r} was searched for {metric} of the probe {theirs}, and this one is for "
                f"that of {ours}; their values cannot be compared: search with the same base.probe, or leave it out"
            )
        if metric != study.search.metric:
            raise ConfigError(
                f"warm start: the study {name!r} was searched for {metric}, and this one is for {study.search.metric}; "
                "their values cannot be compared: search for the same metric, or leave it out"
            )


def frozen(
    params: Mapping[str, Any],
    distributions: Mapping[str, Any],
    values: Sequence[float] | None,
    attrs: Mapping[str, Any],
    system_attrs: Mapping[str, Any] | None = None,
) -> FrozenTrial:
    """A trial of Optuna's that has ended, with its values, or failed."""
    state = TrialState.FAIL if values is None else TrialState.COMPLETE
    given = {"params": dict(params), "distributions": dict(distributions), "user_attrs": dict(attrs)}
    return create_trial(**given, values=values and list(values), state=state, system_attrs=dict(system_attrs or {}))
