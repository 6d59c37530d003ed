"""Budgets: what is spent, whether another trial still fits, and prices from a cluster file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from test_progress import START, trial

from atose_ray.config import ConfigError
from atose_ray.search.budget import Prices, parse_budget, prices_of
from atose_ray.search.progress import measure

CLUSTER = Path(__file__).resolve().parents[1] / "cluster"
PRICES = Prices(fixed=1.0, gpu=2.0, cpu=0.1)


@pytest.mark.parametrize(
    ("text", "limit", "unit"),
    [
        ("3h", 3, "h"),
        ("90 min", 1.5, "h"),
        ("20m", 1 / 3, "h"),
        ("2d", 48, "h"),
        ("40gpu-h", 40, "gpu-h"),
        ("40 GPUh", 40, "gpu-h"),
        ("200cpu-h", 200, "cpu-h"),
        ("$25", 25, "$"),
        ("25.5 USD", 25.5, "$"),
    ],
)
def test_a_budget_is_read_as_it_is_written(text: str, limit: float, unit: str) -> None:
    budget = parse_budget(text, PRICES)
    assert (budget.limit, budget.unit) == (limit, unit)


def test_minutes_are_shown_as_minutes() -> None:
    budget = parse_budget("20m")
    assert str(budget) == "20 min" and budget.show(0.125) == "7.5 min" and str(parse_budget("120 min")) == "120 min"
    assert str(parse_budget("3h")) == "3 h" and str(parse_budget("40gpu-h")) == "40 gpu-h"


@pytest.mark.parametrize("text", ["", "3", "h", "3 weeks", "-3h", "0h", "$0", "$", "3h 20min"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a budget is a time"):
        parse_budget(text, PRICES)


def test_money_needs_prices() -> None:
    with pytest.raises(ConfigError, match="--cluster"):
        parse_budget("$25")


def test_what_is_spent() -> None:
    trials = [trial(n, "complete", START, 10, 360.0) for n in range(2)]  # an hour each: 2 CPUs, half a GPU
    assert parse_budget("9h").spent(trials, 1800) == 0.5
    assert parse_budget("9gpu-h").spent(trials, 1800) == pytest.approx(1.0)
    assert parse_budget("9cpu-h").spent(trials, 1800) == pytest.approx(4.0)
    assert parse_budget("$9", PRICES).spent(trials, 1800) == pytest.approx(0.5 + 2.0)


@pytest.mark.parametrize(("limit", "allowed"), [(2.4, False), (2.6, True)])
def test_another_trial_is_launched_only_if_it_will_fit(limit: float, allowed: bool) -> None:
    """Three ended (0.5 GPU hours each), one is half done (0.25 spent, 0.25 to come), one more takes 0.5: 2.5."""
    trials = [trial(n, "complete", START, 10, 360.0) for n in range(3)] + [trial(3, "running", START, 5, 360.0)]
    assert parse_budget(f"{limit}gpu-h").allows_another(trials, 0) is allowed


def test_before_three_trials_ended_only_what_is_spent_counts() -> None:
    trials = [trial(n, "complete", START, 10, 360.0) for n in range(2)]
    assert parse_budget("1.1gpu-h").allows_another(trials, 0)
    assert not parse_budget("1gpu-h").allows_another(trials, 0)


@pytest.mark.parametrize(("wall", "allowed"), [(3600, True), (2 * 3600 + 60, False)])
def test_a_time_leaves_room_for_one_more(wall: float, allowed: bool) -> None:
    trials = [trial(n, "complete", START, 10, 360.0) for n in range(3)]
    assert parse_budget("3h").allows_another(trials, wall) is allowed


def test_forecast() -> None:
    trials = [trial(n, "complete", START + 3600 * n, 10, 360.0) for n in range(4)]
    found = measure(trials, 20, START)
    assert parse_budget("5gpu-h").forecast(found, trials, 0) == (
        "budget 5 gpu-h: 2 gpu-h spent, enough for about 10 of 20 trials"
    )
    assert parse_budget("50gpu-h").forecast(found, trials, 0).endswith("enough for all trials")
    assert parse_budget("10h").forecast(found, trials, 4 * 3600).endswith("enough for about 10 of 20 trials")
    assert parse_budget("5gpu-h").forecast(measure(trials[:2], 20, START), trials[:2], 0) is None


def test_prices_of_the_shipped_cluster_files() -> None:
    found = prices_of(yaml.safe_load((CLUSTER / "gpu.yaml").read_text()), "gpu.yaml")
    assert found.fixed > 0 and found.gpu is not None and found.gpu > found.fixed / 4


def test_a_node_type_without_a_price_is_named() -> None:
    tree = yaml.safe_load((CLUSTER / "gpu.yaml").read_text())
    tree["metadata"]["usd_per_hour"]["gpu"] = None
    with pytest.raises(ConfigError, match=r"an hour of 'gpu' costs in USD, but has None"):
        prices_of(tree, "gpu.yaml")
