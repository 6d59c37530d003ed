"""Trials that share a GPU: how many, once it is known what memory one of them takes."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S, environment
from test_progress import trial

from atose_ray.config import SearchConfig
from atose_ray.search.gpu_share import GpuShare
from atose_ray.search.plan import Plan, Resources, make_plan

TRIALS, HELD = 6, 0.4


def plan(gpus_per_worker: float | None, workers: int = 0, gpus: float = 2) -> Plan:
    search = SearchConfig(gpus_per_worker=gpus_per_worker, workers_per_trial=workers, trials=99)
    return make_plan(search, False, Resources(cpus=64, gpus=gpus, node_cpus=64, node_gpus=gpus))


def launched(share: GpuShare, at_most: int = 50) -> int:
    """How many trials begin until one more has to wait."""
    return next(running for running in range(at_most + 1) if running == at_most or not share.may_launch(running))


def test_first_whole_gpus_then_as_many_as_fit() -> None:
    lines: list[str] = []
    share = GpuShare(plan(0.25), say=lines.append)
    assert (share.fraction(), launched(share)) == (1.0, 2)
    share.note(0.3)
    assert (share.fraction(), launched(share)) == (pytest.approx(1 / 3), 6)
    share.note(0.2)  # the largest one counts
    assert launched(share) == 6
    share.note(0.47)
    assert (share.fraction(), launched(share)) == (1.0, 2)
    assert len(lines) == 2 and "30%" in lines[0] and "3 at a time on each, not 4" in lines[0]


@pytest.mark.parametrize("held", [0.0, 0.05, 0.23])
def test_the_plan_is_kept_where_memory_allows_it_or_is_not_known(held: float) -> None:
    share = GpuShare(plan(0.25))
    share.note(held)
    assert (share.fraction(), launched(share)) == (0.25, 8)


@pytest.mark.parametrize("asked", [None, 1.0, 2.0, 0.0])
def test_without_fractions_nothing_waits(asked: float | None) -> None:
    share = GpuShare(plan(asked))
    share.note(0.9)
    assert share.fraction() == (1.0 if asked is None else asked) and launched(share) == 50


def test_a_group_larger_than_the_gpus_can_start_all_the_same() -> None:
    share = GpuShare(plan(0.25, workers=4, gpus=2))
    assert (share.fraction(), launched(share)) == (0.5, 1)
    share.note(0.9)  # it ran two to a GPU, so it can again
    assert (share.fraction(), launched(share)) == (0.5, 1)
    known = GpuShare(plan(0.25, workers=4, gpus=2))
    known.note(0.1)
    assert (known.fraction(), launched(known)) == (0.25, 2)


def test_a_search_that_goes_on_knows_it_already() -> None:
    ended = trial(0, "complete", 0.0, 3, 1.0)
    ended = dataclasses.replace(ended, epochs=tuple(dataclasses.replace(one, gpu_memory=0.4) for one in ended.epochs))
    share = GpuShare(plan(0.25), (trial(1, "running", 0.0, 0, 1.0), ended), say=lambda line: None)
    assert (share.fraction(), launched(share)) == (0.5, 4)


def stub(log: Path) -> Any:
    """A trial of two short epochs that says it held HELD of a GPU's memory, and notes when it was there."""
    import ray
    from ray import tune

    from atose_ray.runtime.trial import KEY
    from atose_ray.storage import Store
    from atose_ray.training.record import EpochRecord, RunFolder

    class Stub(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.trial, self.epoch, self.began = config[KEY], 0, time.time()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            time.sleep(1.0)
            self.epoch += 1
            folder = RunFolder(Store(self.trial.job.folder_uri))
            valid = {"pr_auc_macro": 0.5}
            record = EpochRecord(self.epoch, "x", 1.0, 0.1, 0.1, valid, 0.5, time.time(), gpu_memory=HELD)
            folder.add_epoch(record)
            if self.epoch == 2:
                held = ray.get_runtime_context().get_assigned_resources().get("GPU")
                line = {"asked": self.trial.gpus, "held": held, "began": self.began, "ended": time.time()}
                with log.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                folder.end("complete")
            return {"pr_auc_macro": 0.5, "epoch": self.epoch, "record": record, "done": self.epoch == 2}

    return Stub


def search_on_one_gpu(store_uri: str, log: Path) -> None:
    """A real search on a Ray that believes in one GPU, which four trials may share."""
    import ray
    from conftest import tiny_tree
    from ray import tune

    from atose_ray.config import StudyConfig
    from atose_ray.data.shards import load_manifest
    from atose_ray.runtime import search as searching
    from atose_ray.runtime.cluster import cluster_resources, hush
    from atose_ray.runtime.trial import resources_of
    from atose_ray.search.record import study_store
    from atose_ray.search.session import Session
    from atose_ray.search.trials import Space
    from atose_ray.storage import Store

    settings = {"trials": TRIALS, "gpus_per_worker": 0.25, "cpus_per_worker": 1, "pruner": {"kind": "none"}}
    tree = {"base": tiny_tree(), "space": {"optim": {"lr": {"range": [1e-3, 1e-2], "log": True}}}, "search": settings}
    study, store = StudyConfig.model_validate(tree), Store(store_uri)
    manifest = load_manifest(store, "folder")
    ray.init(address="local", num_cpus=8, num_gpus=1, include_dashboard=False, log_to_driver=False)
    hush()
    at = make_plan(study.search, False, cluster_resources())
    needs = lambda config: resources_of(at, config)  # noqa: E731
    searching.trainable = lambda planned, shared: tune.with_resources(stub(log), needs)
    space = Space(study, "share", store.uri, manifest, at)
    with Session(study_store(store, "share")) as session:
        searching.search(space, session, ())
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_begins_alone_and_then_fills_the_gpu(tiny_store: Any, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        ran = subprocess.run(
            [sys.executable, __file__, tiny_store.uri, str(log)],
            env=environment(RAY_TMPDIR=scratch, RAY_AUTH_MODE="disabled"),
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout.count("memory  a trial holds 40% of a GPU's memory: 2 at a time on each, not 4") == 1, ran.stdout
    trials = sorted((json.loads(line) for line in log.read_text().splitlines()), key=lambda line: line["began"])
    first, rest = trials[0], trials[1:]
    assert len(trials) == TRIALS and first["asked"] == first["held"] == 1
    assert {line["asked"] for line in rest} == {line["held"] for line in rest} == {0.5}
    assert all(line["began"] >= first["ended"] for line in rest)

    at = [sum(other["began"] <= line["began"] < other["ended"] for other in trials) for line in rest]
    assert max(at) == 2


if __name__ == "__main__":
    search_on_one_gpu(sys.argv[1], Path(sys.argv[2]))
