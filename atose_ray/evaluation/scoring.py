"""The one scorer: windows of a split's clips -> a score per clip and tag, gathered over all ranks.

The result does not depend on batch size or on the number of workers (up to rounding of the model's own arithmetic)."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from atose_ray.evaluation.metrics import mean_prevalence, per_tag_table
from atose_ray.evaluation.parts import Parts
from atose_ray.methods import Method
from atose_ray.ranks import world
from atose_ray.types import AnyBatch, Array, EmbeddedBatch, TagSet

COLLAPSE_COSINE = 0.9
JOINED_BATCHES = 32
Average = Literal["scores", "embeddings"]


@dataclass(frozen=True)
class ClipScores:
    """clip_id_N int64 ascending; scores_NC float64, the mean over a clip's windows; tags_NC {0, 1}. Of a method with a
    joint space also audio_ND and tag_ND float64: mean of a clip's audio vectors, and the vector of its tags. unseen_C:
    which tags the training did not see, bool [C]; None where it saw all.

    windows_RC, clip_R: the score of every window, and the number of its clip among the N, in the order of the clips."""

    clip_id_N: Array
    scores_NC: Array
    tags_NC: Array
    audio_ND: Array | None = None
    tag_ND: Array | None = None
    windows_RC: Array | None = None
    clip_R: Array | None = None
    unseen_C: Array | None = None

    @property
    def windows_NKC(self) -> Array:
        """Scores of the K windows of every clip. Raises ValueError where clips have different numbers of them."""
        assert self.windows_RC is not None and self.clip_R is not None
        windows_N = np.bincount(self.clip_R)
        if windows_N.min() != windows_N.max():
            raise ValueError(
                f"every clip must have as many windows, but they have {windows_N.min()} to {windows_N.max()}"
            )
        return self.windows_RC.reshape(len(windows_N), windows_N[0], -1)


@torch.no_grad()
def score_clips(
    method: Method,
    batches: Iterator[AnyBatch],
    stage: str,
    device: torch.device,
    tags: TagSet | None = None,
    average: Average = "scores",
) -> ClipScores:
    """Score a split in eval mode; every rank returns the scores of all ranks' clips.
    tags: what is scored; None is the tags of the training. average: what is averaged over a clip's windows. Raises
    ValueError when there is no clip."""
    method.eval()
    wanted = tags or TagSet(method.spec.tags)
    unseen_C = np.array([name in method.spec.held_out for name in wanted.names]) if method.spec.held_out else None

    def scored(encoded: EmbeddedBatch) -> tuple[torch.Tensor, ...]:
        if average == "embeddings":
            return encoded.clip_id_B, encoded.tags_BC, encoded.embed_BE.double()
        joint = () if tags else method.joint_embeddings(encoded) or ()  # of the clips' own tags, which are others then
        return (encoded.clip_id_B, encoded.tags_BC, method.score(encoded, wanted, stage).double(), *joint)

    in_parts = Parts()  # where execution.eval_batch_size is more than memory holds
    embedded = (one for batch in batches for one in in_parts(batch, lambda part: method.embed(part.to(device))))
    rows = [tuple(one.cpu().numpy() for one in scored(encoded)) for encoded in joined(embedded)]
    mine = tuple(np.concatenate(column) for column in zip(*rows, strict=True)) if rows else None
    gathered: list[Any] = [mine] * world()
    if world() > 1:
        dist.all_gather_object(gathered, mine)
    parts = [part for part in gathered if part is not None]
    if not parts:
        raise ValueError("there is no clip to evaluate: the split is empty")
    clip_id, labels, *values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    clip_id_N, first, clip_R = np.unique(clip_id, return_index=True, return_inverse=True)
    scores_NC, *joint_ND = (mean_over_windows(clip_R, part) for part in values)
    if average == "embeddings":
        of_clips = (scores_NC.astype(np.float32), labels[first], clip_id_N)
        whole = EmbeddedBatch(*(torch.from_numpy(one).to(device) for one in of_clips))
        scores_NC = method.score(whole, wanted, stage).double().cpu().numpy()
        return ClipScores(clip_id_N, scores_NC, labels[first], unseen_C=unseen_C)
    audio_ND, tag_ND = joint_ND or (None, None)
    order_R = np.argsort(clip_R, kind="stable")
    windows = (values[0][order_R], clip_R[order_R])
    return ClipScores(clip_id_N, scores_NC, labels[first], audio_ND, tag_ND, *windows, unseen_C)


def joined(batches: Iterator[EmbeddedBatch]) -> Iterator[EmbeddedBatch]:
    """The same rows in fewer batches: what follows an encoder is small, and a GPU is waited for once in so many."""
    while some := list(itertools.islice(batches, JOINED_BATCHES)):
        yield some[0] if len(some) == 1 else EmbeddedBatch(*(torch.cat(column) for column in zip(*some, strict=True)))


def mean_of_models(several: Iterable[ClipScores]) -> ClipScores:
    """The scores of several models on the same clips -> their means (of probabilities, where these are scored): of one
    model after another, of which none is kept."""
    first: ClipScores | None = None
    scores_NC, windows_RC, count = np.zeros(()), np.zeros(()), 0
    for one in several:
        first, count = first or one, count + 1
        scores_NC = scores_NC + one.scores_NC
        windows_RC = windows_RC + one.windows_RC if one.windows_RC is not None else windows_RC
    assert first is not None
    windows = None if first.windows_RC is None else windows_RC / count
    return dataclasses.replace(first, scores_NC=scores_NC / count, windows_RC=windows, audio_ND=None, tag_ND=None)


def mean_over_windows(clip_R: Array, values_RX: Array) -> Array:
    """Number of the clip of every window, [R, X] -> [N, X] float64, summed in the order of the windows."""
    windows_N = np.bincount(clip_R)
    total_NX = torch.zeros(len(windows_N), values_RX.shape[1], dtype=torch.float64)
    total_NX.index_add_(0, torch.from_numpy(clip_R), torch.from_numpy(values_RX).double())  # np.add.at: 20 times that
    return np.asarray(total_NX.numpy() / windows_N[:, None])


def tag_facts(method: Method, scores: ClipScores) -> dict[str, Any]:
    """What best/metrics.json says of the single tags: prevalence, a table, and how their embeddings lie."""
    cosine_CC = tag_embedding_cosine(method)
    return {
        "test_prevalence_mean": mean_prevalence(scores.tags_NC),
        "per_tag": per_tag_table(scores.scores_NC, scores.tags_NC, method.spec.tags, method.spec.exclusive),
        "tag_embedding_cosine_CC": None if cosine_CC is None else cosine_CC.tolist(),
        "tag_embedding_collapsed": None if cosine_CC is None else has_collapsed(cosine_CC),
    }


def tag_embedding_cosine(method: Method) -> Array | None:
    """Cosine similarity [C, C] of the method's embeddings of single tags, or None when it has none."""
    embed_CD = method.tag_embeddings()
    return None if embed_CD is None else np.asarray((embed_CD @ embed_CD.T).double().cpu().numpy())


def has_collapsed(cosine_CC: Array) -> bool:
    """Whether tags share almost one direction: mean off-diagonal cosine > 0.9 (published loss on MTAT: 0.953)."""
    count = len(cosine_CC)
    return bool(count > 1 and (cosine_CC.sum() - np.trace(cosine_CC)) / (count * (count - 1)) > COLLAPSE_COSINE)
