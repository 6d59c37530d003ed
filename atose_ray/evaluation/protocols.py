"""The published evaluation protocol, published figures beside the protocol that they were taken with, and the law that
only scores of one protocol are compared.

Source: ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002, and its code. 16 windows of every clip are scored, each alone:
nothing is averaged over a clip. All (window, tag) pairs form one ranking (micro), of which TF-Keras' AUC looks at 200
fixed thresholds. Such numbers must never be compared with those of the protocol `clip` (metrics.py): the same scores
gave 0.857 / 0.566 here and 0.900 / 0.653 there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from atose_ray.evaluation.metrics import COUNTS, check_scores
from atose_ray.types import Split

Array = npt.NDArray[Any]
Protocol = Literal["clip", "published"]
PROTOCOLS: tuple[Protocol, ...] = ("clip", "published")
THRESHOLDS = 200
WINDOW_COUNTS = ("crops_per_clip",)
EDGE = 1e-7  # Keras' epsilon: the outer thresholds lie this far outside [0, 1]


class Figures(NamedTuple):
    """Published scores of one data set under one protocol.

    tags: how many the data set had. metrics: what we call these scores. systems: name -> scores in that order, as
    shares of 1.
    """

    source: str
    tags: int
    metrics: tuple[str, ...]
    systems: dict[str, tuple[float, ...]]


FIGURES: dict[tuple[str, Protocol], Figures] = {
    ("mtat", "clip"): Figures(
        "Won et al. 2020, arXiv:2006.00751, MTAT split of clips with a top-50 tag",
        50,
        ("roc_auc_macro", "pr_auc_macro"),
        {
            "FCN": (0.9005, 0.4295),
            "Musicnn": (0.9106, 0.4493),
            "SampleCNN": (0.9058, 0.4422),
            "SampleCNN + SE": (0.9103, 0.4520),
            "CRNN": (0.8722, 0.3625),
            "self-attention": (0.9077, 0.4445),
            "HarmonicCNN": (0.9127, 0.4611),
            "short-chunk CNN + res": (0.9129, 0.4614),
        },
    ),
    ("mtat", "published"): Figures(
        "ATOSE / JETATAG, Appl. Sci. 2023, 13(15), 9002; JE: with joint embedding",
        50,
        ("roc_auc_micro_crops_200", "pr_auc_micro_crops_200"),
        {
            "HarmonicCNN": (0.9034, 0.5137),
            "HarmonicCNN, JE": (0.9185, 0.5595),
            "SampleCNN": (0.8744, 0.4214),
            "SampleCNN, JE": (0.8933, 0.4853),
            "SampleCNN + SE": (0.8809, 0.4456),
            "SampleCNN + SE, JE": (0.8840, 0.4581),
            "SampleCNN + res": (0.8758, 0.4271),
            "SampleCNN + res, JE": (0.8859, 0.4915),
            "SampleCNN + rese": (0.8775, 0.4358),
            "SampleCNN + rese, JE": (0.8951, 0.4903),
            "TagSincNet": (0.8616, 0.3937),
            "TagSincNet, JE": (0.8823, 0.4551),
        },
    ),
    ("speech_commands", "published"): Figures(
        "logs in the repository of ATOSE / JETATAG, whose test pads every clip at random; JE: with joint embedding",
        35,
        ("accuracy_crops",),
        {
            "HarmonicCNN": (0.9635,),
            "HarmonicCNN, JE": (0.9695,),
            "SampleCNN": (0.9557,),
            "SampleCNN, JE": (0.9483,),
            "SampleCNN + SE": (0.9595,),
            "SampleCNN + SE, JE": (0.9357,),
            "SampleCNN + res": (0.9635,),
            "SampleCNN + res, JE": (0.9476,),
            "SampleCNN + rese": (0.9580,),
            "SampleCNN + rese, JE": (0.9312,),
            "TagSincNet": (0.9421,),
            "TagSincNet, JE": (0.9038,),
        },
    ),
}
INCOMPARABLE: dict[tuple[str, Protocol], str] = {
    ("dcase2017", "published"): 'the repository of ATOSE / JETATAG logs an "F1" of DCASE 2017 that another version of '
    "its code computed, so nothing here is the same number",
}
ALIKE = {
    "protocol": "score both under one --protocol",
    "dataset": "compare models of one data set",
    "split": "score both with the same --split",
    "tags": "score both models on one data set with one list of tags",
    "content_hash": "the data set was prepared anew in between: score the other model again, on this store",
}  # what two results must share to be compared, and what to do where they do not


def published_figures(dataset: str, tags: int, split: Split, protocol: Protocol) -> Figures | None:
    """The figures that scores of this data set may stand beside, or None: they are of test splits with all tags."""
    figures = FIGURES.get((dataset, protocol))
    return figures if figures and split == "test" and tags == figures.tags else None


def no_figures(dataset: str, split: Split, protocol: Protocol) -> str:
    """What to say where `published_figures` is None."""
    text = "no published figure for this data set and protocol"
    figures, reason = FIGURES.get((dataset, protocol)), INCOMPARABLE.get((dataset, protocol))
    if figures:
        return f"{text} beside these scores: the published ones are of the test split with {figures.tags} tags"
    return f"{text}: {reason}" if reason else text


def check_comparable(here: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Raises ValueError unless both results were taken alike: protocol, data set and its content, split, tags.

    name: what the message calls `other`.
    """
    for field, way_out in ALIKE.items():
        if here[field] != other[field]:
            raise ValueError(
                f"scores can be compared only where {field} is the same, but expected "
                f"{_shown(here[field], other[field])} and {name} has {_shown(other[field], here[field])}; {way_out}"
            )


def _shown(value: Any, beside: Any) -> str:
    """A value for a message; of a list its length and the first entry that differs from those of `beside`."""
    if not isinstance(value, (list, tuple)):
        return repr(value)
    at = next((at for at, pair in enumerate(zip(value, beside, strict=False)) if pair[0] != pair[1]), len(beside))
    return f"{len(value)}" + (f", number {at + 1} being {value[at]!r}" if at < len(value) else "")


def differences(here: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """here - other of every score that both have; counts are no scores."""
    return {name: here[name] - other[name] for name in here if name in other and name not in (*COUNTS, *WINDOW_COUNTS)}


def keras_auc(scores: Array, labels: Array) -> tuple[float, float]:
    """Scores in [0, 1] and labels in {0, 1} of one shape -> (ROC-AUC, PR-AUC) as TF-Keras' AUC gives them.

    At each of 200 thresholds, -1e-7, 1/199, 2/199, ..., 1 + 1e-7, a score above it counts as positive. ROC: trapezoids.
    PR: Davis & Goadrich 2006, which is not average precision. The classes are all pairs in one ranking.
    """
    thresholds = np.linspace(0, 1, THRESHOLDS)
    thresholds[[0, -1]] = -EDGE, 1 + EDGE
    flat, positive = scores.ravel().astype(np.float32), labels.ravel() > 0.5
    true_T = _above(flat[positive], thresholds)
    false_T = _above(flat[~positive], thresholds)
    return _roc_area(true_T, false_T), _pr_area(true_T, false_T)


def _above(scores: Array, thresholds: Array) -> Array:
    """How many scores are above each threshold, in the float32 that Keras compares in."""
    below = np.searchsorted(np.sort(scores), thresholds.astype(np.float32), side="right")
    return np.asarray((len(scores) - below).astype(np.float64))


def _roc_area(true_T: Array, false_T: Array) -> float:
    recall, fall_out = true_T / max(true_T[0], 1), false_T / max(false_T[0], 1)
    return float(np.sum((fall_out[:-1] - fall_out[1:]) * (recall[:-1] + recall[1:]) / 2))


def _pr_area(true_T: Array, false_T: Array) -> float:
    """Between two thresholds true positives rise in a straight line of the predicted positives p; integrate over it."""
    p = true_T + false_T
    high, low = p[:-1], p[1:]
    rise, run = true_T[:-1] - true_T[1:], high - low
    slope = np.divide(rise, run, out=np.zeros_like(rise), where=run > 0)
    offset = true_T[1:] - slope * low
    ratio = np.divide(high, low, out=np.ones_like(high), where=(high > 0) & (low > 0))
    return float(np.sum(slope * (rise + offset * np.log(ratio))) / max(true_T[0], 1))


def published_metrics(scores_NKC: Array, tags_NC: Array, exclusive: bool) -> dict[str, float]:
    """[N, K, C] of K windows per clip, [N, C] -> {name: value}, every window counting on its own.

    roc_auc_micro_crops_200  area under the ROC curve of all N*K*C (window, tag) pairs, at 200 thresholds
    pr_auc_micro_crops_200   area under their precision-recall curve, at 200 thresholds, interpolated
    harmonic_mean_roc_pr_micro_crops_200  of these two; the published code prints it as "F1"
    accuracy_crops           share of windows whose highest score is their clip's tag (exclusive tags only)

    Raises ValueError when shapes differ or no pair is positive or none negative, NonFiniteError for NaN or inf.
    """
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
