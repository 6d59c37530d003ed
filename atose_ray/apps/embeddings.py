"""A sound as vectors: one of the whole (a scene embedding), or one every so often (time-stamped embeddings)."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from atose_ray.apps.index import windows_of
from atose_ray.apps.windows import iter_windows
from atose_ray.audio.io import Source
from atose_ray.methods import Method
from atose_ray.training.checkpoint import Model
from atose_ray.types import AnyBatch, Array, TagSet


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
    rows = list(hops_of(model, source, hop_s, name) if hop_s is not None else crops_of(model, source, name))
    vectors_SE = np.stack([vector_E for _, _, vector_E in rows])
    start_s_S, end_s_S = (np.array([row[column] for row in rows]) for column in (0, 1))
    return Embedding(name, vectors_SE.mean(axis=0), vectors_SE, start_s_S, end_s_S)


def crops_of(model: Model, source: Source, name: str) -> Iterator[tuple[float, float, Array]]:
    """(start, end, embedding) of evenly spaced crops."""
    crop_s = model.spec.input.length / model.spec.input.rate_hz
    for window in windows_of(model, source, name=name):
        yield window.start_s, window.start_s + crop_s, window.embed_E


def hops_of(model: Model, source: Source, hop_s: float, name: str) -> Iterator[tuple[float, float, Array]]:
    """(start, end, embedding) of every hop: as a stream, in bounded memory."""
    listening = dataclasses.replace(model, method=Embedder(model.method))
    for window in iter_windows(listening, source, hop_s=hop_s, name=name):
        yield window.start_s, window.end_s, window.scores_C


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
