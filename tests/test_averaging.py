"""The average of the weights that a stage trains: by hand, in a training, and what is scored and kept of it."""

from __future__ import annotations

import pytest
import torch
from conftest import tiny_tree
from pydantic import ValidationError

from atose_ray.config import run_config
from atose_ray.methods.supervised import Supervised
from atose_ray.optim import AdamConfig, KerasSGDConfig
from atose_ray.storage import Store
from atose_ray.training import loop
from atose_ray.training.averaging import Average
from atose_ray.training.checkpoint import best_model
from atose_ray.training.loop import fit
from atose_ray.training.resume import last_checkpoint
from atose_ray.training.run import Job, OpenRun, open_run, resolve
from atose_ray.training.step import Step


def opened_with(store: Store, manifest, folder, average: float | None, stages=None) -> OpenRun:
    tree = tiny_tree("supervised")
    tree["optim"] |= {} if average is None else {"average": average}
    tree["method"] |= {"stages": stages} if stages else {}
    return open_run(Job(resolve(run_config(tree), store, manifest), store.uri, str(folder)))


def test_by_hand(tiny_store, tiny_manifest, tmp_path) -> None:
    method = opened_with(tiny_store, tiny_manifest, tmp_path, None).method
    assert isinstance(method, Supervised)
    average = Average(method, ("classifier",), 0.5)
    assert {name.partition(".")[0] for name in average.averages} == {"classifier"}
    name, weight = next(iter(method.classifier.named_parameters()))
    first = weight.detach().clone()
    expected = first.clone()
    for step in range(12):
        with torch.no_grad():
            weight.add_(1.0)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weight.detach()
        average.update()
    with average.in_place():
        torch.testing.assert_close(weight.detach(), expected)
    assert torch.equal(weight.detach(), average.weights[f"classifier.{name}"]) and not torch.equal(weight, expected)
    torch.testing.assert_close(weight.detach(), first + 12)
    average.settle()
    torch.testing.assert_close(weight.detach(), expected)


def test_statistics_are_averaged_and_counters_are_not(tiny_store, tiny_manifest, tmp_path) -> None:
    method = opened_with(tiny_store, tiny_manifest, tmp_path, None).method
    names = set(Average(method, ("encoder",), 0.9).averages)
    assert any(name.endswith("running_mean") for name in names)
    assert not any(name.endswith("num_batches_tracked") for name in names)


def test_training_is_the_same_and_the_average_is_what_is_kept(tiny_store, tiny_manifest, tmp_path) -> None:
    losses, finals = [], []
    for average in (None, 0.9):
        opened = opened_with(tiny_store, tiny_manifest, tmp_path / str(average), average)
        fit(opened.run, opened.method, opened.batches, opened.folder)
        losses.append([record.train_loss for record in opened.folder.epochs()])
        finals.append({name: value.clone() for name, value in opened.method.state_dict().items()})
    assert losses[0] == losses[1], "what trains does not know of its average"
    last = last_checkpoint(opened.folder)
    assert last is not None
    assert all(torch.equal(last.weights[name], value) for name, value in finals[0].items())
    assert all(torch.equal(last.scored[name], value) for name, value in finals[1].items())
    assert any(not torch.equal(value, finals[1][name]) for name, value in finals[0].items())


def test_best_weights_are_those_that_were_scored(tiny_store, tiny_manifest, tmp_path, monkeypatch) -> None:
    opened = opened_with(tiny_store, tiny_manifest, tmp_path, 0.9)
    scored: list[dict[str, torch.Tensor]] = []

    class Seen:
        @staticmethod
        def evaluate(method, *rest: object) -> dict[str, float]:
            scored.append({name: value.clone() for name, value in method.state_dict().items()})
            return evaluate(method, *rest)

    evaluate = loop.CLIP.evaluate
    monkeypatch.setattr(loop, "CLIP", Seen)
    fit(opened.run, opened.method, opened.batches, opened.folder)
    best = best_model(opened.folder)
    assert all(
        torch.equal(value, scored[best.metrics["epoch"] - 1][name]) for name, value in best.method.state_dict().items()
    )


def test_the_next_stage_begins_with_what_was_scored(tiny_store, tiny_manifest, tmp_path, monkeypatch) -> None:
    stages = [{"name": "classify", "epochs": 1}, {"name": "classify", "epochs": 1}]
    opened = opened_with(tiny_store, tiny_manifest, tmp_path, 0.9, stages)
    averages: list[Average] = []
    beginning: list[dict[str, torch.Tensor]] = []

    def made(self: Step, *args: object) -> None:
        begin(self, *args)
        beginning.append({name: value.clone() for name, value in opened.method.state_dict().items()})
        averages.append(self.average)

    begin = Step.__init__
    monkeypatch.setattr(Step, "__init__", made)
    fit(opened.run, opened.method, opened.batches, opened.folder)
    assert len(averages) == 2 and averages[1].steps == averages[0].steps, "every stage has its own"
    assert all(torch.equal(beginning[1][name], value) for name, value in averages[0].averages.items())


def test_runs_without_one_are_what_they_were() -> None:
    assert "average" not in AdamConfig().model_dump() and "decay" not in KerasSGDConfig().model_dump()
    assert KerasSGDConfig(average=0.99, decay=0.1).model_dump()["average"] == 0.99
    with pytest.raises(ValidationError):
        AdamConfig(average=1.0)
