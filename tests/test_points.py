"""Points to try first, grids over conditional spaces, and what of an earlier study fits into this one."""

from __future__ import annotations

import itertools

import pytest

from atose_ray.config import ConfigError
from atose_ray.search.parameters import asked_of
from atose_ray.search.points import check_points, fits, grid_points
from atose_ray.search.space import load_study, walk

SPACE = {
    "encoder": {"one_of": {"sample_cnn": {"block": {"choice": ["basic", "se"]}}, "harmonic_cnn": {}}},
    "method": {"latent": {"range": [8, 24], "step": 8}},
    "optim": {"lr": {"choice": [0.1, 0.01]}, "weight_decay": {"range": [0.0, 0.2], "step": 0.1}},
}


def test_a_grid_holds_every_combination_once_and_walks_only_the_chosen_arm() -> None:
    points = grid_points(SPACE)
    arms = [("sample_cnn", "basic"), ("sample_cnn", "se"), ("harmonic_cnn", None)]
    expected = list(itertools.product(arms, (8, 16, 24), (0.1, 0.01), (0.0, 0.1, 0.2)))
    found = [
        (
            (point["encoder.kind"], point.get("encoder[sample_cnn].block")),
            point["method.latent"],
            point["optim.lr"],
            pytest.approx(point["optim.weight_decay"]),
        )
        for point in points
    ]
    assert found == expected
    check_points(points, SPACE, "grid")


def test_a_continuous_range_has_no_grid(monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"optim\.lr is a continuous range.*step"):
        grid_points({"optim": {"lr": {"range": [1e-4, 1e-2], "log": True}}})
    monkeypatch.setattr("atose_ray.search.points.MAX_GRID", 100)
    with pytest.raises(ConfigError, match="more than 100 "):
        grid_points({str(number): {"choice": [0, 1]} for number in range(7)})


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"encoder.kind": "vgg"}, r"points\[0\]: encoder.kind is one of 'sample_cnn', 'harmonic_cnn', but got 'vgg'"),
        ({"encoder.kind": "harmonic_cnn", "encoder[sample_cnn].block": "se"}, r"no such parameter.*method\.latent"),
        ({"optim.learning_rate": 0.1}, r"optim\.learning_rate: no such parameter"),
        ({"method.latent": 9}, r"method\.latent goes from 8 in steps of 8, but got 9"),
        ({"method.latent": 32}, r"method\.latent is a whole number of 8 to 24, but got 32"),
        ({"method.latent": 8.5}, "a whole number"),
        ({"optim.weight_decay": True}, "is a number of 0 to 0.2, but got True"),
        ({"optim.lr": "0.1"}, "is one of 0.1, 0.01, but got '0.1'"),
    ],
)
def test_a_point_outside_the_space_is_refused(point: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_points([point], SPACE, "points")


def test_a_point_may_leave_parameters_open() -> None:
    check_points(
        [{}, {"encoder.kind": "sample_cnn", "encoder[sample_cnn].block": "se"}, {"optim.lr": 0.01}], SPACE, "p"
    )


def test_of_an_earlier_study_only_what_fits_is_taken() -> None:
    whole = {"encoder.kind": "harmonic_cnn", "method.latent": 16, "optim.lr": 0.1, "optim.weight_decay": 0.1}
    outside, partial = {**whole, "method.latent": 64}, {"encoder.kind": "harmonic_cnn"}
    other = {**whole, "optim.momentum": 0.9}
    earlier = [whole, outside, partial, other]
    assert [point for point in earlier if fits(point, SPACE)] == [whole]


def test_points_are_what_optuna_calls_its_parameters() -> None:
    import optuna

    study = load_study("demo")
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3)).ask()
    walk(asked_of(trial), study.space)
    check_points([trial.params], study.space, "points")
    assert fits(trial.params, study.space)
