"""Ray in earnest: ingest, prepare, DDP workers and searches on a cluster of this session's own."""

from __future__ import annotations

import functools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import RATE, tiny_tree
from processes import wait_for
from test_cli import MODEL_FILES, RUN_FILES, STUDY_FILES, STUDY_MAY_HOLD

from atose_ray.config import ConfigError, RunConfig, SearchConfig, StudyConfig
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import load_manifest
from atose_ray.datasets import dataset_config
from atose_ray.search.record import TrialRecord, load_study_record, load_trials, study_store, trial_store
from atose_ray.search.space import compose
from atose_ray.storage import Store
from atose_ray.training.checkpoint import load_model
from atose_ray.training.loop import fit
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, make_batches, open_run, resolve

pytestmark = pytest.mark.ray


@pytest.fixture
def store(tiny_store: Store, tmp_path: Path) -> Store:
    """A store of this test's own with the tiny data in it."""
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "data")
    return Store(str(tmp_path))


def study(method_space: dict | None = None, base: dict | None = None, **search: object) -> StudyConfig:
    tree = tiny_tree()
    tree.pop("method")
    space = {
        "encoder": {
            "one_of": {
                "sample_cnn": {"block": {"choice": ["basic", "se"]}, "channels": 4, "se_ratio": 1, "bn_momentum": 0.1}
            }
        },
        "method": {
            "one_of": method_space
            or {
                "supervised": {"head": {"kind": "mlp", "hidden": 8}, "stages": [{"name": "classify", "epochs": 4}]},
                "joint_embedding": {
                    "head": {"kind": "mlp", "hidden": 8},
                    "latent": {"choice": [8, 16]},
                    "stages": [{"name": "embed", "epochs": 2}, {"name": "classify", "epochs": 2}],
                },
            }
        },
        "optim": {"lr": {"range": [1e-3, 1e-2], "log": True}},
    }
    settings = {"trials": 6, "startup_trials": 2, "pruner": {"kind": "asha", "grace_epochs": 1}, **search}
    return StudyConfig.model_validate({"base": {**tree, **(base or {})}, "space": space, "search": settings})


def run(study_config: StudyConfig, name: str, store: Store):
    from atose_ray.runtime.cluster import cluster_nodes
    from atose_ray.runtime.object_store import node_stores
    from atose_ray.runtime.tune import run_study
    from atose_ray.search.clip_plan import plan_clips
    from atose_ray.search.plan import make_plan

    base, available = compose(study_config, {}), cluster_nodes()
    manifest = load_manifest(store, base.data.dataset)
    base = resolve(base, store, manifest)
    clips = plan_clips(base, study_config.search, manifest, available, node_stores())
    plan = make_plan(study_config.search, clips.streams, available)
    return run_study(study_config, name, store, plan, manifest, clips)


def cpus_are_free() -> None:
    """Every CPU that trials held, stopped ones too, is given back."""
    import ray

    whole = ray.cluster_resources()["CPU"]
    wait_for("all CPUs to be free", lambda: ray.available_resources().get("CPU") == whole)


def test_ray_data_delivers_the_same_batches_as_the_local_reader(ray_cluster, tiny_run, store, tiny_manifest) -> None:
    from atose_ray.runtime.ingest import RayBatches

    config = tiny_run()
    for rank, world in ((0, 1), (1, 2)):
        local = make_batches(config, tiny_manifest, store.uri, rank=rank, world=world)
        little = functools.partial(RayBatches, stream_bytes=1000)  # less than one buffer: it goes on, one at a time
        streamed = make_batches(config, tiny_manifest, store.uri, little if rank else RayBatches, rank, world)
        for epoch in (0, 1):
            pairs = list(zip(local.train(epoch), streamed.train(epoch), strict=True))
            assert len(pairs) == local.steps()
            assert all(torch.equal(a, b) for pair in pairs for a, b in zip(*pair, strict=True))


def test_prepare_on_ray_gives_the_same_shards(ray_cluster, tiny_source, tiny_manifest, tmp_path) -> None:
    from atose_ray.runtime.prepare import run_on_ray

    config = dataset_config("folder", source=str(tiny_source), sample_rate_hz=RATE)
    manifest, _ = prepare(config, Store(str(tmp_path)), run_on_ray)
    assert manifest == tiny_manifest


def test_search_finds_prunes_reports_and_scores_test_once(ray_cluster, store, tmp_path, capsys) -> None:
    """The whole of a search, told once: found, pruned, reported, scored on test, repeated by hand, gone on with."""
    from atose_ray import report, tune

    folder = study_store(store, "s")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study(concurrency=2).model_dump(mode="json")))
    command = [str(tmp_path / "s.yaml"), "--store", store.uri]
    tune.main(command)
    record = load_study_record(store, "s")
    assert [t.number for t in record.trials] == list(range(6))
    assert {t.state for t in record.trials} <= {"complete", "pruned"}
    cpus_are_free()
    assert record.best is not None
    assert record.best.metrics["valid"]["pr_auc_macro"] == max(t.value for t in record.trials)
    events = events_of(capsys.readouterr().out)
    names = sorted(t.name for t in record.trials)
    assert sorted(name for event, name in events if event == "start") == names
    assert sorted((name, event) for event, name in events if event in ENDS) == [
        (t.name, t.state) for t in record.trials
    ]
    page = Path(folder.path("report.html")).read_text()
    assert "<html" in page and record.trials[0].name in page
    model = load_model(folder.child("best"))
    assert model.metrics["number"] == record.best.number and model.metrics["test"]["clips"] == 12
    leaves_these_files(Path(folder.root))
    repeats(max(record.trials, key=lambda t: (len(t.epochs), t.value)), folder, store, tmp_path / "again")

    stamp = Path(folder.path("best/metrics.json")).stat().st_mtime_ns
    tune.main(command)
    assert load_study_record(store, "s").trials == record.trials
    assert Path(folder.path("best/metrics.json")).stat().st_mtime_ns == stamp, "test is scored once for one winner"
    tune.main([*command, "--trials", "7"])
    longer = load_trials(folder)
    assert len(longer) == 7 and tuple(longer[:6]) == tuple(record.trials)
    with pytest.raises(ConfigError, match=r"--name"):
        tune.main([*command, "--set", "search.metric=roc_auc_macro"])
    capsys.readouterr()
    report.main(["s", "--store", store.uri])
    assert capsys.readouterr().out.strip() == folder.child("report.html").uri


ENDS = ("complete", "pruned", "diverged", "failed")


def events_of(out: str) -> list[tuple[str, str]]:
    """(what, trial) of every line of a search that is about one; others, as of what it waits for, may come too."""
    return re.findall(r"^\[[^\]]*\] (\w+) +(\d{3}-\S+)", out, flags=re.MULTILINE)


def leaves_these_files(folder: Path) -> None:
    found = {path.name for path in folder.iterdir()}
    assert found >= STUDY_FILES and found <= STUDY_FILES | STUDY_MAY_HOLD
    assert {path.name for path in (folder / "best").iterdir()} == MODEL_FILES | {"examples.json"}
    for trial in (folder / "trials").iterdir():
        assert re.fullmatch(r"\d{3}-[0-9a-f]{12}", trial.name)
        names = {path.name for path in trial.iterdir() if not path.name.startswith("frozen-")}  # of a frozen encoder
        assert names == RUN_FILES | {"tensorboard"}


def repeats(trial: TrialRecord, folder: Store, store: Store, again: Path) -> None:
    """A trial's config, trained here, gives what the trial gave."""
    about = RunFolder(trial_store(folder, trial)).about()
    assert (about["residency"], about["threads"]) == ("shared", 1)
    opened = open_run(Job(RunConfig.model_validate(trial.config), store.uri, str(again), {}))
    fit(opened.run, opened.method, opened.batches, opened.folder)
    ours, theirs = ([(e.train_loss, e.objective) for e in run] for run in (opened.folder.epochs(), trial.epochs))
    assert ours[: len(theirs)] == theirs and (trial.state == "pruned" or ours == theirs)


@pytest.mark.slow
def test_an_interrupted_study_goes_on_where_it_was(ray_cluster, store) -> None:
    """What a killed search leaves (a trial without an end) is finished first, under its own number and signature."""
    first = run(study(trials=4, pruner={"kind": "none"}), "s", store)
    folder = study_store(store, "s")
    victim = first.trials[1]
    log = Path(trial_store(folder, victim).path("log.jsonl"))
    log.write_text("\n".join(log.read_text().splitlines()[:2]) + "\n")
    again = run(study(trials=6, pruner={"kind": "none"}), "s", store)
    assert [t.number for t in again.trials] == list(range(6))
    assert again.trials[1].signature == victim.signature and again.trials[1].state == "complete"
    assert [dict(e.valid) for e in again.trials[1].epochs] == [dict(e.valid) for e in victim.epochs]
    assert again.trials[0] == first.trials[0]


@pytest.mark.slow
def test_a_diverging_trial_is_recorded_with_its_reason(ray_cluster, store) -> None:
    arm = {
        "head": {"kind": "mlp", "hidden": 8},
        "objective": {"kind": "info_nce", "temperature": 0.005},
        "stages": [{"name": "embed", "epochs": 3}],
    }
    config = study({"joint_embedding": arm}, trials=2, base={"optim": {"kind": "sgd"}}, pruner={"kind": "none"})
    config.space["optim"] = {"lr": 10.0, "weight_decay": 1.0, "momentum": 0.99}
    record = run(config, "hot", store)
    for trial in record.trials:
        assert trial.state == "diverged" and len(trial.epochs) < 3
        assert "smaller optim.lr" in trial.reason


@pytest.mark.slow
def test_a_trial_that_cannot_start_is_on_record_with_its_reason(ray_cluster, store) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    config = study(trials=2, max_failures=0, pruner={"kind": "none"}, base={"execution": {"device": "cuda"}})
    record = run(config, "s", store)
    assert record.best is None and [t.state for t in record.trials] == ["failed", "failed"]
    assert all("PyTorch sees no CUDA device" in t.reason for t in record.trials)


@pytest.mark.parametrize("group", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_one_and_two_workers_reach_the_score_of_none(group, ray_cluster, tiny_run, store, tmp_path) -> None:
    from atose_ray.runtime.train import train_on_ray

    config = tiny_run("joint_embedding", execution={"ingest": "ray_data", "threads": 1})
    scores = {}
    for workers in (0, group):
        job = Job(config, store.uri, str(tmp_path / f"w{workers}"), {"name": "x"})
        if workers == 0:
            opened = open_run(job)
            fit(opened.run, opened.method, opened.batches, opened.folder)
        else:
            search = SearchConfig(workers_per_trial=workers, cpus_per_worker=1)
            train_on_ray(job, search, 0.0, f"w{workers}", str(tmp_path / "ray"))
        epochs = RunFolder(Store(str(tmp_path / f"w{workers}"))).epochs()
        assert [e.epoch for e in epochs] == [1, 2, 3, 4]
        assert all(e.valid["clips"] == 12 for e in epochs)
        scores[workers] = [e.valid["pr_auc_macro"] for e in epochs]
    if group == 1:
        assert scores[1] == pytest.approx(scores[0], abs=1e-6)  # the same batches in the same order
    else:
        assert np.abs(np.array(scores[2]) - scores[0]).max() < 0.35  # other batch statistics: near, not equal


@pytest.mark.slow
def test_search_with_worker_groups(ray_cluster, store) -> None:
    from ray.util.state import list_actors

    def started() -> set[tuple[str, str]]:
        return {(actor.actor_id, actor.class_name) for actor in list_actors(limit=1000)}

    before = started()
    search = {"pruner": {"kind": "asha", "grace_epochs": 1, "reduction_factor": 4}, "concurrency": 1}
    search |= {"points": [{"optim.lr": lr, "encoder[sample_cnn].block": "se"} for lr in (0.01, 0.001, 0.005)]}
    supervised = {"supervised": {"head": {"kind": "mlp", "hidden": 8}, "stages": [{"name": "classify", "epochs": 4}]}}
    record = run(study(supervised, trials=3, workers_per_trial=2, cpus_per_worker=1.9, **search), "w2", store)
    classes = [name for _, name in started() - before]
    assert "RayTrainWorker" in classes and not [name for name in classes if "Controller" in name or "Queue" in name]
    assert len(record.trials) == 3 and {t.state for t in record.trials} <= {"complete", "pruned"}
    assert record.trials[1].state == "pruned", "and the third had room: two groups would not fit"
    cpus_are_free()
    assert record.best is not None and record.best.metrics["test"]["clips"] == 12
    abouts = Path(store.root).glob("studies/w2/trials/*/about.json")
    assert [json.loads(about.read_text())["residency"] for about in abouts] == ["shared"] * 3


@pytest.mark.slow
def test_verbs_end_to_end(ray_cluster, store, capsys, tiny_source) -> None:
    from atose_ray import report, tag, tune
    from atose_ray import train as train_verb

    path = Path(store.root) / "mine.yaml"
    path.write_text(yaml.safe_dump(study(trials=2).model_dump(mode="json")))
    tune.main([str(path), "--store", store.uri])
    out = capsys.readouterr().out
    assert "plan: 2 x" in out and "data: shared: " in out and "report: " in out and "2 trials" in out
    report.main(["mine", "--store", store.uri])
    best = study_store(store, "mine").path("best")
    tag.main([best, str(tiny_source / "clip_000.wav"), "--top", "2", "--json"])
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert set(yaml.safe_load(line)["scores"]) == {"low", "high", "loud", "steady"}
    train_verb.main([f"{best}/config.json", "--store", store.uri])
    with pytest.raises(ConfigError, match=r"trained before.*--resume"):
        train_verb.main([f"{best}/config.json", "--store", store.uri])
    train_verb.main([f"{best}/config.json", "--store", store.uri, "--resume"])
    trained = capsys.readouterr().out
    value = load_study_record(store, "mine").best.metrics["valid"]["pr_auc_macro"]
    assert f"(best {value:.4f})" in trained
    assert len(load_trials(study_store(store, "mine"))) == 2
