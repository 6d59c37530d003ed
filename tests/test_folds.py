"""A run of all folds is its folds' trainings side by side: equal to each alone, mean over all, and it goes on."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import RATE, render_tiny, tiny_tree

from atose_ray import crossvalidate
from atose_ray.config import ConfigError, run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import Manifest
from atose_ray.datasets import dataset_config
from atose_ray.search.record import load_trial
from atose_ray.search.settled import record_repeat
from atose_ray.storage import Store
from atose_ray.training import folds
from atose_ray.training.checkpoint import best_model, load_model
from atose_ray.training.folds import begin, finish, of_fold, run_of_fold
from atose_ray.training.loop import DivergedError, fit, to_the_end
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, finish_run, open_run, resolve

FOLDS = (0, 1, 2)


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Manifest]:
    """The tiny set with a column `fold` instead of its splits."""
    source = render_tiny(tmp_path_factory.mktemp("folds"), 48)
    header, *lines = (source / "tags.csv").read_text().splitlines()
    at = header.split(",").index("tags")
    rows = [f"{line.split(',')[0]},{number // 4 % 3},{line.split(',')[at]}" for number, line in enumerate(lines)]
    (source / "tags.csv").write_text("\n".join(["path,fold,tags", *rows]) + "\n")
    store = Store(str(tmp_path_factory.mktemp("store")))
    return store, prepare(dataset_config("folder", source=str(source), sample_rate_hz=RATE), store, name="folded")[0]


def job_of(folded: tuple[Store, Manifest], folder: Path, method: str = "supervised") -> Job:
    data = {"dataset": "folded", "fold": "all", "crop_seconds": 0.3, "batch_size": 8, "eval_crops": 1}
    run = resolve(run_config(tiny_tree(method, data=data)), *folded)
    return Job(run, folded[0].uri, str(folder), {"number": 4, "name": "004-tiny"})


def test_no_fold_ends_before_the_others(folded: tuple[Store, Manifest]) -> None:
    tree = tiny_tree(data={"dataset": "folded", "fold": "all", "crop_seconds": 0.3})
    tree["method"]["stages"][0]["patience"] = 1
    with pytest.raises(ConfigError, match=r"data.fold=all trains all folds epoch by epoch"):
        resolve(run_config(tree), *folded)


@pytest.mark.parametrize("method", ["supervised", "joint_embedding"])
def test_each_fold_is_trained_as_if_it_were_alone(folded, tmp_path, method: str) -> None:
    job = job_of(folded, tmp_path / "all", method)
    assert job.run.data.fold == "all"
    to_the_end(*begin(job))
    alone = []
    for number in FOLDS:
        one = dataclasses.replace(of_fold(job, number), folder_uri=str(tmp_path / f"alone{number}"))
        opened = open_run(one)
        fit(opened.run, opened.method, opened.batches, opened.folder)
        inner, outer = RunFolder(Store(of_fold(job, number).folder_uri)), opened.folder
        for left, right in zip(inner.epochs(), outer.epochs(), strict=True):
            assert (left.valid, left.train_loss, left.objective) == (right.valid, right.train_loss, right.objective)
        assert inner.store.read("best.safetensors") == outer.store.read("best.safetensors")
        alone.append(outer.epochs())
    together = RunFolder(Store(job.folder_uri))
    assert together.checkpoints() == [f"folds/{number}/checkpoint.pt" for number in FOLDS]
    assert together.ending() is not None and len(together.epochs()) == job.run.method.epochs
    for epoch, of_folds in zip(together.epochs(), zip(*alone, strict=True), strict=True):
        assert tuple(epoch.folds) == tuple(record.objective for record in of_folds)
        assert epoch.objective == pytest.approx(np.mean(epoch.folds))
        for name, value in epoch.valid.items():
            assert value == pytest.approx(np.mean([record.valid[name] for record in of_folds]))
    objectives = [epoch.objective for epoch in together.epochs()]
    assert objectives == sorted(objectives)  # the best so far, of each fold


@pytest.mark.parametrize("stopped_after", [1, 2])
def test_a_run_of_all_folds_goes_on(folded, tmp_path, stopped_after: int, monkeypatch) -> None:
    whole, cut = job_of(folded, tmp_path / "whole"), job_of(folded, tmp_path / "cut")
    to_the_end(*begin(whole))
    _, training = begin(cut)
    list(itertools.islice(training, stopped_after))

    add, calls = RunFolder.add_epoch, itertools.count()

    def dies(self: RunFolder, record) -> None:  # in the middle of the next epoch: one fold has it
        if next(calls) == 1:
            raise KeyboardInterrupt
        add(self, record)

    monkeypatch.setattr(RunFolder, "add_epoch", dies)
    with pytest.raises(KeyboardInterrupt):
        next(training)
    monkeypatch.setattr(RunFolder, "add_epoch", add)
    folder, training = begin(cut)
    repeated = next(training)
    assert repeated.epoch == stopped_after
    to_the_end(folder, training)
    left, right = (RunFolder(Store(job.folder_uri)).epochs() for job in (whole, cut))
    assert [(one.epoch, one.valid, one.folds) for one in left] == [(one.epoch, one.valid, one.folds) for one in right]
    for number in FOLDS:
        weights = [Store(of_fold(job, number).folder_uri).read("best.safetensors") for job in (whole, cut)]
        assert weights[0] == weights[1]


def test_the_test_scores_are_means_over_the_folds(folded, tmp_path) -> None:
    job = job_of(folded, tmp_path / "all")
    to_the_end(*begin(job))
    best = Store(str(tmp_path / "best"))
    metrics = finish(job, best)
    each = []
    for number in FOLDS:
        inner = of_fold(job, number)
        each.append(finish_run(inner, Store(str(tmp_path / f"best{number}")))["test"]["pr_auc_macro"])
        assert metrics["folds"][number]["test"]["pr_auc_macro"] == each[-1]
    assert metrics["test"]["pr_auc_macro"] == pytest.approx(np.mean(each))
    assert metrics["test_deviation"]["pr_auc_macro"] == pytest.approx(np.std(each, ddof=1))
    low, high = metrics["test_intervals"]["pr_auc_macro"]
    assert low < metrics["test"]["pr_auc_macro"] < high
    assert metrics["number"] == 4 and metrics["fold"] == 0
    assert [one["value"] for one in metrics["test_scorings"]] == [metrics["test"]["pr_auc_macro"]]
    assert len(finish(job, best)["test_scorings"]) == 2  # another winner of the study would be one more
    assert metrics["valid"]["pr_auc_macro"] == RunFolder(Store(job.folder_uri)).epochs()[-1].objective
    model = load_model(best)  # a model of one fold, which can be scored again
    assert model.run == run_of_fold(job.run, 0)
    trained = best_model(RunFolder(Store(job.folder_uri)))
    assert all((a == b).all() for a, b in zip(model.method.parameters(), trained.method.parameters(), strict=True))


def test_an_equal_trial_takes_the_result_of_all_folds(folded, tmp_path) -> None:
    job = job_of(folded, tmp_path / "first")
    job = dataclasses.replace(job, about={**job.about, "params": {}, "distributions": {}})
    to_the_end(*begin(job))
    source, taken = Store(job.folder_uri), Store(str(tmp_path / "again"))
    trial = load_trial(source)
    assert trial is not None and len(trial.folds) == len(FOLDS)
    record_repeat(taken, trial, source, {"number": 5, "name": "005-tiny", "params": {}, "distributions": {}})
    again = load_trial(taken)
    assert again is not None and again.same_as == 4 and (again.epochs, again.folds) == (trial.epochs, trial.folds)
    left, right = (best_model(RunFolder(store)).method.parameters() for store in (source, taken))
    assert all((a == b).all() for a, b in zip(left, right, strict=True))


def test_a_fold_that_diverges_is_named(folded, tmp_path, monkeypatch) -> None:
    job, plain = job_of(folded, tmp_path), folds.run_epochs

    def epochs(run, *rest, **more):
        for record in plain(run, *rest, **more):
            if run.data.fold == 1 and record.epoch == 2:
                raise DivergedError("loss is nan")
            yield record

    monkeypatch.setattr(folds, "run_epochs", epochs)
    result = to_the_end(*begin(job))
    assert (result.state, result.epochs, result.reason) == ("diverged", 1, "fold 1: loss is nan")
    ending = RunFolder(Store(job.folder_uri)).ending()
    assert ending is not None and ending["state"] == "diverged"


def test_crossvalidate_prints_and_keeps_every_fold(folded, tmp_path, capsys) -> None:
    store, _ = folded
    data = {"dataset": "folded", "crop_seconds": 0.3, "batch_size": 8, "eval_crops": 1}
    config = tmp_path / "one.json"
    config.write_text(json.dumps(tiny_tree(data=data)))
    crossvalidate.main([str(config), "--store", store.uri])
    shown = capsys.readouterr().out
    assert all(f"fold {number}: valid pr_auc_macro" in shown for number in FOLDS)
    (name,) = store.child("crossvalidations").names()
    found = store.child("crossvalidations", name).read_json("crossvalidation.json")
    values = [row["test"]["pr_auc_macro"] for row in found["folds"]]
    one = found["summary"]["pr_auc_macro"]
    assert one["mean"] == pytest.approx(np.mean(values)) and one["deviation"] == pytest.approx(np.std(values, ddof=1))
    assert f"{one['mean']:.4f}  {one['deviation']:.4f}" in shown
    runs = store.child("runs").names()
    assert len(runs) == 3
    crossvalidate.main([str(config), "--store", store.uri])  # nothing is trained again
    again = capsys.readouterr().out
    assert store.child("runs").names() == runs and f"{one['mean']:.4f}  {one['deviation']:.4f}" in again
    best = store.child("runs", runs[0], "best")
    crossvalidate.main([best.uri, "--store", store.uri])  # of a model's configuration
    assert store.child("runs").names() == runs


def test_a_set_without_folds_is_refused(tiny_store, tmp_path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(tiny_tree()))
    with pytest.raises(ValueError, match="'folder' has no folds; prepare one that has"):
        crossvalidate.main([str(tmp_path / "one.json"), "--store", tiny_store.uri])
