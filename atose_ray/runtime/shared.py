"""One decoded copy of a data set per node, in Ray's object store, for all trials there: read once, mapped by each.

Tasks read a part each; the driver owns what they give, so it lives as long as the search. Trials map it without a copy
(a numpy array out of the object store is a view of shared memory), and Ray fetches it once for every other node.
`auto` shares when train and valid need at most STORE_PART of what the fullest store of a node that may train has free;
otherwise each trial keeps its clips itself or streams them (data/memory.py, Ray Data). The whole train split is shared:
every trial takes its own `data.train_share`, by its own seed, out of it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atose_ray.config import ConfigError, RunConfig, SearchConfig
from atose_ray.data.batches import CropSettings
from atose_ray.data.in_memory import MemoryClips, joined, read_clips
from atose_ray.data.resident import SharedClips
from atose_ray.data.sampling import RowGroup
from atose_ray.data.shards import Manifest, unit_of
from atose_ray.runtime.object_store import NodeStore, node_stores, size
from atose_ray.search.plan import Plan, Resources, gpus_per_worker
from atose_ray.storage import Store, StoreError
from atose_ray.types import Split

SPLITS: tuple[Split, ...] = ("train", "valid")
STORE_PART = 1 / 2
PART_BYTES = 256 << 20
BLOCKS = 4  # of Ray Data's: one read, one waiting, one in the training process, and one that is late


class SharedClipsLostError(RuntimeError):
    """The shared clips cannot be had; the message says why."""


@dataclass(frozen=True)
class SharedRefs:
    """Where the copy is: references to MemoryClips in the object store. The process that made them must outlive it.

    problem: why there is no copy, where one was planned.
    """

    content_hash: str
    parts: Mapping[Split, tuple[ray.ObjectRef, ...]]
    problem: str | None = None

    def lend(self) -> SharedClips:
        """The clips, mapped into this process. Raises SharedClipsLostError when there are none, or their owner died."""
        if self.problem is not None:
            raise SharedClipsLostError(self.problem)
        try:
            splits = {split: joined(ray.get(list(refs))) for split, refs in self.parts.items()}
        except RayError as error:
            raise SharedClipsLostError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        return SharedClips(self.content_hash, splits)


def share_clips(store: Store, dataset: str, manifest: Manifest, homes: Sequence[str]) -> SharedRefs:
    """Read train and valid into the object store of these nodes (ids), and wait until it is done.

    Raises StoreError when a shard cannot be read, SharedClipsLostError when the object store cannot take it.
    """
    # No CPU is asked for: trials hold all of them when a part has to be read again because its node died, and as often
    # as nodes do (max_retries).
    read = ray.remote(num_cpus=0, num_returns=2, max_retries=-1)(_read_part)
    settings = CropSettings(store.uri, dataset, len(manifest.data_spec.tags), 0, 0, unit_of(manifest.data_spec.input))
    parts: dict[Split, list[ray.ObjectRef]] = {split: [] for split in SPLITS}
    running: list[ray.ObjectRef] = []
    at = itertools.cycle(homes)
    try:
        for split in SPLITS:
            for groups in parts_of(manifest, split):
                if len(running) >= 2 * len(homes):
                    done, running = ray.wait(running)
                    ray.get(done)
                there = NodeAffinitySchedulingStrategy(next(at), soft=True)
                status, part = read.options(scheduling_strategy=there).remote(settings, groups)
                running.append(status)
                parts[split].append(part)
        ray.get(running)
    except RayTaskError as error:
        raise StoreError(str(error.cause)) from error
    except RayError as error:
        raise SharedClipsLostError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    return SharedRefs(manifest.content_hash, {split: tuple(refs) for split, refs in parts.items()})


def parts_of(manifest: Manifest, split: Split) -> Iterator[list[RowGroup]]:
    """The row groups of a split in order, about PART_BYTES of samples at a time; none gives one empty part."""
    weight = {s.name: s.bytes / max(1, sum(s.row_groups)) for s in manifest.shards}
    groups: list[RowGroup] = []
    filled = 0.0
    for group in manifest.row_groups(split):
        groups.append(group)
        filled += weight[group.file] * group.clips
        if filled >= PART_BYTES:
            yield groups
            groups, filled = [], 0.0
    if groups or not manifest.row_groups(split):
        yield groups


def _read_part(settings: CropSettings, groups: list[RowGroup]) -> tuple[None, MemoryClips]:
    """Beside the part a sign that it was read, so that the driver learns of an error without fetching the samples."""
    everything = np.ones(sum(group.clips for group in groups), bool)
    return None, read_clips(settings, groups, everything, torch.device("cpu"))


@dataclass(frozen=True)
class ClipPlan:
    """Where the trials of a search get their clips, decided before the first one.

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
        """Processes on the fullest node that read for themselves."""
        return math.ceil(plan.concurrency * max(plan.workers, 1) / max(len(self.homes), 1))

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


def plan_clips(
    base: RunConfig,
    search: SearchConfig,
    manifest: Manifest,
    available: Resources,
    stores: list[NodeStore] | None = None,
) -> ClipPlan:
    """Decide by the nodes as they are now. base: what the trials have in common."""
    stores = node_stores() if stores is None else stores
    gpus = gpus_per_worker(search, available)
    homes = tuple(s for s in stores if s.cpus >= search.cpus_per_worker and s.gpus >= gpus)
    need = sum(shard.bytes for shard in manifest.shards if shard.split in SPLITS)
    shared, why = _decide(base, need, homes)
    streams = base.execution.ingest == "ray_data" and not shared
    block, epoch = _streamed_bytes(base, manifest)
    return ClipPlan(shared, streams, need, homes, block, epoch, why)


def _decide(base: RunConfig, need: int, homes: tuple[NodeStore, ...]) -> tuple[bool, str]:
    wanted = base.data.residency
    if wanted != "auto":
        return False, f"{wanted}, as data.residency says"
    if not homes:
        return False, "not shared, as no node that can train is up yet"
    smallest = min(homes, key=lambda home: home.free)
    if need <= STORE_PART * smallest.free:
        return True, (
            f"shared: {size(need)} of clips once in the object store of each of {len(homes)} node(s), where at least "
            f"{size(smallest.free)} are free ({smallest.address})"
        )
    return False, (
        f"not shared, each trial for itself: the clips need {size(need)}, more than half of the {size(smallest.free)} "
        f"that the object store of {smallest.address} has free (to share: --object-store {_gibs(2 * need)}, in GiB)"
    )


def _gibs(count: int) -> int:
    """Whole GiB that hold it, with room for a part of Ray's own."""
    return math.ceil(count / 2**30) + 1


def _streamed_bytes(base: RunConfig, manifest: Manifest) -> tuple[int, int]:
    """Bytes of the largest block and of all crops of an epoch; the crop is the base's, or a whole clip."""
    spec = manifest.data_spec
    try:
        samples = base.resolve(spec, manifest.content_hash).model_spec(spec).input.length
    except ConfigError:
        samples = spec.input.length
    crop = (2 * samples + len(spec.tags) + 12) * base.data.crops_per_clip
    clips = sorted((group.clips for group in manifest.row_groups("train")), reverse=True)
    return sum(clips[: base.data.shuffle_row_groups]) * crop, sum(clips) * crop


def shared_or_none(shared: SharedRefs | None, about: dict[str, Any]) -> SharedClips | None:
    """The shared clips for one run; where they are lost, its `about` gets a note and it reads by itself."""
    if shared is None:
        return None
    try:
        return shared.lend()
    except SharedClipsLostError as error:
        about["note"] = f"the shared clips were lost ({error}), so this run reads the shards by itself"
        return None
