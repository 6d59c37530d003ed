"""The evaluation of ATOSE / JETATAG, as its published code does it.

Source: Appl. Sci. 2023, 13(15), 9002, and its code. 16 windows of every clip are scored, each alone: nothing is
averaged over a clip. All (window, tag) pairs form one ranking (micro), of which TF-Keras' AUC looks at 200 fixed
thresholds. Such numbers must never be compared with those of the protocol `clip`: the same scores gave 0.857 / 0.566
here and 0.900 / 0.653 there."""

import numpy as np

from atose_ray.evaluation.metrics import check_scores
from atose_ray.types import Array

THRESHOLDS = 200
EDGE = 1e-7  # Keras' epsilon: the outer thresholds lie this far outside [0, 1]


def keras_auc(scores: Array, labels: Array) -> tuple[float, float]:
    """Scores in [0, 1] and labels in {0, 1} of one shape -> (ROC-AUC, PR-AUC) as TF-Keras' AUC gives them.

    At each of 200 thresholds, -1e-7, 1/199, 2/199, ..., 1 + 1e-7, a score above it counts as positive. ROC: trapezoids.
    PR: Davis & Goadrich 2006, which is not average precision. The classes are all pairs in one ranking."""
    thresholds = np.linspace(0, 1, THRESHOLDS)
    thresholds[[0, -1]] = -EDGE, 1 + EDGE
    flat, positive = scores.ravel().astype(np.float32), labels.ravel() > 0.5
    true_T = _above(flat[positive], thresholds)
    false_T = _above(flat[~positive], thresholds)
    recall_T, fall_out_T = true_T / max(true_T[0], 1), false_T / max(false_T[0], 1)
    roc_area = np.sum((fall_out_T[:-1] - fall_out_T[1:]) * (recall_T[:-1] + recall_T[1:]) / 2)
    return float(roc_area), _pr_area(true_T, false_T)


def _above(scores: Array, thresholds: Array) -> Array:
    """How many scores are above each threshold, in the float32 that Keras compares in."""
    below = np.searchsorted(np.sort(scores), thresholds.astype(np.float32), side="right")
    return np.asarray((len(scores) - below).astype(np.float64))


def _pr_area(true_T: Array, false_T: Array) -> float:
    """Between two thresholds true positives rise in a straight line of the predicted positives p; integrate over it."""
    p = true_T + false_T
    high, low = p[:-1], p[1:]
    rise, run = true_T[:-1] - true_T[1:], high - low
    slope = np.divide(rise, run, out=np.zeros_like(rise), where=run > 0)
    offset = true_T[1:] - slope * low
    ratio = np.divide(high, low, out=np.ones_like(high), where=(high > 0) & (low > 0))
    return float(np.sum(slope * (rise + offset * np.log(ratio))) / max(true_T[0], 1))


def jetatag_metrics(scores_NKC: Array, tags_NC: Array, exclusive: bool) -> dict[str, float]:
    """[N, K, C] of K windows per clip, [N, C] -> {name: value}, every window counting on its own.

    roc_auc_micro_crops_200  area under the ROC curve of all N*K*C (window, tag) pairs, at 200 thresholds
    pr_auc_micro_crops_200   area under their precision-recall curve, at 200 thresholds, interpolated
    harmonic_mean_roc_pr_micro_crops_200  of these two; the published code prints it as "F1"
    accuracy_crops           share of windows whose highest score is their clip's tag (exclusive tags only)

    Raises ValueError when shapes differ or no pair is positive or none negative, NonFiniteError for NaN or inf."""
    if scores_NKC.ndim != 3 or 0 in scores_NKC.shape:
        raise ValueError(f"scores must be [clips, windows, tags], none of them 0, but got {scores_NKC.shape}")
    check_scores(scores_NKC.mean(axis=1), tags_NC)
    if tags_NC.min() == tags_NC.max():
        raise ValueError(f"all tags of these {len(tags_NC)} clips are {tags_NC.max():g}, so there is nothing to rank")
    windows = scores_NKC.shape[1]
    roc_auc, pr_auc = keras_auc(scores_NKC, np.repeat(tags_NC[:, None], windows, axis=1))
    total = roc_auc + pr_auc
    metrics = {
        "roc_auc_micro_crops_200": roc_auc,
        "pr_auc_micro_crops_200": pr_auc,
        "harmonic_mean_roc_pr_micro_crops_200": 2 * roc_auc * pr_auc / total if total else 0.0,
        "clips": float(len(tags_NC)),
        "crops_per_clip": float(windows),
    }
    if exclusive:
        metrics["accuracy_crops"] = float(np.mean(scores_NKC.argmax(axis=2) == tags_NC.argmax(axis=1)[:, None]))
    return metrics
