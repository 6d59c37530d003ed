"""Where the trials of a search get their clips.

Clips that `auto` leaves open are shared, one copy per node, when train and valid need at most STORE_PART of what the
fullest store of a node that may train has free; otherwise each trial keeps its clips in memory itself or streams them
(data/memory.py, Ray Data). Only nodes that run have a store to look at: where none of those that train is up yet,
nothing is shared.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from atose_ray.config import RunConfig, SearchConfig
from atose_ray.data.shards import Manifest
from atose_ray.search.nodes import Bundle, NodeKind, Nodes
from atose_ray.search.plan import Plan
from atose_ray.types import Split

SPLITS: tuple[Split, ...] = ("train", "valid")
STORE_PART = 1 / 2
BLOCKS = 4  # of Ray Data's: one read, one waiting, one in the training process, and one that is late


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


def size(count: float) -> str:
    """Bytes for a person."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


@dataclass(frozen=True)
class ClipPlan:
    """Where the trials of a search get their clips.

    shared: one copy per node. streams: else through Ray Data. need: bytes of train and valid. homes: the nodes that
    may train. block: bytes of what one Ray Data task gives. epoch: bytes of the crops of an epoch. why: for a person.
    """

    shared: bool
    streams: bool
    need: int
    homes: tuple[NodeStore, ...]
    block: int
    epoch: int
    why: str

    def stream_bytes(self, plan: Plan) -> int | None:
        """What one process may have in the object store at a time, of Ray Data; None where nothing streams."""
        if not self.streams or not self.homes:
            return None
        room = int(STORE_PART * min(home.free for home in self.homes)) // self.readers_per_node(plan)
        return max(room, BLOCKS * self.block)

    def readers_per_node(self, plan: Plan) -> int:
        """Processes on the fullest node that read for themselves, with the nodes that are to be started."""
        nodes = len(self.homes) + sum(plan.to_start().values())
        return math.ceil(plan.concurrency * max(plan.workers, 1) / max(nodes, 1))

    def line(self, plan: Plan) -> str:
        """For the plan that is printed: where clips will be, and what that needs of what there is."""
        limit = self.stream_bytes(plan)
        if limit is None:
            return f"data: {self.why}"
        readers, smallest = self.readers_per_node(plan), min(self.homes, key=lambda home: home.free)
        each = min(limit, max(self.epoch, self.block))
        text = (
            f"data: {self.why}; streamed by Ray Data, per node {readers} x {size(each)} of crops in flight = "
            f"{size(readers * each)} of {size(smallest.free)} free in the object store of {smallest.address}"
        )
        if readers * each > smallest.free:
            text += (
                ". That does not fit and will spill to disk: lower search.concurrency, data.shuffle_row_groups or "
                "data.crops_per_clip, give a larger --object-store, or read without it (execution.ingest=local)"
            )
        return text


def bytes_to_train(manifest: Manifest) -> int:
    """What the clips of train and valid take in memory."""
    return sum(shard.bytes for shard in manifest.shards if shard.split in SPLITS)


def plan_clips(
    base: RunConfig, search: SearchConfig, manifest: Manifest, available: Nodes, stores: Sequence[NodeStore]
) -> ClipPlan:
    """Decide by the nodes as they are now. base: what the trials have in common, resolved."""
    trains = Bundle(1, search.cpus_per_worker, available.gpus_each(search.gpus_per_worker))
    homes = tuple(store for store in stores if NodeKind("", store.cpus, store.gpus).holds(trains) > 0)
    need = bytes_to_train(manifest)
    shared, why = _decide(base.data.residency, need, homes)
    if shared and any(kind.most > kind.up and kind.holds(trains) > 0 for kind in available.kinds):
        why += "; a node that starts later fetches them, where its store has that room, and else its trials read alone"
    streams = base.execution.ingest == "ray_data" and not shared
    samples = base.model_spec(manifest.data_spec).input.length
    crop = (2 * samples + len(manifest.data_spec.tags) + 12) * base.data.crops_per_clip
    clips = sorted((group.clips for group in manifest.row_groups("train")), reverse=True)
    block, epoch = sum(clips[: base.data.shuffle_row_groups]) * crop, sum(clips) * crop
    return ClipPlan(shared, streams, need, homes, block, epoch, why)


def _decide(wanted: str, need: int, homes: tuple[NodeStore, ...]) -> tuple[bool, str]:
    if wanted != "auto":
        return False, f"{wanted}, as data.residency says"
    if not homes:
        return False, "not shared, each trial for itself, as no node that can train is up yet"
    smallest = min(homes, key=lambda home: home.free)
    if need <= STORE_PART * smallest.free:
        return True, (
            f"shared: {size(need)} of clips once in the object store of each of {len(homes)} node(s), where at least "
            f"{size(smallest.free)} are free ({smallest.address})"
        )
    enough = math.ceil(2 * need / 2**30) + 1  # whole GiB, with room for a part of Ray's own
    return False, (
        f"not shared, each trial for itself: the clips need {size(need)}, more than half of the {size(smallest.free)} "
        f"that the object store of {smallest.address} has free (to share: --object-store {enough}, in GiB)"
    )
