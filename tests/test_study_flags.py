"""The flags of `tune`: --resume, --extend, --retry-failed, --budget; several objectives; the plan as a table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from test_ray import study

from atose_ray import tune
from atose_ray.config import ConfigError, StudyConfig
from atose_ray.data.shards import load_manifest
from atose_ray.data.views import View, ViewConfig, view_of
from atose_ray.search.budget import prices_of
from atose_ray.search.cluster_file import read_cluster_file
from atose_ray.search.costs import costs_of, front, values_of
from atose_ray.search.nodes import one_node
from atose_ray.search.plan import make_plan
from atose_ray.search.record import load_trials, study_store, trial_store
from atose_ray.search.space import begin
from atose_ray.search.study import reopen, retry_failed
from atose_ray.storage import Store
from atose_ray.training.record import RunFolder

SUPERVISED = {"supervised": {"head": {"kind": "linear"}, "stages": [{"name": "classify", "epochs": 2}]}}


@pytest.fixture
def store(tiny_store: Store, tmp_path: Path) -> Store:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "data")
    return Store(str(tmp_path))


def write(store: Store, name: str, config: StudyConfig) -> str:
    file = Path(store.root) / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return str(file)


@pytest.mark.ray
@pytest.mark.slow
def test_several_objectives_then_extended_then_a_failed_trial_again(ray_cluster, store: Store, capsys) -> None:
    space = study(SUPERVISED).space
    space["encoder"]["one_of"]["sample_cnn"]["channels"] = {"choice": [4, 12]}
    names = ["params", "latency_ms", "train_seconds", "gpu_seconds"]
    config = study(SUPERVISED, trials=3).model_dump(mode="json", exclude_unset=True)
    config |= {
        "space": space,
        "search": {"objective": ["pr_auc_macro", *names], "trials": 3, "pruner": {"kind": "asha"}},
    }
    file = write(store, "front", StudyConfig.model_validate(config))
    command, folder = [file, "--store", store.uri], study_store(store, "front")
    with pytest.raises(ConfigError, match=r"--resume: there is no study in .*front"):
        tune.main([*command, "--resume"])
    with pytest.raises(ConfigError, match=r"--extend and --retry-failed: there is no study"):
        tune.main([*command, "--extend", "2", "--retry-failed"])
    tune.main(command)
    out = capsys.readouterr().out
    assert "nothing is pruned, so search.pruner.kind=asha is not used" in out
    assert f"front: pr_auc_macro against {', '.join(names)}" in out and "(1 trial + 0 x 1 worker" in out
    records = load_trials(folder)
    assert [one.state for one in records] == ["complete"] * 3
    for one in records:
        costs = costs_of(one, names)
        assert costs is not None and costs["latency_ms"] == one.latency_ms > 0 and costs["gpu_seconds"] == 0
        assert costs["params"] == one.parameters > 0
        assert costs["train_seconds"] == pytest.approx(sum(epoch.seconds for epoch in one.epochs))
        assert one.resources == {"cpus": 1.0, "gpus": 0.0, "workers": 0}
    for one, values in front(records, names):
        assert f"{one.name}  {one.value:.4f}  params {one.parameters:g}" in out
        assert values == values_of(one, names)

    run = RunFolder(trial_store(folder, records[1]))
    log = run.store.read("log.jsonl").replace(b'"complete"', b'"failed"')
    run.store.write("log.jsonl", log)
    tune.main([*command, "--extend", "1", "--retry-failed", "--resume"])
    again = load_trials(folder)
    assert f"once more: {records[1].name}" in capsys.readouterr().out
    assert [(one.number, one.state) for one in again] == [(number, "complete") for number in range(4)]
    assert again[1].signature == records[1].signature and again[1].params == records[1].params
    assert [epoch.valid for epoch in again[1].epochs] == [epoch.valid for epoch in records[1].epochs]
    assert run.store.read("log.1.jsonl") == log
    assert (again[0], again[2]) == (records[0], records[2])
    assert len((Path(folder.root) / "sessions.jsonl").read_text().splitlines()) == 4


@pytest.mark.ray
@pytest.mark.slow
def test_latency_of_worker_groups_and_a_budget(ray_cluster, store: Store, capsys) -> None:
    arms = study(SUPERVISED, trials=4, costs=["latency_ms"], workers_per_trial=1, cpus_per_worker=0.5, concurrency=1)
    file = write(store, "groups", arms)
    tune.main([file, "--store", store.uri, "--budget", "0.000001 cpu-h"])
    records = load_trials(study_store(store, "groups"))
    out = capsys.readouterr().out
    assert len(records) == 1 and records[0].latency_ms is not None and records[0].latency_ms > 0
    assert "budget reached: 1 of 4 trials" in out and "1 x 0.5 worker" in out
    tune.main([file, "--store", store.uri, "--budget", "0.000001 cpu-h"])
    assert "budget reached: 1 of 4 trials" in capsys.readouterr().out
    assert load_trials(study_store(store, "groups")) == records


@pytest.fixture
def begun(store: Store):
    """A function: search settings -> begin a study, or go on with it."""
    manifest = load_manifest(store, "folder")

    def go(**search: object) -> None:
        begin(study_store(store, "s"), study(**search), View(manifest, len(manifest.data_spec.tags)), store)

    go(points=[{"optim.lr": 0.002}])
    return go


@pytest.mark.parametrize(
    "same",
    [
        {"trials": 99},
        {"budget": "3h"},
        {"storage": "sqlite:///x.db"},
        {"warm_start": ["other"]},
        {"points": [{"optim.lr": 0.002}, {"optim.lr": 0.003}]},
    ],
)
def test_what_changes_no_trial_may_change(begun, same: dict) -> None:
    begun(**{"points": [{"optim.lr": 0.002}], **same})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"costs": ["params"]}, "another base, space or search"),
        ({"sampler": "random"}, "another base, space or search"),
        ({"points": []}, "other search.points; new ones are added at the end"),
        ({"points": [{"optim.lr": 0.003}]}, "other search.points"),
    ],
)
def test_another_search_is_refused(begun, other: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        begun(**{"points": [{"optim.lr": 0.002}], **other})


def test_the_password_of_a_storage_stays_out_of_the_study(store: Store) -> None:
    config = study(storage="postgresql://ada:planted@host/db")
    begin(study_store(store, "s"), config, view_of(load_manifest(store, "folder"), ViewConfig(), store), store)
    text = study_store(store, "s").read("study.json").decode()
    assert "planted" not in text and json.loads(text)["config"]["search"]["storage"] == "postgresql://ada@host/db"


def test_a_reopened_run_keeps_its_epochs_where_a_checkpoint_stands_for_them(store: Store) -> None:
    run = store.child("run")
    epoch, end = b'{"event": "epoch", "epoch": 1}\n', b'{"event": "end", "state": "failed"}\n'
    for number, checkpoint in ((1, True), (2, False)):
        run.write("log.jsonl", epoch + end)
        if checkpoint:
            run.write("checkpoint.pt", b"x")
        else:
            run.delete("checkpoint.pt")
        reopen(run)
        assert run.read("log.jsonl") == (epoch if checkpoint else b"")
        assert run.read(f"log.{number}.jsonl") == epoch + end
    assert retry_failed(store.child("nothing")) == ()


def test_a_budget_in_money_takes_its_prices_from_the_cluster_file(store: Store) -> None:
    file = write(store, "dear", study(SUPERVISED))
    with pytest.raises(ConfigError, match="needs prices: give --cluster"):
        tune.main([file, "--store", store.uri, "--budget", "$5"])
    cluster = Path(__file__).resolve().parents[1] / "cluster" / "gpu.yaml"
    found = prices_of(read_cluster_file(str(cluster)), cluster.name)
    assert found.gpu == yaml.safe_load(cluster.read_text())["metadata"]["usd_per_hour"]["gpu"]


def test_the_plan_says_what_it_takes_and_what_is_shared() -> None:
    gpus = one_node(cpus=16, gpus=2)
    shared = make_plan(study(gpus_per_worker=0.25, trials=99).search, False, gpus).arithmetic()
    assert shared.startswith("8 x (1 trial + 0 x 1 worker + 0 data) = 8 of 16 CPUs; 8 x 0.25 = 2 of 2 GPUs")
    assert "up to 4 trials share a GPU" in shared
    groups = make_plan(study(workers_per_trial=2, trials=99).search, True, gpus).arithmetic()
    assert groups == "1 x (0.01 trial + 2 x 1 worker + 0.5 data) = 2.51 of 16 CPUs; 1 x 2 = 2 of 2 GPUs"
