"""The contract of a source of tag vectors, and tables of names and vectors.

A new source is one file with a `TagVectorsConfig`, and one line in `VECTORS` (tags/vectors.py)."""

import hashlib
import io
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from pydantic import AfterValidator, Field

from atose_ray.types import Array, Config

TAG = "{tag}"


def _has_the_tag(context: str) -> str:
    if context.count(TAG) != 1:
        raise ValueError(f"context names the tag once, as in '{TAG} music', but got {context!r}")
    return context


Context = Annotated[str, Field(max_length=200), AfterValidator(_has_the_tag)]  # the words around a tag


@dataclass(frozen=True)
class Found:
    """How a name got its vector. how: as one token (`tag`, `joined`, `hyphenated`) or as the mean of its `words`.
    tokens: those whose vectors were taken, the context's among them. missing: words that the source lacks."""

    name: str
    how: str
    tokens: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        lacks = f", without {' and '.join(self.missing)}, which the source lacks" if self.missing else ""
        return f"{self.name}: {'the mean of ' if len(self.tokens) > 1 else ''}{', '.join(self.tokens)}{lacks}"


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

    def report(self, names: tuple[str, ...]) -> list[Found]:
        """How each name was found, where there is something to say."""
        return []

    def resolved(self, names: tuple[str, ...], vectors_CV: Array) -> "TagVectorsConfig":
        """This config with the width and the hash of what it gave."""
        digest = hashlib.sha256("\0".join(names).encode() + np.ascontiguousarray(vectors_CV, "<f4").tobytes())
        return self.model_copy(update={"width": vectors_CV.shape[1], "content_hash": digest.hexdigest()[:16]})


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


def unit_rows(vectors_NX: Array) -> Array:
    """[N, X] -> [N, X] rows of length 1; a zero row stays zero."""
    length_N1 = np.linalg.norm(vectors_NX, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors_NX, length_N1, out=np.zeros_like(vectors_NX), where=length_N1 > 0))
