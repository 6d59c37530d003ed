"""Every clip of a split -> one score per tag: the mean over its crops, gathered over all ranks.

The result does not depend on batch size or on the number of workers (up to rounding of the model's own arithmetic).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from atose_ray.data.batches import CropSettings, read_crops_at
from atose_ray.data.sampling import published_starts
from atose_ray.data.shards import Manifest
from atose_ray.evaluation.metrics import PROTOCOL, clip_metrics, joint_space_metrics, mean_prevalence, per_tag_table
from atose_ray.methods import Method
from atose_ray.training.checkpoint import Model
from atose_ray.training.ranks import world
from atose_ray.types import AnyBatch, Split, TagSet

Array = npt.NDArray[Any]
COLLAPSE_COSINE = 0.9


@dataclass(frozen=True)
class ClipScores:
    """clip_id_N int64 ascending; scores_NC float64 in [0, 1]; tags_NC {0, 1}. Of a method with a joint space also
    audio_ND and tag_ND float64: mean of a clip's audio vectors, and the vector of its tags."""

    clip_id_N: Array
    scores_NC: Array
    tags_NC: Array
    audio_ND: Array | None = None
    tag_ND: Array | None = None

    def metrics(self, exclusive: bool) -> dict[str, float]:
        """metrics.clip_metrics, and metrics.joint_space_metrics where there is a joint space."""
        named = clip_metrics(self.scores_NC, self.tags_NC, exclusive)
        if self.audio_ND is None or self.tag_ND is None:
            return named
        return {**named, **joint_space_metrics(self.audio_ND, self.tag_ND, self.tags_NC)}


@torch.no_grad()
def score_clips(method: Method, batches: Iterator[AnyBatch], stage: str, device: torch.device) -> ClipScores:
    """Score a split in eval mode; every rank returns the scores of all ranks' clips.

    Raises ValueError when there is no clip, or a clip's score is not finite (metrics.clip_metrics checks).
    """
    method.eval()
    tags = TagSet(method.spec.tags)
    rows: list[tuple[Array, ...]] = []
    for batch in batches:
        heard = method.embed(batch.to(device))
        joint = method.joint_embeddings(heard.embed_BE, heard.tags_BC) or ()
        tensors = (heard.clip_id_B, heard.tags_BC, method.score(heard, tags, stage).double(), *joint)
        rows.append(tuple(tensor.cpu().numpy() for tensor in tensors))
    mine = tuple(np.concatenate(column) for column in zip(*rows, strict=True)) if rows else None
    parts = [part for part in _gather(mine) if part is not None]
    if not parts:
        raise ValueError("there is no clip to evaluate: the split is empty")
    clip_id, labels, *values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    clip_id_N, first, crop_clip = np.unique(clip_id, return_index=True, return_inverse=True)
    scores_NC, *joint_ND = (_mean_over_crops(crop_clip, part) for part in values)
    return ClipScores(clip_id_N, scores_NC, labels[first], *joint_ND)


@dataclass(frozen=True)
class WindowScores:
    """scores_NKC float64 in [0, 1] of K windows of every clip; tags_NC {0, 1}."""

    scores_NKC: Array
    tags_NC: Array


@torch.no_grad()
def score_windows(
    model: Model,
    manifest: Manifest,
    store_uri: str,
    split: Split,
    device: torch.device | None = None,
    batch_size: int | None = None,
) -> WindowScores:
    """Score the published code's 16 windows of every clip, each alone (protocols.published_metrics). In one process.

    batch_size: None takes the run's evaluation size; it changes only speed. Raises ValueError for an empty split.
    """
    device = device or torch.device("cpu")
    size = batch_size or model.run.execution.eval_batch_size
    tags = TagSet(model.spec.tags)
    length = model.spec.input.length
    settings = CropSettings(store_uri, model.run.data.dataset, len(tags.names), length, model.run.seed)
    scores, labels = [], []
    method = model.method.to(device).eval()
    for group in manifest.row_groups(split):
        crops = read_crops_at(settings, group, lambda n_samples: published_starts(n_samples, length))
        batches = crops.batches(size)
        parts = [method.score(batch.to(device), tags, model.stage).double().cpu().numpy() for batch in batches]
        scores.append(np.concatenate(parts).reshape(group.clips, -1, len(tags.names)))
        labels.append(crops.tags_NC.reshape(group.clips, -1, len(tags.names))[:, 0].astype(np.float64))
    if not scores:
        raise ValueError(f"there is no clip to evaluate: the {split} split is empty")
    return WindowScores(np.concatenate(scores), np.concatenate(labels))


def _mean_over_crops(crop_clip: Array, values: Array) -> Array:
    """Clip number of every crop, [crops, X] -> [N, X]."""
    crops_N = np.bincount(crop_clip)
    total_NX = np.zeros((len(crops_N), values.shape[1]))
    np.add.at(total_NX, crop_clip, values)
    return np.asarray(total_NX / crops_N[:, None])


def _gather(mine: Any) -> list[Any]:
    if world() == 1:
        return [mine]
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, mine)
    return parts


def evaluate(
    method: Method, batches: Iterator[AnyBatch], stage: str, device: torch.device, exclusive: bool
) -> dict[str, float]:
    """ClipScores.metrics of a split."""
    return score_clips(method, batches, stage, device).metrics(exclusive)


def final_metrics(model: Model, batches: Iterator[AnyBatch], device: torch.device) -> dict[str, Any]:
    """The one scoring of the test split: what best/metrics.json holds beside the validation scores."""
    scores = score_clips(model.method.to(device), batches, model.stage, device)
    cosine_CC = tag_embedding_cosine(model.method)
    return {
        **model.metrics,
        "protocol": PROTOCOL,
        "test": scores.metrics(model.spec.exclusive),
        "test_prevalence_mean": mean_prevalence(scores.tags_NC),
        "per_tag": per_tag_table(scores.scores_NC, scores.tags_NC, model.spec.tags),
        "tag_embedding_cosine_CC": None if cosine_CC is None else cosine_CC.tolist(),
        "tag_embedding_collapsed": None if cosine_CC is None else has_collapsed(cosine_CC),
    }


def tag_embedding_cosine(method: Method) -> Array | None:
    """Cosine similarity [C, C] of the method's embeddings of single tags, or None when it has none."""
    embed_CD = method.tag_embeddings()
    return None if embed_CD is None else np.asarray((embed_CD @ embed_CD.T).double().cpu().numpy())


def has_collapsed(cosine_CC: Array) -> bool:
    """Whether the tags share almost one direction: mean off-diagonal cosine above 0.9.

    The published pairwise loss does this on MTAT (mean cosine 0.953).
    """
    count = len(cosine_CC)
    return bool(count > 1 and (cosine_CC.sum() - np.trace(cosine_CC)) / (count * (count - 1)) > COLLAPSE_COSINE)
