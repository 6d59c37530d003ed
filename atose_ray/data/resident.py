"""The train and valid splits whole in memory, as int16: read once, cut into the very batches that streaming gives.

On a device the crops of a batch are one gather, and no sample crosses the bus again. On the host they are slices: a
gather through an index of one integer per sample is 50 to 100 times slower there. Where crops are cut on the host for a
GPU, they travel as int16. `data/memory.py` says which splits are kept where. Test is read once in a run, so it streams.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from atose_ray.data.batches import CropSettings, LocalBatches, cut
from atose_ray.data.memory import Residency, choose_residency
from atose_ray.data.sampling import RowGroup, crop_starts, eval_share, eval_starts
from atose_ray.data.shards import Manifest, data_store, read_lengths, read_row_group
from atose_ray.store import Store
from atose_ray.types import Batch, Split

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class HeldClips:
    """N clips in memory. pcm_S int16: their samples end to end, on the host or on a device.

    The rest lies on the host: first_N, n_samples_N int64: where a clip lies in pcm_S; clip_id_N int64; scale_N float32;
    tags_NC float32.
    """

    pcm_S: torch.Tensor
    first_N: Array
    n_samples_N: Array
    clip_id_N: Array
    scale_N: Array
    tags_NC: Array


# What this process holds now, so that the runs of one actor, one after another, read the data once. It goes with its
# last user.
_HELD: weakref.WeakValueDictionary[tuple[Any, ...], HeldClips] = weakref.WeakValueDictionary()


def batches_of(
    reader: Callable[..., LocalBatches], wanted: Residency, device: torch.device, manifest: Manifest, **rest: Any
) -> LocalBatches:
    """The batches of one rank, from where the config and the memory let its clips be kept.

    reader: what streams; of `auto`, a reader other than LocalBatches (Ray Data) always streams. rest: what a reader
    takes. Raises ResidencyError when `wanted` names a place that is too small or is not there.
    """
    streamed = reader(manifest, **rest)
    if wanted == "auto" and reader is not LocalBatches:
        return streamed
    residency = place(wanted, streamed, device)
    if residency == "stream":
        return streamed
    return ResidentBatches(manifest, residency=residency, device=device, **rest)


def place(wanted: Residency, source: LocalBatches, device: torch.device) -> Residency:
    """choose_residency of what the shards of a source weigh; clips that are in memory already stay where they are.

    Raises ResidencyError.
    """
    places: dict[Residency, torch.device] = {"host": torch.device("cpu")}
    if device.type == "cuda":
        places = {"device": device, **places}
    for residency, where in places.items():
        if wanted in ("auto", residency) and held_key(source, "train", where) in _HELD:
            return residency
    weight = {split: sum(s.bytes for s in source.manifest.shards if s.split == split) for split in ("train", "valid")}
    need = weight["train"] * source.chosen_N.mean() + weight["valid"] / source.world
    return choose_residency(wanted, int(need), source.world, device)


def held_groups(source: LocalBatches, split: Split) -> list[RowGroup]:
    """The row groups of a split that a rank keeps: all of train, its own part of any other."""
    groups = source.manifest.row_groups(split)
    return groups if split == "train" else eval_share(groups, source.rank, source.world)


def held_key(source: LocalBatches, split: Split, where: torch.device) -> tuple[Any, ...]:
    """What tells one set of clips in memory from another."""
    settings, chosen = source.settings, source.chosen_N.tobytes() if split == "train" else None
    part = (source.manifest.content_hash, *held_groups(source, split))
    return settings.store_uri, settings.dataset, part, chosen, str(where)


def hold(source: LocalBatches, split: Split, where: torch.device) -> HeldClips:
    """A rank's clips of a split on `where`: those that another source of this process holds, or read now.

    Raises StoreError when a shard is not what the manifest says.
    """
    key = held_key(source, split, where)
    held = _HELD.get(key)
    if held is None:
        groups = held_groups(source, split)
        everything = np.ones(sum(group.clips for group in groups), bool)
        held = read_clips(source.settings, groups, source.chosen_N if split == "train" else everything, where)
        _HELD[key] = held
    return held


def read_clips(settings: CropSettings, groups: list[RowGroup], chosen_N: Array, where: torch.device) -> HeldClips:
    """Read the chosen clips of some row groups; beside what is kept, one row group is in host memory at a time.

    chosen_N: bool of every clip of `groups` in order. Raises StoreError when a shard is not what the manifest says.
    """
    folder = data_store(Store(settings.store_uri), settings.dataset)
    n_samples_N = read_lengths(folder, groups)[chosen_N].astype(np.int64)
    ends_N = np.cumsum(n_samples_N)
    pcm_S = torch.empty(int(ends_N[-1]) if len(ends_N) else 0, dtype=torch.int16, device=where)
    clip_id, scale, tags = [], [], []
    row = filled = 0
    for group in groups:
        rows_n = np.flatnonzero(chosen_N[row : row + group.clips])
        row += group.clips
        if len(rows_n) == 0:
            continue
        clips = read_row_group(folder, group, settings.n_tags)
        samples_S = np.concatenate([clips.pcm_N[i] for i in rows_n])
        pcm_S[filled : filled + len(samples_S)] = torch.from_numpy(samples_S)
        filled += len(samples_S)
        clip_id.append(clips.clip_id_N[rows_n])
        scale.append(clips.scale_N[rows_n])
        tags.append(clips.tags_NC[rows_n])
    return HeldClips(
        pcm_S,
        ends_N - n_samples_N,
        n_samples_N,
        np.concatenate([np.empty(0, np.int64), *clip_id]),
        np.concatenate([np.empty(0, np.float32), *scale]),
        np.concatenate([np.empty((0, settings.n_tags), np.float32), *tags], dtype=np.float32),
    )


class ResidentBatches(LocalBatches):
    """BatchSource whose train and valid splits lie in memory: LocalBatches' batches to the bit, on `device`.

    residency: `host` keeps the samples in host memory, `device` on `device`. A rank of several keeps the whole train
    split (its clips are others every epoch) and its own part of valid.
    """

    def __init__(
        self, manifest: Manifest, settings: CropSettings, *, residency: Residency, device: torch.device, **sizes: Any
    ) -> None:
        super().__init__(manifest, settings, **sizes)
        self.residency, self.device = residency, device
        where = device if residency == "device" else torch.device("cpu")
        self.held_train, self.held_valid = hold(self, "train", where), hold(self, "valid", where)

    def train(self, epoch: int) -> Iterator[Batch]:
        """Random crops of every clip."""
        held, groups, length = self.held_train, held_groups(self, "train"), self.settings.crop_samples
        first = dict(zip(groups, first_clips(groups), strict=True))
        buffers = self.buffers(epoch)
        positions = [np.array([first[group] for group in b.groups])[b.group_N] + b.row_N for b in buffers]
        clip_N = (np.cumsum(self.chosen_N) - 1)[np.concatenate(positions)]
        draws_N = epoch * self.crops_per_clip + np.concatenate([buffer.draw_N for buffer in buffers])
        starts_N = crop_starts(self.settings.seed, draws_N, held.clip_id_N[clip_N], held.n_samples_N[clip_N], length)
        yield from self._batches(held, clip_N, starts_N, self.sizes)

    def evaluate(self, split: Split) -> Iterator[Batch]:
        """Evenly spaced crops of every clip of this rank's share."""
        if split != "valid":
            yield from super().evaluate(split)
            return
        held, groups = self.held_valid, held_groups(self, "valid")
        for first, group in zip(first_clips(groups), groups, strict=True):
            lengths = held.n_samples_N[first : first + group.clips].tolist()
            starts = [eval_starts(n_samples, self.settings.crop_samples, self.eval_crops) for n_samples in lengths]
            clip_N = first + np.repeat(np.arange(group.clips), [len(of_clip) for of_clip in starts])
            starts_N = np.array([start for of_clip in starts for start in of_clip])
            full, rest = divmod(len(clip_N), self.eval_batch_size)
            yield from self._batches(held, clip_N, starts_N, [self.eval_batch_size] * full + [rest] * (rest > 0))

    def _batches(self, held: HeldClips, clip_N: Array, starts_N: Array, sizes: list[int]) -> Iterator[Batch]:
        """The crops of `clip_N` at `starts_N`, cut into batches of these sizes."""
        scale_N, tags_NC, clip_id_N = (
            torch.from_numpy(part[clip_N]).to(self.device) for part in (held.scale_N, held.tags_NC, held.clip_id_N)
        )
        crops = _gathered if self.residency == "device" else _sliced
        pcm = crops(held, clip_N, starts_N, sizes, self.settings.crop_samples)
        first = 0
        for size, pcm_BT in zip(sizes, pcm, strict=True):
            rows = slice(first, first + size)
            audio_BT = pcm_BT.to(self.device).float().mul_(scale_N[rows, None])
            yield Batch(audio_BT, tags_NC[rows], clip_id_N[rows])
            first += size


def first_clips(groups: list[RowGroup]) -> list[int]:
    """Position of the first clip of each row group among all."""
    return [0, *itertools.accumulate(group.clips for group in groups)][:-1]


def _sliced(held: HeldClips, clip_N: Array, starts_N: Array, sizes: list[int], length: int) -> Iterator[torch.Tensor]:
    """int16 [B, T] per batch, from samples on the host."""
    pcm_S, row = held.pcm_S.numpy(), 0
    for size in sizes:
        pcm_BT = np.zeros((size, length), np.int16)
        for out_T, clip, start in zip(pcm_BT, clip_N[row : row + size], starts_N[row : row + size], strict=True):
            first = held.first_N[clip]
            cut(pcm_S[first : first + held.n_samples_N[clip]], int(start), out_T)
        yield torch.from_numpy(pcm_BT)
        row += size


def _gathered(held: HeldClips, clip_N: Array, starts_N: Array, sizes: list[int], length: int) -> Iterator[torch.Tensor]:
    """int16 [B, T] per batch, by one gather each from samples on a device."""
    where = held.pcm_S.device
    first_N, n_samples_N, start_N = (
        torch.from_numpy(part).to(where) for part in (held.first_N[clip_N], held.n_samples_N[clip_N], starts_N)
    )
    row = 0
    for size in sizes:
        rows = slice(row, row + size)
        yield gather_crops(held.pcm_S, first_N[rows], n_samples_N[rows], start_N[rows], length)
        row += size


def gather_crops(
    pcm_S: torch.Tensor, first_B: torch.Tensor, n_samples_B: torch.Tensor, start_B: torch.Tensor, length: int
) -> torch.Tensor:
    """int16 [S], three int64 [B] -> int16 [B, length]: from `start_B` of the clip at `first_B`; zero outside it."""
    index_BT = start_B[:, None] + torch.arange(length, device=pcm_S.device)
    inside_BT = (index_BT >= 0) & (index_BT < n_samples_B[:, None])
    index_BT = (index_BT + first_B[:, None]).clamp_(0, len(pcm_S) - 1)
    return pcm_S[index_BT].masked_fill_(~inside_BT, 0)
