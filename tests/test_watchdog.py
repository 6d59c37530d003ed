# ruff: noqa: F811  (fixtures of other test files)
"""What a trial waits for is said, where Ray and Tune would wait in silence."""

from __future__ import annotations

import functools
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from test_ray import store, study  # noqa: F401

from atose_ray.config import SearchConfig
from atose_ray.data.shards import load_manifest
from atose_ray.runtime import watchdog
from atose_ray.runtime.watchdog import Watchdog, show_bundles
from atose_ray.search.events import Ended, Epoch
from atose_ray.search.listeners import Console
from atose_ray.search.nodes import NodeKind, Nodes
from atose_ray.search.record import load_trials, study_store
from atose_ray.storage import Store
from atose_ray.training.record import EpochRecord
from atose_ray.training.run import Job


def trial(name: str, status: str, node: str | None = None, **asked: float) -> Any:
    last = {"node_ip": node, "pid": 7} if node else {}
    bundles = SimpleNamespace(bundles=[asked or {"CPU": 1.0}])
    return SimpleNamespace(trial_id=name, status=status, last_result=last, placement_group_factory=bundles)


def test_a_silent_trial_is_named_after_ten_minutes_or_three_epochs_and_then_ever_more_rarely(monkeypatch) -> None:
    monkeypatch.setattr("atose_ray.runtime.watchdog.waiting_groups", list)
    now = [0.0]
    dog = Watchdog(lambda one: one.trial_id, clock=lambda: now[0])
    quick, slow = trial("000-quick", "RUNNING", "10.0.0.1"), trial("001-slow", "RUNNING", "10.0.0.2")
    said: dict[str, list[float]] = {"000-quick": [], "001-slow": []}
    for second in range(0, 8000, 5):
        now[0] = float(second)
        for line in dog.lines([quick, slow]):
            said[line.split()[0]].append(second)
            assert "has reported nothing for" in line and "its longest epoch took" in line
            assert ("process 7 on 10.0.0.1" if "quick" in line else "process 7 on 10.0.0.2") in line
        if second in (20, 40, 60):
            dog.reported(quick)
        if second in (400, 800):
            dog.reported(slow)
    assert said["000-quick"] == [660, 1260, 2460, 4860]  # 10 minutes after its last word, then 20, 40, 80
    assert said["001-slow"] == [2000, 3200, 5600]  # three times its 400 s


def test_bundles_are_written_as_a_person_would() -> None:
    assert show_bundles([{"GPU": 1.0, "CPU": 2.0}]) == "2 CPU, 1 GPU"
    assert show_bundles([{"CPU": 1.0}] * 4) == "4 x (1 CPU)"
    assert show_bundles([{"CPU": 0.01}, {"CPU": 1.0}, {"CPU": 1.0}]) == "0.01 CPU and 2 x (1 CPU)"


def test_what_is_asked_for_is_held_against_the_nodes_and_what_starts(ray_cluster, monkeypatch) -> None:
    import ray

    dog = Watchdog(lambda one: one.trial_id)
    address = ray.nodes()[0]["NodeManagerAddress"]
    asked = [{"CPU": 1.0, "GPU": 1.0}]
    line = dog.free_line(asked, [trial("003-x", "RUNNING", address), trial("004-y", "RUNNING")])
    assert f"node {address} has " in line and "of 4 CPU free, 0 of 0 GPU free (003-x there)" in line
    assert "starting now: 004-y" in line and "no node is large enough" in line
    report = {"pending_launches": {"gpu_worker": 2}, "pending_nodes": [["10.0.0.9", "gpu_worker", "setting-up"]]}
    report["failed_nodes"] = [["10.0.0.8", "gpu_worker"]]
    said = json.dumps({"autoscaler_report": report}).encode()  # Ray's own monitor would write over it every few seconds
    monkeypatch.setattr("ray.experimental.internal_kv._internal_kv_get", lambda key: said)
    line = dog.free_line([{"CPU": 1.0}], [])
    assert "nodes starting: 2 x gpu_worker, gpu_worker at 10.0.0.9 (setting-up)" in line
    assert "nodes that failed to start: gpu_worker" in line and "large enough" not in line


def test_what_may_be_started_is_named_to_a_trial_that_no_running_node_holds(ray_cluster) -> None:
    kinds = (NodeKind("head", 4, head=True), NodeKind("card", 8, 1, 0, 2), NodeKind("cpus", 64, 0, 0, 9))
    dog = Watchdog(lambda one: one.trial_id, Nodes(kinds))
    assert "it waits for one of type card (8 CPUs, 1 GPU) to be started" in dog.free_line(
        [{"CPU": 1.0, "GPU": 1.0}], []
    )
    assert "it will wait for ever" in dog.free_line([{"CPU": 1.0, "GPU": 2.0}], [])


def test_types_that_could_not_be_had_are_those_the_autoscaler_names(monkeypatch) -> None:
    away = {"is_available": False, "unavailable_node_information": {"category": "InsufficientInstanceCapacity"}}
    report = {"node_availability_summary": {"node_availabilities": {"spot": away, "gpu": {"is_available": True}}}}
    report["failed_nodes"] = [["10.0.0.8", "large"]]
    monkeypatch.setattr(watchdog, "autoscaler_report", lambda: report)
    assert watchdog.failed_types() == {"spot", "large"}
    monkeypatch.setattr(watchdog, "autoscaler_report", dict)
    assert watchdog.failed_types() == set()


def test_a_gpu_that_pytorch_does_not_see_is_said_once(monkeypatch, tmp_path, capsys, tiny_run) -> None:
    from atose_ray.runtime.trial import with_note

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert with_note({"lent": 1}, 0.0) == {"lent": 1}
    noted = with_note({"note": "clips were lost"}, 0.5)["note"]
    assert noted.startswith("clips were lost; Ray gave 0.5 GPU, but PyTorch sees none here") and "on the CPU" in noted
    console = Console(SearchConfig(trials=3), ())
    record = EpochRecord(1, "x", 1.0, 0.1, 0.1, {"pr_auc_macro": 0.5}, 0.5, 0.0)
    for number in range(2):
        folder = Store(str(tmp_path / str(number)))
        job = Job(tiny_run(), "nowhere", folder.uri, {"number": number, "name": f"00{number}-x", "params": {}})
        folder.write_json("about.json", {"note": noted})
        console.on_event(Epoch(number, job, record))
        console.on_event(Ended(number, job, "complete"))
    said = capsys.readouterr().out
    assert said.count("Ray gave 0.5 GPU") == 1 and "note   000-x: clips were lost; Ray" in said
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert with_note({}, 1.0) == {}


def test_a_trial_that_cannot_be_placed_says_what_it_waits_for_and_the_search_can_be_stopped(
    ray_cluster, store, monkeypatch, capsys
) -> None:
    """A plan that its planner would refuse: a GPU where there is none."""
    from atose_ray.runtime import search as searching
    from atose_ray.runtime.cluster import cluster_nodes
    from atose_ray.runtime.tune import run_study
    from atose_ray.search.plan import Plan
    from atose_ray.search.session import ask_to_stop

    monkeypatch.setattr(searching, "Watchdog", functools.partial(Watchdog, pending_s=0.5))
    plan = Plan(1, 0, 1.0, 1.0, 1.0, 0.0, cluster_nodes())
    folder, printed = study_store(store, "s"), []

    def stop_when_said() -> None:
        for _ in range(6000):
            printed.append(capsys.readouterr().out)
            if "wait " in "".join(printed):
                ask_to_stop(folder, "s", now=False)
                return
            time.sleep(0.1)

    helper = threading.Thread(target=stop_when_said)
    helper.start()
    with pytest.raises(KeyboardInterrupt):
        run_study(study(trials=2, pruner={"kind": "none"}), "s", store, plan, load_manifest(store, "folder"))
    helper.join()
    assert "PENDING" not in {table["state"] for table in ray.util.placement_group_table().values()}, "Ray stays"
    text = "".join(printed)
    assert load_manifest(store, "folder").data_spec and "waits for 1 CPU, 1 GPU since" in text
    assert "of 4 CPU free, 0 of 0 GPU free" in text and "no node is large enough for it" in text
    assert {one.state for one in load_trials(folder)} == {"running"}
    assert not folder.exists("stop.json") and not folder.exists("driver.json") and folder.exists("report.html")
