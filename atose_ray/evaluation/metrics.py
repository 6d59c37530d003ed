"""Scores of all clips of a split -> numbers whose names are their formulas.

Protocol `clip`: a clip's score is the mean of its crops' scores, and every clip counts once. Rankings are those of
scikit-learn, ties included (areas.py). Tags without a positive or without a negative have no ranking: they are left out
of macro means, and `tags_scored` says how many of `tags_total` counted."""

from typing import Any

import numpy as np

from atose_ray.evaluation.areas import areas, areas_of_columns
from atose_ray.tags.vectors import unit_rows
from atose_ray.types import Array

JOINT_CLIPS = 2000
LEFT_OUT = tuple(  # rankings without a positive (evaluation/ranking.py, choi.py)
    f"{group}{way}_{what}"
    for group in ("", "seen_", "unseen_", "generalised_")
    for way in ("retrieval", "annotation")
    for what in ("left_out", "auc_left_out")
)
COUNTS = ("tags_scored", "tags_total", "tags_unseen", "clips", *LEFT_OUT)  # how much was scored, beside how well
WHOLE = (*COUNTS, "crops_per_clip", "annotated", "found", "hops")  # shown as the integers that they are


def shown(name: str, value: float) -> str:
    """A metric's value for a terminal: a count as an integer."""
    return str(round(value)) if name in WHOLE else f"{value:.4f}"


class NonFiniteError(ValueError):
    """A score is NaN or infinite: the model diverged."""


def clip_metrics(scores_NC: Array, tags_NC: Array, exclusive: bool) -> dict[str, float]:
    """[N, C], [N, C] -> {name: value}, over all N clips of a split.

    pr_auc_macro     mean over tags of average precision (sum over ranks of precision times recall step)
    roc_auc_macro    mean over tags of the area under the ROC curve
    pr_auc_micro     average precision of all N*C (clip, tag) pairs in one ranking
    f1_macro_at_0.5  mean over the scored tags of F1 = 2 TP / (2 TP + FP + FN) at score > 0.5
    accuracy         share of clips whose highest score is their tag (exclusive tags only)

    Raises ValueError when no tag can be ranked, NonFiniteError when a score is not finite."""
    check_scores(scores_NC, tags_NC)
    scored = rankable(tags_NC)
    if not scored.any():
        raise ValueError(
            f"no tag has both a positive and a negative among these {len(tags_NC)} clips, so no ranking metric "
            "exists; give the split more clips"
        )
    scores, tags = scores_NC[:, scored], tags_NC[:, scored]
    predicted = scores > 0.5
    f1 = 2 * (predicted * tags).sum(axis=0) / np.maximum(predicted.sum(axis=0) + tags.sum(axis=0), 1)
    precision_C, roc_C = areas_of_columns(scores, tags)
    metrics = {
        "pr_auc_macro": float(np.mean(precision_C)),
        "roc_auc_macro": float(np.mean(roc_C)),
        "pr_auc_micro": areas(scores_NC.ravel(), tags_NC.ravel())[0],
        "f1_macro_at_0.5": float(np.mean(f1)),
        "tags_scored": float(scored.sum()),
        "tags_total": float(len(scored)),
        "clips": float(len(tags_NC)),
    }
    if exclusive:
        metrics["accuracy"] = float(np.mean(scores_NC.argmax(axis=1) == tags_NC.argmax(axis=1)))
    return metrics


def joint_space_metrics(audio_ND: Array, tag_ND: Array, tags_NC: Array) -> dict[str, float]:
    """[N, D], [N, D], [N, C]: vectors of the clips' audio and tags, and the tags -> how the joint space is used.

    paired_cosine     mean over clips of cos(audio, own tags): alignment
    unpaired_cosine   mean of cos(audio, tags of a clip whose tags differ); near paired_cosine, the space says nothing
    audio_uniformity  log of the mean of exp(-2 d^2) over the pairs of clips' audio vectors, all of length 1: 0 where
                      they share one point, the lower the more they spread (Wang & Isola 2020)
    tag_uniformity    the same over the vectors of the distinct tag sets

    Of the first 2,000 clips; a figure without a pair is left out."""
    audio, tag, sets = unit_rows(audio_ND[:JOINT_CLIPS]), unit_rows(tag_ND[:JOINT_CLIPS]), tags_NC[:JOINT_CLIPS]
    _, distinct, tag_set_N, sizes_S = np.unique(
        sets, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    named = {"paired_cosine": float((audio * tag).sum() / len(audio))}
    pairs = len(audio) ** 2 - int((sizes_S**2).sum())  # of all, those whose tags differ
    if pairs:
        order_N, first_S = np.argsort(tag_set_N.ravel(), kind="stable"), np.cumsum(sizes_S) - sizes_S
        audio_SD, tag_SD = (np.add.reduceat(vectors[order_N], first_S, axis=0) for vectors in (audio, tag))
        named["unpaired_cosine"] = float(
            (audio_SD.sum(axis=0) @ tag_SD.sum(axis=0) - (audio_SD * tag_SD).sum()) / pairs
        )
    for name, vectors in (("audio_uniformity", audio), ("tag_uniformity", tag[distinct])):
        if len(vectors) > 1:
            named[name] = uniformity(vectors)
    return named


def uniformity(unit_ND: Array) -> float:
    """Log of the mean of exp(-2 d^2) over the pairs of N vectors of length 1."""
    kernel_NN = unit_ND @ unit_ND.T
    kernel_NN -= 1
    kernel_NN *= 4  # d^2 = 2 - 2 cos
    np.exp(kernel_NN, out=kernel_NN)
    return float(np.log((kernel_NN.sum() - np.trace(kernel_NN)) / (len(unit_ND) * (len(unit_ND) - 1))))


def per_tag_table(
    scores_NC: Array, tags_NC: Array, names: tuple[str, ...], exclusive: bool = False
) -> list[dict[str, Any]]:
    """[N, C], [N, C] -> one row per tag: average precision and ROC-AUC (None where undefined), positives, clips.

    Of exclusive tags also precision (None of a tag that no clip was given), recall and F1 (None of one that no clip
    carries), with the highest score deciding."""
    check_scores(scores_NC, tags_NC)
    scored = rankable(tags_NC)
    rows: list[dict[str, Any]] = []
    for name, ranks, tags_N, scores_N in zip(names, scored, tags_NC.T, scores_NC.T, strict=True):
        precision, roc = areas(scores_N, tags_N) if ranks else (None, None)
        counts = {"positives": int(tags_N.sum()), "clips": len(tags_NC)}
        rows.append({"tag": name, **counts, "average_precision": precision, "roc_auc": roc})
    if exclusive:
        given_NC = np.eye(len(names))[scores_NC.argmax(axis=1)]
        sums = zip((given_NC * tags_NC).sum(axis=0), given_NC.sum(axis=0), tags_NC.sum(axis=0), strict=True)
        rows = [
            row | class_figures(int(right), int(given), int(own))
            for row, (right, given, own) in zip(rows, sums, strict=True)
        ]
    return rows


def class_figures(right: int, given: int, carried: int) -> dict[str, float | None]:
    """Clips that were rightly given a class, that were given it, that carry it -> precision, recall and F1."""
    f1 = 2 * right / (given + carried) if carried else None
    return {"precision": right / given if given else None, "recall": right / carried if carried else None, "f1": f1}


def rankable(tags_NC: Array) -> Array:
    """[N, C] -> bool [C]: tags with at least one positive and one negative clip."""
    positives = tags_NC.sum(axis=0)
    return np.asarray((positives > 0) & (positives < len(tags_NC)))


def mean_prevalence(tags_NC: Array) -> float:
    """[N, C] -> mean share of positive clips over the rankable tags: `pr_auc_macro` of a random ranking."""
    return float(tags_NC[:, rankable(tags_NC)].mean())


def check_scores(scores_NC: Array, tags_NC: Array) -> None:
    """Raises ValueError unless both are [N, C], NonFiniteError unless every score is finite."""
    if scores_NC.shape != tags_NC.shape:
        raise ValueError(f"scores and tags must both be [clips, tags], but got {scores_NC.shape} and {tags_NC.shape}")
    broken = ~np.isfinite(scores_NC)
    if broken.any():
        clips = int(broken.any(axis=1).sum())
        raise NonFiniteError(f"scores must be finite, but {clips} of {len(scores_NC)} clips have NaN or inf")
