"""The plan by nodes: what first fit places is planned, what it cannot is refused with the arithmetic and the nodes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from processes import ROOT

from atose_ray.config import SearchConfig
from atose_ray.runtime import ray_private
from atose_ray.search.cluster_file import PlanError, node_types
from atose_ray.search.nodes import Bundle, NodeKind, Nodes, UpNode, joined, one_node
from atose_ray.search.plan import Plan, make_plan

LAPTOP = one_node(2)
GPUS = Nodes((NodeKind("", 16, 2, 4, 4),))


def search(**fields: object) -> SearchConfig:
    return SearchConfig.model_validate({"trials": 99, **fields})


def cloud(*kinds: NodeKind, head_cpus: float = 4, most: int | None = None) -> Nodes:
    """A head without GPU that runs, and types of which none does."""
    return joined([UpNode(head_cpus, 0, head=True)], kinds, "head", most)


def may(name: str, cpus: float, gpus: float, most: int) -> NodeKind:
    return NodeKind(name, cpus, gpus, 0, most)


@pytest.mark.parametrize("available", [LAPTOP, GPUS, one_node(5)])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("streams", [False, True])
def test_every_plan_fits_and_is_the_largest(available: Nodes, workers: int, streams: bool) -> None:
    try:
        plan = make_plan(search(workers_per_trial=workers), streams, available)
    except PlanError:
        assert available is LAPTOP and workers == 2
        return
    assert plan.placed() is not None
    assert plan.concurrency * plan.cpus_per_trial <= available.cpus
    assert plan.concurrency * plan.gpus_per_trial <= available.gpus
    with pytest.raises(PlanError, match=f"At most {plan.concurrency} trial"):
        make_plan(search(workers_per_trial=workers, concurrency=plan.concurrency + 1), streams, available)


def test_gpus_are_used_where_there_are_some_or_may_be() -> None:
    assert make_plan(search(), False, GPUS).worker_gpus == 1
    assert make_plan(search(workers_per_trial=2), False, GPUS).concurrency == 4
    assert make_plan(search(), False, LAPTOP).worker_gpus == 0
    assert make_plan(search(gpus_per_worker=0.5), False, GPUS).concurrency == 16
    plan = make_plan(search(), False, cloud(may("gpu", 8, 1, 4), most=4))
    assert (plan.worker_gpus, plan.concurrency, plan.to_start()) == (1, 4, {1: 4})
    assert plan.lines() == [
        "plan: 4 x (1 trial + 0 x 1 worker + 0 data) = 4 of 36 CPUs; 4 x 1 = 4 of 4 GPUs",
        "nodes: 1 x head (4 CPUs); to be started up to 4 x gpu (8 CPUs, 1 GPU). For this plan 4 x gpu (8 CPUs, 1 GPU) "
        "are started; a type that has not come after 15 min is named, and the search goes on with what is there",
    ]


THREE = Nodes((NodeKind("", 3, 0, 2, 2),))  # two nodes of 3 CPUs
UNPLACEABLE = {
    "a worker group for a laptop": (
        {"workers_per_trial": 2, "concurrency": 1},
        LAPTOP,
        r"1 x \(0\.01 trial \+ 2 x 1 worker \+ 0 data\) = 2\.01 of 2 CPUs.*1 x node \(2 CPUs\).*At most 0 trial",
    ),
    "more trials than CPUs": ({"concurrency": 3}, LAPTOP, r"3 x .* = 3 of 2 CPUs.*At most 2 trial.*concurrency"),
    "a worker larger than a node": (
        {"cpus_per_worker": 4},
        LAPTOP,
        r"a worker needs 4 CPUs on one node, but no node has that: 1 x node \(2 CPUs\)",
    ),
    "a GPU where there is none": ({"gpus_per_worker": 1}, LAPTOP, r"needs 1 CPU, 1 GPU on one node, but no node has"),
    "more GPUs than there are": ({"workers_per_trial": 16, "gpus_per_worker": 1}, GPUS, r"1 x 16 = 16 of 8 GPUs"),
    "3 workers of 1.9 CPUs on two nodes of 3": (
        {"workers_per_trial": 3, "cpus_per_worker": 1.9},
        THREE,
        r"1 x \(0\.01 trial \+ 3 x 1\.9 worker \+ 0 data\) = 5\.71 of 6 CPUs.*2 x node \(3 CPUs\).*At most 0 trial",
    ),
    "4 workers of 2 CPUs and a GPU where the GPU node has 4 CPUs": (
        {"workers_per_trial": 4, "cpus_per_worker": 2},
        Nodes((NodeKind("cpu", 16), NodeKind("gpu", 4, 4))),
        r"1 x \(0\.01 trial \+ 4 x 2 worker \+ 0 data\) = 8\.01 of 20 CPUs; 1 x 4 = 4 of 4 GPUs.*At most 0 trial",
    ),
    "16 CPUs and a GPU where no node has both": (
        {"cpus_per_worker": 16, "gpus_per_worker": 1},
        Nodes((NodeKind("cpu", 32), NodeKind("gpu", 8, 1))),
        r"a worker needs 16 CPUs, 1 GPU on one node, but no node has that: 1 x cpu \(32 CPUs\), 1 x gpu \(8 CP",
    ),
    "6 trials of 0.6 GPU on 4 GPUs": (
        {"concurrency": 6, "gpus_per_worker": 0.6},
        one_node(16, 4),
        r"6 x 0\.6 = 3\.6 of 4 GPUs.*At most 4 trial",
    ),
    "two types of 4 under one cap of 4": (
        {"concurrency": 8},
        cloud(may("small", 8, 1, 4), may("spot", 8, 1, 4), most=4),
        r"8 x 1 = 8 of 4 GPUs, on nodes 1 x head \(4 CPUs\); to be started up to 4 x small .*, 4 in all.*At most 4 tr",
    ),
    "a fraction of a GPU for a worker group": (
        {"workers_per_trial": 6, "gpus_per_worker": 0.6},
        one_node(16, 4),
        "NCCL refuses two ranks on one device",
    ),
    "one and a half GPUs": ({"gpus_per_worker": 1.5}, one_node(16, 4), "a part of one GPU, or whole ones, but got 1.5"),
    "a data task that finds no CPU on any node": (
        {"cpus_per_worker": 3, "concurrency": 2},
        THREE,
        r"2 x \(3 trial \+ 0 x 3 worker \+ 0\.5 data\) = 7 of 6 CPUs.*At most 1 trial",
    ),
}


@pytest.mark.parametrize("name", UNPLACEABLE)
def test_what_no_node_holds_is_refused_with_the_sum_and_the_nodes(name: str) -> None:
    fields, available, message = UNPLACEABLE[name]
    with pytest.raises(PlanError, match=message):
        make_plan(search(**fields), "data task" in name, available)


A, B = may("a", 8, 1, 2), may("b", 8, 4, 1)
MIXED = {  # fields, nodes, streams -> concurrency, started
    "a head of 4 CPUs and GPU nodes, which run": (
        {},
        Nodes((NodeKind("head", 4, head=True), NodeKind("gpu", 8, 1, 3, 3))),
        (3, {}),
    ),
    "Ray Data's task goes to the head, where the GPU nodes are full": (
        {"cpus_per_worker": 8},
        Nodes((NodeKind("head", 4, head=True), NodeKind("gpu", 8, 1, 3, 3))),
        (3, {}),
    ),
    "trials on different types": ({}, cloud(A, B), (6, {1: 2, 2: 1})),
    "one that runs before one that is started": (
        {"concurrency": 2},
        joined([UpNode(4, 0, True), UpNode(8, 1)], (A, B), "head", 3),
        (2, {2: 1}),
    ),
    "the type that holds most, under a cap": ({}, cloud(A, B, most=2), (5, {1: 1, 2: 1})),
    "a worker group over nodes of two types": (
        {"workers_per_trial": 6, "cpus_per_worker": 2},
        cloud(A, B),
        (1, {1: 2, 2: 1}),
    ),
    "a worker group that nodes hold too": ({"workers_per_trial": 2, "cpus_per_worker": 1.9}, THREE, (1, {})),
    "CPUs, though there are GPUs": ({"gpus_per_worker": 0}, cloud(A, head_cpus=4), (20, {1: 2})),
    "a fraction for one worker": (
        {"workers_per_trial": 1, "gpus_per_worker": 0.5, "cpus_per_worker": 0.5},
        one_node(4, 1),
        (2, {}),
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_nodes_are_planned(name: str) -> None:
    fields, available, expected = MIXED[name]
    plan = make_plan(search(**fields), "Ray Data" in name, available)
    assert (plan.concurrency, plan.to_start()) == expected


def test_a_search_that_would_fit_the_sum_of_two_nodes_is_planned_by_each() -> None:
    plan = make_plan(search(cpus_per_worker=2), False, THREE)
    assert plan.concurrency == 2 and 3 * plan.cpus_per_trial <= THREE.cpus


def test_placing_puts_what_needs_no_gpu_beside_the_gpus() -> None:
    nodes = Nodes((NodeKind("gpu", 4, 1), NodeKind("cpu", 4)))
    placed = nodes.first_fit([Bundle(1, 4, 1), Bundle(8, 0.5)])
    assert placed is not None and dict(placed.used) == {0: 1, 1: 1}
    assert nodes.first_fit([Bundle(1, 4, 1), Bundle(9, 0.5)]) is None


def test_nodes_that_run_are_told_from_those_that_may_come() -> None:
    up = [UpNode(4, 0, True), UpNode(8, 1), UpNode(2)]
    nodes = joined(up, (A, may("b", 4, 0, 3)), "head", max_workers=3)
    assert nodes.text() == (
        "1 x head (4 CPUs), 1 x node (2 CPUs), 1 x a (8 CPUs, 1 GPU); "
        "to be started up to 1 x a (8 CPUs, 1 GPU), up to 3 x b (4 CPUs), 1 in all"
    )
    assert (nodes.cpus, nodes.gpus) == (4 + 8 + 2 + 8, 2)
    assert nodes.counted([*up, UpNode(8, 1)]) == {0: 1, 1: 1, 2: 2}
    now = nodes.as_now({0: 1, 2: 2}, without={3})
    assert [(kind.up, kind.most) for kind in now.kinds] == [(1, 1), (0, 1), (2, 2), (0, 0)]


def test_a_cluster_file_is_read_by_types(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "max_workers: 4\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 4}}\n  gpu: {max_workers: 4, resources: {CPU: 8, GPU: 1}}\n"
        "  any: {resources: {CPU: 2}}"
    )
    found = node_types(str(path))
    assert found.head == NodeKind("head", 4) and found.max_workers == 4
    assert found.kinds == (may("gpu", 8, 1, 4), may("any", 2, 0, 4))  # no more of a type than of all
    nodes = found.beside()
    assert (nodes.cpus, nodes.gpus, nodes.most_started) == (36, 4, 4)
    assert found.beside((UpNode(3, 0, True), UpNode(8, 1))).text().startswith("1 x head (3 CPUs), 1 x gpu (8 CPUs")
    path.write_text("available_node_types: {head: {}}")
    with pytest.raises(PlanError, match="states no CPU"):
        node_types(str(path))


@pytest.mark.parametrize("name", ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "gpu.yaml", "gcp.yaml"])
def test_the_types_of_every_shipped_cluster_file_are_read(name: str) -> None:
    found = node_types(str(ROOT / "cluster" / name))
    (kind,) = found.kinds
    assert (kind.cpus, kind.gpus, kind.most) == (8, 1, 4) and found.head and found.head.cpus == 4


def test_a_manifest_without_cpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("apiVersion: ray.io/v1\nkind: RayCluster\nspec: {headGroupSpec: {}}\n")
    with pytest.raises(PlanError, match="states no CPU"):
        node_types(str(tmp_path / "none.yaml"))


def test_what_a_cluster_manager_told_ray_is_read(monkeypatch) -> None:
    from ray.core.generated import autoscaler_pb2

    config = autoscaler_pb2.ClusterConfig()
    config.node_group_configs.add(name="gpu", max_count=3).resources.update({"CPU": 8, "GPU": 1})
    config.node_group_configs.add(name="any", max_count=-1).resources.update({"CPU": 2})
    config.node_group_configs.add(name="none", max_count=0).resources.update({"CPU": 2})
    state = SimpleNamespace(get_cluster_config=lambda: config)
    monkeypatch.setattr("ray._private.state.state", state)
    assert ray_private.autoscaler_node_types() == [("gpu", 8, 1, 3), ("any", 2, 0, ray_private.UNLIMITED)]
    state.get_cluster_config = lambda: None
    assert ray_private.autoscaler_node_types() == []


def test_a_plan_that_does_not_fit_starts_nothing() -> None:
    assert Plan(9, 0, 1.0, 1.0, 1.0, 0.0, LAPTOP).to_start() == {}
