"""Ray's object store, node by node: how much it holds, how much of it was spilled to disk, and what to say of that.

The figures are the raylets' own (GetNodeStats), the source that `ray memory` reads: unlike the dashboard's and
Prometheus' they are there on every cluster, now, and per node.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc  # type: ignore[import-untyped]
import ray
from ray._private import internal_api

SAY_EVERY_S = 60.0
WAY_OUT = "fewer trials at a time (search.concurrency), a larger object store (--object-store) or more memory per node"


@dataclass(frozen=True)
class NodeStore:
    """One node: what it can run, and the bytes of its object store. spilled, restored: since the node started."""

    node_id: str
    address: str
    cpus: float
    gpus: float
    total: int
    used: int
    spilled: int
    restored: int

    @property
    def free(self) -> int:
        """Bytes that nothing lies in."""
        return max(0, self.total - self.used)


def node_stores() -> list[NodeStore]:
    """The nodes of the cluster this process has joined. One that does not answer counts as empty."""
    found = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        stated = node["Resources"]
        total, figures = int(stated.get("object_store_memory", 0)), (0, 0, 0)
        with contextlib.suppress(grpc.RpcError):  # it has just died, or is too busy
            stats = internal_api.node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
            figures = stats.object_store_bytes_used, stats.spilled_bytes_total, stats.restored_bytes_total
        cpus, gpus = stated.get("CPU", 0.0), stated.get("GPU", 0.0)
        found.append(NodeStore(node["NodeID"], node["NodeManagerAddress"], cpus, gpus, total, *figures))
    return found


class Spilling:
    """Notices what is spilled from now on, and says so at most once a minute."""

    def __init__(self, stores: Callable[[], list[NodeStore]] = node_stores) -> None:
        self.stores = stores
        self.before = {store.node_id: (store.spilled, store.restored) for store in stores()}
        self.since: dict[str, tuple[int, int]] = {}  # of a node that died, what it had said
        self.said, self.looked = (0, 0), time.monotonic()

    def line(self, last: bool = False) -> str | None:
        """What to say now, if there is anything new. last: the search is over, so the minute need not be."""
        if not last and time.monotonic() - self.looked < SAY_EVERY_S:
            return None
        self.looked = time.monotonic()
        for store in self.stores():
            before = self.before.get(store.node_id, (0, 0))
            self.since[store.node_id] = store.spilled - before[0], store.restored - before[1]
        figures = self.since.values()
        spilled, restored, nodes = sum(s for s, _ in figures), sum(r for _, r in figures), sum(map(any, figures))
        if (spilled, restored) == self.said:
            return None
        self.said = spilled, restored
        return (
            f"the object store of {nodes} node(s) was full: {size(spilled)} were written to disk and {size(restored)} "
            f"read back so far, which is slow. Way out: {WAY_OUT}"
        )


def size(count: float) -> str:
    """Bytes for a person."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
