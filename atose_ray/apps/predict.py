"""A chosen model on new audio: decode, cut evenly spaced crops, average their scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from atose_ray.audio.io import decode
from atose_ray.data.batches import cut
from atose_ray.data.sampling import eval_starts
from atose_ray.training.checkpoint import Model
from atose_ray.types import Batch, TagSet


@dataclass(frozen=True)
class Tagging:
    """Scores in [0, 1] of one file, highest first."""

    file: str
    seconds: float
    scores: tuple[tuple[str, float], ...]


@torch.no_grad()
def tag_file(model: Model, file: str, crop_every_s: float | None = None) -> Tagging:
    """Tag one audio file of any format, rate and length.

    crop_every_s: distance of crops; None takes the crop length, but no fewer crops than validation used.
    Raises audio.io.AudioError for a file that is not sound.
    """
    rate, length = model.spec.sample_rate_hz, model.spec.clip_samples
    audio_T = decode(file, sample_rate_hz=rate).audio_T
    if model.spec.peak_normalize:
        audio_T = audio_T / max(float(np.abs(audio_T).max()), 1e-12)
    step = length if crop_every_s is None else max(1, round(crop_every_s * rate))
    crops = max(model.run.data.eval_crops, -(-len(audio_T) // step))
    starts = eval_starts(len(audio_T), length, crops)
    audio_BT = np.zeros((len(starts), length), np.float32)
    for row, start in enumerate(starts):
        cut(audio_T, start, audio_BT[row])
    scores_C = mean_scores(model, torch.from_numpy(audio_BT))
    ranked = sorted(zip(model.spec.tags, scores_C.tolist(), strict=True), key=lambda pair: -pair[1])
    return Tagging(file, len(audio_T) / rate, tuple(ranked))


def mean_scores(model: Model, audio_BT: torch.Tensor) -> torch.Tensor:
    """[B, T] -> [C]: mean score over crops, in batches of the run's evaluation size."""
    tags = TagSet(model.spec.tags)
    parts = []
    for audio in torch.split(audio_BT, model.run.execution.eval_batch_size):
        batch = Batch(audio, torch.zeros(len(audio), len(tags.names)), torch.zeros(len(audio), dtype=torch.int64))
        parts.append(model.method.score(batch, tags, model.stage))
    return torch.cat(parts).double().mean(dim=0)
