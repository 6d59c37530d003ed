# ruff: noqa: F811  (fixtures of other test files)
"""A search told to MLflow and Weights & Biases, by the tools themselves where they are installed: a local store, and
wandb offline. Without them, what is said; and what happens when a tool fails."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_ray import run, store, study  # noqa: F401

from atose_ray.config import ConfigError, SearchConfig
from atose_ray.runtime import loggers
from atose_ray.runtime.loggers import Logger, Shown, id_of, open_loggers, values_of
from atose_ray.runtime.ray_private import reopened
from atose_ray.runtime.trial import KEY
from atose_ray.search.record import load_trials, study_store
from atose_ray.search.space import identity
from atose_ray.storage import Store
from atose_ray.training.record import EpochRecord, RunFolder


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, "classify", 2.0, 1.0 / epoch, 1e-3, {"pr_auc_macro": 0.1 * epoch}, 0.1 * epoch, 1.7e9)


class Callback:
    """Stands in for Ray's callback of a tool: remembers what it is told, or fails."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.told = fails, []

    def log_trial_result(self, epoch: int, trial: Shown, values: dict[str, float]) -> None:
        if self.fails:
            raise ConnectionError("no route to the tracking server")
        self.told.append((str(trial), epoch, values["objective"]))

    def log_trial_end(self, trial: Shown, failed: bool) -> None:
        self.told.append((str(trial), "failed" if failed else "ended"))

    def on_experiment_end(self, trials: list[Any]) -> None:
        self.told.append("over")


class Standin:
    """Stands in for a tool."""

    def __init__(self, callback: Callback) -> None:
        self.callback, self.states, self.finished = callback, [], []

    def start(self, trial: Shown) -> None:
        self.callback.told.append((str(trial), trial.config["optim"]["lr"]))

    def note_state(self, trial: Shown, state: str) -> None:
        self.states.append((str(trial), state))


@pytest.fixture
def trial(tiny_run, tmp_path: Path) -> Any:
    about = {"number": 3, "name": "003-x", "params": {"optim.lr": 0.01}, "distributions": {}}
    job = SimpleNamespace(run=tiny_run("supervised"), folder_uri=str(tmp_path / "trial"), about=about)
    return SimpleNamespace(config={KEY: SimpleNamespace(job=job)})


def test_loggers_are_off_and_no_part_of_a_study() -> None:
    assert SearchConfig().loggers == ()
    assert identity(study()) == identity(study(loggers=["mlflow", "wandb"]))


def test_a_missing_package_is_said_before_any_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"wandb, which is not installed here; pip install 'atose_ray\[wandb\]'"):
        open_loggers(("wandb",), "mine", "store/mine")


def test_a_trial_is_told_once_an_epoch_and_how_it_ended(trial, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = Standin(Callback())
    monkeypatch.setitem(loggers.TOOLS, "mlflow", lambda study, uri: tool)
    logger = Logger("mlflow", "mine", "store/mine")
    logger.on_trial_start(0, [], trial)
    for epoch in (1, 2, 2, 3):  # a restart reports its last one again
        logger.on_trial_start(0, [], trial)
        logger.on_trial_result(0, [], trial, {"record": record(epoch)})
    logger.on_trial_result(0, [], trial, {"done": True})
    RunFolder(Store(trial.config[KEY].job.folder_uri)).end("diverged", "the loss is NaN")
    logger.on_trial_complete(0, [], trial)
    logger.on_experiment_end([])
    began, *epochs, ended, over = tool.callback.told
    assert began == ("003-x", trial.config[KEY].job.run.optim.lr)
    assert [epoch for _, epoch, _ in epochs] == [1, 2, 3]
    assert (ended, over, tool.states) == (("003-x", "failed"), "over", [("003-x", "diverged")])


def test_a_tool_that_fails_ends_no_search(trial, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    tool = Standin(Callback(fails=True))
    monkeypatch.setitem(loggers.TOOLS, "mlflow", lambda study, uri: tool)
    logger = Logger("mlflow", "mine", "store/mine")
    logger.on_trial_start(0, [], trial)
    logger.on_trial_result(0, [], trial, {"record": record(1)})
    logger.on_trial_result(0, [], trial, {"record": record(2)})
    logger.on_trial_complete(0, [], trial)
    said = capsys.readouterr().out
    assert said == "mlflow failed, and the search goes on without it: no route to the tracking server\n"
    assert len(tool.callback.told) == 1


def test_values_are_those_of_tensorboard() -> None:
    assert values_of(record(2)) == {
        "valid/pr_auc_macro": 0.2,
        "objective": 0.2,
        "train/loss": 0.5,
        "train/lr": 1e-3,
        "epoch_seconds": 2.0,
        "training_iteration": 2,
    }


def test_a_trial_that_goes_on_is_found_by_rays_callback() -> None:
    callback, shown = SimpleNamespace(_trial_runs={}), object()
    assert reopened(callback, shown, "run 7") and callback._trial_runs == {shown: "run 7"}
    assert not reopened(SimpleNamespace(), shown, "run 7")


@pytest.mark.slow
def test_a_trial_that_goes_on_has_one_run_in_mlflow(tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow`")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    for epoch in (1, 2):  # two sessions
        tool = loggers.Mlflow("told", "store/told")
        shown = Shown("x", "003-x", {"optim": {"lr": 0.01}}, str(tmp_path), "told")
        tool.start(shown)
        tool.callback.log_trial_result(epoch, shown, values_of(record(epoch)))
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("atose_ray").experiment_id])
    assert sorted(one.info.run_name for one in found) == ["003-x", "told"]
    (child,) = [one for one in found if one.info.run_name == "003-x"]
    assert [point.step for point in client.get_metric_history(child.info.run_id, "objective")] == [1, 2]


@pytest.mark.slow
@pytest.mark.ray
def test_mlflow_has_a_run_per_trial_below_the_study(ray_cluster, store, tmp_path, monkeypatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow`")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)  # artefacts lie below the working folder
    run(study(trials=2, loggers=["mlflow"]), "told", store)
    run(study(trials=3, loggers=["mlflow"]), "told", store)  # goes on in the same run
    client = mlflow.MlflowClient()
    found = client.search_runs([client.get_experiment_by_name("atose_ray").experiment_id])
    parents = [one for one in found if "mlflow.parentRunId" not in one.data.tags]
    children = {one.info.run_name: one for one in found if one not in parents}
    trials = load_trials(study_store(store, "told"))
    assert [one.info.run_name for one in parents] == ["told"]
    assert set(children) == {one.name for one in trials} and len(trials) == 3
    for one in trials:
        child = children[one.name]
        points = client.get_metric_history(child.info.run_id, "objective")
        assert [(point.step, point.value) for point in points] == [(e.epoch, e.objective) for e in one.epochs]
        assert child.data.tags["mlflow.parentRunId"] == parents[0].info.run_id
        assert child.data.tags["atose.state"] == one.state
        assert float(child.data.params["optim/lr"]) == one.config["optim"]["lr"]
    assert "test/pr_auc_macro" in parents[0].data.metrics
    kept = {file.path for file in client.list_artifacts(parents[0].info.run_id)}
    assert kept == {"report.html", "best"}


@pytest.mark.slow
@pytest.mark.ray
def test_wandb_has_a_run_per_trial_in_the_studys_group(ray_cluster, store, tmp_path, monkeypatch) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb`")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    run(study(trials=2, loggers=["wandb"]), "told", store)
    trials = load_trials(study_store(store, "told"))
    files = {file.stem.removeprefix("run-"): file for file in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")}
    uri = study_store(store, "told").uri
    assert set(files) == {id_of(uri), *[id_of(f"{uri}/{one.name}") for one in trials]}
    for one in trials:  # protocol buffers, in blocks: names stand in them as they are
        content = files[id_of(f"{uri}/{one.name}")].read_bytes()
        assert all(word in content for word in (b"told", one.name.encode(), b"objective", b"valid/pr_auc_macro"))
    assert b"report.html" in files[id_of(uri)].read_bytes()
