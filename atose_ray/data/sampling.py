"""Which clips, in which order, cropped where: pure functions of (seed, epoch, clip id), never of rank or batch size.

Laws (tested): an epoch is a permutation of the split; ranks share nothing and have equally many clips; a crop of a clip
in an epoch is the same however the data is read.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Windows = Callable[[int, int, int], list[int]]  # units of a clip, of a crop, and how many crops -> their first units
Sampling = Literal["uniform", "class_balanced", "class_queue"]
TAG_ROWS = 1 << 16  # clips whose tags are looked through at a time
SHARE_SALT = 0x5348415245  # "SHARE": stands where an epoch number stands for crops, and no run has as many epochs


@dataclass(frozen=True)
class RowGroup:
    """A row group of a shard. file: name in the data folder; index: in the file; clips: rows; pcm_offset: byte of the
    file where the samples of its first clip begin."""

    file: str
    index: int
    clips: int
    pcm_offset: int


@dataclass(frozen=True)
class Buffer:
    """Crops that are read and mixed together, in the order they are delivered.

    groups: the row groups to read. group_N: index into `groups` of every crop's clip; row_N: the clip's row there;
    draw_N: number of the crop among `crops`, the most that a clip may have in an epoch."""

    groups: tuple[RowGroup, ...]
    group_N: Array
    row_N: Array
    draw_N: Array
    crops: int

    def __len__(self) -> int:
        return len(self.row_N)


def uniform(seed: int, epoch: int | Array, clip_id_N: Array) -> Array:
    """int64 [N] -> float64 [N] in [0, 1): SplitMix64 (Steele et al. 2014) of (seed, epoch, clip id). epoch: one for
    all, or int64 [N]."""
    with np.errstate(over="ignore"):
        x = clip_id_N.astype(np.uint64)
        for word in (seed, epoch):
            x = _splitmix64(x ^ (np.asarray(word).astype(np.uint64) * np.uint64(0xD1342543DE82EF95)))
    return np.asarray((x >> np.uint64(11)).astype(np.float64) / float(1 << 53))


def _splitmix64(x: Array) -> Array:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def crop_starts(seed: int, epoch: int | Array, clip_id_N: Array, n_samples_N: Array, crop_samples: int) -> Array:
    """int64 [N], int [N] -> first sample of a random crop, int64 [N]. Negative where the clip is shorter than the crop:
    that many zeros stand before it."""
    slack_N = n_samples_N.astype(np.int64) - crop_samples
    offset_N = np.floor(uniform(seed, epoch, clip_id_N) * (np.abs(slack_N) + 1)).astype(np.int64)
    return np.asarray(np.where(slack_N < 0, -offset_N, offset_N))


def chosen_share(seed: int, clips: int, share: float, rows_N: Array | None = None) -> Array:
    """Which clips of a split a learning curve's point trains on: bool [clips], True for round(share * clips) of them,
    or of those where `rows_N` is True. At least two. By (seed, position in the split) alone; a smaller share's clips
    are all in a larger one."""
    chosen_N = np.zeros(clips, bool)
    order_N = np.argsort(uniform(seed, SHARE_SALT, np.arange(clips)), kind="stable")
    if rows_N is not None:
        order_N = order_N[rows_N[order_N]]
    chosen_N[order_N[: max(2, round(share * len(order_N)))]] = True
    return chosen_N


def balanced_draws(tags_NC: Array, chosen_N: Array, seed: int, epoch: int) -> Array:
    """How often each clip is drawn in an epoch when every class is drawn equally often: int64 [N], as many draws in all
    as clips are chosen. A class is a tag, and `no tag` where clips carry none.

    Classes take turns over the whole training (draw i of it is of class i mod C), and so do the clips of a class: each
    once, in an order of its own for every round, before any comes again. By (seed, epoch, tags) alone. The idea is that
    of AudioSet's balanced sampling (Kong et al., arXiv:1912.10211, section III.D)."""
    classes = [members_n for members_n in members_of(tags_NC, chosen_N) if len(members_n)]
    draws = int(chosen_N.sum())
    turn_D = epoch * draws + np.arange(draws)
    times_N = np.zeros(len(tags_NC), np.int64)
    for number, members_n in enumerate(classes):
        drawn_d = turn_D[turn_D % len(classes) == number] // len(classes)
        for round_ in np.unique(drawn_d // len(members_n)).tolist():
            order_n = np.random.default_rng((seed, number, round_)).permutation(members_n)
            of_round = drawn_d[drawn_d // len(members_n) == round_] % len(members_n)
            np.add.at(times_N, order_n[of_round], 1)
    return times_N


def members_of(tags_NC: Array, chosen_N: Array) -> list[Array]:
    """The chosen clips of every tag, ascending, and last those without one. Of two million clips with 527 tags, a part
    at a time: what is made on the way is not N x C."""
    parts = [np.nonzero(tags_NC[first : first + TAG_ROWS]) for first in range(0, len(tags_NC), TAG_ROWS)]
    row_P = np.concatenate([row_p + number * TAG_ROWS for number, (row_p, _) in enumerate(parts)])
    column_P = np.concatenate([column_p for _, column_p in parts])
    row_P, column_P = row_P[chosen_N[row_P]], column_P[chosen_N[row_P]]
    order_P = np.argsort(column_P, kind="stable")
    ends_C = np.searchsorted(column_P[order_P], np.arange(1, tags_NC.shape[1]))
    without_N = chosen_N.copy()
    without_N[row_P] = False
    return [*np.split(row_P[order_P], ends_C), np.flatnonzero(without_N)]


def class_queue(tags_NC: Array, batch_size: int, seed: int) -> Iterator[Array]:
    """{0, 1} [N, C] -> clip indices of one batch after another, without end: AudioTagger's balanced sampler, exactly.

    Classes queue up, all in a new order whenever fewer than a batch are left; a batch takes the next `batch_size` of
    them and, class by class, that many clips from the class's own shuffled list. Source: ZhicunXu/AudioTagger, after
    Kong et al. 2018. Kept for comparison, beside `balanced_draws`: a list is shuffled anew when it has just enough
    clips left, so that its last one is never drawn; a class with too few clips makes the batch shorter, one without
    any is passed over; and the order follows from a single stream of random numbers."""
    yield from queued_classes(members_of(tags_NC, np.ones(len(tags_NC), bool))[:-1], batch_size, seed)


def queued_classes(members: Sequence[Array], batch_size: int, seed: int) -> Iterator[Array]:
    """`class_queue` of the clips of every class, ascending."""
    rng = np.random.RandomState(seed)
    members = [clips.copy() for clips in members]
    for clips in members:
        rng.shuffle(clips)
    taken, classes, queue = [0] * len(members), np.arange(len(members)), np.zeros(0, np.int64)
    while True:
        while len(queue) < batch_size:
            rng.shuffle(classes)
            queue = np.concatenate([queue, classes])
        batch, queue = queue[:batch_size], queue[batch_size:]
        drawn = []
        for number, count in zip(*np.unique(batch, return_counts=True), strict=True):
            if taken[number] + count >= len(members[number]):
                taken[number] = 0
                rng.shuffle(members[number])
            drawn.append(members[number][taken[number] : taken[number] + count].copy())
            taken[number] += count
        yield np.concatenate(drawn)


class ClassQueue:
    """`class_queue` in epochs of so many batches, each a stretch of the one stream: so an epoch is known by its number,
    but what was drawn before it is drawn again where it was not drawn here (a run that goes on; some 2 ms a batch of
    500). chosen_N: bool, the clips to draw; `clip_N` are their numbers among all."""

    def __init__(self, tags_NC: Array, chosen_N: Array, batch_size: int, seed: int, steps: int) -> None:
        self.members = members_of(tags_NC, chosen_N)[:-1]
        self.batch_size, self.seed, self.steps = batch_size, seed, steps
        self.drawn, self.stream = 0, queued_classes(self.members, batch_size, seed)

    def epoch(self, epoch: int) -> list[Array]:
        """The batches of an epoch, clip_N each, in their order."""
        if epoch * self.steps < self.drawn:
            self.drawn, self.stream = 0, queued_classes(self.members, self.batch_size, self.seed)
        for _ in itertools.islice(self.stream, epoch * self.steps - self.drawn):
            pass
        self.drawn = (epoch + 1) * self.steps
        return list(itertools.islice(self.stream, self.steps))


def buffers_of(
    groups: list[RowGroup], batches: Sequence[Array], rank: int = 0, world: int = 1, first: int = 0
) -> list[Buffer]:
    """The batches of an epoch, clip_N each among the clips of `groups`, as a buffer each of one rank, from number
    `first` on: every `world`-th clip, the same number on every rank. A clip that comes again is another crop."""
    clip_N = np.concatenate(batches)
    order_N = np.argsort(clip_N, kind="stable")
    begins_N = np.searchsorted(clip_N[order_N], clip_N[order_N])
    draw_N = np.empty_like(clip_N)
    draw_N[order_N] = np.arange(len(clip_N)) - begins_N
    first_G = np.cumsum([0, *(group.clips for group in groups)])
    bounds = np.cumsum([0, *map(len, batches)]).tolist()
    buffers = []
    for begin, end in list(itertools.pairwise(bounds))[first:]:
        mine = slice(begin + rank, begin + (end - begin) // world * world, world)
        group_N = np.searchsorted(first_G, clip_N[mine], "right") - 1
        used, local_N = np.unique(group_N, return_inverse=True)
        of_batch = tuple(groups[number] for number in used.tolist())
        row_N = clip_N[mine] - first_G[group_N]
        buffers.append(Buffer(of_batch, local_N, row_N, draw_N[mine], len(clip_N)))
    return buffers


def eval_starts(n_samples: int, crop_samples: int, crops: int) -> list[int]:
    """First samples of the evenly spaced evaluation crops of one clip; a clip that fits one crop gets one, centred."""
    slack = n_samples - crop_samples
    if slack <= 0:
        return [-(-slack // 2)]
    if crops == 1:
        return [slack // 2]
    return [round(i * slack / (crops - 1)) for i in range(crops)]


def published_starts(n_samples: int, crop_samples: int, windows: int = 16) -> list[int]:
    """First samples of the published code's test windows: i * floor(slack / windows), so a clip's tail is never used.

    Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002. Departure: of a clip shorter than the crop, which the
    published code replaces by silence without tags, all windows are the clip itself, centred between zeros."""
    slack = n_samples - crop_samples
    step = max(slack, 0) // windows
    return [i * step + (-(-slack // 2) if slack < 0 else 0) for i in range(windows)]


def train_buffers(
    groups: list[RowGroup],
    seed: int,
    epoch: int,
    mix: int,
    rank: int = 0,
    world: int = 1,
    times_N: Array | None = None,
    crops: int = 1,
) -> list[Buffer]:
    """The clips of one rank in one epoch, as buffers of `mix` row groups, row groups and clips in random order.

    The row groups are permuted; rank r of W takes the r-th of W equal stretches of the concatenated clips (up to W-1
    clips, different ones every epoch, are left over), so that it reads only its own part of the data.
    times_N: how often every clip of `groups`, in order, is drawn in this epoch (bool: once or not). crops: of every
    drawn clip, mixed as the clips are."""
    order = np.random.default_rng((seed, epoch)).permutation(len(groups))
    group_N = np.concatenate([np.full(groups[i].clips, i) for i in order])
    row_N = np.concatenate([np.arange(groups[i].clips) for i in order])
    span, repeat_N = 1, np.zeros(len(row_N), np.int64)
    if times_N is not None:
        first_G = np.cumsum([0, *(group.clips for group in groups)])
        count_N = times_N[first_G[group_N] + row_N].astype(np.int64)
        group_N, row_N = np.repeat(group_N, count_N), np.repeat(row_N, count_N)
        repeat_N = np.arange(len(row_N)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
        span = 1 if times_N.dtype == bool else len(row_N)
    share = len(row_N) // world
    mine_N = slice(rank * share, (rank + 1) * share)
    group_N, row_N, repeat_N = group_N[mine_N], row_N[mine_N], repeat_N[mine_N]
    mine = list(dict.fromkeys(group_N.tolist()))
    buffers = []
    for first in range(0, len(mine), mix):
        members = mine[first : first + mix]
        position = np.flatnonzero(np.isin(group_N, members))
        crop = np.random.default_rng((seed, epoch, members[0])).permutation(crops * len(position))
        draw_N, position = crop // len(position), position[crop % len(position)]
        draw_N = draw_N + crops * repeat_N[position]
        local = {group: i for i, group in enumerate(members)}
        local_N = np.array([local[g] for g in group_N[position].tolist()])
        buffers.append(Buffer(tuple(groups[g] for g in members), local_N, row_N[position], draw_N, crops * span))
    return buffers


def after(buffers: list[Buffer], crops: int) -> list[Buffer]:
    """The buffers without the first so many crops: those that are wholly behind are not read."""
    left = []
    for buffer in buffers:
        if crops < len(buffer):
            parts = (buffer.group_N, buffer.row_N, buffer.draw_N)
            group_N, row_N, draw_N = (part[crops:] for part in parts)
            left.append(replace(buffer, group_N=group_N, row_N=row_N, draw_N=draw_N))
        crops = max(0, crops - len(buffer))
    return left


def batch_sizes(clips: int, batch_size: int) -> list[int]:
    """Split `clips` into the fewest batches of at most `batch_size`, as equal as can be: no tiny last batch, and none
    of one row, which BatchNorm cannot train on. (Three clips in batches of two are one batch of three.)"""
    if clips == 0:
        return []
    batches = max(1, min(-(-clips // batch_size), clips // 2))
    small, larger = divmod(clips, batches)
    return [small + 1] * larger + [small] * (batches - larger)


def eval_share(groups: list[RowGroup], rank: int = 0, world: int = 1) -> list[RowGroup]:
    """The row groups that one rank evaluates: every group on exactly one rank, nothing dropped."""
    return groups[rank::world]
