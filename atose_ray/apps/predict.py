"""A chosen model on new audio: decode, cut evenly spaced crops, average their scores."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from atose_ray.audio.io import Source, decode_parts
from atose_ray.data.batches import cut
from atose_ray.data.sampling import eval_starts
from atose_ray.training.checkpoint import Model
from atose_ray.types import Batch, TagSet, untagged

PART_S = 600.0


@dataclass(frozen=True)
class Tagging:
    """Scores in [0, 1] of one file, highest first."""

    file: str
    seconds: float
    scores: tuple[tuple[str, float], ...]


@torch.no_grad()
def tag_file(
    model: Model, file: Source, crop_every_s: float | None = None, tags: TagSet | None = None, name: str | None = None
) -> Tagging:
    """Tag one audio file of any format, rate and length; of a long one PART_S seconds at a time are in memory.

    file: its path, its bytes, or the open file, which then has a name. crop_every_s: distance of crops; None takes the
    crop length, but no fewer crops than validation used. tags: others than those of the training, with their vectors
    (training.sources.tags_with_vectors). Raises audio.io.AudioError for a file that is not sound."""
    tags = tags or TagSet(model.spec.tags)
    total_C, crops, seconds = torch.zeros(len(tags.names), dtype=torch.float64), 0, 0.0
    for audio_BT, _, end_s in crops_along(model, file, crop_every_s, name):
        total_C += crop_scores(model, audio_BT, tags).double().sum(dim=0)
        crops, seconds = crops + len(audio_BT), end_s
    ranked = sorted(zip(tags.names, (total_C / crops).tolist(), strict=True), key=lambda pair: -pair[1])
    return Tagging(name or str(file), seconds, tuple(ranked))


def crops_along(
    model: Model, source: Source, every_s: float | None, name: str | None = None
) -> Iterator[tuple[torch.Tensor, list[float], float]]:
    """The crops of a file, PART_S seconds of it at a time: [B, T], where each begins in the file, and where the part
    ends, in seconds. every_s, and what is raised: as in `tag_file`."""
    rate, length = model.spec.audio.sample_rate_hz, model.spec.input.length
    step, before = length if every_s is None else max(1, round(every_s * rate)), 0
    for part in decode_parts(source, sample_rate_hz=rate, max_seconds=PART_S, name=name):
        samples = len(part.audio_T)
        crops = max(1 if before else model.run.data.eval_crops, -(-samples // step))
        starts_s = [(before + max(start, 0)) / rate for start in eval_starts(samples, length, crops)]
        audio_BT = torch.from_numpy(crops_of(model, part.audio_T, crops))
        before += samples
        yield audio_BT, starts_s, before / rate


def crops_of(model: Model, audio_T: np.ndarray, crops: int) -> np.ndarray:
    """[T] -> [B, crop]: evenly spaced crops of the length that the model takes, at its level."""
    length = model.spec.input.length
    if model.spec.peak_normalize:
        audio_T = audio_T / max(float(np.abs(audio_T).max()), 1e-12)
    starts = eval_starts(len(audio_T), length, crops)
    audio_BT = np.zeros((len(starts), length), np.float32)
    for row, start in enumerate(starts):
        cut(audio_T, start, audio_BT[row])
    return audio_BT


def crop_scores(model: Model, audio_BT: torch.Tensor, tags: TagSet, frames: bool = False) -> torch.Tensor:
    """[B, T] -> [B, C] on the CPU: the scores of every crop, in batches of the run's evaluation size. frames: of every
    frame of the crops instead, [B, S, C]; only of a method that has them."""
    parts, device, score = [], device_of(model), model.method.frame_scores if frames else model.method.score
    for audio in torch.split(audio_BT, model.run.execution.eval_batch_size):
        batch = untagged(Batch, audio, len(tags.names)).to(device)
        parts.append(score(batch, tags, model.stage).cpu())
    return torch.cat(parts)


def device_of(model: Model) -> torch.device:
    """Where the model computes."""
    return next(model.method.parameters()).device
