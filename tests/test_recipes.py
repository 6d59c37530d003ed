"""The published recipes as data: phases, sizes and optimizers; and optimizer state carried from phase to phase."""

from __future__ import annotations

import copy

import pytest
import torch

from atose_ray.config import ConfigError, apply_overrides, run_config
from atose_ray.optim import KerasSGD
from atose_ray.search.space import load_study, longest_run
from atose_ray.train import load_tree
from atose_ray.training.loop import carry_state, fit, run_epochs
from atose_ray.training.run import Job, open_run
from atose_ray.types import DataSpec

SETS = {
    "mtat": (128, tuple(f"tag {i}" for i in range(50)), False, 16000 * 29),
    "dcase2017": (50, tuple(f"tag {i}" for i in range(17)), False, 160_000),
    "speech_commands": (64, tuple(f"tag {i}" for i in range(35)), True, 16_000),
}
CROPS = {"harmonic_cnn": 80_000, "sample_cnn": 59_049, "tag_sinc_net": 59_049}


def recipe(name: str, *overrides: str):
    return run_config(apply_overrides(load_tree(f"published_{name}", overrides), overrides))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("encoder", CROPS)
def test_recipe_is_the_published_one(name, encoder) -> None:
    latent, tags, exclusive, longest = SETS[name]
    run = recipe(name, f"encoder.kind={encoder}", "method.kind=joint_embedding")
    phases = [(stage.name, stage.epochs, stage.optimizer.kind, stage.optimizer.lr) for stage in run.method.stages]
    adam, sgd = ("keras_adam", 1e-4), "keras_sgd"
    first = [("embed", 60, *adam), ("embed", 20, sgd, 1e-3), ("embed", 20, sgd, 1e-4)]
    last = [("classify", 60, *adam), *(("classify", n, sgd, lr) for n, lr in ((20, 1e-3), (20, 1e-4), (100, 1e-5)))]
    assert phases == first + last
    assert [stage.carry for stage in run.method.stages] == [False, False, True, False, False, True, True]
    assert run.method.stages[3].optimizer.steps_before >= 57_180
    assert (run.method.latent, run.data.batch_size, run.method.objective.margin) == (latent, 16, 0.4)
    spec = DataSpec(sample_rate_hz=16_000, clip_samples=longest, tags=tags, exclusive=exclusive)
    assert run.resolve(spec, "hash").model_spec(spec).clip_samples == CROPS[encoder]


def test_without_joint_embedding_the_same_200_epochs() -> None:
    run = recipe("mtat", "encoder.kind=sample_cnn", "encoder.block=rese", "method.kind=supervised")
    assert [stage.epochs for stage in run.method.stages] == [60, 20, 20, 100]
    assert run.method.stages[0].optimizer.steps_before == 0 and run.encoder.block == "rese"
    assert longest_run(load_study("published_mtat")) == 300


def test_an_arm_is_taken_with_its_plain_values() -> None:
    run = run_config(apply_overrides(load_tree("demo", ("encoder.kind=harmonic_cnn",)), ("encoder.kind=harmonic_cnn",)))
    assert (run.encoder.kind, run.encoder.channels, run.encoder.bn_momentum) == ("harmonic_cnn", 8, 0.1)


def sgd(weight: torch.nn.Parameter, lr: float) -> KerasSGD:
    return KerasSGD([weight], lr=lr, momentum=0.9, nesterov=True)


def test_carried_velocity_decays_after_the_rate_drops() -> None:
    """Keras' velocity holds the old rate: after a drop to a tenth it is what two phases of one optimizer do."""
    weight, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    one = sgd(weight, 1e-1)
    for _ in range(4):
        weight.grad = weight.detach().clone()
        one.step()
    other.data.copy_(weight.data)
    two = sgd(other, 1e-2)
    carry_state(two, copy.deepcopy(one.state_dict()))
    for group in one.param_groups:
        group["lr"] = 1e-2
    for _ in range(5):
        for each, optimizer in ((weight, one), (other, two)):
            each.grad = each.detach().clone()
            optimizer.step()
    assert torch.equal(weight, other) and two.param_groups[0]["lr"] == 1e-2 and two.param_groups[0]["t"] == 9


PHASES = [
    {"name": "classify", "epochs": 2, "optimizer": {"kind": "keras_sgd", "lr": 0.1}},
    {"name": "classify", "epochs": 2, "optimizer": {"kind": "keras_sgd", "lr": 0.01}, "carry": True},
]


def test_a_resume_between_two_phases_carries_too(tiny_run, tiny_store, tmp_path) -> None:
    tree = tiny_run().model_dump(mode="json")
    tree["method"]["stages"] = PHASES
    run = run_config(tree)
    opened = open_run(Job(run, tiny_store.uri, str(tmp_path / "whole"), {}))
    whole = []
    fit(run, opened.method, opened.batches, opened.folder, report=whole.append)
    for stop_after in (1, 2, 3):
        folder = str(tmp_path / f"cut{stop_after}")
        cut = open_run(Job(run, tiny_store.uri, folder, {}))
        epochs = run_epochs(run, cut.method, cut.batches, cut.folder)
        for _ in range(stop_after):
            next(epochs)
        epochs.close()
        again = open_run(Job(run, tiny_store.uri, folder, {}))
        records = list(run_epochs(run, again.method, again.batches, again.folder))
        assert [r.train_loss for r in records] == [r.train_loss for r in whole[stop_after - 1 :]]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{**PHASES[1]}], "there must be one"),
        ([{**PHASES[0], "trains": ["classifier"]}, PHASES[1]], "train the same parts"),
        (
            [{"name": "classify", "epochs": 1}, PHASES[1]],
            "same kind of optimizer, but got the run's optim and keras_sgd",
        ),
    ],
)
def test_what_cannot_be_carried_is_refused(phases, message) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config({"method": {"kind": "supervised", "stages": phases}})
