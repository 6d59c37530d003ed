"""The areas under a ranking's precision-recall and ROC curves, from sorted scores alone.

Neither curve is drawn. With `at` the scores that reach a positive's own, and `right` the positives among them, average
precision (the sum over thresholds of precision times recall step, as scikit-learn defines it) is the mean of
right / at over the positives: those of one score share a threshold, so each has its precision. The area under the ROC
curve is the share of pairs of a positive and a negative that stand in the right order, a tie counting half (Hanley &
McNeil 1982). Both are sums of whole numbers up to the last division. Scores are sorted by value, which is several times
as fast as sorting an order of them, and once for both."""

import numpy as np

from atose_ray.types import Array

COLUMNS = 1 << 24  # scores that are turned and sorted at a time: 128 MB


def areas(scores_N: Array, tags_N: Array) -> tuple[float, float]:
    """[N] finite, {0, 1} [N] with a positive and a negative -> average precision, area under the ROC curve."""
    return _areas(np.sort(scores_N), np.sort(scores_N[tags_N > 0]))


def areas_of_columns(scores_NC: Array, tags_NC: Array) -> tuple[Array, Array]:
    """`areas` of every column: [N, C], [N, C] -> [C], [C]."""
    found, step = list[tuple[float, float]](), max(1, COLUMNS // max(len(scores_NC), 1))
    for first in range(0, scores_NC.shape[1], step):
        scores_CN = np.ascontiguousarray(scores_NC[:, first : first + step].T)
        tags_CN = np.ascontiguousarray(tags_NC[:, first : first + step].T) > 0
        positives = [np.sort(scores_N[tags_N]) for scores_N, tags_N in zip(scores_CN, tags_CN, strict=True)]
        scores_CN.sort(axis=1)
        found += map(_areas, scores_CN, positives)
    precision, roc = zip(*found, strict=True)
    return np.array(precision), np.array(roc)


def _areas(sorted_N: Array, positive_P: Array) -> tuple[float, float]:
    """Of all scores and those of the positives, both ascending."""
    clips, positives = len(sorted_N), len(positive_P)
    below_P, upto_P = (np.searchsorted(sorted_N, positive_P, side) for side in ("left", "right"))
    own_below_P, own_upto_P = (np.searchsorted(positive_P, positive_P, side) for side in ("left", "right"))
    precision = float(np.mean((positives - own_below_P) / (clips - below_P)))
    halves = int((below_P - own_below_P).sum()) + int((upto_P - own_upto_P).sum())  # a pair in order counts twice
    return precision, halves / (2 * positives * (clips - positives))
