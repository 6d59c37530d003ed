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
from atose_ray.search.gpu_share import GpuShare, size_of
from atose_ray.search.nodes import one_node
from atose_ray.search.plan import Plan, make_plan

TRIALS, HELD = 6, 0.4


def plan(gpus_per_worker: float | None, gpus: float = 2, workers: int = 0) -> Plan:
    search = SearchConfig(gpus_per_worker=gpus_per_worker, workers_per_trial=workers, trials=99)
    return make_plan(search, False, one_node(64, gpus))


def tree(kind: str = "sample_cnn", channels: int = 8, lr: float = 1e-3, **more: Any) -> dict[str, Any]:
    data = {"batch_size": 8, "crop_seconds": 1.0, **more}
    return {"encoder": {"kind": kind, "channels": channels, "dropout": lr}, "data": data, "optim": {"lr": lr}}


def launched(share: GpuShare, config: dict[str, Any], running: tuple[float, ...] = (), at_most: int = 50) -> int:
    """How many trials of a configuration begin, beside those that run, until one more has to wait."""
    asked = list(running)
    while share.may_launch(asked) and len(asked) < at_most:
        asked.append(share.fraction(config))
    return len(asked) - len(running)


def test_the_first_of_a_size_has_a_gpu_alone_and_then_as_many_share_one_as_fit() -> None:
    lines: list[str] = []
    share, config = GpuShare(plan(0.25), say=lines.append), tree()
    assert (share.fraction(config), launched(share, config)) == (1.0, 2)
    share.note(config, 0.3)
    assert (share.fraction(config), launched(share, config)) == (pytest.approx(1 / 3), 6)
    share.note(tree(lr=0.5), 0.2)  # the same size: the largest one counts
    assert launched(share, config) == 6
    share.note(config, 0.47)
    assert (share.fraction(config), launched(share, config)) == (1.0, 2)
    assert len(lines) == 2 and "30%" in lines[0] and "3 at a time on each, not 4" in lines[0]


def test_a_small_first_trial_says_nothing_of_a_large_one() -> None:
    """What the plan of 0.2.0 got wrong: by the small one alone, four of the large one met on a GPU."""
    share, small, large = GpuShare(plan(0.25, gpus=1)), tree(channels=8), tree("harmonic_cnn", 256)
    share.note(small, 0.02)
    assert (share.fraction(small), share.fraction(large)) == (0.25, 1.0)
    assert share.fraction(tree(channels=256)) == 1.0  # of the same kind, but larger
    share.note(tree(channels=256), 0.4)
    assert share.fraction(tree(channels=128)) == 0.5  # no larger than what held .4
    assert share.fraction(small) == 0.25 and share.fraction(tree(channels=8, batch_size=4)) == 0.25
    assert share.fraction(tree(channels=256, batch_size=16)) == share.fraction(tree(crop_seconds=3.0)) == 1.0


def test_trials_of_several_sizes_share_a_gpu_as_far_as_their_sum_goes() -> None:
    share, small, large = GpuShare(plan(0.25, gpus=1)), tree(), tree("harmonic_cnn")
    share.note(small, 0.2)
    share.note(large, 0.45)
    assert launched(share, small, running=(0.5,)) == 2 and launched(share, large, running=(0.25,)) == 2
    assert launched(share, small, running=(1.0,)) == 0
    assert launched(GpuShare(plan(0.25, gpus=2)), small, running=(1.0,)) == 1


@pytest.mark.parametrize("held", [0.0, 0.05, 0.23])
def test_the_plan_is_kept_where_memory_allows_it_or_cannot_be_measured(held: float) -> None:
    share = GpuShare(plan(0.25))
    share.note(tree(), held)
    assert (share.fraction(tree()), launched(share, tree())) == (0.25, 8)


@pytest.mark.parametrize("asked", [None, 1.0, 2.0, 0.0])
def test_without_fractions_nothing_waits(asked: float | None) -> None:
    share = GpuShare(plan(asked))
    share.note(tree(), 0.9)
    assert share.fraction(tree()) == (1.0 if asked is None else asked) and launched(share, tree()) == 50


def test_rates_seeds_methods_and_where_data_comes_from_are_no_size() -> None:
    config = {**tree(), "seed": 1, "method": {"kind": "supervised"}, "execution": {"threads": 1, "precision": "auto"}}
    other = {
        **tree(lr=0.1, fold=3),
        "seed": 2,
        "execution": {"threads": 4, "precision": "auto"},
        "method": {"kind": "x"},
    }
    assert size_of(config) == size_of(other)
    for part in ("encoder", "data", "execution"):
        changed = {**config, part: {**config[part], "kind": "another"}}
        assert size_of(changed) != size_of(config)
    assert size_of(tree(crop_seconds=1.5)) != size_of(tree())


def test_a_search_that_goes_on_knows_it_already() -> None:
    ended = trial(0, "complete", 0.0, 3, 1.0)
    ended = dataclasses.replace(ended, epochs=tuple(dataclasses.replace(one, gpu_memory=0.4) for one in ended.epochs))
    share = GpuShare(plan(0.25), (trial(1, "running", 0.0, 0, 1.0), ended), say=lambda line: None)
    assert (share.fraction(ended.config), launched(share, ended.config)) == (0.5, 4)


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
    from atose_ray.runtime.cluster import cluster_nodes, hush
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
    at = make_plan(study.search, False, cluster_nodes())
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
    said = "memory  a trial of this size holds 40% of a GPU's memory: 2 at a time on each, not 4"
    assert ran.stdout.count(said) == 1, ran.stdout
    trials = sorted((json.loads(line) for line in log.read_text().splitlines()), key=lambda line: line["began"])
    first, rest = trials[0], trials[1:]
    assert len(trials) == TRIALS and first["asked"] == first["held"] == 1
    assert {line["asked"] for line in rest} == {line["held"] for line in rest} == {0.5}
    assert all(line["began"] >= first["ended"] for line in rest)

    at = [sum(other["began"] <= line["began"] < other["ended"] for other in trials) for line in rest]
    assert max(at) == 2


if __name__ == "__main__":
    search_on_one_gpu(sys.argv[1], Path(sys.argv[2]))
