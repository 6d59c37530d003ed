"""Vectors of tag names, for methods that score tags they never saw. One class and one line in `VECTORS` each.

They are resolved once, when a run is (training/run.py): their hash is part of the run's identity, and the model
keeps them as buffers."""

import hashlib
import io
from abc import abstractmethod
from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import Field, SerializeAsAny

from atose_ray.storage import read_uri
from atose_ray.types import Array, ByKind, Config, by_kind


class TagVectorsConfig(Config):
    """Base of every source of tag vectors. width: V, and content_hash: of names and vectors; both filled in when a run
    is resolved. CLOSED: whether it knows the tags of the training data only."""

    CLOSED: ClassVar[bool] = False

    kind: str
    width: int | None = Field(default=None, ge=1)
    content_hash: str | None = None

    @abstractmethod
    def vectors(self, names: tuple[str, ...], tags_NC: Array | None = None) -> Array:
        """C names -> float32 [C, V]. tags_NC: {0, 1}, of the train split; given where the names are its tags.
        Raises ValueError for names that have no vector, and OSError where a file cannot be read."""

    def resolved(self, names: tuple[str, ...], vectors_CV: Array) -> "TagVectorsConfig":
        """This config with the width and the hash of what it gave."""
        digest = hashlib.sha256("\0".join(names).encode() + np.ascontiguousarray(vectors_CV, "<f4").tobytes())
        return self.model_copy(update={"width": vectors_CV.shape[1], "content_hash": digest.hexdigest()[:16]})


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


def read_table(file: str, content: bytes) -> tuple[list[str], Array]:
    """The names [C] and vectors [C, V] in a CSV, npz or Parquet file. Raises ValueError where it is none of these."""
    ending = PurePosixPath(file.partition("?")[0]).suffix.lower()
    try:
        if ending == ".npz":
            arrays = np.load(io.BytesIO(content), allow_pickle=False)
            names, vectors = [str(name) for name in arrays["names"]], arrays["vectors"]
        elif ending == ".parquet":
            table = pq.read_table(pa.BufferReader(content))
            names, vectors = table["name"].to_pylist(), np.array(table["vector"].to_pylist())
        elif ending == ".csv":
            table = pyarrow.csv.read_csv(pa.BufferReader(content))
            names = [str(name) for name in table.column(0).to_pylist()]
            vectors = np.stack([column.to_numpy() for column in table.columns[1:]], axis=1)
        else:
            raise ValueError("the name must end in .csv, .npz or .parquet")
        vectors = np.asarray(vectors, np.float64)
        if vectors.ndim != 2 or len(vectors) != len(names) or not np.isfinite(vectors).all():
            raise ValueError(f"expected a finite vector of one width for each of {len(names)} names")
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"tag_vectors.file {file} is not a table of names and vectors: {error}") from error
    return names, vectors


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


def unit_rows(vectors_NX: Array) -> Array:
    """[N, X] -> [N, X] rows of length 1; a zero row stays zero."""
    length_N1 = np.linalg.norm(vectors_NX, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors_NX, length_N1, out=np.zeros_like(vectors_NX), where=length_N1 > 0))


VECTORS: dict[str, type[TagVectorsConfig]] = by_kind(TableVectorsConfig, RandomVectorsConfig, CoOccurrenceConfig)
AnyTagVectorsConfig = Annotated[SerializeAsAny[TagVectorsConfig], ByKind(VECTORS)]
