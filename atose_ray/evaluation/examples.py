"""What a model gets wrong: confusions, and its worst mistakes with a few seconds of sound.

A mistake needs a decision. Of exclusive tags it is the highest score. Where a clip carries any number of tags, a tag is
given to as many clips as carry it, those it scores highest (the break-even point of precision and recall), so that a
rare tag with low scores is judged by its own measure."""

import base64
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from scipy.special import logit

from atose_ray.audio.io import wav_of
from atose_ray.audio.resample import Resampler
from atose_ray.data.shards import from_file, read_index, read_row_group
from atose_ray.data.views import View
from atose_ray.evaluation.scoring import ClipScores
from atose_ray.storage import Store
from atose_ray.types import Array, AudioInput

WORST, WORST_OF_TAG, WORST_OF_CLIP = 20, 3, 2
EXCERPT_S, EXCERPT_HZ = 4.0, 8000  # 40 of them are 3.4 MB as base64
MAP_TAGS = 100  # tags of a confusion map: those with the most mistakes
LEAST = 1e-7  # a score closer to 0 or 1 counts as this far from it
TOP = 3  # of a clip's tags, its highest scored


@dataclass(frozen=True)
class Mistake:
    """A tag that a clip got and does not carry, or carries and did not get. clip, tag: indices into scores_NC.

    rank: of exclusive tags, the tag's place among the clip's scores; else the clip's place among the tag's. From 1.
    severity: the higher the worse, comparable within one list."""

    clip: int
    tag: int
    score: float
    rank: int
    severity: float


def mistakes_of(scores: ClipScores, exclusive: bool) -> tuple[dict[str, Any], list[int]]:
    """Confusion, false positives and false negatives, JSON types only; and the numbers of the clips that they name."""
    positives, negatives = worst_mistakes(scores, exclusive)
    lines = {"false_positives": _lines(positives, scores), "false_negatives": _lines(negatives, scores)}
    return {"confusion": confusion(scores, exclusive), **lines}, sorted({one.clip for one in positives + negatives})


def decision(scores_NC: Array, tags_NC: Array, exclusive: bool) -> tuple[Array, Array]:
    """[N, C], [N, C] -> which tags are given, bool [N, C], and the score each tag needs, [C] (exclusive: zeros).
    A tag that no clip carries is given to none; of equal scores at the break-even point all are given."""
    given_NC = np.zeros(scores_NC.shape, bool)
    if exclusive:
        given_NC[np.arange(len(scores_NC)), scores_NC.argmax(axis=1)] = True
        return given_NC, np.zeros(scores_NC.shape[1])
    positives_C = tags_NC.sum(axis=0).astype(int)
    sorted_NC = -np.sort(-scores_NC, axis=0)
    needed_C = sorted_NC[np.maximum(positives_C, 1) - 1, np.arange(len(positives_C))]
    return (scores_NC >= needed_C) & (positives_C > 0), needed_C


def worst_mistakes(scores: ClipScores, exclusive: bool) -> tuple[list[Mistake], list[Mistake]]:
    """The worst false positives and false negatives, worst first: WORST of each at most, WORST_OF_TAG of a tag.

    A clip stands in the two lists together at most WORST_OF_CLIP times. Of exclusive tags each wrong clip is a false
    positive of one tag and a false negative of another, so it stands at most once in each."""
    from scipy.stats import rankdata  # here: a second of the start of every trial

    scores_NC, tags_NC = scores.scores_NC, scores.tags_NC > 0
    given_NC, needed_C = decision(scores_NC, tags_NC, exclusive)
    rank_NC = rankdata(-scores_NC, "ordinal", axis=1 if exclusive else 0)
    if exclusive:
        above_NC = scores_NC - (scores_NC * tags_NC).sum(axis=1, keepdims=True)  # over the clip's own tag
        below_NC = rank_NC - scores_NC  # its own tag far down the clip's list, then with a low score
    else:
        above_NC = logit(scores_NC.clip(LEAST, 1 - LEAST)) - logit(needed_C.clip(LEAST, 1 - LEAST))
        below_NC = -above_NC
    used: Counter[int] = Counter()
    lists = []
    for wrong_NC, severity_NC in ((given_NC & ~tags_NC, above_NC), (~given_NC & tags_NC, below_NC)):
        if exclusive:
            used.clear()
        places = np.nonzero(wrong_NC)
        columns = (*places, scores_NC[places], rank_NC[places], severity_NC[places])
        mistakes = [Mistake(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]
        lists.append(_chosen(mistakes, used, 1 if exclusive else WORST_OF_CLIP))
    return lists[0], lists[1]


def _chosen(mistakes: Iterable[Mistake], used: Counter[int], of_clip: int) -> list[Mistake]:
    """The worst, so that no tag and no clip fills the list. used: how often each clip stands in a list already."""
    of_tag: Counter[int] = Counter()
    chosen: list[Mistake] = []
    for one in sorted(mistakes, key=lambda one: (-one.severity, one.clip, one.tag)):
        if len(chosen) < WORST and of_tag[one.tag] < WORST_OF_TAG and used[one.clip] < of_clip:
            chosen.append(one)
            of_tag[one.tag] += 1
            used[one.clip] += 1
    return chosen


def confusion(scores: ClipScores, exclusive: bool) -> dict[str, Any]:
    """Which tags are taken for which: {"tags": indices, "carry": clips with each, "counts": rows of whole numbers}.

    counts[a][b], a = b: clips with tag a that were given it. Else, of exclusive tags, clips with tag a that were given
    b; where clips carry several, clips with tag a and without b that were given b. Of many tags only the MAP_TAGS with
    the most mistakes, in the order of the data."""
    tags_NC = (scores.tags_NC > 0).astype(np.int64)
    given_NC = decision(scores.scores_NC, tags_NC, exclusive)[0].astype(np.int64)
    counts_CC = tags_NC.T @ (given_NC * (1 - tags_NC))
    mistakes_C = counts_CC.sum(axis=0) + counts_CC.sum(axis=1)
    np.fill_diagonal(counts_CC, (tags_NC * given_NC).sum(axis=0))
    kept = np.sort(np.argsort(-mistakes_C, kind="stable")[:MAP_TAGS])
    counts = counts_CC[np.ix_(kept, kept)].tolist()
    return {"tags": kept.tolist(), "carry": tags_NC.sum(axis=0)[kept].tolist(), "counts": counts}


def _lines(mistakes: list[Mistake], scores: ClipScores) -> list[dict[str, Any]]:
    lines = []
    for one in mistakes:
        row_C = scores.scores_NC[one.clip]
        top = [[int(tag), round(float(row_C[tag]), 4)] for tag in np.argsort(-row_C, kind="stable")[:TOP]]
        clip = str(scores.clip_id_N[one.clip])
        lines.append({"clip": clip, "tag": one.tag, "score": one.score, "rank": one.rank, "top": top})
    return lines


def shown_clips(view: View, store: Store, scores: ClipScores, shown: list[int]) -> dict[str, Any]:
    """clip id -> name, tags, seconds and excerpt (of audio) of the clips shown. Reads the row groups they lie in."""
    manifest, folder = view.manifest, view.manifest.folder(store)
    spec = manifest.data_spec
    row_of = {int(scores.clip_id_N[row]): row for row in shown}
    names: dict[int, str] = {}
    for shard in manifest.shards:
        if shard.split == "valid":
            table = from_file(folder, shard.name, lambda file: pq.read_table(file, columns=["clip_id", "name"]))
            names |= dict(zip(table["clip_id"].to_pylist(), table["name"].to_pylist(), strict=True))
    clips: dict[str, Any] = {}
    for place in manifest.row_groups("valid"):
        if row_of.keys().isdisjoint(read_index(folder, place, view.stored).clip_id_N.tolist()):
            continue
        group = read_row_group(folder, place, view.stored)
        rows = zip(group.clip_id_N.tolist(), group.stored_N, group.scale_N.tolist(), strict=True)
        for clip_id, stored, scale in rows:
            if clip_id in row_of:
                sounds = isinstance(spec.input, AudioInput)
                first, wav = excerpt(stored, scale, spec.audio.sample_rate_hz) if sounds else (0, b"")
                clips[str(clip_id)] = {
                    "name": names[clip_id],
                    "tags": np.flatnonzero(scores.tags_NC[row_of[clip_id]]).tolist(),
                    "seconds": round(len(stored) / spec.input.rate_hz, 2),
                    "from_s": round(first / spec.input.rate_hz, 2),
                    "wav": base64.b64encode(wav).decode() or None,
                }
    return clips


def excerpt(pcm_T: npt.NDArray[np.int16], scale: float, rate_hz: int) -> tuple[int, bytes]:
    """Stored samples -> the first sample of their loudest EXCERPT_S seconds, and these as a mono WAV of int16 at
    EXCERPT_HZ (or at the clip's own rate, where that is lower), at the level that the model is given."""
    size = round(EXCERPT_S * rate_hz)
    energy_T = np.cumsum(np.square(pcm_T, dtype=np.float64))
    starts = max(0, len(pcm_T) - size)
    within_T = energy_T[size - 1 :] - np.concatenate([[0.0], energy_T[:starts]]) if starts else np.zeros(1)
    first = int(within_T.argmax())
    part_T = pcm_T[first : first + size].astype(np.float32) * np.float32(scale)
    out_hz = min(rate_hz, EXCERPT_HZ)
    resampler = Resampler(rate_hz, out_hz)
    out_T = np.concatenate([resampler.push(part_T), resampler.finish()]) if len(part_T) else part_T
    return first, wav_of(np.rint(out_T * 32767).clip(-32767, 32767).astype("<i2"), out_hz)
