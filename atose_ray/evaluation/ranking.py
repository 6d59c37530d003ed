"""Rankings both ways: retrieval ranks the clips for a tag, annotation the tags for a clip; seen and unseen tags apart.

A row without a positive has no ranking: it is left out of every mean, and counted. Of the area under the ROC curve a
row without a negative is left out too. Equal scores share their rank; what of them is among the first k is decided by
the order of the columns."""

from collections.abc import Iterable

import numpy as np

from atose_ray.evaluation.metrics import check_scores
from atose_ray.types import Array

FIRST = (1, 5, 10)
APART = ("roc_auc", "map")  # what is shown of seen and unseen tags apart, with the harmonic mean of the two


def row_areas(scores_RX: Array, labels_RX: Array, counted_RX: Array | None = None) -> tuple[Array, Array]:
    """[R, X], {0, 1} [R, X], and which of them count (None: all) -> area under the ROC curve and average precision of
    every row, [R] each; NaN where there is none."""
    from scipy.stats import rankdata  # here: a second of the start of every trial

    positive_RX = labels_RX > 0
    if counted_RX is not None:
        scores_RX, positive_RX = np.where(counted_RX, scores_RX, -np.inf), positive_RX & counted_RX
    ignored_R = np.zeros(len(scores_RX)) if counted_RX is None else (~counted_RX).sum(axis=1)
    positives_R = positive_RX.sum(axis=1)
    negatives_R = scores_RX.shape[1] - positives_R - ignored_R
    above_R = (rankdata(scores_RX, axis=1) * positive_RX).sum(axis=1) - positives_R * (
        ignored_R + (positives_R + 1) / 2
    )
    pairs_R = positives_R * negatives_R
    auc_R = np.divide(above_R, pairs_R, out=np.full(len(scores_RX), np.nan), where=pairs_R > 0)
    at_least_RX = rankdata(-scores_RX, "max", axis=1).astype(int)  # how many have this score or a higher one
    order_RX = np.argsort(-scores_RX, axis=1, kind="stable")
    found_RX = np.cumsum(np.take_along_axis(positive_RX, order_RX, axis=1), axis=1)
    precision_RX = np.take_along_axis(found_RX, at_least_RX - 1, axis=1) / at_least_RX
    total_R = (precision_RX * positive_RX).sum(axis=1)
    return auc_R, np.divide(total_R, positives_R, out=np.full(len(scores_RX), np.nan), where=positives_R > 0)


def row_metrics(scores_RX: Array, labels_RX: Array, counted_RX: Array | None = None) -> dict[str, float]:
    """[R, X], {0, 1} [R, X] -> {name: value}, means over the rows with a positive.

    roc_auc         area under the ROC curve, of rows with a negative as well
    map             average precision
    precision_at_k  share of positives among the k highest scores (of fewer columns, of all)
    hit_at_k        share of rows with a positive among the k highest scores
    left_out        rows without a positive

    Raises ValueError where every row is without one, or no row has both."""
    auc_R, ap_R = row_areas(scores_RX, labels_RX, counted_RX)
    ranked_R = ~np.isnan(ap_R)
    if not ranked_R.any() or np.isnan(auc_R).all():
        raise ValueError(
            f"none of {len(ranked_R)} rankings has both a positive and a negative, so there is no score; give the "
            "split more clips, or take another tag split"
        )
    shown_RX = scores_RX if counted_RX is None else np.where(counted_RX, scores_RX, -np.inf)
    order_RX = np.argsort(-shown_RX[ranked_R], axis=1, kind="stable")
    kept_RX = labels_RX if counted_RX is None else labels_RX * counted_RX
    hits_RX = np.take_along_axis(kept_RX[ranked_R] > 0, order_RX, axis=1)
    named = {"roc_auc": float(np.nanmean(auc_R)), "map": float(ap_R[ranked_R].mean())}
    named |= {f"precision_at_{k}": float(hits_RX[:, :k].mean()) for k in FIRST}
    named |= {f"hit_at_{k}": float(hits_RX[:, :k].any(axis=1).mean()) for k in FIRST}
    return {**named, "left_out": float((~ranked_R).sum())}


def retrieval_metrics(scores_NC: Array, tags_NC: Array) -> dict[str, float]:
    """[N, C], [N, C] -> `row_metrics` of every tag over the clips, under `retrieval_`."""
    check_scores(scores_NC, tags_NC)
    return {f"retrieval_{name}": value for name, value in row_metrics(scores_NC.T, tags_NC.T).items()}


def annotation_metrics(scores_NC: Array, tags_NC: Array) -> dict[str, float]:
    """[N, C], [N, C] -> `row_metrics` of every clip over the tags, under `annotation_`."""
    check_scores(scores_NC, tags_NC)
    return {f"annotation_{name}": value for name, value in row_metrics(scores_NC, tags_NC).items()}


def zero_shot_metrics(scores_NC: Array, tags_NC: Array, unseen_C: Array) -> dict[str, float]:
    """Retrieval and annotation with nothing but the unseen tags. With one of them there is no annotation."""
    scores, tags = scores_NC[:, unseen_C], tags_NC[:, unseen_C]
    named = {**retrieval_metrics(scores, tags), **(annotation_metrics(scores, tags) if unseen_C.sum() > 1 else {})}
    return {**named, "tags_unseen": float(unseen_C.sum()), "clips": float(len(tags))}


def generalised_metrics(scores_NC: Array, tags_NC: Array, unseen_C: Array) -> dict[str, float]:
    """Seen and unseen tags in one ranking. [N, C], [N, C], bool [C] -> {name: value}.

    `seen_`, `unseen_`: means over the tags of a group (retrieval), and over clips, of whose tags those of the group
    are to be found among all tags the clip lacks, seen and unseen; its tags of the other group do not count
    (annotation). `harmonic_`: 2 s u / (s + u) of the two, low where either is (Xian et al. 2019). Without prefix:
    annotation with one ranking over all tags, as published (Choi et al. 2019)."""
    check_scores(scores_NC, tags_NC)
    found: dict[str, dict[str, float]] = {}
    for name, group_C in (("seen", ~unseen_C), ("unseen", unseen_C)):
        retrieval = row_metrics(scores_NC[:, group_C].T, tags_NC[:, group_C].T)
        annotation = row_metrics(scores_NC, tags_NC * group_C, (tags_NC == 0) | group_C)
        ways = (("retrieval", retrieval), ("annotation", annotation))
        found[name] = {f"{way}_{metric}": one[metric] for way, one in ways for metric in (*APART, "left_out")}
    named = {f"{group}_{metric}": value for group, one in found.items() for metric, value in one.items()}
    for metric in (f"{way}_{one}" for way in ("retrieval", "annotation") for one in APART):
        named[f"harmonic_{metric}"] = harmonic_mean(one[metric] for one in found.values())
    return {**named, **annotation_metrics(scores_NC, tags_NC), "tags_unseen": float(unseen_C.sum())}


def harmonic_mean(values: Iterable[float]) -> float:
    """Of two values or more; 0 where one is 0."""
    found = list(values)
    return 0.0 if 0 in found else len(found) / sum(1 / value for value in found)
