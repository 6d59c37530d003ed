"""Clips in memory, end to end: on the host, in memory that processes share, or on a device."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from atose_ray.data.batches import CropSettings
from atose_ray.data.batches import joined as index_of_all
from atose_ray.data.sampling import RowGroup
from atose_ray.data.shards import ClipIndex, Unit, read_lengths, read_row_group
from atose_ray.storage import Store

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MemoryClips:
    """N clips in memory. parts: int16 [S] each, samples end to end (or frames [S, M] as stored): arrays on the host, or
    one tensor on a device.

    The rest lies on the host: part_N, first_N, n_samples_N int64: in which part a clip lies, and where there;
    clip_id_N int64; scale_N float32; tags_NC float32."""

    parts: tuple[Any, ...]
    part_N: Array
    first_N: Array
    n_samples_N: Array
    clip_id_N: Array
    scale_N: Array
    tags_NC: Array

    @property
    def nbytes(self) -> int:
        """Bytes of what is stored."""
        return sum(int(part.nbytes) for part in self.parts)

    def stored(self, clip: int) -> Array:
        """A view of a clip, int16 [T] or frames [F, M]; it must lie on the host."""
        first = self.first_N[clip]
        return np.asarray(self.parts[self.part_N[clip]][first : first + self.n_samples_N[clip]])

    def only(self, clip_N: Array) -> "MemoryClips":
        """Some of the clips, in this order, where they lie: no sample is copied."""
        rest = (self.part_N, self.first_N, self.n_samples_N, self.clip_id_N, self.scale_N, self.tags_NC)
        return MemoryClips(self.parts, *(part[clip_N] for part in rest))


def joined(pieces: list[MemoryClips]) -> MemoryClips:
    """The clips of all pieces, in order, where they lie: no sample is copied."""
    before = itertools.accumulate((len(piece.parts) for piece in pieces), initial=0)
    part_N = [first + piece.part_N for first, piece in zip(before, pieces, strict=False)]
    rest = [(p.first_N, p.n_samples_N, p.clip_id_N, p.scale_N, p.tags_NC) for p in pieces]
    parts = tuple(part for piece in pieces for part in piece.parts)
    return MemoryClips(parts, np.concatenate(part_N), *(np.concatenate(column) for column in zip(*rest, strict=True)))


def read_clips(settings: CropSettings, groups: list[RowGroup], chosen_N: Array, where: torch.device) -> MemoryClips:
    """Read the chosen clips of some row groups; beside what is kept, one row group is in host memory at a time.
    chosen_N: bool of every clip of `groups` in order. Raises StoreError when a shard is not what the manifest says."""
    folder = Store(settings.folder_uri)
    n_samples_N = read_lengths(folder, groups)[chosen_N].astype(np.int64)
    ends_N = np.cumsum(n_samples_N)
    all_S = _empty(int(ends_N[-1]) if len(ends_N) else 0, settings.unit, where)
    kept = [ClipIndex(np.empty(0, np.int64), np.empty(0, np.float32), n_samples_N[:0], np.empty((0, settings.n_tags)))]
    row = filled = 0
    for group in groups:
        rows_n = np.flatnonzero(chosen_N[row : row + group.clips])
        row += group.clips
        if len(rows_n) == 0:
            continue
        clips = read_row_group(folder, group, settings.n_tags, settings.unit)
        part_S = np.concatenate([clips.stored_N[i] for i in rows_n])
        all_S[filled : filled + len(part_S)] = part_S if where.type == "cpu" else torch.from_numpy(part_S)
        filled += len(part_S)
        rest = (clips.clip_id_N, clips.scale_N, clips.n_samples_N, clips.tags_NC)
        kept.append(ClipIndex(*(part[rows_n] for part in rest)))
    of_all, part_N = index_of_all(kept), np.zeros(len(ends_N), np.int64)
    about = (of_all.clip_id_N, of_all.scale_N, settings.seen(of_all.tags_NC).astype(np.float32))
    return MemoryClips((all_S,), part_N, ends_N - n_samples_N, n_samples_N, *about)


def copied(clips: MemoryClips, unit: Unit, where: torch.device) -> MemoryClips:
    """The clips, end to end, on a device; one clip is copied in host memory at a time."""
    ends_N = np.cumsum(clips.n_samples_N)
    all_S = _empty(int(ends_N[-1]) if len(ends_N) else 0, unit, where)
    for clip, end in enumerate(ends_N.tolist()):
        stored_T = clips.stored(clip).copy()  # what is shared is read-only, which torch has no word for
        all_S[end - len(stored_T) : end] = torch.from_numpy(stored_T)
    first_N, part_N = ends_N - clips.n_samples_N, np.zeros(len(ends_N), np.int64)
    return MemoryClips((all_S,), part_N, first_N, clips.n_samples_N, clips.clip_id_N, clips.scale_N, clips.tags_NC)


def _empty(units: int, unit: Unit, where: torch.device) -> Any:
    """Room for so many units: an array on the host, a tensor on a device."""
    if where.type == "cpu":
        return np.empty(units, unit)
    return torch.empty((units, *unit.shape), dtype=torch.from_numpy(np.empty(0, unit)).dtype, device=where)
