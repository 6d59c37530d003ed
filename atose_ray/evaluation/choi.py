"""The evaluation of zero-shot tagging as its published code does it.

Source: Choi, Lee, Park, Nam, "Zero-shot Learning for Audio-based Music Classification and Tagging", ISMIR 2019, and its
code. A clip is cut into back-to-back segments, its tail dropped, whose embeddings are averaged before the cosine is
taken. Areas leave out rows without both classes; every other number counts a row without a positive as 0. Such numbers
must not be compared with those of the protocol `zero_shot`, which leaves these rows out."""

import numpy as np

from atose_ray.evaluation.metrics import check_scores
from atose_ray.evaluation.ranking import FIRST, row_areas
from atose_ray.types import Array

THRESHOLDS = tuple(step / 10 for step in range(10))  # of the cosine


def segment_starts(length: int, crop: int) -> list[int]:
    """Back to back from the first unit on, the rest dropped; of a clip that is shorter than one, that one (padded; the
    published code repeats such a clip)."""
    return [crop * i for i in range(length // crop)] or [(length - crop) // 2]


def average_precision_at(labels_RK: Array, relevant_R: Array, k: int) -> Array:
    """{0, 1} of the highest scores in order, and how many positives a row has -> [R]: sum of precision at the hits
    among the first k, over min(positives, k); 0 for a row without a positive."""
    first_RK = labels_RK[:, :k]
    precision_RK = np.cumsum(first_RK, axis=1) / np.arange(1, first_RK.shape[1] + 1)
    return np.asarray((precision_RK * first_RK).sum(axis=1) / np.maximum(np.minimum(relevant_R, k), 1))


def cumulative_thresholds(cosine_RX: Array, labels_RX: Array) -> Array:
    """[R, X], {0, 1} [R, X] -> threshold, F1, precision, recall [10, 4]: means over rows and over all thresholds up to
    this one, for the published code never empties its lists."""
    rows = []
    for threshold in THRESHOLDS:
        given_RX = cosine_RX > threshold
        true_R, given_R = (given_RX * labels_RX).sum(axis=1), given_RX.sum(axis=1)
        positives_R = labels_RX.sum(axis=1)
        precision_R, recall_R = true_R / np.maximum(given_R, 1), true_R / np.maximum(positives_R, 1)
        f1_R = 2 * true_R / np.maximum(given_R + positives_R, 1)
        rows.append([f1_R.mean(), precision_R.mean(), recall_R.mean()])
    means = np.cumsum(rows, axis=0) / np.arange(1, len(rows) + 1)[:, None]
    return np.column_stack([THRESHOLDS, means])


def row_numbers(scores_RX: Array, labels_RX: Array) -> dict[str, float]:
    """[R, X] scores (1 + cosine) / 2, {0, 1} [R, X] -> {name: value}, means over all rows but for the first.

    auc           area under the ROC curve, of rows with both classes
    map_zeros     average precision, 0 for a row without a positive
    hit_at_k_zeros, ap_at_k_zeros  `average_precision_at` and whether it is above 0
    f1_cosine_0_to_0.9             mean of F1 at ten thresholds"""
    auc_R, ap_R = row_areas(scores_RX, labels_RX)
    if np.isnan(auc_R).all():
        raise ValueError(f"none of {len(auc_R)} rankings has both a positive and a negative, so there is no score")
    order_RX = np.argsort(-scores_RX, axis=1, kind="stable")
    sorted_RX, positives_R = np.take_along_axis(labels_RX, order_RX, axis=1), labels_RX.sum(axis=1)
    named = {"auc": float(np.nanmean(auc_R)), "auc_left_out": float(np.isnan(auc_R).sum())}
    named["map_zeros"] = float(np.nan_to_num(ap_R).mean())
    for k in FIRST:
        precision_R = average_precision_at(sorted_RX, positives_R, k)
        named |= {f"hit_at_{k}_zeros": float((precision_R > 0).mean()), f"ap_at_{k}_zeros": float(precision_R.mean())}
    return {**named, "f1_cosine_0_to_0.9": float(cumulative_thresholds(2 * scores_RX - 1, labels_RX)[-1, 1])}


def choi_metrics(scores_NC: Array, tags_NC: Array, unseen_C: Array) -> dict[str, float]:
    """[N, C], [N, C], bool [C] -> the published numbers: of the unseen tags alone, and under `generalised_` of one
    ranking over seen and unseen ones."""
    check_scores(scores_NC, tags_NC)
    named: dict[str, float] = {}
    for prefix, group_C in (("", unseen_C), ("generalised_", np.ones_like(unseen_C))):
        scores, tags = scores_NC[:, group_C], tags_NC[:, group_C]
        for way, rows in (("retrieval", (scores.T, tags.T)), ("annotation", (scores, tags))):
            if rows[0].shape[1] > 1:  # one tag is no annotation
                named |= {f"{prefix}{way}_{name}": value for name, value in row_numbers(*rows).items()}
    return {**named, "tags_unseen": float(unseen_C.sum()), "clips": float(len(tags_NC))}
