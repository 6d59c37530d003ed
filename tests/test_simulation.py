"""Searches with many workers, simulated over six configurations that are made up here."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import optuna
import pytest

from atose_ray.search.parameters import asked_of
from atose_ray.search.space import load_study, walk
from benchmarks import search_quality
from benchmarks.search_scale import figure, goals_of, quartiles, reach, tables
from benchmarks.simulation import Surrogate, simulate, slowest, table_answer, training_of

EPOCHS = 16
SIDES = [("random", "none"), ("tpe", "halving"), ("cmaes", "hyperband")]


def row(number: int) -> dict[str, Any]:
    """A configuration of the demo space; the higher its number, the better and the slower."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number)).ask()
    walk(asked_of(trial), load_study("demo").space)
    curve = [(0.3 + 0.1 * number) * (1 - 0.5 ** (epoch + 1)) for epoch in range(EPOCHS)]
    return {"number": number, "params": trial.params, "valid": curve, "state": "complete", "seconds": 16.0 + 4 * number}


STUDY, ROWS = load_study("demo"), [row(number) for number in range(6)]


def course(workers: int, epochs: int, sampler: str = "tpe", pruner: str = "halving", seed: int = 3) -> list[Any]:
    made = simulate(STUDY, table_answer(ROWS), workers, seed, sampler, pruner)
    return list(itertools.islice(made, epochs))


@pytest.mark.parametrize("sampler, pruner", [("random", "none"), ("tpe", "asha")])
def test_one_worker_is_the_race_one_trial_after_another(monkeypatch, sampler, pruner) -> None:
    monkeypatch.setattr(search_quality, "SLOTS", 1)
    change = {"sampler": sampler, "pruner": STUDY.search.pruner.model_copy(update={"kind": pruner})}
    side = STUDY.model_copy(update={"search": STUDY.search.model_copy(update=change)})
    alone = course(1, 200, sampler, "none" if pruner == "none" else "halving", seed=7)
    assert [seen.best for seen in alone] == list(search_quality.course(side, ROWS, 7, 200))


@pytest.mark.parametrize("sampler, pruner", SIDES)
def test_a_seed_says_all(sampler, pruner) -> None:
    first = course(4, 150, sampler, pruner)
    assert course(4, 150, sampler, pruner) == first
    assert course(4, 150, sampler, pruner, seed=4) != first


@pytest.mark.parametrize("workers", [1, 4, 16])
def test_no_epoch_is_seen_before_its_time(workers) -> None:
    seen = course(workers, 300)
    assert [one.time_s for one in seen] == sorted(one.time_s for one in seen)
    by_trial = defaultdict(list)
    for one in seen:
        by_trial[one.trial].append(one)
    limit_s, running = slowest(ROWS), []
    for epochs in by_trial.values():
        assert [one.epoch for one in epochs] == list(range(1, len(epochs) + 1))
        scores = [one.score for one in epochs]
        epoch_s = next(t.epoch_s for t in (training_of(r, limit_s) for r in ROWS) if t.curve[: len(scores)] == scores)
        began = epochs[0].time_s - epoch_s
        assert [one.time_s for one in epochs] == pytest.approx([began + epoch_s * one.epoch for one in epochs])
        running.append((began, epochs[-1].time_s))
    for one in seen[:: len(seen) // 20]:  # as many trials at a time as there are workers, and no more
        assert sum(began < one.time_s - 1e-6 < ended for began, ended in running) <= workers
    assert [one.best for one in seen] == list(itertools.accumulate((one.score for one in seen), max))


def test_sixteen_workers_see_the_best_sooner_than_one() -> None:
    """And not before its training has come so far: a score of 0.79 takes seven epochs of the best."""

    def reached_s(workers: int) -> float:
        return float(reach(iter(course(workers, 600, "random", "none")), {0.1: 0.79}, 1e9)[0.1][0])

    assert 7 * training_of(ROWS[5], slowest(ROWS)).epoch_s <= reached_s(16) < reached_s(1) / 4


def test_a_search_that_ends_before_its_goal_has_not_reached_it() -> None:
    seen = course(4, 300, "random", "none")
    low, high = seen[0].score, seen[-1].best
    assert set(reach(iter(seen), {0.5: low, 0.1: high + 1}, 1e9)) == {0.5}
    assert reach(iter(seen), {0.5: high}, seen[0].time_s / 2) == {}
    assert quartiles([1.0, 2.0, float("inf"), float("inf")], 0)[2] is None


def test_hyperband_spares_some_trials_the_first_rung() -> None:
    """The demo prunes after its 2nd and 8th comparable epoch; one bracket of Hyperband begins with the 8th."""

    def spared(pruner: str) -> float:
        lasted = {one.trial: one.epoch for one in course(4, 400, "random", pruner)}
        return sum(epochs > 2 for epochs in lasted.values()) / len(lasted)

    assert spared("hyperband") > spared("halving")


def test_a_surrogate_answers_alike_for_the_same_and_knows_its_top() -> None:
    rows = [{**row(number % 6), "params": row(number)["params"]} for number in range(40)]
    surrogate = Surrogate(STUDY, rows)
    params = rows[7]["params"]
    training = surrogate(params, None)
    assert surrogate(params, None) == training and len(training.curve) == EPOCHS and training.epoch_s > 0
    best_N = surrogate.drawn(500)
    goals = goals_of(rows, surrogate, 256)
    assert goals[0.05] < goals[0.01] < goals[0.001] <= 1
    assert (best_N >= goals[0.05]).mean() == pytest.approx(0.05, abs=0.03)


def test_the_figure_and_the_tables_are_of_the_lines() -> None:
    goal = {"score": 0.5, "reached": 2, "trainings": [1.0, 2.0, None], "epochs": [10, 20, None], "trials": [1, 2, None]}
    line = {"space": "demo", "answer": "table", "sampler": "tpe", "pruner": "none", "grace_epochs": 2}
    line |= {"reduction_factor": 4.0, "goals": {"0.05": goal, "0.01": goal}}
    lines = [{**line, "workers": workers} for workers in (1, 4)]
    assert "| 4 | tpe | none | 2 (1 to -) | 20 (10 to -) |" in tables(lines)
    assert figure(lines).count("<polyline") == 9
