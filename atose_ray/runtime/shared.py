"""One decoded copy of a data set per node, in Ray's object store, for all trials there: read once, mapped by each.

Tasks read a part each; the driver owns what they give, so it lives as long as the search. Trials map it without a copy
(a numpy array out of the object store is a view of shared memory), and Ray fetches it once for every other node.
Whether clips are shared is decided in search/clip_plan.py. The whole train split is shared: every trial takes its own
`data.train_share`, by its own seed, out of it.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atose_ray.data.batches import CropSettings
from atose_ray.data.in_memory import MemoryClips, joined, read_clips
from atose_ray.data.resident import SharedClips, shared_files
from atose_ray.data.sampling import RowGroup
from atose_ray.data.shards import Manifest, unit_of
from atose_ray.data.views import View
from atose_ray.runtime.cluster import own_node
from atose_ray.runtime.ingest import RayBatches
from atose_ray.search.clip_plan import SPLITS, STORE_PART, bytes_to_train, size
from atose_ray.storage import Store, StoreError
from atose_ray.types import Split

PART_BYTES = 256 << 20


class SharedClipsLostError(RuntimeError):
    """The shared clips cannot be had; the message says why."""


@dataclass(frozen=True)
class SharedRefs:
    """Where the copy is: references to MemoryClips in the object store. The process that made them must outlive it.

    files, columns: as SharedClips. problem: why there is no copy, where one was planned. need: bytes of it.
    """

    files: tuple[str, ...]
    columns: tuple[int, ...] | None
    parts: Mapping[Split, tuple[ray.ObjectRef, ...]]
    problem: str | None = None
    need: int = 0

    def clips(self) -> SharedClips:
        """The clips, mapped into this process; a node without a copy fetches one. Raises SharedClipsLostError when
        there are none, their owner died, or the object store of this node, which came later, is too small for them."""
        if self.problem is not None:
            raise SharedClipsLostError(self.problem)
        here = ray.get_runtime_context().get_node_id()
        has: Mapping[str, float] = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == here), {})
        total = has.get("object_store_memory", 0)
        if self.need > STORE_PART * total:
            raise SharedClipsLostError(f"{size(self.need)} are more than half of this node's store of {size(total)}")
        try:
            splits = {split: joined(ray.get(list(refs))) for split, refs in self.parts.items()}
        except RayError as error:
            raise SharedClipsLostError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
        return SharedClips(self.files, self.columns, splits)


def share_clips(store: Store, view: View, homes: Sequence[str]) -> SharedRefs:
    """Read train and valid into the object store of these nodes (ids), and wait until it is done: in tasks there, or
    in this process where its own node is the only one and they are no more than PART_BYTES.

    Raises StoreError when a shard cannot be read, SharedClipsLostError when the object store cannot take it.
    """
    manifest, unit = view.manifest, unit_of(view.manifest.data_spec.input)
    settings = CropSettings(manifest.folder(store).uri, view.stored, 0, 0, unit, view.columns)
    need = bytes_to_train(manifest)
    here = need <= PART_BYTES and list(homes) == [own_node()]
    try:
        parts = _put_here(settings, manifest) if here else _read_there(settings, manifest, homes)
    except RayTaskError as error:
        raise StoreError(str(error.cause)) from error
    except RayError as error:
        raise SharedClipsLostError(f"{type(error).__name__}: {str(error).splitlines()[0]}") from error
    copies = {split: tuple(refs) for split, refs in parts.items()}
    return SharedRefs(shared_files(manifest), view.columns, copies, need=need)


def _put_here(settings: CropSettings, manifest: Manifest) -> dict[Split, list[ray.ObjectRef]]:
    """Read in this process, into the store of its node."""
    return {split: [ray.put(_read_part(settings, of)[1]) for of in parts_of(manifest, split)] for split in SPLITS}


def _read_there(settings: CropSettings, manifest: Manifest, homes: Sequence[str]) -> dict[Split, list[ray.ObjectRef]]:
    """Read in tasks on these nodes in turn, two at a time on each."""
    # No CPU is asked for: trials hold all of them when a part has to be read again because its node died, and as often
    # as nodes do (max_retries).
    read = ray.remote(num_cpus=0, num_returns=2, max_retries=-1)(_read_part)
    parts: dict[Split, list[ray.ObjectRef]] = {split: [] for split in SPLITS}
    running: list[ray.ObjectRef] = []
    at = itertools.cycle(homes)
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
    return parts


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


def source_of(ingest: str, shared: SharedRefs | None, stream_bytes: int | None) -> dict[str, Any]:
    """Where a run gets its clips, as arguments of `open_run`: from Ray Data, or from those that a search shares.

    stream_bytes: the most that Ray Data may keep in the object store for this process. Where clips are shared, no CPU
    is kept free for Ray Data: a run that does not take them, or that lost them, reads in its own process.
    """
    if shared is None:
        return {"reader": functools.partial(RayBatches, stream_bytes=stream_bytes)} if ingest == "ray_data" else {}
    try:
        return {"lent": shared.clips()}
    except SharedClipsLostError as error:
        return {"note": f"the shared clips were lost ({error}), so this run reads the shards by itself"}
