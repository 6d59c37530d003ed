"""Ray's object store, node by node: how much it holds, how much of it was spilled to disk, and what to say of that."""

import time

import ray

from atose_ray.runtime.ray_private import store_figures
from atose_ray.search.clip_plan import NodeStore, size

SAY_EVERY_S = 60.0
HINT = "fewer trials at a time (search.concurrency), a larger object store (--object-store) or more memory per node"


def node_stores() -> list[NodeStore]:
    """The nodes of the cluster this process has joined. One that does not answer counts as empty."""
    found = []
    for node in ray.nodes():
        has = node["Resources"]
        if node["Alive"]:
            total = int(has.get("object_store_memory", 0))
            place = node["NodeID"], node["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0)
            found.append(NodeStore(*place, total, *store_figures(node)))
    return found


class Spilling:
    """Notices what is spilled from now on, and says so at most once a minute."""

    def __init__(self) -> None:
        self.before = {store.node_id: (store.spilled, store.restored) for store in node_stores()}
        self.since: dict[str, tuple[int, int]] = {}  # of a node that died, what it had said
        self.said, self.looked = (0, 0), time.monotonic()

    def line(self, last: bool = False) -> str | None:
        """What to say now, if there is anything new. last: the search is over, so the minute need not be."""
        if not last and time.monotonic() - self.looked < SAY_EVERY_S:
            return None
        self.looked = time.monotonic()
        for store in node_stores():
            before = self.before.get(store.node_id, (0, 0))
            self.since[store.node_id] = store.spilled - before[0], store.restored - before[1]
        figures = self.since.values()
        spilled, restored, nodes = sum(s for s, _ in figures), sum(r for _, r in figures), sum(map(any, figures))
        if (spilled, restored) == self.said:
            return None
        self.said = spilled, restored
        return (
            f"the object store of {nodes} node(s) was full: {size(spilled)} were written to disk and {size(restored)} "
            f"read back so far, which is slow. Hint: {HINT}"
        )
