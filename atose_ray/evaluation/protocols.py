"""How a split is scored, as objects with a name; and the law that only scores of one protocol are compared.

A new protocol is a `Protocol` and one line in `PROTOCOLS`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from atose_ray.data.sampling import Windows, eval_starts, published_starts
from atose_ray.evaluation.audioset import audioset_metrics
from atose_ray.evaluation.choi import choi_metrics, segment_starts
from atose_ray.evaluation.jetatag import jetatag_metrics
from atose_ray.evaluation.metrics import WHOLE, clip_metrics, joint_space_metrics
from atose_ray.evaluation.names import CLIP_NAME
from atose_ray.evaluation.ranking import annotation_metrics, generalised_metrics, retrieval_metrics, zero_shot_metrics
from atose_ray.evaluation.scoring import Average, ClipScores, score_clips
from atose_ray.methods import Method
from atose_ray.types import AnyBatch, Array


@dataclass(frozen=True)
class Protocol:
    """name: what its scores carry. summary: for a person. windows: which windows of a clip are scored. metrics: the
    scores of a split, and whether its tags are exclusive -> {name: value}; ValueError where there is nothing to rank,
    NonFiniteError for NaN or inf. unseen: whether tags are scored that the training did not see. average: what is
    averaged over a clip's windows."""

    name: str
    summary: str
    windows: Windows
    metrics: Callable[[ClipScores, bool], dict[str, float]]
    unseen: bool = False
    average: Average = "scores"

    def evaluate(
        self, method: Method, batches: Iterator[AnyBatch], stage: str, device: torch.device
    ) -> dict[str, float]:
        """Score the windows that `batches` holds and take the metrics."""
        scores = score_clips(method, batches, stage, device, average=self.average)
        return self.metrics(scores, method.spec.exclusive)


def _clip(scores: ClipScores, exclusive: bool) -> dict[str, float]:
    named = clip_metrics(scores.scores_NC, scores.tags_NC, exclusive)
    if scores.unseen_C is not None:
        named |= generalised_metrics(scores.scores_NC, scores.tags_NC, scores.unseen_C)
    if scores.audio_ND is None or scores.tag_ND is None:
        return named
    return {**named, **joint_space_metrics(scores.audio_ND, scores.tag_ND, scores.tags_NC)}


OfUnseen = Callable[[Array, Array, Array], dict[str, float]]


def _of_unseen(metrics: OfUnseen) -> Callable[[ClipScores, bool], dict[str, float]]:
    """Metrics of scores, tags and which tags are unseen. Raises ValueError where none is."""

    def of(scores: ClipScores, exclusive: bool) -> dict[str, float]:
        if scores.unseen_C is None or not scores.unseen_C.any():
            raise ValueError("this protocol scores unseen tags, but the model was trained on all; set data.tag_split")
        return metrics(scores.scores_NC, scores.tags_NC, scores.unseen_C)

    return of


CLIP = Protocol(
    CLIP_NAME, "a clip's score is the mean of its evenly spaced crops', and every clip counts once", eval_starts, _clip
)
JETATAG = Protocol(
    "jetatag",
    "16 windows per clip, each alone, all tags in one ranking, 200 thresholds (ATOSE / JETATAG)",
    lambda length, crop, crops: published_starts(length, crop),
    lambda scores, exclusive: jetatag_metrics(scores.windows_NKC, scores.tags_NC, exclusive),
)
RETRIEVAL = Protocol(
    "retrieval",
    "for every tag a ranking of the clips, tags without a positive left out",
    eval_starts,
    lambda scores, exclusive: retrieval_metrics(scores.scores_NC, scores.tags_NC),
)
ANNOTATION = Protocol(
    "annotation",
    "for every clip a ranking of the tags, clips without a tag left out",
    eval_starts,
    lambda scores, exclusive: annotation_metrics(scores.scores_NC, scores.tags_NC),
)
ZERO_SHOT = Protocol(
    "zero_shot",
    "retrieval and annotation with the unseen tags alone",
    eval_starts,
    _of_unseen(zero_shot_metrics),
    unseen=True,
)
GENERALISED = Protocol(
    "generalised_zero_shot",
    "seen and unseen tags in one ranking, each group's score, and their harmonic mean",
    eval_starts,
    _of_unseen(generalised_metrics),
    unseen=True,
)
CHOI = Protocol(
    "choi",
    "back-to-back segments, embeddings averaged, rows without a positive counted as 0 (Choi et al. 2019)",
    lambda length, crop, crops: segment_starts(length, crop),
    _of_unseen(choi_metrics),
    unseen=True,
    average="embeddings",
)
AUDIOSET = Protocol(
    "audioset",
    "mAP (pr_auc_macro), mean AUC and d' of that mean, a clip's score being the mean of its crops' (AudioSet)",
    eval_starts,
    lambda scores, exclusive: audioset_metrics(scores.scores_NC, scores.tags_NC),
)
PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (CLIP, JETATAG, RETRIEVAL, ANNOTATION, ZERO_SHOT, GENERALISED, CHOI, AUDIOSET)
}
FORMER_NAMES = {"published": "jetatag"}  # in what `evaluate --json` printed up to 0.1.0
ALIKE = {
    "protocol": "score both under one --protocol",
    "dataset": "compare models of one data set",
    "split": "score both with the same --split",
    "tags": "score both models on one data set with one list of tags",
    "content_hash": "the data set was prepared anew in between: score the other model again, on this store",
}  # what two results must share to be compared, and what to do where they do not


def check_comparable(here: Mapping[str, Any], other: Mapping[str, Any], name: str) -> None:
    """Raises ValueError unless both results were taken alike (ALIKE). name: what the message calls `other`."""
    for field, hint in {**ALIKE, "fold": "compare models of one test fold"}.items():
        ours, theirs = here.get(field), other.get(field)  # there are no folds in what was printed up to 0.1.0
        if ours != theirs:
            raise ValueError(
                f"scores can be compared only where {field} is the same, but expected {_shown(ours, theirs)} and "
                f"{name} has {_shown(theirs, ours)}; {hint}"
            )


def _shown(value: Any, beside: Any) -> str:
    """A value for a message; of a list its length and the first entry that differs from those of `beside`."""
    if not isinstance(value, (list, tuple)):
        return repr(value)
    at = next((at for at, pair in enumerate(zip(value, beside, strict=False)) if pair[0] != pair[1]), len(beside))
    return f"{len(value)}" + (f", number {at + 1} being {value[at]!r}" if at < len(value) else "")


def differences(here: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """here - other of every score that both have; counts are no scores."""
    return {name: here[name] - other[name] for name in here if name in other and name not in WHOLE}
