"""Nodes that a plan counts on and that do not run yet: how long they take, and going on without a type that does not
come (no quota, no spot).

The limit of trials at a time is that of the plan, with the nodes to come: Tune fixes its own at the start
(ray-project/ray#43451). Trials that wait for a node are what makes an autoscaler start it.
"""

import time
from collections.abc import Callable, Collection, Sequence

from atose_ray.search.nodes import UpNode
from atose_ray.search.plan import NODE_WAIT_S, Plan

LOOK_EVERY_S = 1.0


class AwaitedNodes:
    """wait_s: for a further node of a type, while a trial waits."""

    def __init__(self, plan: Plan, wait_s: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan, self.clock, self.wait_s = plan, clock, NODE_WAIT_S if wait_s is None else wait_s
        kinds = plan.available.kinds
        self.up = {index: kind.up for index, kind in enumerate(kinds)}
        self.wanted = {index: kinds[index].up + count for index, count in plan.to_start().items()}
        self.asked: dict[int, float] = {}  # since when a trial waits for one of a kind
        self.moved: dict[int, float] = {}  # when one came last, since then
        self.missing: set[int] = set()
        self.looked = float("-inf")

    def due(self) -> bool:
        """Whether it is time for a look."""
        now = self.clock()
        if not self.wanted or now - self.looked < LOOK_EVERY_S:
            return False
        self.looked = now
        return True

    def look(self, nodes: Sequence[UpNode], waiting: bool, failed: Collection[str] = ()) -> list[str]:
        """What to say of the nodes that run now. waiting: whether a trial waits for its resources. failed: types of
        which the autoscaler says that they could not be had."""
        now, counts, said = self.clock(), self.plan.available.counted(nodes), []
        for index, wanted in self.wanted.items():
            kind, before, run = self.plan.available.kinds[index], self.up[index], counts[index]
            since = self.asked.get(index)
            if run != before:
                took = f" after {now - since:.0f} s" if since is not None and run > before else ""
                planned = f" of {wanted} up" if run <= wanted else f" up, more than the {wanted} of the plan"
                said.append(f"{kind.text()}: {run}{planned}{took}")
                self.moved[index] = now
                if run > before:
                    self.missing.discard(index)
            if run >= wanted or not waiting:
                self.asked.pop(index, None)
                self.moved.pop(index, None)
            elif since is None:
                self.asked[index] = self.moved[index] = now
            elif index not in self.missing and now - self.moved[index] >= self.wait_s:
                self.missing.add(index)
                why = ", the autoscaler says that it could not be had" if kind.name in failed else ""
                said.append(
                    f"{kind.text()} has not come in {now - self.moved[index]:.0f} s ({run} of {wanted} up{why}): no "
                    "quota, no spot, or its machines do not join. The search goes on with what is there; should one "
                    "come later, it is used"
                )
            self.up[index] = run
        self.up |= {index: counts[index] for index in self.up}
        return said

    def limit(self) -> int:
        """Trials at a time, without the types that do not come."""
        if not self.missing:
            return self.plan.concurrency
        now = self.plan.available.as_now(self.up, self.missing)
        return now.most_trials(self.plan.bundles, self.plan.concurrency)

    def may_launch(self, running: int) -> bool:
        """Whether one more trial has a place to come to, beside those that run or wait."""
        return not self.missing or running < self.limit()

    def hopeless(self) -> str | None:
        """Why no trial can run, where none can without the types that do not come."""
        if not self.missing or self.limit():
            return None
        kinds = self.plan.available.kinds
        names = ", ".join(kinds[index].text() for index in sorted(self.missing))
        have = ", ".join(f"{count} x {kinds[index].text()}" for index, count in self.up.items() if count)
        cpus = "; to train on the CPUs that are there, --set search.gpus_per_worker=0" if self.plan.worker_gpus else ""
        return (
            f"no trial can run: none of {names} came in {self.wait_s:.0f} s, and a trial needs "
            f"{self.plan.trains.text()} on one node (running: {have or 'none'}). Nothing is lost: the same command "
            f"goes on from here. Look at the cloud's quota and spot capacity{cpus}"
        )
