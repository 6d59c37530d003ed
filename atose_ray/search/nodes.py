"""The nodes of a cluster, those that its autoscaler may start included, and what first fit places on them.

A process and what it asks for is on one node, so sums over a cluster say nothing: every bundle is held against nodes.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

EPS = 1e-9  # of sums of decimals


@dataclass(frozen=True)
class Bundle:
    """What one process asks for, and how many of them a trial has."""

    count: int
    cpus: float
    gpus: float = 0.0

    def text(self) -> str:
        """For a person."""
        return amounts(self.cpus, self.gpus)


@dataclass(frozen=True)
class NodeKind:
    """Nodes that have the same. name: the autoscaler's node type, "" where it is none of its own. up: how many run.
    most: how many of them there can be, those that run included. head: whether it is the cluster's head alone."""

    name: str
    cpus: float
    gpus: float = 0.0
    up: int = 1
    most: int = 1
    head: bool = False

    def holds(self, bundle: Bundle, cpus: float | None = None) -> int:
        """How many such processes fit on one node, by its GPUs and its CPUs (or what is left of these). A part of a GPU
        is a part of one device: two processes of 0.6 need two."""
        room = math.inf if bundle.cpus == 0 else (self.cpus if cpus is None else cpus) / bundle.cpus
        if 0 < bundle.gpus < 1:
            room = min(room, int(self.gpus + EPS) * int(1 / bundle.gpus + EPS))
        elif bundle.gpus:
            room = min(room, self.gpus / bundle.gpus)
        return bundle.count if room == math.inf else max(0, int(room + EPS))

    def text(self) -> str:
        """For a person: gpu (8 CPUs, 1 GPU)."""
        return f"{self.name or 'node'} ({amounts(self.cpus, self.gpus)})"


@dataclass(frozen=True)
class UpNode:
    """A node that runs. head: whether it is the one that does not come and go."""

    cpus: float
    gpus: float = 0.0
    head: bool = False


@dataclass(frozen=True)
class Placement:
    """Where first fit put bundles: how many nodes of each kind (by index) are started, and how many hold any."""

    started: Mapping[int, int]
    used: Mapping[int, int]


@dataclass
class _Room:
    """An open node while bundles are placed: its kind (by index), and the CPUs that are left."""

    kind: int
    cpus: float
    used: bool = False


@dataclass(frozen=True)
class Nodes:
    """What a cluster has, and what it can have. most_started: nodes of all kinds together that may yet be started (a
    cluster's `max_workers`, less the workers that run); None is no such limit."""

    kinds: tuple[NodeKind, ...]
    most_started: int | None = None

    @property
    def cpus(self) -> float:
        """CPUs of all nodes that there can be at a time."""
        return self._most(lambda kind: kind.cpus)

    @property
    def gpus(self) -> float:
        """GPUs of all nodes that there can be at a time."""
        return self._most(lambda kind: kind.gpus)

    def _most(self, has: Callable[[NodeKind], float]) -> float:
        left = math.inf if self.most_started is None else self.most_started
        total = sum(has(kind) * kind.up for kind in self.kinds)
        for kind in sorted(self.kinds, key=has, reverse=True):
            started = min(kind.most - kind.up, left)
            total, left = total + has(kind) * started, left - started
        return total

    def gpus_each(self, asked: float | None) -> float:
        """GPUs of a process that trains: what is asked for; where nothing is, one on a cluster that has GPUs or may
        start some."""
        return asked if asked is not None else float(self.gpus > 0)

    def holds(self, bundle: Bundle) -> bool:
        """Whether any node that there can be holds one such process."""
        startable = self.most_started is None or self.most_started > 0
        return any(kind.holds(bundle) > 0 and (kind.up or (kind.most and startable)) for kind in self.kinds)

    def first_fit(self, bundles: Sequence[Bundle]) -> Placement | None:
        """Put all bundles on nodes, the first ones first, on nodes that run before others are started; None where they
        do not fit. Only the first bundles may ask for GPUs.

        What needs no GPU goes to nodes without one while there is room, as Ray does. Of nodes that can be started the
        kind that holds most of a bundle is taken, where the autoscaler may choose another: this is the most that fits.
        """
        left = [_Room(index, kind.cpus) for index, kind in enumerate(self.kinds) for _ in range(kind.up)]
        startable = math.inf if self.most_started is None else self.most_started
        started: Counter[int] = Counter()
        for bundle in bundles:
            count = bundle.count
            for room in sorted(left, key=lambda room: not bundle.gpus and self.kinds[room.kind].gpus > 0):
                count -= self._take(room, bundle, count)
            while count > 0:
                able = [
                    (kind.holds(bundle), -kind.gpus, -index)
                    for index, kind in enumerate(self.kinds)
                    if kind.holds(bundle) > 0 and started[index] < kind.most - kind.up
                ]
                if not able or startable < 1:
                    return None
                index = -max(able)[2]
                started[index], startable = started[index] + 1, startable - 1
                left.append(_Room(index, self.kinds[index].cpus))
                count -= self._take(left[-1], bundle, count)
        return Placement(started, Counter(room.kind for room in left if room.used))

    def _take(self, room: _Room, bundle: Bundle, count: int) -> int:
        """Put up to `count` of a bundle on an open node; returns how many went there."""
        taken = min(count, self.kinds[room.kind].holds(bundle, room.cpus))
        room.cpus, room.used = room.cpus - taken * bundle.cpus, room.used or taken > 0
        return taken

    def most_trials(self, bundles: Sequence[Bundle], at_most: int) -> int:
        """How many trials of these bundles fit at a time, up to `at_most`."""
        low, high = 0, at_most
        while low < high:
            middle = (low + high + 1) // 2
            if self.first_fit(times(middle, bundles)):
                low = middle
            else:
                high = middle - 1
        return low

    def counted(self, up: Sequence[UpNode]) -> Counter[int]:
        """How many nodes of each kind (by index) are among these. One is of the first kind that has the same CPUs and
        GPUs."""
        found: Counter[int] = Counter()
        for node in up:
            of = (node.cpus, node.gpus, node.head)
            same = (i for i, kind in enumerate(self.kinds) if (kind.cpus, kind.gpus, kind.head) == of)
            found.update([index] if (index := next(same, None)) is not None else [])
        return found

    def as_now(self, up: Mapping[int, int], without: Collection[int] = ()) -> "Nodes":
        """The same cluster with so many nodes of its kinds (by index) running. without: kinds of which no more come."""
        kinds = []
        for index, kind in enumerate(self.kinds):
            run = up.get(index, 0)
            kinds.append(dataclasses.replace(kind, up=run, most=run if index in without else max(kind.most, run)))
        grown = sum(now.up - before.up for now, before in zip(kinds, self.kinds, strict=True))
        most = None if self.most_started is None else max(0, self.most_started - grown)
        return Nodes(tuple(kinds), most)

    def text(self) -> str:
        """What there is and what can be, for a person."""
        parts = [f"{kind.up} x {kind.text()}" for kind in self.kinds if kind.up]
        more = [f"up to {kind.most - kind.up} x {kind.text()}" for kind in self.kinds if kind.most > kind.up]
        if more and self.most_started is not None and len(more) > 1:
            more[-1] += f", {self.most_started} in all"
        return "; to be started ".join(filter(None, [", ".join(parts), ", ".join(more)])) or "none"


def amounts(cpus: float, gpus: float) -> str:
    """8 CPUs, 1 GPU."""
    counts = [(cpus, "CPU")] + [(gpus, "GPU")] * (gpus > 0)
    return ", ".join(f"{count:g} {what}{'s' if count != 1 else ''}" for count, what in counts)


def times(trials: int, bundles: Sequence[Bundle]) -> list[Bundle]:
    """The bundles of so many trials."""
    return [dataclasses.replace(bundle, count=trials * bundle.count) for bundle in bundles]


def one_node(cpus: float, gpus: float = 0) -> Nodes:
    """A cluster of one node."""
    return Nodes((NodeKind("", cpus, gpus),))


def joined(up: Sequence[UpNode], may: Sequence[NodeKind] = (), head: str = "", max_workers: int | None = None) -> Nodes:
    """The nodes that run, and those that an autoscaler may start beside them, as one cluster.

    may: its node types, with how many of each there may be beside the head. head: what the head's type is called.
    max_workers: how many nodes of all types there may be, beside the head. A node that runs is of the type that has the
    same CPUs and GPUs; one that has what no type has is of none.
    """
    kinds = [dataclasses.replace(kind, up=0) for kind in may]
    rest: Counter[UpNode] = Counter()
    for node in up:
        at = next((i for i, kind in enumerate(kinds) if (kind.cpus, kind.gpus) == (node.cpus, node.gpus)), None)
        if at is None or node.head:
            rest[node] += 1
        else:
            kinds[at] = dataclasses.replace(kinds[at], up=kinds[at].up + 1, most=max(kinds[at].most, kinds[at].up + 1))
    fixed = [NodeKind(head if node.head else "", node.cpus, node.gpus, n, n, node.head) for node, n in rest.items()]
    workers = sum(not node.head for node in up)
    return Nodes((*fixed, *kinds), None if max_workers is None else max(0, max_workers - workers))
