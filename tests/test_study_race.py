"""The benchmark of the search against chance, on a table made up here."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from typing import Any

import optuna
import pytest

from atose_ray.search.parameters import asked_of
from atose_ray.search.space import load_study, walk
from benchmarks.search_quality import course, figure, nearest, race

EPOCHS = 16


def row(number: int) -> dict[str, Any]:
    """A configuration of the demo space whose score depends on its encoder, its method and its learning rate."""
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number)).ask()
    walk(asked_of(trial), load_study("demo").space)
    far = abs(math.log(trial.params["optim.lr"] / 2e-3)) / math.log(30)
    final = 0.8 - 0.3 * far - 0.1 * (trial.params["encoder.kind"] == "harmonic_cnn")
    final -= 0.1 * (trial.params["method.kind"] == "supervised")
    curve = [final * (1 - 0.5 ** (epoch + 1)) for epoch in range(EPOCHS)]
    return {"number": number, "params": trial.params, "valid": curve, "state": "complete"}


@pytest.mark.slow
def test_the_search_finds_the_best_sooner_than_chance(monkeypatch, tmp_path) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = [row(number) for number in range(100)]
    sides = {"random": ("random", "none"), "tpe + halving": ("tpe", "asha")}
    monkeypatch.setattr("benchmarks.search_quality.SIDES", sides)
    study = load_study("demo")
    lines = race(study, rows, seeds=5, epochs=10 * EPOCHS)
    chance, search = (line["epochs_quartiles"][1] or math.inf for line in lines)
    assert search < chance and search <= 6 * EPOCHS
    assert all(line["curve"]["median"] == sorted(line["curve"]["median"]) for line in lines)
    labels = [text.text for text in ElementTree.fromstring(figure([*lines, *lines])).iter() if text.text]
    assert f"tpe + halving: {search} epochs" in labels


def test_without_pruning_two_trials_run_in_turns_to_their_ends() -> None:
    rows = [row(number) for number in range(20)]
    study = load_study("demo", ("search.sampler=random", "search.pruner.kind=none"))
    asked = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=5))
    curves = []
    for _ in range(4):
        trial = asked.ask()
        walk(asked_of(trial), study.space)
        curves.append(nearest(rows, trial)["valid"])
    seen = [curve[epoch] for pair in (curves[:2], curves[2:]) for epoch in range(EPOCHS) for curve in pair]
    assert list(course(study, rows, 5, 4 * EPOCHS)) == [max(seen[: step + 1]) for step in range(4 * EPOCHS)]


def test_a_recorded_configuration_answers_for_itself() -> None:
    rows = [row(number) for number in range(50)]
    for number in (3, 17):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number)).ask()
        walk(asked_of(trial), load_study("demo").space)
        assert nearest(rows, trial)["number"] == number
