"""A sound as vectors: one of the whole (a scene embedding), or one every so often (time-stamped embeddings)."""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from atose_ray.apps.predict import crops_along, device_of
from atose_ray.apps.windows import iter_windows
from atose_ray.audio.io import Source
from atose_ray.methods import Method
from atose_ray.training.checkpoint import Model
from atose_ray.types import AnyBatch, Array, Batch, TagSet, untagged


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
    crop_s = model.spec.input.length / model.spec.audio.sample_rate_hz
    for audio_BT, starts_s, _ in crops_along(model, source, hop_s, name):
        rows = [embedded(model, part) for part in torch.split(audio_BT, model.run.execution.eval_batch_size)]
        for start_s, embed_E in zip(starts_s, np.concatenate(rows), strict=True):
            yield Window(start_s, start_s + crop_s, embed_E)


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
