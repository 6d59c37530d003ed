"""Nodes that a plan counts on and that do not run yet: what is said of them, and a search that goes on without."""

from __future__ import annotations

from atose_ray.config import SearchConfig
from atose_ray.search.awaited import AwaitedNodes
from atose_ray.search.nodes import NodeKind, UpNode, joined
from atose_ray.search.plan import make_plan

HEAD, GPU = UpNode(4, 0, True), UpNode(8, 1)
CARD = "gpu (8 CPUs, 1 GPU)"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def awaited(up: list[UpNode], most: int = 3, **search: object) -> tuple[AwaitedNodes, Clock]:
    nodes = joined(up, (NodeKind("gpu", 8, 1, 0, most),), "head", most)
    plan = make_plan(SearchConfig.model_validate({"trials": 9, **search}), False, nodes)
    clock = Clock()
    return AwaitedNodes(plan, wait_s=600.0, clock=clock), clock


def test_what_comes_is_said_with_the_time_it_took() -> None:
    nodes, clock = awaited([HEAD])
    assert nodes.due() and not nodes.due()
    assert nodes.look([HEAD], waiting=False) == []
    clock.now = 5.0
    assert nodes.look([HEAD], waiting=True) == []
    clock.now = 65.0
    assert nodes.look([HEAD, GPU], waiting=True) == [f"{CARD}: 1 of 3 up after 60 s"]
    clock.now = 665.0 - 1
    assert nodes.look([HEAD, GPU, GPU], waiting=True) == [f"{CARD}: 2 of 3 up after 659 s"]  # each one has its time
    clock.now += 599.0
    assert nodes.look([HEAD, GPU, GPU], waiting=True) == [] and not nodes.missing
    assert nodes.look([HEAD, GPU, GPU, GPU], waiting=False) == [f"{CARD}: 3 of 3 up after 1258 s"]
    four = [HEAD, GPU, GPU, GPU, GPU]
    assert nodes.look(four, waiting=False) == [f"{CARD}: 4 up, more than the 3 of the plan"]
    assert nodes.look([HEAD], waiting=False) == [f"{CARD}: 0 of 3 up"]  # the search needs them no more
    clock.now += 9999.0
    assert nodes.look([HEAD], waiting=False) == [] and nodes.may_launch(9)


def test_a_type_that_does_not_come_is_named_and_the_search_goes_on_with_what_is_there() -> None:
    nodes, clock = awaited([HEAD])
    nodes.look([HEAD], waiting=True)
    clock.now = 30.0
    nodes.look([HEAD, GPU], waiting=True)
    assert nodes.may_launch(2) and nodes.limit() == 3
    clock.now = 630.0
    (line,) = nodes.look([HEAD, GPU], waiting=True, failed={"gpu"})
    assert line.startswith(f"{CARD} has not come in 600 s (1 of 3 up, the autoscaler says that it could not be had)")
    assert nodes.look([HEAD, GPU], waiting=True) == []  # once
    assert (nodes.limit(), nodes.may_launch(0), nodes.may_launch(1)) == (1, True, False)
    assert nodes.hopeless() is None
    assert nodes.look([HEAD, GPU, GPU], waiting=True) == [f"{CARD}: 2 of 3 up after 630 s"]  # it came after all
    assert nodes.limit() == 3 and nodes.may_launch(2)


def test_a_search_that_can_run_nothing_ends_with_the_reason() -> None:
    nodes, clock = awaited([HEAD])
    nodes.look([HEAD], waiting=True)
    clock.now = 599.0
    assert nodes.look([HEAD], waiting=True) == [] and nodes.hopeless() is None
    clock.now = 600.0
    assert len(nodes.look([HEAD], waiting=True)) == 1
    why = nodes.hopeless()
    assert why is not None and f"none of {CARD} came in 600 s, and a trial needs 1 CPU, 1 GPU on one node" in why
    assert "running: 1 x head (4 CPUs)" in why and "the same command goes on" in why and "gpus_per_worker=0" in why


def test_the_time_counts_only_while_a_trial_waits() -> None:
    nodes, clock = awaited([HEAD])
    nodes.look([HEAD, GPU], waiting=True)
    clock.now = 500.0
    nodes.look([HEAD, GPU], waiting=False)
    clock.now = 1000.0
    nodes.look([HEAD, GPU], waiting=True)
    clock.now = 1599.0
    assert nodes.look([HEAD, GPU], waiting=True) == []
    clock.now = 1600.0
    assert len(nodes.look([HEAD, GPU], waiting=True)) == 1


def test_a_plan_that_starts_nothing_awaits_nothing() -> None:
    nodes, _ = awaited([HEAD, GPU, GPU, GPU])
    assert not nodes.due() and nodes.may_launch(99) and nodes.hopeless() is None
    assert nodes.look([HEAD], waiting=True) == []
