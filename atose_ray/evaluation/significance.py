"""How sure is a score, and is one model better than another or only luckier with these clips or this seed?

Two sources of luck, two answers: a paired bootstrap over clips (Efron & Tibshirani 1993; both models are scored on the
same resampled clips, so what is hard for both cancels), and the spread over trainings with other seeds."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from atose_ray.config import OF_CLIPS
from atose_ray.evaluation.metrics import check_scores
from atose_ray.types import Array

RESAMPLES, FEWEST = 1000, 200
RESAMPLED_NUMBERS = 50_000_000  # scores drawn for one interval: some ten seconds
BLOCK_NUMBERS = 1 << 23  # of a block of resamples, so that it stays within some 100 MB


@dataclass(frozen=True)
class Comparison:
    """A - B of one metric over resampled clips. low, high: 95 % percentile interval; better: share of resamples where A
    is ahead, ties counted half."""

    difference: float
    low: float
    high: float
    better: float
    resamples: int


@dataclass(frozen=True)
class Spread:
    """Scores of trainings that differ only in their seed. low, high: 95 % interval of the mean (Student);
    of one training they are the score itself."""

    mean: float
    deviation: float
    low: float
    high: float


def spread(values: list[float]) -> Spread:
    """Mean, sample standard deviation and confidence interval. Raises ValueError for no value."""
    if not values:
        raise ValueError("expected the score of one training or more, but got none")
    mean, one = float(np.mean(values)), len(values) == 1
    deviation = 0.0 if one else float(np.std(values, ddof=1))
    half = 0.0 if one else float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return Spread(mean, deviation, mean - half, mean + half)


def paired_bootstrap(
    a_SNC: Sequence[Array],
    b_SNC: Sequence[Array],
    tags_NC: Array,
    metric: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Scores [N, C] of S trainings of A and of B, on the same clips with {0, 1} tags -> is A better?

    A's figure on a resample is the mean of its trainings' metrics. Raises ValueError for another metric than those of
    config.OF_CLIPS, no training, shapes that differ or scores not finite."""
    if not a_SNC or not b_SNC:
        raise ValueError("expected the scores of one training or more on each side, but got none")
    differences_R, whole = _bootstrapped([*a_SNC, *b_SNC], tags_NC, metric, resamples, seed, len(a_SNC))
    low, high = np.percentile(differences_R, (2.5, 97.5))
    better = np.mean(differences_R > 0) + np.mean(differences_R == 0) / 2
    return Comparison(whole, float(low), float(high), float(better), resamples)


def interval(scores_NC: Array, tags_NC: Array, metric: str) -> list[float]:
    """Scores and {0, 1} tags [N, C] -> 95 % interval of a metric over resampled clips. Raises as `paired_bootstrap`.

    RESAMPLES of them; of many clips and tags fewer, FEWEST at least, as every search waits for it."""
    resamples = max(FEWEST, min(RESAMPLES, RESAMPLED_NUMBERS // max(1, tags_NC.size)))
    values_R, _ = _bootstrapped([scores_NC], tags_NC, metric, resamples, 0, 1)
    return [float(end) for end in np.percentile(values_R, (2.5, 97.5))]


def wilson(right: int, count: int) -> list[float]:
    """95 % interval of a share: `right` of `count` clips (Wilson 1927). Unlike a bootstrap's it has a width where all
    clips are right, or none. Raises ValueError without a clip."""
    if not 0 <= right <= count or count < 1:
        raise ValueError(f"expected a share of one clip or more, but got {right} of {count}")
    z = float(ndtri(0.975))
    share, squared = right / count, z * z / count
    middle = (share + squared / 2) / (1 + squared)
    half = z / (1 + squared) * math.sqrt(share * (1 - share) / count + squared / (4 * count))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def score_intervals(scores_NC: Array, tags_NC: Array, names: Iterable[str]) -> dict[str, list[float]]:
    """95 % intervals of those of the named scores that are made of clips: accuracy by Wilson, others by bootstrap."""
    found = {}
    for name in names:
        if name == "accuracy":
            right = int((scores_NC.argmax(axis=1) == tags_NC.argmax(axis=1)).sum())
            found[name] = wilson(right, len(tags_NC))
        elif name in OF_CLIPS:
            found[name] = interval(scores_NC, tags_NC, name)
    return found


def _bootstrapped(
    scores_SNC: list[Array], tags_NC: Array, metric: str, resamples: int, seed: int, first: int
) -> tuple[Array, float]:
    """Mean metric of the `first` scores minus that of the rest, on each resample [R] and on all clips."""
    if metric not in OF_CLIPS:
        raise ValueError(f"metric is one of {', '.join(OF_CLIPS)}, but got {metric!r}")
    for scores_NC in scores_SNC:
        check_scores(scores_NC, tags_NC)
    generator, count = np.random.default_rng(seed), len(tags_NC)
    block = max(1, BLOCK_NUMBERS // (tags_NC.size if metric == "pr_auc_micro" else count))
    figures = [figure_of(scores_NC, tags_NC, metric) for scores_NC in scores_SNC]

    def difference(weight_RN: Array) -> Array:
        values_SR = np.stack([figure(weight_RN) for figure in figures])
        rest_SR = values_SR[first:]
        return np.asarray(values_SR[:first].mean(axis=0) - (rest_SR.mean(axis=0) if len(rest_SR) else 0.0))

    even = np.full(count, 1 / count)
    sizes = [min(block, resamples - done) for done in range(0, resamples, block)]
    values_R = np.concatenate([difference(generator.multinomial(count, even, size=size)) for size in sizes])
    return values_R, float(difference(np.ones((1, count), int))[0])


def figure_of(scores_NC: Array, tags_NC: Array, metric: str) -> Callable[[Array], Array]:
    """[N, C], [N, C] -> a function of the draws of each clip [R, N] that gives the metric of each resample [R]; macro
    over the tags it can rank. What is the same for all resamples is done here, once."""
    if metric == "accuracy":
        right_N = scores_NC.argmax(axis=1) == tags_NC.argmax(axis=1)
        return lambda weight_RN: np.asarray(weight_RN @ right_N / weight_RN.sum(axis=1))
    if metric == "pr_auc_micro":
        clip_X = np.repeat(np.arange(len(tags_NC), dtype=np.int32), tags_NC.shape[1])
        ranking = Ranking(scores_NC.ravel(), tags_NC.ravel(), clip_X)
        return lambda weight_RN: ranking.average_precision(by_clip(weight_RN))
    if metric == "f1_macro_at_0.5":
        predicted_NC = scores_NC > 0.5

        def of_tags(weight_RN: Array) -> Array:
            return _share(2 * (weight_RN @ (predicted_NC * tags_NC)), weight_RN @ (predicted_NC + tags_NC)).T

    else:
        rankings = [Ranking(scores_N, tags_N) for scores_N, tags_N in zip(scores_NC.T, tags_NC.T, strict=True)]
        ranked = Ranking.average_precision if metric == "pr_auc_macro" else Ranking.roc_auc

        def of_tags(weight_RN: Array) -> Array:
            weight_NR = by_clip(weight_RN)
            return np.stack([ranked(ranking, weight_NR) for ranking in rankings])

    def macro(weight_RN: Array) -> Array:
        positives_CR = (weight_RN @ tags_NC).T
        rankable_CR = (positives_CR > 0) & (positives_CR < weight_RN.sum(axis=1))
        return _share(np.where(rankable_CR, of_tags(weight_RN), 0.0).sum(axis=0), rankable_CR.sum(axis=0))

    return macro


def by_clip(weight_RN: Array) -> Array:
    """[R, N] -> [N, R], whose rows are read in any order."""
    return np.ascontiguousarray(weight_RN.T, np.int32)


def _share(part: Array, whole: Array) -> Array:
    """part / whole, 0 where the whole is."""
    return np.asarray(np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0))


class Ranking:
    """X scores, from the highest, of which only those places matter where a positive stands: recall rises nowhere else,
    and a negative counts by how many positives are above it. clip_X: whose score each is; None is one of every clip."""

    def __init__(self, scores_X: Array, labels_X: Array, clip_X: Array | None = None) -> None:
        order_X = np.argsort(-scores_X, kind="stable")
        sorted_X = scores_X[order_X]
        begin_K = np.flatnonzero(np.append(True, sorted_X[1:] != sorted_X[:-1]))  # of every run of equal scores
        place_P = np.flatnonzero(labels_X[order_X] > 0)
        run_G, self.first_G = np.unique(np.searchsorted(begin_K, place_P, "right") - 1, return_index=True)
        self.begin_G, self.end_G = begin_K[run_G], np.append(begin_K[1:], len(sorted_X))[run_G]
        self.clip_X = (order_X if clip_X is None else clip_X[order_X]).astype(np.int32)
        self.positive_P = self.clip_X[place_P]

    def average_precision(self, weight_NR: Array) -> Array:
        """Sum over distinct scores of precision times recall step, with every clip counted as often as drawn: [R]."""
        step_GR, true_GR, _, upto_GR = self.counted(weight_NR)
        return _share((_share(true_GR, upto_GR) * step_GR).sum(axis=0), step_GR.sum(axis=0))

    def roc_auc(self, weight_NR: Array) -> Array:
        """Area under the ROC curve by trapezoids, with every clip counted as often as drawn: [R]."""
        step_GR, true_GR, before_GR, upto_GR = self.counted(weight_NR)
        false_R = weight_NR.sum(axis=0) - step_GR.sum(axis=0)
        below_GR = false_R - (upto_GR - true_GR)  # negatives with a lower score; those with the same one count half
        area_R = (step_GR * (below_GR + (upto_GR - before_GR - step_GR) / 2)).sum(axis=0)
        return _share(area_R, step_GR.sum(axis=0) * false_R)

    def counted(self, weight_NR: Array) -> tuple[Array, Array, Array, Array]:
        """Of every score with a positive, [G, R] float64 each: drawn positives with it, with it or a higher one, drawn
        clips with a higher one, with it or a higher one."""
        if not len(self.first_G):
            return (np.zeros((0, weight_NR.shape[1])),) * 4
        if weight_NR.shape[1] == 1:  # of millions of pairs one resample at a time
            total_XR = np.cumsum(weight_NR[:, 0].take(self.clip_X), dtype=np.int32)[:, None]
        else:
            total_XR = np.cumsum(weight_NR[self.clip_X], axis=0, dtype=np.int32)
        before_GR = np.where(self.begin_G[:, None] > 0, total_XR[self.begin_G - 1], 0)
        step_GR = np.add.reduceat(weight_NR[self.positive_P].astype(np.float64), self.first_G, axis=0)
        upto_GR = total_XR[self.end_G - 1]
        return step_GR, np.cumsum(step_GR, axis=0), before_GR.astype(np.float64), upto_GR.astype(np.float64)
