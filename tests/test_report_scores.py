"""What a score is worth, in the report and in closing lines: intervals, how often test was scored, folds, exclusive
classes, and what each method got. Studies here are synthetic."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import make_study, make_trial, usual_study
from test_report_pages import make_examples, visited

from atose_ray import train, tune
from atose_ray.config import RunConfig
from atose_ray.crossvalidate import line, summary
from atose_ray.search.record import StudyRecord, TagEmbeddings, load_study_record
from atose_ray.search.report import render_report, report_data
from atose_ray.search.report_trials import groups_data
from atose_ray.storage import Store
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job

CLASSES = ("dog", "rain", "crying <b>baby</b>", "clock")
COUNTS_CC = [[7, 0, 2, 0], [0, 9, 0, 0], [13, 0, 5, 1], [0, 0, 0, 0]]
BOUNDS = {"accuracy": [0.5536, 0.7567], "pr_auc_macro": [0.7281, 0.8793]}


def scoring(number: int, value: float, time: float | None = 1.7e9) -> dict[str, Any]:
    return {"number": number, "time": time, "metric": "accuracy", "value": value, "protocol": "clip"}


def cross_validated(metric: str = "accuracy", bounds: bool = True) -> dict[str, Any]:
    rows = [
        {
            "fold": fold,
            "run": "x",
            "seed": 3,
            "seconds": 100.0 + fold,
            "epoch": 4 + fold,
            "valid": {metric: 0.7 + fold / 100},
            "test": {metric: 0.6 + fold / 100, "clips": 80.0},
            **({"test_intervals": {metric: [0.5, 0.8]}} if bounds else {}),
        }
        for fold in (1, 2, 3)
    ]
    return {"metric": metric, "protocol": "clip", "folds": rows, "summary": summary(rows)}


def exclusive_study(tags: tuple[str, ...] = CLASSES, learned: bool = False, version: int = 2) -> StudyRecord:
    """Two trials on exclusive tags; test was scored for both, as each was the winner once."""
    study = make_study([make_trial(0), make_trial(1)], tags)
    assert study.best is not None
    size, number = len(tags), study.best.number
    examples = make_examples(number, tags, exclusive=True)
    if size == len(CLASSES):
        carry = np.sum(COUNTS_CC, axis=1).tolist()
        examples["confusion"] = {"tags": list(range(size)), "carry": carry, "counts": COUNTS_CC}
    examples["identity"]["version"] = version
    figures = {"precision": None, "recall": 0.375, "f1": 0.5}
    metrics = study.best.metrics
    rows = [{**row, **figures} for row in metrics["per_tag"]]
    metrics = {
        **{**metrics, "protocol": "clip", "per_tag": rows, "test_intervals": BOUNDS},
        "valid": {"accuracy": 0.575, **metrics["valid"]},
        "test": {"accuracy": 0.6625, **metrics["test"], "clips": 80.0, "tags_scored": 3.0, "tags_total": 4.0},
        "test_scorings": [scoring(1 - number, 0.3875), scoring(number, 0.6625)],
    }
    cosine = np.full((size, size), 0.25).tolist()
    return dataclasses.replace(
        study,
        metric="accuracy",
        data_spec=study.data_spec.model_copy(update={"exclusive": True}),
        best=dataclasses.replace(study.best, metrics=metrics),
        tag_embeddings=TagEmbeddings(number, "t", cosine, False) if learned else None,
        examples={number: examples},
    )


# ---- what Python puts into the page


def test_exclusive_classes_have_figures_and_no_correlation() -> None:
    data = report_data(exclusive_study(), importances=())
    assert data["classes"]["split"] == "test" and len(data["classes"]["rows"]) == 4
    assert data["classes"]["macro"] == {"precision": 0.0, "recall": 0.375, "f1": 0.5}
    assert data["tag_maps"]["correlation"] == [] and data["tag_maps"]["order"] == []
    learned = report_data(exclusive_study(learned=True), importances=())["tag_maps"]
    assert learned["correlation"] == [] and sorted(learned["order"]) == [0, 1, 2, 3] and learned["agreement"] is None
    assert report_data(usual_study(), importances=())["classes"] is None
    assert report_data(usual_study(), importances=())["tag_maps"]["correlation"]


def test_where_test_has_no_class_figures_those_of_validation_are_shown() -> None:
    study = exclusive_study()
    assert study.best is not None
    figures = ("precision", "recall", "f1")
    old = [{key: one for key, one in row.items() if key not in figures} for row in study.best.metrics["per_tag"]]
    best = dataclasses.replace(study.best, metrics={**study.best.metrics, "per_tag": old})
    examples = study.examples[best.number]
    rows = [{**row, "precision": 1.0, "recall": 0.5, "f1": 2 / 3} for row in examples["per_tag"]]
    both = dataclasses.replace(study, best=best, examples={best.number: {**examples, "per_tag": rows}})
    assert report_data(both, importances=())["classes"]["split"] == "valid"
    assert report_data(dataclasses.replace(study, best=best), importances=())["classes"] is None


def test_test_scorings_and_intervals_reach_the_page_and_old_metrics_count_as_one() -> None:
    best = report_data(exclusive_study(), importances=())["best"]
    assert best["metrics"]["test_intervals"] == BOUNDS
    assert [one["value"] for one in best["scorings"]] == [0.3875, 0.6625]
    assert json.dumps(best["counts"]) == '{"clips": 80, "tags_scored": 3, "tags_total": 4}', "whole numbers"
    study = usual_study()
    assert study.best is not None
    old = dataclasses.replace(study.best, metrics={**study.best.metrics, "metric": "pr_auc_macro", "number": 2})
    [one] = report_data(dataclasses.replace(study, best=old), importances=())["best"]["scorings"]
    assert (one["number"], one["time"], one["value"]) == (2, None, 0.61234)


def test_methods_and_encoders_have_their_best_their_epochs_and_what_was_pruned() -> None:
    def trial(number: int, method: str, encoder: str, state: str, epochs: int) -> Any:
        config = {"method": {"kind": method}, "encoder": {"kind": encoder}}
        return make_trial(number, state, epochs, config=config)

    trials = [
        trial(0, "supervised", "sample_cnn", "complete", 9),
        trial(1, "supervised", "sample_cnn", "pruned", 2),
        trial(2, "supervised", "harmonic_cnn", "pruned", 4),
        trial(3, "joint_embedding", "sample_cnn", "failed", 0),
    ]
    found = groups_data(trials)
    supervised, joint = found["method"]
    best = max((one for one in trials[:3]), key=lambda one: one.value or 0.0)
    assert supervised == {
        **{"kind": "supervised", "value": best.value, "number": best.number, "trials": 3, "pruned": 2},
        "epochs": {"median": 4, "most": 9},
    }
    assert joint == {
        **dict.fromkeys(("value", "number", "epochs")),
        "kind": "joint_embedding",
        "trials": 1,
        "pruned": 0,
    }
    assert {row["kind"]: row["trials"] for row in found["encoder"]} == {"sample_cnn": 3, "harmonic_cnn": 1}
    by_params = groups_data([make_trial(number) for number in range(6)])
    assert {row["kind"] for row in by_params["method"]} <= {"supervised", "joint_embedding"}, "where configs lack it"


def test_cross_validation_and_the_folds_of_a_trial_are_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    folder = store.child("studies", "s")
    spec = usual_study().data_spec.model_dump(mode="json")
    folder.write_json("study.json", {"config": {"search": {"metric": "accuracy", "trials": 2}}, "versions": {}})
    folder.write_json("data.json", {"data_spec": spec, "tag_counts": {}, "tag_correlation_CC": [], "skipped": []})
    for number, more in enumerate(({"folds": (0.5, 0.75)}, {})):
        about = {"number": number, "name": "t", "params": {}, "distributions": {}, "device": "cpu", "parameters": 1}
        run = folder.child("trials", f"signature-{number}")
        RunFolder(run).start(RunConfig(), usual_study().data_spec, {**about, "started": 1.0})
        RunFolder(run).add_epoch(dataclasses.replace(usual_study().trials[0].epochs[0], **more))
    assert load_study_record(store, "s").crossvalidation is None
    folder.write_json("crossvalidation.json", cross_validated())
    record = load_study_record(store, "s")
    assert record.crossvalidation == cross_validated()
    assert [trial.folds for trial in record.trials] == [(0.5, 0.75), ()]
    data = report_data(record, importances=())
    assert data["crossvalidation"]["summary"]["accuracy"]["mean"] == 0.62
    assert [trial["folds"] for trial in data["trials"]] == [[0.5, 0.75], []]


# ---- closing lines


def test_the_closing_lines_of_a_search_say_how_sure_the_test_score_is(tmp_path: Path) -> None:
    study, folder = exclusive_study(), Store(str(tmp_path))
    assert study.best is not None
    text = tune.closing(study, folder)
    assert "test 0.6625 (95 % 0.5536 to 0.7567, Wilson) [clip]" in text
    assert "test split: scored 2 times by this study, once for each winner: trial" in text
    assert "0.3875 [clip], trial" in text
    old = {key: value for key, value in study.best.metrics.items() if not key.startswith("test_")}
    old |= {"test_prevalence_mean": 0.25, "metric": "accuracy", "number": 1}
    text = tune.closing(dataclasses.replace(study, best=dataclasses.replace(study.best, metrics=old)), folder)
    assert "test 0.6625 [clip]" in text and "test split: scored at least once by this study" in text
    assert tune.scorings_line([scoring(0, 0.5)]) == "test split: scored once by this study"


def test_a_run_ends_with_intervals_and_whole_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = Store(str(tmp_path / "best"))
    test = {"accuracy": 0.6625, "pr_auc_macro": 0.8, "clips": 80.0}
    best.write_json("metrics.json", {"epoch": 6, "protocol": "clip", "test": test, "test_intervals": BOUNDS})
    job = Job(RunConfig(), str(tmp_path), str(tmp_path / "run"))
    train.conclude(job, best)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "test, scored with the best epoch on validation, 6 (clip protocol):"
    assert sorted(lines[1:4]) == [
        "  accuracy 0.6625 (95 % 0.5536 to 0.7567, Wilson)",
        "  clips 80",
        "  pr_auc_macro 0.8000 (95 % 0.7281 to 0.8793, bootstrap over clips)",
    ]
    best.write_json("metrics.json", {"epoch": 6, "protocol": "clip", "test": test})
    train.conclude(job, best)
    assert "\n  accuracy 0.6625\n" in capsys.readouterr().out


def test_a_fold_is_told_with_its_interval_and_its_protocol() -> None:
    row = cross_validated()["folds"][1]
    expected = "fold 2: valid accuracy 0.7200 at epoch 6; test accuracy 0.6200 (95 % 0.5000 to 0.8000, Wilson) [clip]"
    assert line(row, "accuracy") == expected
    assert line({**row, "test_intervals": None}, "accuracy").endswith("test accuracy 0.6200 [clip]"), "of 0.1.0"


# ---- in a browser

LOOK = """
const the = (id) => document.getElementById(id);
visit("#summary");
seen.cells = [...document.querySelectorAll("#confusion text.cell")].map((one) => one.textContent);
seen.shown = {};
for (const id of ["confusion", "tag-maps", "crossvalidation", "groups"]) seen.shown[id] = !the(id).hidden;
seen.maps = document.querySelectorAll("#tag-maps image").length;
seen.folds = document.querySelectorAll("#crossvalidation circle.fold").length;
for (const id of ["contents", "best", "crossvalidation", "groups"]) seen[id] = the(id).innerText;
for (const id of ["per-tag", "confusion", "mistakes", "tiles"]) seen[id] = the(id).innerText;
"""


@pytest.mark.browser
def test_the_overview_of_exclusive_classes_has_numbers(tmp_path: Path) -> None:
    study = exclusive_study()
    seen = visited(render_report(study, importances=()), tmp_path, LOOK)
    assert seen["cells"] == ["7", "2", "9", "13", "5", "1"], "the counts that are not zero, row by row"
    assert seen["shown"] == {"confusion": True, "tag-maps": False, "crossvalidation": False, "groups": True}
    assert "Which class is taken for which" in seen["contents"] and "Tags in the data" not in seen["contents"]
    assert "crying <b>baby</b>\t\u2013\t0.375\t0.500" in seen["per-tag"] and "mean of the classes" in seen["per-tag"]
    assert "0.554 to 0.757" in seen["best"] and "Wilson" in seen["best"] and "0.728 to 0.879" in seen["best"]
    assert "scored 2 times by this study" in seen["best"] and "accuracy 0.3875 [clip]" in seen["best"]
    assert "Test: 80 clips, 3 of 4 tags scored" in seen["best"]
    assert "95 % 0.554 to 0.757, scored 2 times" in seen["tiles"].replace("\n", " ")
    assert "False negatives: carried, but not given (3)" in seen["mistakes"]
    assert "By method" in seen["groups"] and "By encoder" in seen["groups"] and "Epochs, median" in seen["groups"]


@pytest.mark.browser
def test_of_many_classes_the_worst_confusions_are_listed(tmp_path: Path) -> None:
    study = exclusive_study(tuple(f"class {i}" for i in range(60)), learned=True, version=1)
    assert study.best is not None
    examples = study.examples[study.best.number]
    examples["false_negatives"] = []
    examples["confusion"]["counts"][41][17] = 8
    seen = visited(render_report(study, importances=()), tmp_path, LOOK)
    assert seen["cells"] == [] and seen["confusion"].index("class 41\tclass 17\t8 of 9 clips") < 400
    assert seen["shown"]["tag-maps"] and seen["maps"] == 1, "what a model learned of them is shown alone"
    assert (
        "An earlier version left these out" in seen["mistakes"] and f"--score {study.best.number}" in seen["mistakes"]
    )


@pytest.mark.browser
@pytest.mark.parametrize("bounds", [True, False])
def test_every_fold_is_drawn_and_those_of_a_trial_too(tmp_path: Path, bounds: bool) -> None:
    usual = usual_study()
    assert usual.best is not None
    number = usual.best.number
    trials = tuple(
        dataclasses.replace(
            one, epochs=tuple(dataclasses.replace(epoch, folds=(0.5, 0.6, 0.7)) for epoch in one.epochs)
        )
        if one.number == number
        else one
        for one in usual.trials
    )
    found = {**cross_validated("pr_auc_macro", bounds), "number": 0, "overrides": ["optim.lr=1e-3"]}
    study = dataclasses.replace(usual, trials=trials, crossvalidation=found)
    script = (
        LOOK
        + f"""
    visit("#trial-{number}");
    seen.trialFolds = detail.querySelectorAll("circle.fold").length;
    visit("#trial-3");
    seen.noFolds = detail.querySelectorAll("circle.fold").length;
    """
    )
    seen = visited(render_report(study, importances=()), tmp_path, script)
    assert (seen["folds"], seen["trialFolds"], seen["noFolds"]) == (3, 3, 0)
    assert (
        "pr_auc_macro\t0.6200\t0.0100\t0.5952 to 0.6448" in seen["crossvalidation"]
        and "[clip]" in seen["crossvalidation"]
    )
    assert "2\t0.6200\t0.7200\t6\t3\t" in seen["crossvalidation"], "fold, test, validation, epoch, seed"
    assert "mean 0.620" in seen["crossvalidation"] and "optim.lr=1e-3" in seen["crossvalidation"]
    assert "the search has chosen another one since" in seen["crossvalidation"]
    assert seen["shown"]["tag-maps"] and not seen["shown"]["confusion"] and "On every fold" in seen["contents"]
    assert "cross-validation tested a training of its own" in seen["best"] or "scored" not in seen["best"]
    assert json.dumps(seen["cells"]) == "[]"
