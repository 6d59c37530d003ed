"""Says what a trial waits for. Ray itself waits in silence for resources that never come, and Tune for a process that
hangs."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from atose_ray.runtime.ray_private import asked_by, autoscaler_report, free_by_node
from atose_ray.search.nodes import Bundle, Nodes
from atose_ray.search.progress import SILENT_S

PENDING_S, LOOK_EVERY_S = 30.0, 5.0
Amounts = Mapping[str, float]


@dataclass
class Wait:
    """One trial's: since when it stands as it does, and when to say so (again). pace: its longest epoch so far."""

    status: str
    since: float
    say_at: float
    pace: float = 0.0
    reports: int = 0


@dataclass
class Watchdog:
    """Looks at the trials every few seconds.

    name_of: a trial's readable name. pending_s: how long a trial may wait for its resources; silent_s: how long one
    that runs may report nothing (or three times its own pace). Either is said again after twice the time. nodes: what
    the plan counts on, those that are to be started included.
    """

    name_of: Callable[[Any], str]
    nodes: Nodes | None = None
    pending_s: float = PENDING_S
    silent_s: float = SILENT_S
    clock: Callable[[], float] = time.monotonic
    waits: dict[str, Wait] = field(default_factory=dict)
    looked: float = float("-inf")

    def reported(self, trial: Any) -> None:
        """A trial reported."""
        now, wait = self.clock(), self.waits.get(trial.trial_id)
        pace = max(wait.pace, now - wait.since) if wait and wait.status == "RUNNING" else 0.0
        reports = wait.reports + 1 if wait else 1
        self.waits[trial.trial_id] = Wait("RUNNING", now, now + max(self.silent_s, 3 * pace), pace, reports)

    def lines(self, trials: Sequence[Any]) -> list[str]:
        """What to say now: nothing, mostly."""
        now, said = self.clock(), []
        if now - self.looked < min(LOOK_EVERY_S, self.pending_s):
            return []
        self.looked = now
        for trial in trials:
            wait = self.waits.get(trial.trial_id)
            if wait is None or wait.status != trial.status:
                limit = self.pending_s if trial.status == "PENDING" else self.silent_s
                self.waits[trial.trial_id] = Wait(trial.status, now, now + limit)
            elif trial.status in ("PENDING", "RUNNING") and now >= wait.say_at:
                wait.say_at = wait.since + 2 * (now - wait.since)
                said.append(self._line(trial, wait, trials, now - wait.since))
        return said

    def _line(self, trial: Any, wait: Wait, trials: Sequence[Any], waited_s: float) -> str:
        name, asked, last = self.name_of(trial), asked_by(trial), trial.last_result or {}
        if trial.status == "PENDING":
            return f"{name} waits for {show_bundles(asked)} since {waited_s:.0f} s: {self.free_line(asked, trials)}"
        head, groups = f"{name} has reported nothing for {waited_s:.0f} s", waiting_groups()
        if groups and wait.reports == 0:
            return f"{head}: its workers wait for {show_bundles(groups[0])}: {self.free_line(groups[0], trials)}"
        place = f"process {last['pid']} on {last['node_ip']}" if "pid" in last and "node_ip" in last else "its process"
        pace = f"its longest epoch took {wait.pace:.0f} s" if wait.pace else "it has not finished an epoch here"
        return (
            f"{head} ({pace}): {place} hangs, or reads from a store that does not answer. Its log is trial-{name}.log "
            "in Ray's dashboard; kill that process and the trial goes on from its last epoch"
        )

    def free_line(self, asked: Sequence[Amounts], trials: Sequence[Any]) -> str:
        """What is free of the kinds that are asked for, node by node, who holds the rest, and what is starting."""
        kinds = [kind for kind in dict.fromkeys(k for bundle in asked for k in bundle) if kind != "object_store_memory"]
        at: dict[str | None, list[str]] = {}
        for one in trials:
            if one.status == "RUNNING":
                at.setdefault((one.last_result or {}).get("node_ip"), []).append(self.name_of(one))
        free, parts = free_by_node(), []
        nodes = [node for node in ray.nodes() if node["Alive"]]
        for node in nodes:
            has, address = node["Resources"], node["NodeManagerAddress"]
            left = free.get(node["NodeID"], {})
            counts = ", ".join(f"{left.get(kind, 0.0):g} of {has.get(kind, 0.0):g} {kind} free" for kind in kinds)
            there = f" ({', '.join(at[address])} there)" if address in at else ""
            parts.append(f"node {address} has {counts}{there}")
        if None in at:
            parts.append(f"starting now: {', '.join(at[None])}")
        fits = (any(all(n["Resources"].get(k, 0) >= v for k, v in bundle.items()) for n in nodes) for bundle in asked)
        if not all(fits):
            types = self.startable(asked)
            parts.append(
                f"no node that runs is large enough for it: it waits for one of type {' or '.join(types)} to be started"
                if types
                else "no node is large enough for it: it will wait for ever unless one is added"
            )
        return "; ".join([*parts, *starting_nodes()])

    def startable(self, asked: Sequence[Amounts]) -> list[str]:
        """The types of node that may yet be started and hold the largest of these bundles."""
        largest = max(asked, key=lambda bundle: (bundle.get("GPU", 0.0), bundle.get("CPU", 0.0)), default={})
        one = Bundle(1, largest.get("CPU", 0.0), largest.get("GPU", 0.0))
        kinds = self.nodes.kinds if self.nodes else ()
        return [kind.text() for kind in kinds if kind.most > kind.up and kind.holds(one) > 0]


def show_bundles(bundles: Sequence[Amounts]) -> str:
    """What is asked for: 2 x (1 CPU, 1 GPU)."""
    texts = Counter(", ".join(f"{amount:g} {kind}" for kind, amount in sorted(bundle.items())) for bundle in bundles)
    return " and ".join(f"{count} x ({text})" if count > 1 else text for text, count in texts.items())


def waiting_groups() -> list[list[Amounts]]:
    """The bundles of every placement group that is not placed yet."""
    table: dict[str, Any] = ray.util.placement_group_table()
    return [list(one["bundles"].values()) for one in table.values() if one["state"] in ("PENDING", "RESCHEDULING")]


def failed_types() -> set[str]:
    """Node types of which the autoscaler says that it could not have one."""
    report = autoscaler_report()
    known = (report.get("node_availability_summary") or {}).get("node_availabilities") or {}
    away = {name for name, one in known.items() if not one.get("is_available", True)}
    return away | {kind for _, kind in report.get("failed_nodes") or []}


def starting_nodes() -> list[str]:
    """What the autoscaler says of nodes that are on their way or could not be had; nothing where there is none."""
    report = autoscaler_report()
    coming = [f"{count} x {kind}" for kind, count in (report.get("pending_launches") or {}).items()]
    coming += [f"{kind} at {address} ({status})" for address, kind, status in report.get("pending_nodes") or []]
    failed = sorted(failed_types())
    said = [("nodes starting", coming), ("nodes that failed to start", failed)]
    return [f"{what}: {', '.join(names)}" for what, names in said if names]
