"""Vectors of tag names, for methods that score tags they never saw: which sources there are.

They are resolved once, when a run is (training/run.py): their hash is part of the run's identity, and the model
keeps them as buffers."""

import hashlib
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, SerializeAsAny

from atose_ray.storage import read_uri
from atose_ray.tags.base import Found, TagVectorsConfig, read_table, unit_rows
from atose_ray.tags.instrument import InstrumentVectorsConfig
from atose_ray.tags.sentence import SentenceVectorsConfig
from atose_ray.tags.words import GloveVectorsConfig
from atose_ray.types import Array, ByKind, by_kind

__all__ = ["VECTORS", "AnyTagVectorsConfig", "Found", "TagVectorsConfig", "unit_rows"]


class TableVectorsConfig(TagVectorsConfig):
    """file: path or URI of a table of names and vectors: CSV (with a header; a name, then V numbers a row), npz (arrays
    `names` [C] and `vectors` [C, V]) or Parquet (columns `name` and `vector`)."""

    kind: Literal["table"] = "table"
    file: str = Field(min_length=1)

    def vectors(self, names: tuple[str, ...], tags_NC: Array | None = None) -> Array:
        known, table_CV = read_table(self.file, read_uri(self.file))
        row = {name: index for index, name in enumerate(known)}
        missing = [name for name in names if name not in row]
        if missing:
            raise ValueError(
                f"{self.file} has vectors of {len(row)} names, but none of {', '.join(missing)}; add rows, or take "
                "another kind of tag_vectors"
            )
        return np.ascontiguousarray(table_CV[[row[name] for name in names]], np.float32)


class RandomVectorsConfig(TagVectorsConfig):
    """Unit vectors drawn by (seed, name): what tag vectors are worth is what they give beyond these. size: V."""

    kind: Literal["random"] = "random"
    size: int = Field(default=64, ge=2, le=4096)
    seed: int = Field(default=0, ge=0)

    def vectors(self, names: tuple[str, ...], tags_NC: Array | None = None) -> Array:
        digests = [hashlib.sha256(name.encode()).digest()[:8] for name in names]
        seeds = [(self.seed, int.from_bytes(digest, "little")) for digest in digests]
        drawn = [np.random.default_rng(seed).standard_normal(self.size) for seed in seeds]
        return unit_rows(np.array(drawn, np.float64).reshape(len(names), self.size)).astype(np.float32)


class CoOccurrenceConfig(TagVectorsConfig):
    """Positive pointwise mutual information of tags on the train split's clips, factored (Levy & Goldberg, NeurIPS
    2014): U S^(1/2) of its singular value decomposition, rows of length 1. size: V at most; a set of C tags gives C."""

    CLOSED: ClassVar[bool] = True

    kind: Literal["co_occurrence"] = "co_occurrence"
    size: int = Field(default=64, ge=1, le=4096)

    def vectors(self, names: tuple[str, ...], tags_NC: Array | None = None) -> Array:
        if tags_NC is None:
            raise ValueError(
                f"tag_vectors co_occurrence knows the tags of its training data only, not {', '.join(names)}; to score "
                "others take vectors of words: table or random"
            )
        joint_CC = tags_NC.T @ tags_NC / len(tags_NC)
        share_C = np.diag(joint_CC)
        expected_CC = np.outer(share_C, share_C)
        ratio_CC = np.divide(joint_CC, expected_CC, out=np.ones_like(joint_CC), where=expected_CC > 0)
        left_CC, value_C, _ = np.linalg.svd(np.log(np.maximum(ratio_CC, 1.0)))
        return unit_rows((left_CC * np.sqrt(value_C))[:, : self.size]).astype(np.float32)


VECTORS: dict[str, type[TagVectorsConfig]] = by_kind(
    TableVectorsConfig,
    RandomVectorsConfig,
    CoOccurrenceConfig,
    GloveVectorsConfig,
    InstrumentVectorsConfig,
    SentenceVectorsConfig,
)
AnyTagVectorsConfig = Annotated[SerializeAsAny[TagVectorsConfig], ByKind(VECTORS)]
