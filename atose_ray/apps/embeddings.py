"""A sound as vectors: one of the whole (a scene embedding), or one every so often (time-stamped embeddings)."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from atose_ray.apps.predict import crops_of, device_of
from atose_ray.apps.windows import iter_windows
from atose_ray.audio.io import Source, decode_parts
from atose_ray.data.sampling import eval_starts
from atose_ray.methods import Method
from atose_ray.training.checkpoint import Model
from atose_ray.types import AnyBatch, Array, Batch, TagSet, untagged

PIECE_S = 600.0  # of a long file that are in memory at a time


class Window(NamedTuple):
    """start_s, end_s: seconds into the sound; embed_E float32."""

    start_s: float
    end_s: float
    embed_E: Array


@dataclasses.dataclass(frozen=True)
class Embedding:
    """What a model's encoder makes of a sound, float32.

    scene_E: the mean of vectors_SE. vectors_SE: of every window, in the order of time, with the seconds where it begins
    and ends. Without a hop the windows are those of `find index`: as long as the model's crops, evenly spaced. With one
    they are its hops, each heard as in a timeline (apps/windows.py): with what is around it."""

    file: str
    scene_E: Array
    vectors_SE: Array
    start_s_S: Array
    end_s_S: Array


def embedding_of(model: Model, source: Source, hop_s: float | None, name: str) -> Embedding:
    """Embed a sound. hop_s: from one vector to the next; None is the crops that a scene embedding needs.

    Raises AudioError for what is no sound, ValueError for a hop that is none."""
    windows = list(hops_of(model, source, hop_s, name) if hop_s is not None else windows_of(model, source, name=name))
    starts, ends, vectors = zip(*windows, strict=True)
    vectors_SE = np.stack(vectors)
    return Embedding(name, vectors_SE.mean(axis=0), vectors_SE, np.array(starts), np.array(ends))


@torch.no_grad()
def windows_of(model: Model, source: Source, hop_s: float | None = None, name: str | None = None) -> Iterator[Window]:
    """The embeddings of a sound's windows, in the order of time. hop_s: distance of windows; None is their length, but
    no fewer windows than validation used. Raises AudioError for what is no sound."""
    rate, length = model.spec.audio.sample_rate_hz, model.spec.input.length
    step = length if hop_s is None else max(1, round(hop_s * rate))
    before = 0
    for piece in decode_parts(source, sample_rate_hz=rate, max_seconds=PIECE_S, name=name):
        samples = len(piece.audio_T)
        least = 1 if before else model.run.data.eval_crops
        crops = max(least, -(-samples // step))
        audio_BT = torch.from_numpy(crops_of(model, piece.audio_T, crops))
        starts = eval_starts(samples, length, crops)
        rows = [embedded(model, part) for part in torch.split(audio_BT, model.run.execution.eval_batch_size)]
        for start, embed_E in zip(starts, np.concatenate(rows), strict=True):
            start_s = (before + max(start, 0)) / rate
            yield Window(start_s, start_s + length / rate, embed_E)
        before += samples


def embedded(model: Model, audio_BT: torch.Tensor) -> Array:
    """[B, T] -> [B, E] float32."""
    batch = untagged(Batch, audio_BT, len(model.spec.tags)).to(device_of(model))
    embed_BE: Array = model.method.embed(batch).embed_BE.float().cpu().numpy()
    return embed_BE


def hops_of(model: Model, source: Source, hop_s: float, name: str) -> Iterator[Window]:
    """The embedding of every hop: as a stream, in bounded memory."""
    listening = dataclasses.replace(model, method=Embedder(model.method))
    for window in iter_windows(listening, source, hop_s=hop_s, name=name):
        yield Window(window.start_s, window.end_s, window.scores_C)


class Embedder(Method):
    """A method whose scores are its embeddings: what hears a recording window by window hears it for these too."""

    def __init__(self, method: Method) -> None:
        super().__init__(method.encoder, method.spec)
        self.method = method

    def losses(self, batch: AnyBatch, stage: str) -> dict[str, torch.Tensor]:
        """Raises NotImplementedError: it does not train."""
        raise NotImplementedError("an Embedder is not trained; train its method")

    def score(self, batch: AnyBatch, tags: TagSet, stage: str) -> torch.Tensor:
        """B clips -> [B, E]."""
        return self.method.embed(batch).embed_BE
