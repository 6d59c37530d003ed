# ruff: noqa: F811  (fixtures of other test files)
"""Failures by cause: what is tried again, what ends a trial, and what ends a search."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import ray
import torch
from ray import exceptions as lost
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from test_ray import cpus_are_free, run, store, study  # noqa: F401

from atose_ray.config import SearchConfig
from atose_ray.runtime.failures import cause_of, reason_of, record_failure, trace_of
from atose_ray.search.events import Ended
from atose_ray.search.listeners import Console, likeness
from atose_ray.search.record import load_trials, study_store
from atose_ray.storage import Store, StoreError
from atose_ray.storage.lease import LeaseError
from atose_ray.training.loop import DivergedError
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job
from atose_ray.training.step import NoMemoryError


def raised(error: Exception, under: Exception | None = None) -> Exception:
    """An error that was really raised, from another one if that is given."""
    try:
        try:
            raise error
        except Exception as first:
            if under is None:
                raise
            raise under from first
    except Exception as last:
        return last


def preempted() -> lost.RayActorError:
    """The node was taken away with notice."""
    error = lost.RayActorError()
    error._preempted = True
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (KeyError("lr"), "bug"),
        (ValueError("crop too short"), "bug"),
        (FileNotFoundError(2, "no such file"), "bug"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "bug"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (NoMemoryError("half a batch"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
        (lost.OutOfMemoryError("the node ran low on memory"), "out_of_memory"),
        (StoreError("cannot write"), "infrastructure"),
        (OSError(28, "No space left on device"), "infrastructure"),
        (lost.RayActorError(), "infrastructure"),
        (lost.WorkerCrashedError(), "infrastructure"),
        (lost.ObjectLostError("00", None, ""), "infrastructure"),
        (lost.OutOfDiskError("Local disk is full"), "infrastructure"),
        (LeaseError("busy"), "infrastructure"),
        (ConnectionResetError("peer"), "infrastructure"),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), "infrastructure"),
        (preempted(), "preemption"),
        (DivergedError("loss is nan"), "divergence"),
    ],
)
def test_a_cause_is_found_bare_wrapped_and_in_a_worker_group(error: Exception, expected: str) -> None:
    assert cause_of(error) == expected
    assert cause_of(raised(error, under=RuntimeError("while training"))) == expected
    assert cause_of(WorkerGroupError("", {1: error})) == expected
    assert cause_of(ControllerError(error)) == expected
    assert cause_of(WorkerHealthCheckFailedError("a worker is gone", error)) == expected


def test_of_a_worker_group_the_error_that_explains_the_others_counts() -> None:
    torn = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]")
    dead = WorkerHealthCheckFailedError("a worker is gone", lost.RayActorError())
    assert cause_of(WorkerGroupError("", {0: torn, 1: KeyError("lr")})) == "bug"
    assert cause_of(WorkerGroupError("", {0: torn, 1: dead})) == "infrastructure"
    assert cause_of(WorkerGroupError("", {0: torn, 1: torch.OutOfMemoryError("CUDA")})) == "out_of_memory"
    assert cause_of(WorkerGroupError("", {0: torn, 1: preempted()})) == "preemption"
    assert cause_of(WorkerGroupError("", {0: torn})) == "infrastructure"


def test_a_handled_error_does_not_hide_the_bug_that_followed() -> None:
    try:
        try:
            raise ConnectionResetError("handled, and forgotten")
        except ConnectionResetError:
            raise KeyError("lr") from None
    except KeyError as error:
        assert cause_of(error) == "bug"


def test_equal_bugs_are_counted_by_their_lines_and_not_by_their_numbers(capsys) -> None:
    one = trace_of(raised(ValueError("expected 12 clips, got 7 at 0x7f01")))
    two = trace_of(raised(ValueError("expected 9 clips, got 3 at 0x7f99")))
    other = trace_of(raised(KeyError("lr")))
    assert likeness(one) == likeness(two) != likeness(other)
    console = Console(SearchConfig(), ())
    for number, (name, trace) in enumerate((("000-a", one), ("001-b", two), ("002-c", other), ("003-d", two))):
        assert console.too_many_bugs() == []
        console.on_event(Ended(number, Job(None, "", "", {"name": name}), "failed", "bug", "bug", trace))
    assert console.too_many_bugs() == ["000-a", "001-b", "003-d"]
    assert capsys.readouterr().out.count("Traceback (most recent call last)") == 2


def test_a_failure_is_recorded_once_with_its_traceback(tmp_path: Path) -> None:
    folder = RunFolder(Store(str(tmp_path)))
    error = raised(KeyError("lr"), under=ValueError("no such\nsetting"))
    told = record_failure(folder, error, "bug")
    assert told["done"] and told["failed"] == "bug" and set(told) == {"done", "failed", "trace"}
    assert folder.ending()["state"] == "failed" and folder.ending()["reason"] == "bug: ValueError: no such setting"
    (note,) = [event for event in folder.events() if event["event"] == "note"]
    assert note["cause"] == "bug" and "in raised" in note["text"] and "KeyError: 'lr'" in note["text"]
    record_failure(folder, error, "bug")
    assert len(folder.events()) == 2
    assert reason_of(WorkerGroupError("Training failed", {1: KeyError("lr")})) == "KeyError: 'lr'"


def test_causes_of_what_ray_really_raises(ray_cluster) -> None:
    @ray.remote(num_cpus=0, max_retries=0)
    def die(how: str) -> None:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        raise KeyError(how)

    @ray.remote(num_cpus=0)
    class Actor:
        def die(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    found = {}
    for how in ("killed", "out of memory", "bug"):
        with pytest.raises(lost.RayError) as caught:
            ray.get(die.remote(how))
        found[how] = cause_of(caught.value)
        if how == "bug":
            assert "in die" in trace_of(caught.value) and reason_of(caught.value).startswith("KeyError")
    assert found == {"killed": "infrastructure", "out of memory": "out_of_memory", "bug": "bug"}
    with pytest.raises(lost.RayActorError) as caught:
        ray.get(Actor.remote().die.remote())
    assert cause_of(caught.value) == "infrastructure"


@pytest.mark.ray
@pytest.mark.slow
def test_three_equal_bugs_end_the_search_and_it_goes_on_when_they_are_mended(
    ray_cluster, store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The bug is planted in the trial's own process by the config's pickle: its class comes with a broken loop."""
    from atose_ray.runtime import trial as trials

    tries = tmp_path / "tries"
    tries.mkdir()
    plant(monkeypatch, trials, tries)
    config = study(trials=6, max_failures=2, pruner={"kind": "none"}, concurrency=1)
    with pytest.raises(SystemExit) as caught:
        run(config, "s", store)
    failed = load_trials(study_store(store, "s"))
    ended = [trial for trial in failed if trial.state == "failed"]
    assert len(ended) == 3 and all("bug: KeyError: 'a key that is not there'" in trial.reason for trial in ended)
    assert "3 trials ended by the same error" in str(caught.value)
    assert all(trial.name in str(caught.value) for trial in ended)
    out = capsys.readouterr().out
    assert out.count("Traceback (most recent call last)") == 1
    assert len(list(tries.iterdir())) == 3  # none was tried twice
    cpus_are_free()  # and the process of the trial that ran is gone from a Ray that stays
    assert Path(study_store(store, "s").path("report.html")).is_file()
    (tries / "mended").touch()
    record = run(config, "s", store)
    states = [trial.state for trial in record.trials]
    assert sorted(states) == ["complete"] * 3 + ["failed"] * 3 and record.best is not None


def plant(monkeypatch: pytest.MonkeyPatch, module, folder: Path) -> None:
    """Make every epoch of a trial raise until `folder/mended` is there, and leave a file for each try."""
    real = module.ActorTrial

    class Broken(real):
        def epoch(self):
            number = self.job.about["number"]
            if (folder / "mended").exists():
                return real.epoch(self)
            with (folder / f"{number}-{os.urandom(3).hex()}").open("w"):
                pass
            return {}["a key that is not there"]

    monkeypatch.setattr(module, "ActorTrial", Broken)


def break_backward(folder: str, how: str) -> None:
    """In a worker's process: the first whole batch runs out of memory on rank 1, or every batch is a bug there."""
    import atose_ray.training.step as step
    from atose_ray.ranks import rank

    real = step.backward

    def broken(module, batch, stage, pieces):
        if rank() == 1 and pieces == 1:
            (Path(folder) / f"{how}-{os.getpid()}").touch()
            if how == "bug":
                return {}["a key that is not there"]
            raise torch.OutOfMemoryError("CUDA out of memory (a fake)")
        return real(module, batch, stage, pieces)

    step.backward = broken


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "groups"),
    [
        ("bug", 2),
        pytest.param(
            "memory", 1, marks=pytest.mark.skipif("ATOSE_CHAOS" not in os.environ, reason="with ATOSE_CHAOS=1")
        ),
    ],
)
def test_a_worker_group_is_tried_again_as_often_as_asked_and_halved_for_memory(
    ray_cluster, store, tiny_run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, groups: int
) -> None:
    from atose_ray.runtime import train

    tries = tmp_path / "tries"
    tries.mkdir()
    real, folder = train.worker_loop, str(tries)

    def worker_loop(config: dict) -> None:
        break_backward(folder, how)
        real(config)

    monkeypatch.setattr(train, "worker_loop", worker_loop)
    monkeypatch.setitem(sys.modules, "test_failures", sys.modules[__name__])
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    job = Job(tiny_run(execution={"threads": 1}), store.uri, str(tmp_path / "run"), {"name": "x"})
    search = SearchConfig(workers_per_trial=2, cpus_per_worker=1, max_failures=1)
    try:
        if how == "bug":
            with pytest.raises(WorkerGroupError) as caught:
                train.train_on_ray(job, search, 0.0, "x", str(tmp_path / "ray"))
            assert cause_of(caught.value) == "bug" and "a key that is not there" in trace_of(caught.value)
        else:
            train.train_on_ray(job, search, 0.0, "x", str(tmp_path / "ray"))
            log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
            events = [json.loads(line) for line in log]
            assert [event["cause"] for event in events if event["event"] == "note"] == ["out_of_memory"]
            assert events[-1] == {**events[-1], "event": "end", "state": "complete"}
    finally:
        ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    assert len(list(tries.iterdir())) == groups
