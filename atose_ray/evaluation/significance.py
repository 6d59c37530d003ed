"""How sure is a score, and is one model better than another or only luckier with these clips or this seed?

Two sources of luck, two answers: a paired bootstrap over clips (Efron & Tibshirani 1993; both models are scored on the
same resampled clips, so what is hard for both cancels), and the spread over trainings with other seeds."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

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
    half = 0.0 if one else float(stats.t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
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
    z = float(stats.norm.ppf(0.975))
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

    def figure(weight_RN: Array) -> Array:
        values_SR = np.stack([resampled(scores_NC, tags_NC, weight_RN, metric) for scores_NC in scores_SNC])
        rest_SR = values_SR[first:]
        return np.asarray(values_SR[:first].mean(axis=0) - (rest_SR.mean(axis=0) if len(rest_SR) else 0.0))

    even = np.full(count, 1 / count)
    sizes = [min(block, resamples - done) for done in range(0, resamples, block)]
    values_R = np.concatenate([figure(generator.multinomial(count, even, size=size)) for size in sizes])
    return values_R, float(figure(np.ones((1, count), int))[0])


def resampled(scores_NC: Array, tags_NC: Array, weight_RN: Array, metric: str) -> Array:
    """[N, C], [N, C], draws of each clip [R, N] -> metric of each resample [R]; macro over the tags it can rank."""
    if metric == "accuracy":
        right_N = scores_NC.argmax(axis=1) == tags_NC.argmax(axis=1)
        return np.asarray(weight_RN @ right_N / weight_RN.sum(axis=1))
    if metric == "pr_auc_micro":
        flat_RN = np.repeat(weight_RN, tags_NC.shape[1], axis=1)
        return average_precision(scores_NC.ravel(), tags_NC.ravel(), flat_RN)
    if metric == "f1_macro_at_0.5":
        predicted_NC = scores_NC > 0.5
        values_CR = _share(2 * (weight_RN @ (predicted_NC * tags_NC)), weight_RN @ (predicted_NC + tags_NC)).T
    else:
        ranking = average_precision if metric == "pr_auc_macro" else roc_auc
        values_CR = np.stack([ranking(scores_NC[:, c], tags_NC[:, c], weight_RN) for c in range(tags_NC.shape[1])])
    positives_CR = (weight_RN @ tags_NC).T
    rankable_CR = (positives_CR > 0) & (positives_CR < weight_RN.sum(axis=1))
    return _share(np.where(rankable_CR, values_CR, 0.0).sum(axis=0), rankable_CR.sum(axis=0))


def _share(part: Array, whole: Array) -> Array:
    """part / whole, 0 where the whole is."""
    return np.asarray(np.divide(part, whole, out=np.zeros(part.shape), where=whole > 0))


def average_precision(scores_N: Array, labels_N: Array, weight_RN: Array) -> Array:
    """Sum over distinct scores of precision times recall step, with every clip counted as often as drawn: [R]."""
    true_RK, all_RK = _cumulated(scores_N, labels_N, weight_RN)
    precision_RK = _share(true_RK, all_RK)
    step_RK = np.diff(true_RK, axis=1, prepend=0)
    return _share((precision_RK * step_RK).sum(axis=1), true_RK[:, -1])


def roc_auc(scores_N: Array, labels_N: Array, weight_RN: Array) -> Array:
    """Area under the ROC curve by trapezoids, with every clip counted as often as drawn: [R]."""
    true_RK, all_RK = _cumulated(scores_N, labels_N, weight_RN)
    false_RK = all_RK - true_RK
    middle_RK = true_RK - np.diff(true_RK, axis=1, prepend=0) / 2
    area_R = (np.diff(false_RK, axis=1, prepend=0) * middle_RK).sum(axis=1)
    return _share(area_R, true_RK[:, -1] * false_RK[:, -1])


def _cumulated(scores_N: Array, labels_N: Array, weight_RN: Array) -> tuple[Array, Array]:
    """Drawn positives, and drawn clips, whose score is at least each distinct score, from the highest: [R, K]."""
    order_N = np.argsort(-scores_N, kind="stable")
    last_K = np.flatnonzero(np.append(np.diff(scores_N[order_N]) != 0, True))
    drawn_RN = weight_RN[:, order_N]
    all_RK = np.cumsum(drawn_RN, axis=1)[:, last_K]
    true_RK = np.cumsum(drawn_RN * labels_N[order_N], axis=1)[:, last_K]
    return true_RK.astype(float), all_RK.astype(float)
