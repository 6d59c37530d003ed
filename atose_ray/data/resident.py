"""The train and valid splits whole in memory, as stored: read once, cut into the very batches that streaming gives.

On a device the crops of a batch are one gather, and no sample crosses the bus again. On the host they are slices: a
gather through an index of one integer per unit is 50 to 100 times slower there. Where crops are cut on the host for a
GPU, they travel as stored. `data/memory.py` says which splits are kept where. Test is read once in a run: it streams.

The samples may lie in memory that several processes of a machine share (SharedClips): then nothing is read at all.
"""

import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from atose_ray.data.batches import CropSettings, LocalBatches, cut, per_row
from atose_ray.data.in_memory import MemoryClips, copied, read_clips
from atose_ray.data.memory import Residency, choose_residency
from atose_ray.data.sampling import RowGroup, Windows, crop_starts, eval_share, eval_starts
from atose_ray.data.shards import Manifest
from atose_ray.ranks import local_world
from atose_ray.types import Batch, Split

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class SharedClips:
    """The whole train and valid splits, in host memory that this process only reads: every run of the data set takes
    its own share of them. files: of the shards they were read from; columns: of their tags."""

    files: tuple[str, ...]
    columns: tuple[int, ...] | None
    splits: Mapping[Split, MemoryClips]

    def are_of(self, manifest: Manifest, settings: CropSettings) -> bool:
        """Whether they are the train and valid clips of this view."""
        return self.files == shared_files(manifest) and self.columns == settings.columns

    def share(self, source: LocalBatches, split: Split) -> MemoryClips:
        """What a rank keeps of a split, in the order of `kept_groups`."""
        whole = self.splits[split]
        if split == "train":
            return whole.only(np.flatnonzero(source.chosen_N))
        groups = source.manifest.row_groups(split)
        first = dict(zip(groups, first_clips(groups), strict=True))
        kept = source.kept(split, kept_groups(source, split)).items()
        mine = [np.flatnonzero(rows_N) + first[group] for group, rows_N in kept]
        return whole.only(np.concatenate([np.empty(0, np.int64), *mine]))


def shared_files(manifest: Manifest) -> tuple[str, ...]:
    """What tells the clips of one view from those of another: content, and which shards are train and valid."""
    files = (f"{shard.split}/{shard.name}" for shard in manifest.shards if shard.split != "test")
    return (manifest.content_hash, *files)


# What this process has in memory, so that the runs of one actor, one after another, read the data once. It goes with
# its last user.
_IN_MEMORY: weakref.WeakValueDictionary[tuple[Any, ...], MemoryClips] = weakref.WeakValueDictionary()


def batches_of(
    reader: Callable[..., LocalBatches],
    wanted: Residency,
    device: torch.device,
    manifest: Manifest,
    shared: SharedClips | None = None,
    **rest: Any,
) -> LocalBatches:
    """The batches of one rank, from where the config and the memory let its clips be kept.

    reader: what streams; of `auto`, a reader other than LocalBatches (Ray Data) streams, unless there are shared clips.
    shared: taken by `auto` instead of reading, where they are of this data. rest: what a reader takes.
    Raises ResidencyError when `wanted` names a place that is too small or is not there."""
    streamed = reader(manifest, **rest)
    if shared is not None and (wanted != "auto" or not shared.are_of(manifest, streamed.settings)):
        shared = None
    if wanted == "auto" and reader is not LocalBatches and shared is None:
        return streamed
    residency = place(wanted, streamed, device)
    if shared is not None and residency == "stream":
        residency = "host"
    if residency == "stream":
        return streamed
    return ResidentBatches(manifest, residency=residency, device=device, shared=shared, **rest)


def kept_in(batches: LocalBatches) -> str:
    """Where a rank's train and valid clips are: stream, host, device, or shared with other processes of the host."""
    shared = isinstance(batches, ResidentBatches) and batches.shared
    return "shared" if shared else str(batches.residency)


def place(wanted: Residency, source: LocalBatches, device: torch.device) -> Residency:
    """choose_residency of what the shards of a source weigh; clips that are in memory already stay where they are.
    Raises ResidencyError."""
    places: dict[Residency, torch.device] = {"host": torch.device("cpu")}
    if device.type == "cuda":
        places = {"device": device, **places}
    for residency, where in places.items():
        if wanted in ("auto", residency) and memory_key(source, "train", where) in _IN_MEMORY:
            return residency
    weight = {split: sum(s.bytes for s in source.manifest.shards if s.split == split) for split in ("train", "valid")}
    need = weight["train"] * source.chosen_N.mean() + weight["valid"] / source.world
    return choose_residency(wanted, int(need), local_world(source.world), device)


def kept_groups(source: LocalBatches, split: Split) -> list[RowGroup]:
    """The row groups of a split that a rank keeps: all of train, its own part of any other."""
    groups = source.manifest.row_groups(split)
    return groups if split == "train" else eval_share(groups, source.rank, source.world)


def memory_key(source: LocalBatches, split: Split, where: torch.device) -> tuple[Any, ...]:
    """What tells one set of clips in memory from another."""
    settings, rows_N = source.settings, chosen_of(source, split).tobytes()
    return settings.folder_uri, settings.columns, tuple(kept_groups(source, split)), rows_N, str(where)


def chosen_of(source: LocalBatches, split: Split) -> Array:
    """Of every clip of `kept_groups`, whether it is kept, bool [N]."""
    if split == "train":
        return source.chosen_N
    kept = source.kept(split, kept_groups(source, split)).values()
    return np.concatenate([np.empty(0, bool), *kept])


def load_clips(
    source: LocalBatches, split: Split, where: torch.device, shared: SharedClips | None = None
) -> MemoryClips:
    """A rank's clips of a split on `where`: those that another source of this process has, or copied or read now.
    shared: to copy from. Raises StoreError when a shard is not what the manifest says."""
    key = memory_key(source, split, where)
    clips = _IN_MEMORY.get(key)
    if clips is None:
        if shared is not None:
            clips = copied(shared.share(source, split), source.settings.unit, where)
        else:
            clips = read_clips(source.settings, kept_groups(source, split), chosen_of(source, split), where)
        _IN_MEMORY[key] = clips
    return clips


class ResidentBatches(LocalBatches):
    """BatchSource whose train and valid splits lie in memory: LocalBatches' batches to the bit, on `device`.

    residency: `host` keeps the samples in host memory, `device` on `device`. A rank of several keeps the whole train
    split (its clips are others every epoch) and its own part of valid. shared: taken instead of reading."""

    def __init__(
        self,
        manifest: Manifest,
        settings: CropSettings,
        *,
        residency: Residency,
        device: torch.device,
        shared: SharedClips | None = None,
        **sizes: Any,
    ) -> None:
        super().__init__(manifest, settings, **sizes)
        self.residency, self.device = residency, device
        self.shared = shared is not None and residency == "host"
        if shared is not None and residency == "host":
            self.train_clips, self.valid_clips = shared.share(self, "train"), shared.share(self, "valid")
            return
        where = device if residency == "device" else torch.device("cpu")
        self.train_clips, self.valid_clips = (load_clips(self, split, where, shared) for split in ("train", "valid"))

    def train(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Random crops of every clip."""
        buffers = self.buffers(epoch, first)
        if not buffers:
            return
        sizes = self.rows_of(buffers, first)
        clips, groups, length = self.train_clips, kept_groups(self, "train"), self.settings.crop_samples
        first_of = dict(zip(groups, first_clips(groups), strict=True))
        positions = [np.array([first_of[group] for group in b.groups])[b.group_N] + b.row_N for b in buffers]
        clip_N = (np.cumsum(self.chosen_N) - 1)[np.concatenate(positions)]
        draws_N = np.concatenate([epoch * buffer.crops + buffer.draw_N for buffer in buffers])
        starts_N = crop_starts(self.settings.seed, draws_N, clips.clip_id_N[clip_N], clips.n_samples_N[clip_N], length)
        parts = np.split(np.stack([draws_N, clips.clip_id_N[clip_N]]), np.cumsum(sizes), axis=1)
        for batch, part in zip(self._batches(clips, clip_N, starts_N, sizes), parts, strict=False):
            yield batch if self.change is None else self.change.added(batch, *part)

    def evaluate(self, split: Split, windows: Windows = eval_starts) -> Iterator[Batch]:
        """Crops of every clip of this rank's share, evenly spaced unless `windows` says otherwise."""
        if split != "valid":
            yield from super().evaluate(split, windows)
            return
        clips, first = self.valid_clips, 0
        for rows_N in self.kept("valid", kept_groups(self, "valid")).values():
            lengths = clips.n_samples_N[first : first + rows_N.sum()].tolist()
            starts = [windows(n_samples, self.settings.crop_samples, self.eval_crops) for n_samples in lengths]
            clip_N = first + np.repeat(np.arange(len(lengths)), [len(of_clip) for of_clip in starts])
            first += len(lengths)
            starts_N = np.array([start for of_clip in starts for start in of_clip])
            full, rest = divmod(len(clip_N), self.eval_batch_size)
            yield from self._batches(clips, clip_N, starts_N, [self.eval_batch_size] * full + [rest] * (rest > 0))

    def _batches(self, clips: MemoryClips, clip_N: Array, starts_N: Array, sizes: list[int]) -> Iterator[Batch]:
        """The crops of `clip_N` at `starts_N`, cut into batches of these sizes."""
        scale_N, tags_NC, clip_id_N = (
            torch.from_numpy(part[clip_N]).to(self.device) for part in (clips.scale_N, clips.tags_NC, clips.clip_id_N)
        )
        on_device, length = self.residency == "device", self.settings.crop_samples
        if on_device:
            all_S = torch.as_tensor(clips.parts[0])
            placed = (clips.first_N[clip_N], clips.n_samples_N[clip_N], starts_N)
            first_N, n_samples_N, start_N = (torch.from_numpy(part).to(all_S.device) for part in placed)
        first = 0
        for size in sizes:
            rows = slice(first, first + size)
            if on_device:
                stored_BT = gather_crops(all_S, first_N[rows], n_samples_N[rows], start_N[rows], length)
            else:
                crops_BT = np.zeros((size, length), self.settings.unit)
                for crop_T, clip, start in zip(crops_BT, clip_N[rows], starts_N[rows], strict=True):
                    cut(clips.stored(clip), int(start), crop_T)
                stored_BT = torch.from_numpy(crops_BT)
            inputs = stored_BT.to(self.device, torch.float32).mul_(per_row(scale_N[rows], stored_BT))
            yield Batch(inputs, tags_NC[rows], clip_id_N[rows])
            first += size


def first_clips(groups: list[RowGroup]) -> list[int]:
    """Position of the first clip of each row group among all."""
    return [0, *itertools.accumulate(group.clips for group in groups)][:-1]


def gather_crops(
    all_S: torch.Tensor, first_B: torch.Tensor, n_samples_B: torch.Tensor, start_B: torch.Tensor, length: int
) -> torch.Tensor:
    """[S] or [S, M], three int64 [B] -> [B, length] or [B, length, M]: from `start_B` of the clip at `first_B`; zero
    outside it."""
    index_BT = start_B[:, None] + torch.arange(length, device=all_S.device)
    inside_BT = (index_BT >= 0) & (index_BT < n_samples_B[:, None])
    index_BT = (index_BT + first_B[:, None]).clamp_(0, len(all_S) - 1)
    return all_S[index_BT].masked_fill_(~inside_BT.view(*inside_BT.shape, *[1] * (all_S.dim() - 1)), 0)
