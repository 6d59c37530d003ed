"""Shards -> Batch, without Ray: plain pyarrow and numpy, one buffer of row groups in memory at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from atose_ray.data import sampling, shards
from atose_ray.data.memory import Residency
from atose_ray.data.noise import Change
from atose_ray.data.sampling import Buffer, ClassQueue, RowGroup, Sampling, Windows, eval_starts
from atose_ray.data.shards import PCM, ClipIndex, Manifest, Unit, read_row_group
from atose_ray.storage import Store, StoreError
from atose_ray.types import AnyBatch, Batch, Split

Array = npt.NDArray[Any]
REQUESTS = 4  # row groups that are fetched from object storage at a time


class BatchSource(Protocol):
    """Where a training gets its data: of one rank, if there are several."""

    def train(self, epoch: int, first: int = 0) -> Iterator[AnyBatch]:
        """Random crops of every clip, in the order of (seed, epoch). first: how many batches are left out, in front."""

    @property
    def sizes(self) -> list[int]:
        """Rows of the batches of a training epoch, at most: the same on every rank."""

    def steps(self) -> int:
        """Batches per training epoch: the same on every rank."""

    def evaluate(self, split: Split) -> Iterator[AnyBatch]:
        """Evenly spaced crops of every clip of this rank's share; rows of one clip share its id."""


class Crops(NamedTuple):
    """stored_NT int16, or frames [N, F, M] as stored; scale_N float32, tags_NC uint8, clip_id_N int64; draw_N int64:
    epoch and number of the crop (sampling.crop_starts). Of audio it is half the size of a Batch."""

    stored_NT: Array
    scale_N: Array
    tags_NC: Array
    clip_id_N: Array
    draw_N: Array

    def batch(self, first: int, last: int) -> Batch:
        """Rows first..last as a Batch: float32 audio in [-1, 1], or frames."""
        inputs = torch.from_numpy(self.stored_NT[first:last].astype(np.float32))
        inputs *= per_row(torch.from_numpy(self.scale_N[first:last].astype(np.float32)), inputs)
        tags_BC = torch.from_numpy(self.tags_NC[first:last].astype(np.float32))
        return Batch(inputs, tags_BC, torch.from_numpy(self.clip_id_N[first:last].astype(np.int64)))

    def batches(self, size: int) -> Iterator[Batch]:
        """All rows in order, at most `size` at a time."""
        for first in range(0, len(self.stored_NT), size):
            yield self.batch(first, first + size)


@dataclass(frozen=True)
class CropSettings:
    """What a reader must know to cut a split into crops. folder_uri: of the prepared set. n_tags: in the shards;
    columns: those of them that are read, None is all. crop_samples: length in units; unit: of the shards."""

    folder_uri: str
    n_tags: int
    crop_samples: int
    seed: int
    unit: Unit = PCM
    columns: tuple[int, ...] | None = None

    def seen(self, tags_NC: Array) -> Array:
        """The columns that are read of the stored tags."""
        return tags_NC if self.columns is None else tags_NC[:, self.columns]


def read_train_crops(settings: CropSettings, buffer: Buffer, epoch: int) -> Crops:
    """The random crops of the clips of a buffer, in the buffer's order. From a local disk only the crops are read,
    where that is less; from object storage whole row groups, some at a time."""
    folder = Store(settings.folder_uri)
    read_whole = partial(read_row_group, folder, n_tags=settings.n_tags, unit=settings.unit)
    local = folder.local_path
    if local is None:
        with ThreadPoolExecutor(REQUESTS) as pool:
            whole = list(pool.map(read_whole, buffer.groups))
        clips = joined(whole)
    else:
        clips = joined([shards.read_index(folder, group, settings.n_tags) for group in buffer.groups])
    first_G = np.cumsum([0, *(group.clips for group in buffer.groups)])
    clip_N = first_G[buffer.group_N] + buffer.row_N
    clip_id_N, n_samples_N = clips.clip_id_N[clip_N], clips.n_samples_N[clip_N]
    draws_N = epoch * buffer.crops + buffer.draw_N
    starts_N = sampling.crop_starts(settings.seed, draws_N, clip_id_N, n_samples_N, settings.crop_samples)
    stored_NT = np.zeros((len(clip_N), settings.crop_samples), settings.unit)
    for index, group in enumerate(buffer.groups):
        crops_n = np.flatnonzero(buffer.group_N == index)
        if len(crops_n) == 0:  # all of them are behind, where an epoch does not begin at its first step
            continue
        rows, starts, out = buffer.row_N[crops_n].tolist(), starts_N[crops_n].tolist(), [stored_NT[i] for i in crops_n]
        of_group = clips.n_samples_N[first_G[index] : first_G[index + 1]]
        if local is not None and len(out) * settings.crop_samples < of_group.sum():
            shards.read_crops_into(local / group.file, group, of_group, rows, starts, out)
            continue
        clips_of = read_whole(group) if local is not None else whole[index]
        for row, start, crop_T in zip(rows, starts, out, strict=True):
            cut(clips_of.stored_N[row], start, crop_T)
    return Crops(stored_NT, clips.scale_N[clip_N], settings.seen(clips.tags_NC[clip_N]), clip_id_N, draws_N)


def joined(parts: Sequence[ClipIndex]) -> ClipIndex:
    """Some row groups' clips, one after the other."""
    names = ("clip_id_N", "scale_N", "n_samples_N", "tags_NC")
    return ClipIndex(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def read_crops_at(
    settings: CropSettings, group: RowGroup, starts_of: Callable[[int], list[int]], rows_N: Array | None = None
) -> Crops:
    """The crops of every clip of a row group that begin at `starts_of(its samples)`, clip after clip. rows_N: bool of
    every clip, to go without the others."""
    clips = read_row_group(Store(settings.folder_uri), group, settings.n_tags, settings.unit)
    chosen = range(group.clips) if rows_N is None else np.flatnonzero(rows_N).tolist()
    places = [(row, start) for row in chosen for start in starts_of(len(clips.stored_N[row]))]
    stored_NT = np.zeros((len(places), settings.crop_samples), settings.unit)
    for (row, start), crop_T in zip(places, stored_NT, strict=True):
        cut(clips.stored_N[row], start, crop_T)
    row_N = np.array([row for row, _ in places], np.int64)
    tags_NC = settings.seen(clips.tags_NC[row_N])
    return Crops(stored_NT, clips.scale_N[row_N], tags_NC, clips.clip_id_N[row_N], np.zeros_like(row_N))


def cut(stored_T: Array, start: int, out_T: Array) -> None:
    """Copy the crop that begins at `start` (negative: zeros first) into `out_T`, which is zero. Both [T] or [F, M]."""
    source, target, count = shards.crop_bounds(len(stored_T), start, len(out_T))
    out_T[target : target + count] = stored_T[source : source + count]


def per_row(scale_B: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 1, ...], of as many axes as `like`."""
    return scale_B.view(-1, *[1] * (like.dim() - 1))


@dataclass(eq=False)
class LocalBatches:
    """BatchSource over a prepared data set, read in this process.

    batch_size: of this rank. rows: of a view, which clips of a split it has, bool [N]; absent is all. train_share: of
    these in train that are trained on. sampling: which clips an epoch draws. crops_per_clip: in an epoch. change: what
    is done to the crops of a training (data/augment.py). residency: where the samples are kept, of
    `memory.Residency`. Raises StoreError when the train or valid split is too small to train on."""

    manifest: Manifest
    settings: CropSettings
    _: KW_ONLY
    batch_size: int
    eval_crops: int
    eval_batch_size: int
    mix: int
    rank: int = 0
    world: int = 1
    rows: Mapping[Split, Array] = field(default_factory=dict)
    train_share: float = 1.0
    sampling: Sampling = "uniform"
    crops_per_clip: int = 1
    change: Change | None = None
    residency: Residency = field(default="stream", init=False)

    def __post_init__(self) -> None:
        check_trainable(self.manifest, self.world)
        clips = sum(group.clips for group in self.manifest.row_groups("train"))
        self.chosen_N = sampling.chosen_share(self.settings.seed, clips, self.train_share, self.rows.get("train"))
        chosen = int(self.chosen_N.sum())
        if chosen < 2 * self.world:
            raise StoreError(
                f"data.train_share={self.train_share:g} leaves {chosen} of {clips} clips to train on, but training "
                f"with {self.world} workers needs at least {2 * self.world}; take a larger share or fewer workers"
            )
        self.sizes = sampling.batch_sizes(chosen // self.world * self.crops_per_clip, self.batch_size)
        self.tags_NC: Array | None = None
        self.queue: ClassQueue | None = None
        if self.sampling != "uniform":
            folder, stored = Store(self.settings.folder_uri), self.settings.n_tags
            tags_NC = self.settings.seen(shards.read_tags(folder, self.manifest, "train", stored, np.uint8))
            if self.sampling == "class_queue":
                of_all = (self.batch_size * self.world, self.settings.seed, len(self.sizes))
                self.queue, self.sizes = (
                    ClassQueue(tags_NC, self.chosen_N, *of_all),
                    [self.batch_size] * len(self.sizes),
                )
            else:
                self.tags_NC = tags_NC

    def steps(self) -> int:
        """Batches per training epoch: the same on every rank."""
        return len(self.sizes)

    def buffers(self, epoch: int, first: int = 0) -> list[Buffer]:
        """What this rank reads in an epoch, but for its first batches."""
        groups, seed, times_N = self.manifest.row_groups("train"), self.settings.seed, self.chosen_N
        if self.queue is not None:
            return self.checked(sampling.buffers_of(groups, self.queue.epoch(epoch), self.rank, self.world, first))
        if self.tags_NC is not None:
            times_N = sampling.balanced_draws(self.tags_NC, self.chosen_N, seed, epoch)
        share = (self.rank, self.world, times_N)
        buffers = sampling.train_buffers(groups, seed, epoch, self.mix, *share, self.crops_per_clip)
        return sampling.after(buffers, sum(self.sizes[:first]))

    def checked(self, buffers: list[Buffer]) -> list[Buffer]:
        """Raises StoreError for a batch that BatchNorm cannot train on: too many of its classes have no clip."""
        if min(map(len, buffers), default=2) < 2:
            raise StoreError(
                "data.sampling=class_queue passes over classes without a clip, and left a batch of fewer than 2 on a "
                "worker; take class_balanced, a larger data.batch_size or train_share, or fewer workers"
            )
        return buffers

    def rows_of(self, buffers: list[Buffer], first: int) -> list[int]:
        """The rows of the batches from number `first` on: of a queue of classes those that were drawn, which may be
        fewer than `sizes`."""
        return [len(buffer) for buffer in buffers] if self.queue is not None else self.sizes[first:]

    def kept(self, split: Split, groups: Sequence[RowGroup]) -> dict[RowGroup, Array]:
        """Of some row groups of a split, which clips the view has, bool [n] each."""
        every = self.manifest.row_groups(split)
        rows_N = self.rows.get(split, np.ones(sum(group.clips for group in every), bool))
        parts = np.split(rows_N, np.cumsum([group.clips for group in every])[:-1])
        of_group = dict(zip(every, parts, strict=True))
        return {group: of_group[group] for group in groups}

    def train(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Random crops of every clip."""
        buffers = self.buffers(epoch, first)
        crops = (read_train_crops(self.settings, buffer, epoch) for buffer in buffers)
        yield from rebatch(crops, self.rows_of(buffers, first), self.change)

    def evaluate(self, split: Split, windows: Windows = eval_starts) -> Iterator[Batch]:
        """Crops of every clip of this rank's share, evenly spaced unless `windows` says otherwise. Raises StoreError
        for test where a training asks."""
        crop = self.settings.crop_samples
        if split == "test" and not self.manifest.row_groups("test"):
            raise StoreError("a training cannot read the test split: it is scored when the training is over")
        mine = sampling.eval_share(self.manifest.row_groups(split), self.rank, self.world)
        for group, rows_N in self.kept(split, mine).items():
            crops = read_crops_at(self.settings, group, lambda length: windows(length, crop, self.eval_crops), rows_N)
            yield from crops.batches(self.eval_batch_size)


def rebatch(buffers: Iterator[Crops], sizes: list[int], change: Change | None) -> Iterator[Batch]:
    """Cut a stream of buffers into batches of exactly these sizes, across buffer ends, and change them. Raises
    StoreError when the stream ends early: shards were lost while reading."""
    waiting: deque[Crops] = deque()
    for number, size in enumerate(sizes):
        parts: list[Crops] = []
        missing = size
        while missing:
            if not waiting:
                fresh = next(buffers, None)
                if fresh is None:
                    raise StoreError(
                        f"the data ended in batch {number + 1} of {len(sizes)}: rows were lost while reading"
                    )
                waiting.append(fresh)
            front = waiting.popleft()
            parts.append(Crops(*(part[:missing] for part in front)))
            if len(front.stored_NT) > missing:
                waiting.appendleft(Crops(*(part[missing:] for part in front)))
            missing -= len(parts[-1].stored_NT)
        whole = parts[0] if len(parts) == 1 else Crops(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))
        batch = whole.batch(0, size)
        yield batch if change is None else change.added(batch, whole.draw_N, whole.clip_id_N)


def share_of_batch(batch_size: int, world: int) -> int:
    """The crops of a step on one of `world` workers. Raises ValueError when they cannot be equal, or would be one."""
    if batch_size % world:
        raise ValueError(
            f"data.batch_size must be a multiple of the number of workers, but got {batch_size} and {world}"
        )
    if batch_size < 2 * world:
        raise ValueError(
            f"data.batch_size must be at least 2 for every worker, as BatchNorm cannot train on one clip, but got "
            f"{batch_size} for {world} workers; use data.batch_size={2 * world} or fewer workers"
        )
    return batch_size // world


def check_trainable(manifest: Manifest, world: int) -> None:
    """Raises StoreError unless every split holds enough clips and every tag has a positive in train."""
    name = manifest.dataset.get("kind", "?")
    clips = {split: sum(group.clips for group in manifest.row_groups(split)) for split in ("train", "valid")}
    for split, count in clips.items():
        if count < 2 * world:
            raise StoreError(
                f"the {split} split of {name!r} has {count} clips, but training with {world} worker(s) needs at least "
                f"{2 * world}; put clips into the {split} split and prepare again"
            )
    if not manifest.data_spec.counts.get("test"):
        raise StoreError(
            f"the test split of {name!r} has no clip, but the chosen model is scored on it at the end; put clips into "
            "the test split and prepare again"
        )
    held_out = manifest.data_spec.held_out
    missing = [tag for tag, counts in manifest.tag_counts.items() if not counts.get("train") and tag not in held_out]
    if missing:
        raise StoreError(
            f"no clip of the train split of {name!r} carries {', '.join(missing)}, so it cannot be learned; "
            "remove the tag from the annotations or move a clip that has it into train, and prepare again"
        )
