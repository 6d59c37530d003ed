"""Any model along a recording of any length: the scores of every hop, as a stream, in bounded memory.

A hop [start, end) is scored from what is heard around it, `left_s` before and `right_s` behind. Left open, the model
hears a crop of the length that it was trained on, with the hop in its middle; at both ends of the file the crop stays
inside. Where they are given, nothing outside of them is heard: what is shorter than the model's crop is filled up with
zeros, as short clips are in training, and what is longer is scored as the mean of evenly spaced crops.

Of a model that scores single frames (Method.frame_scores) a hop may be scored by them, which tells more finely when
something sounds: the mean over those frames of its crops whose middle lies in the hop, or, of a hop that is shorter
than they are, the frame whose middle is the nearest to its own. What is heard around the hop is the same."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from atose_ray.apps.predict import crop_scores
from atose_ray.audio.io import Source, decode_parts
from atose_ray.data.batches import cut
from atose_ray.data.sampling import eval_starts
from atose_ray.training.checkpoint import Model
from atose_ray.types import Array, TagSet

PIECE_S = 60.0  # of the recording that are decoded at a time
LEVEL_S = 30.0  # around a hop whose highest magnitude is 1 for models that were trained on clips at one level


class WindowScores(NamedTuple):
    """start_s, end_s: of the hop; scores_C float32; level: the highest magnitude in it, for a picture of the wave."""

    start_s: float
    end_s: float
    scores_C: Array
    level: float


class Hop(NamedTuple):
    """What is to be scored. first, end: of the hop; starts_K: where its crops begin; both in samples of the recording.
    level: as in WindowScores. crops_KT: what is heard around it."""

    first: int
    end: int
    level: float
    crops_KT: Array
    starts_K: Array


@dataclasses.dataclass(frozen=True)
class Hearing:
    """What is heard of a recording, in samples. hop; left, right: around it. inside: a window that would reach beyond
    the file is moved into it. margin: to both sides of the middle, for the level; 0 where it is as it comes."""

    hop: int
    left: int
    right: int
    inside: bool
    length: int
    margin: int

    def needs(self, number: int) -> tuple[int, int]:
        """First sample and end of what hop `number` may read, in a recording without end."""
        first, end = number * self.hop - self.left, (number + 1) * self.hop + self.right
        if self.inside and first < 0:
            first, end = 0, end - first
        middle = number * self.hop + self.hop // 2
        if self.margin:
            first, end = min(first, middle - self.margin), max(end, middle + self.margin)
        return max(first, 0), end

    def window(self, number: int, samples: int) -> tuple[int, int]:
        """First sample and end of what is scored, in a recording of so many samples."""
        first, end = number * self.hop - self.left, (number + 1) * self.hop + self.right
        if self.inside:
            first = max(0, min(first, samples - (end - first)))
            end = first + self.left + self.hop + self.right
        return max(first, 0), min(end, samples)


def hearing_of(model: Model, hop_s: float, left_s: float | None, right_s: float | None) -> Hearing:
    """Raises ValueError for a hop of nothing, or a negative context."""
    rate, length = model.spec.audio.sample_rate_hz, model.spec.input.length
    hop = round(hop_s * rate)
    if hop < 1 or min(left_s or 0, right_s or 0) < 0:
        raise ValueError(
            f"expected a hop above 0 s and contexts of 0 s or more, but got hop {hop_s:g}, left {left_s}, "
            f"right {right_s}"
        )
    around = max(length - hop, 0)
    inside = left_s is None and right_s is None
    left = around // 2 if inside else round((left_s or 0) * rate)
    right = around - around // 2 if inside else round((right_s or 0) * rate)
    margin = round(LEVEL_S / 2 * rate) if model.spec.peak_normalize else 0
    return Hearing(hop, left, right, inside, length, margin)


def iter_windows(
    model: Model,
    source: Source,
    *,
    hop_s: float = 1.0,
    left_s: float | None = None,
    right_s: float | None = None,
    tags: TagSet | None = None,
    skip: int = 0,
    name: str | None = None,
    frames: bool = False,
) -> Iterator[WindowScores]:
    """The scores of every hop of a recording, in order. skip: hops at the beginning that are not scored again. frames:
    a hop is scored by its own frames, not by all that is heard around it.

    In memory are PIECE_S seconds, the context and a batch. Raises AudioError for what is no sound, perhaps after some
    hops: a broken tail is found at the end. Raises ValueError for a hop or context that is none."""
    rate, hearing = model.spec.audio.sample_rate_hz, hearing_of(model, hop_s, left_s, right_s)
    wanted, batch = tags or TagSet(model.spec.tags), model.run.execution.eval_batch_size
    held_T, begin, number = np.zeros(0, np.float32), 0, skip
    waiting: list[Hop] = []

    def scored() -> Iterator[WindowScores]:
        ends = [min(hop.end, samples) if samples else hop.end for hop in waiting]
        hops = [hop._replace(end=end) for hop, end in zip(waiting, ends, strict=True)]
        for hop, scores_C in zip(hops, hop_scores(model, hops, wanted, frames), strict=True):
            yield WindowScores(hop.first / rate, hop.end / rate, scores_C, hop.level)
        waiting.clear()

    def take(end: int) -> bool:
        """Put the next hop to those that wait; whether they make a batch."""
        hop_T = held_T[max(number * hearing.hop - begin, 0) : (number + 1) * hearing.hop - begin]
        level = float(np.abs(hop_T).max(initial=0.0))
        crops = crops_at(hearing, held_T, begin, number, end)
        waiting.append(Hop(number * hearing.hop, (number + 1) * hearing.hop, level, *crops))
        return sum(len(hop.crops_KT) for hop in waiting) >= batch

    samples = 0  # of the whole recording; known at its end
    for piece in decode_parts(source, sample_rate_hz=rate, max_seconds=PIECE_S, name=name):
        held_T = np.concatenate([held_T, piece.audio_T])
        while hearing.needs(number)[1] <= begin + len(held_T):
            full = take(begin + len(held_T))
            number += 1
            if full:
                yield from scored()
        keep = max(min(hearing.needs(number)[0], begin + len(held_T) - hearing.length), begin)
        held_T, begin = held_T[keep - begin :], keep
    samples = begin + len(held_T)
    while number * hearing.hop < samples:
        full = take(samples)
        number += 1
        if full:
            yield from scored()
    if waiting:
        yield from scored()


def crops_at(hearing: Hearing, held_T: Array, begin: int, number: int, samples: int) -> tuple[Array, Array]:
    """[T] from sample `begin` on, in a recording of so many samples (so far) -> [K, crop] of hop `number`, and the
    samples of the recording at which the K begin."""
    first, end = hearing.window(number, samples)
    heard_T = held_T[max(first - begin, 0) : end - begin]
    if hearing.margin:
        middle = number * hearing.hop + hearing.hop // 2 - begin
        around_T = held_T[max(middle - hearing.margin, 0) : middle + hearing.margin]
        heard_T = heard_T / max(float(np.abs(around_T).max(initial=0.0)), 1e-12)
    starts = eval_starts(len(heard_T), hearing.length, -(-len(heard_T) // hearing.length))
    crops_KT = np.zeros((len(starts), hearing.length), np.float32)
    for row, start in enumerate(starts):
        cut(heard_T, start, crops_KT[row])
    return crops_KT, first + np.array(starts)


@torch.no_grad()
def hop_scores(model: Model, hops: list[Hop], tags: TagSet, frames: bool) -> list[Array]:
    """[C] float32 of every hop: the mean over its crops, or over its own frames in them."""
    crops_BT = torch.from_numpy(np.concatenate([hop.crops_KT for hop in hops]))
    scores_BX = crop_scores(model, crops_BT, tags, frames).float().numpy()
    parts = np.split(scores_BX, np.cumsum([len(hop.crops_KT) for hop in hops])[:-1])
    if not frames:
        return [part.mean(axis=0) for part in parts]
    hop_seconds = model.method.encoder.hop_seconds
    assert hop_seconds is not None
    units = hop_seconds * model.spec.audio.sample_rate_hz
    return [part[own_frames(hop, part.shape[1], units)].mean(axis=0) for hop, part in zip(hops, parts, strict=True)]


def own_frames(hop: Hop, frames: int, units: float) -> Array:
    """Which frames of its crops score a hop, bool [K, S]. units: samples from one frame to the next."""
    middle_KS = hop.starts_K[:, None] + (np.arange(frames) + 0.5) * units
    own_KS = (middle_KS >= hop.first) & (middle_KS < hop.end)
    if not own_KS.any():
        own_KS.flat[np.abs(middle_KS - (hop.first + hop.end) / 2).argmin()] = True
    return np.asarray(own_KS)
