"""A trial again: with its own seed to the last bit (rerun), with other seeds to see what was luck (promote)."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shutil
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from atose_ray import promote, rerun
from atose_ray.config import ConfigError, RunConfig, StudyConfig
from atose_ray.data.shards import load_manifest
from atose_ray.data.views import View
from atose_ray.search import promotion
from atose_ray.search.nodes import one_node
from atose_ray.search.record import TrialRecord, folder_name, load_trials, study_store, trial_store
from atose_ray.search.space import data_facts
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, open_run


@pytest.fixture
def store(tiny_run, tiny_store: Store, tiny_manifest, tmp_path: Path) -> Store:
    """A study of two trials that were trained as a search trains them, the second at a useless learning rate."""
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "data")
    store = Store(str(tmp_path))
    folder = study_store(store, "mine")
    study = StudyConfig.model_validate({"base": {"data": {"dataset": "folder"}}, "search": {"trials": 2}})
    folder.write_json("study.json", {"config": study.model_dump(mode="json"), "versions": {}})
    folder.write_json("data.json", data_facts(View(tiny_manifest, len(tiny_manifest.data_spec.tags)), store))
    for number, lr in enumerate((3e-3, 1e-7)):
        run: RunConfig = tiny_run(seed=number, optim={"kind": "adam", "lr": lr}, execution={"precision": "float32"})
        about = {"number": number, "name": f"{number:03d}-sample_cnn", "params": {}, "distributions": {}}
        opened = open_run(Job(run, store.uri, folder.child("trials", folder_name(number, run.signature())).uri, about))
        fit(opened.run, opened.method, opened.batches, opened.folder)
    return store


def test_a_rerun_is_the_same_to_the_last_bit_and_a_difference_is_found(store: Store, capsys) -> None:
    rerun.main(["mine", "0", "--store", store.uri])
    assert "the same to the last bit: 3 epochs" in capsys.readouterr().out
    folder = study_store(store, "mine")
    log = Path(trial_store(folder, load_trials(folder)[0]).path("log.jsonl"))
    lines = log.read_text().splitlines()
    second = json.loads(lines[1])
    second["valid"]["pr_auc_macro"] += 1e-9
    log.write_text("\n".join([lines[0], json.dumps(second), *lines[2:]]) + "\n")
    with pytest.raises(SystemExit) as ended:
        rerun.main(["mine", "0", "--store", store.uri])
    assert ended.value.code == 1 and "not the same from epoch 2 on" in capsys.readouterr().out
    assert folder.child("reruns").names() == ["000-0", "000-1"]
    assert len(load_trials(folder)) == 2, "a rerun is no trial of the study"


def test_on_a_gpu_a_rerun_is_held_to_a_tolerance(store: Store, monkeypatch) -> None:
    folder = study_store(store, "mine")
    trial = load_trials(folder)[0]
    again = RunFolder(trial_store(folder, trial))

    def moved(by: float) -> TrialRecord:
        first = trial.epochs[0]
        other = dataclasses.replace(first, valid={**first.valid, "pr_auc_macro": first.valid["pr_auc_macro"] + by})
        return dataclasses.replace(trial, epochs=(other, *trial.epochs[1:]))

    assert not rerun.compare(moved(0.01), again)[1]  # a CPU repeats itself
    monkeypatch.setattr(rerun, "pick_device", lambda run: torch.device("cuda"))
    lines, same = rerun.compare(moved(0.01), again)
    assert same and "the same within 0.02: 3 epochs, valid pr_auc_macro differs by 0.0100 at most" in lines[0]
    assert not rerun.compare(moved(0.03), again)[1]
    run, _ = again.config()
    strict = run.model_copy(update={"execution": run.execution.model_copy(update={"deterministic": True})})
    again.store.write_json("config.json", strict.model_dump(mode="json"))
    assert not rerun.compare(moved(0.01), again)[1]


def test_a_rerun_uses_the_threads_of_the_trial(store: Store, monkeypatch) -> None:
    seen: list[int | None] = []
    monkeypatch.setattr("atose_ray.search.promotion.use_threads", seen.append)
    rerun.main(["mine", "1", "--store", store.uri])
    assert seen == [torch.get_num_threads()]


def test_a_rerun_of_other_data_or_of_no_trial_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match=r"no trial 7 in this study; it has: 0, 1"):
        rerun.main(["mine", "7", "--store", store.uri])
    manifest = load_manifest(store, "folder")
    tree = manifest.model_dump(mode="json")
    manifest.folder(store).write_json("manifest.json", {**tree, "content_hash": "other"})
    with pytest.raises(ValueError, match=rf"does not hold the content {manifest.content_hash[:16]}.*resolved with"):
        rerun.main(["mine", "0", "--store", store.uri])


def test_the_winner_is_held_against_the_others_and_scored_on_test_last(ray_cluster, store: Store, capsys) -> None:
    arguments = ["mine", "--seeds", "3", "--top", "2", "--trial", "0", "--store", store.uri]
    promote.main(arguments)
    shown = capsys.readouterr().out
    folder = study_store(store, "mine")
    found = folder.read_json("promotion.json")
    winner, second = found["trials"]
    assert [winner["role"], second["role"]] == ["winner", "second"] and winner["number"] == 0
    assert len(set(winner["seeds"])) == 3 and len(winner["valid"]) == 3
    assert winner["low"] < winner["mean"] < winner["high"]
    [comparison] = found["comparisons"]
    assert comparison["difference"] == pytest.approx(winner["mean"] - second["mean"], abs=1e-6)
    assert len(found["test"]["values"]) == 3 and "decided" in shown and "test pr_auc_macro of the winner" in shown
    runs = folder.child("promoted").names()
    scored = [name for name in runs if folder.child("promoted", name).exists("best/metrics.json")]
    assert len(runs) == 6 and len(scored) == 3, "only the winner's trainings are scored on test"
    stamps = {path: path.stat().st_mtime_ns for path in Path(folder.root).glob("promoted/*/**/*") if path.is_file()}
    promote.main(arguments)
    assert folder.read_json("promotion.json") == found
    after = {path: path.stat().st_mtime_ns for path in Path(folder.root).glob("promoted/*/**/*") if path.is_file()}
    assert after == stamps, "what was trained and scored is not done again"


def test_a_promotion_says_how_far_it_is(store: Store, capsys) -> None:
    folder = study_store(store, "mine")
    runs = [trial_store(folder, one) for one in load_trials(folder)]
    jobs = [Job(RunConfig.model_validate(run.read_json("config.json")), store.uri, run.uri) for run in runs]
    assert promote.epochs_done(jobs) == 6 and promote.how_far(jobs, 0, 0.0) == "epoch 6 of 6"
    lines = runs[1].read("log.jsonl").splitlines(keepends=True)
    runs[1].write("log.jsonl", lines[0])
    assert promote.how_far(jobs, 2, time.monotonic() - 60) == "epoch 4 of 6; left: about 1 min 0 s"
    assert promote.how_far(jobs, 4, time.monotonic() - 60) == "epoch 4 of 6", "no rate yet"
    with promote.saying(lambda: promote.how_far(jobs, 4, 0.0), every_s=0.02):
        time.sleep(0.2)
        runs[1].write("log.jsonl", b"".join(lines))
        time.sleep(0.5)
    assert capsys.readouterr().out == "epoch 6 of 6\n", "what is as it was is not said again"


@pytest.mark.parametrize(("seeds", "said"), [(1, "fewer than two seeds"), (2, "1 degree of freedom"), (3, None)])
def test_what_two_seeds_cannot_tell_is_said(seeds: int, said: str | None) -> None:
    row = {"number": 0, "name": "000-x", "role": "winner", "diverged": 0, "valid": [0.5] * seeds}
    found = {"metric": "pr_auc_macro", "trials": [{**row, "mean": 0.5, "low": 0.4, "high": 0.6}]}
    text = "\n".join(promote.verdict({**found, "comparisons": [], "test": None}))
    assert (said is None or said in text) and ("three or more are needed" in text) == (said is not None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--trial", "5"], "trial 5 finished no epoch.*did: 0, 1"), (["--baseline", "9"], "trial 9 finished no epoch")],
)
def test_a_trial_that_is_not_there_is_refused(arguments: list[str], message: str, store: Store) -> None:
    with pytest.raises(ValueError, match=message):
        promote.main(["mine", "--store", store.uri, *arguments])


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's part of a promotion, call by call, without Ray."""
    here = SimpleNamespace(wait=lambda refs, num_returns: (refs[:1], refs[1:]), get=now)
    monkeypatch.setattr("atose_ray.runtime.promote.ray", here)
    monkeypatch.setattr(
        "atose_ray.runtime.promote.start", lambda call, job, plan, *rest, **_: partial(call, job, *rest)
    )
    monkeypatch.setattr("atose_ray.runtime.cluster.cluster", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("atose_ray.runtime.cluster.cluster_nodes", lambda: one_node(4))
    monkeypatch.setattr("atose_ray.runtime.nodes.check_nodes", lambda *_: None)


def now(calls: Any) -> Any:
    return [call() for call in calls] if isinstance(calls, list) else calls()


def test_a_training_that_fails_ends_no_other(in_this_process, store: Store, capsys, monkeypatch) -> None:
    trained: list[str] = []

    def train(job: Job, threads: int | None) -> None:
        trained.append(job.about["name"])
        if broken and job.about["name"] == "000-sample_cnn-seed1":
            raise RuntimeError("the disk is full")
        promotion.train_one(job, threads)

    broken = True
    monkeypatch.setattr("atose_ray.runtime.promote.train_one", train)
    arguments = ["mine", "--seeds", "2", "--top", "2", "--trial", "0", "--store", store.uri]
    promote.main(arguments)
    out, folder = capsys.readouterr().out, study_store(store, "mine")
    assert "000-sample_cnn-seed1 FAILED: bug: RuntimeError: the disk is full" in out and len(trained) == 4
    assert "; 1 failed, the last one: bug: RuntimeError: the disk is full" in out
    found = folder.read_json("promotion.json")
    winner, second = found["trials"]
    assert [one["reason"] for one in winner["failed"]] == ["bug: RuntimeError: the disk is full"] and not second[
        "failed"
    ]
    assert len(winner["valid"]) == len(found["test"]["values"]) == 1 and len(second["valid"]) == 2
    assert len(found["comparisons"]) == 1 and not folder.exists("promoting.json")

    broken = False
    promote.main(arguments)
    again = folder.read_json("promotion.json")["trials"][0]
    assert trained[4:] == ["000-sample_cnn-seed1"] and len(again["valid"]) == 2 and not again["failed"]


def test_a_study_is_promoted_by_one_at_a_time(in_this_process, store: Store, monkeypatch) -> None:
    folder, stop = study_store(store, "mine"), threading.Event()
    owner = {"token": "other", "host": "elsewhere", "pid": 1, "time": 0.0}

    def renew() -> None:
        beats = itertools.count()
        while not stop.wait(0.2):
            folder.write_json("promoting.json", {**owner, "beat": next(beats)})

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        while not folder.exists("promoting.json"):
            time.sleep(0.05)
        with pytest.raises(ConfigError, match="this study is being promoted: process 1 on elsewhere"):
            promote.main(["mine", "--seeds", "1", "--store", store.uri])
    finally:
        stop.set()
        thread.join()
    assert not folder.child("promoted").names()


def test_equal_trials_are_promoted_once(store: Store) -> None:
    folder = study_store(store, "mine")
    trials = load_trials(folder)
    twin = dataclasses.replace(trials[0], number=2, same_as=0)
    chosen = promotion.choose([*trials, twin], 0, 2, 3, 2, folder, store)
    assert [one.trial.number for one in chosen] == [0, 1]
