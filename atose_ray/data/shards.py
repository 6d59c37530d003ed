"""Parquet shards: a row is a whole clip as raw int16 samples, and a manifest says what is there.

Audio stands in a plain `binary` column: half the size and about 18 times the read speed of list or tensor columns.

    clip_id int64 | name string | group string | tags list<int32> | n_samples int32 | scale float32 | pcm binary

`pcm` is little-endian int16, mono, at the manifest's rate; audio = pcm * scale, in [-1, 1]. `tags` are indices into
the manifest's `data_spec.tags`. The manifest is written last: a data folder without one is not finished.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from atose_ray.data.sampling import RowGroup
from atose_ray.store import Store, StoreError
from atose_ray.types import Config, DataSpec, Split

T = TypeVar("T")
Array = npt.NDArray[Any]

MANIFEST = "manifest.json"
MAX_ROW_GROUP_BYTES = 16 << 20
MAX_ROW_GROUP_CLIPS = 64
SCHEMA = pa.schema(
    [
        ("clip_id", pa.int64()),
        ("name", pa.string()),
        ("group", pa.string()),
        ("tags", pa.list_(pa.int32())),
        ("n_samples", pa.int32()),
        ("scale", pa.float32()),
        ("pcm", pa.binary()),
    ]
)


@dataclass(frozen=True)
class ClipRow:
    """One row of a shard."""

    clip_id: int
    name: str
    group: str | None
    tags: tuple[int, ...]
    scale: float
    pcm_T: npt.NDArray[np.int16]


class ShardFile(Config):
    """One file of a split; `row_groups` holds the clips of each row group."""

    name: str
    split: Split
    row_groups: tuple[int, ...]
    bytes: int
    sha256: str


class SkippedClip(Config):
    """A clip that the annotations name and the shards do not hold, and why."""

    name: str
    split: Split
    reason: str


class Manifest(Config):
    """What `prepare` made, from what.

    tag_counts: tag -> split -> positive clips. inputs_hash: of the annotations, file sizes and times and settings, so
    that a second prepare knows there is nothing to do. content_hash: of the shards.
    """

    version: int = 1
    dataset: dict[str, Any]
    data_spec: DataSpec
    shards: tuple[ShardFile, ...]
    tag_counts: dict[str, dict[Split, int]]
    skipped: tuple[SkippedClip, ...] = ()
    left_out: dict[str, int] = Field(default_factory=dict)
    inputs_hash: str
    content_hash: str

    def row_groups(self, split: Split) -> list[RowGroup]:
        """All row groups of a split, in the order they were written."""
        return [
            RowGroup(shard.name, index, clips)
            for shard in self.shards
            if shard.split == split
            for index, clips in enumerate(shard.row_groups)
        ]


def data_store(store: Store, dataset: str) -> Store:
    """The folder of a prepared data set."""
    return store.child("data", dataset)


def load_manifest(store: Store, dataset: str) -> Manifest:
    """The manifest of a prepared data set. Raises StoreError, naming the sets that are there, when it is not."""
    folder = data_store(store, dataset)
    if not folder.exists(MANIFEST):
        there = [name for name in store.child("data").names() if data_store(store, name).exists(MANIFEST)]
        raise StoreError(
            f"no prepared data set {dataset!r} in the store {store.uri} (it holds: {', '.join(there) or 'none'}); "
            f"make it with: python -m atose_ray.prepare {dataset} --store {store.uri}"
        )
    try:
        return Manifest.model_validate(folder.read_json(MANIFEST))
    except ValidationError as error:
        raise StoreError(
            f"{folder.uri}/{MANIFEST} was written by another version: {error}. Prepare it again"
        ) from error


def encode_shard(rows: list[ClipRow]) -> tuple[bytes, tuple[int, ...]]:
    """Rows -> (Parquet file, clips per row group). The same rows give the same bytes."""
    largest = max(row.pcm_T.nbytes for row in rows)
    per_group = max(1, min(MAX_ROW_GROUP_CLIPS, MAX_ROW_GROUP_BYTES // max(largest, 1)))
    table = pa.table(
        {
            "clip_id": [row.clip_id for row in rows],
            "name": [row.name for row in rows],
            "group": [row.group for row in rows],
            "tags": [list(row.tags) for row in rows],
            "n_samples": [len(row.pcm_T) for row in rows],
            "scale": [row.scale for row in rows],
            "pcm": [row.pcm_T.astype("<i2").tobytes() for row in rows],
        },
        schema=SCHEMA,
    )
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=per_group,
        compression="none",
        use_dictionary=False,
        write_statistics=["clip_id"],
        data_page_size=2 << 20,
    )
    sizes = [min(per_group, len(rows) - first) for first in range(0, len(rows), per_group)]
    return sink.getvalue(), tuple(sizes)


@dataclass(frozen=True)
class Clips:
    """Decoded rows of some row groups. pcm_N views the Parquet buffers; tags_NC uint8 {0, 1}."""

    clip_id_N: Array
    scale_N: Array
    n_samples_N: Array
    tags_NC: Array
    pcm_N: list[npt.NDArray[np.int16]]


def read_row_group(folder: Store, group: RowGroup, n_tags: int) -> Clips:
    """The clips of one row group. Raises StoreError when the file is missing or is not what the manifest says."""

    try:
        table = from_file(folder, group.file, lambda f: pq.ParquetFile(f).read_row_group(group.index).combine_chunks())
    except (OSError, pa.ArrowException, IndexError) as error:
        raise StoreError(f"cannot read row group {group.index} of {folder.uri}/{group.file}: {error}") from error
    if table.num_rows != group.clips:
        raise StoreError(
            f"{folder.uri}/{group.file} has {table.num_rows} clips in row group {group.index} where the manifest says "
            f"{group.clips}: the shards were changed after prepare; prepare again"
        )
    tags_NC = np.zeros((table.num_rows, n_tags), dtype=np.uint8)
    tags = table["tags"].combine_chunks()
    lengths = np.diff(tags.offsets.to_numpy())
    tags_NC[np.repeat(np.arange(len(lengths)), lengths), tags.flatten().to_numpy()] = 1
    return Clips(
        clip_id_N=table["clip_id"].to_numpy(),
        scale_N=table["scale"].to_numpy(),
        n_samples_N=table["n_samples"].to_numpy(),
        tags_NC=tags_NC,
        pcm_N=_binary_views(table["pcm"].combine_chunks()),
    )


def _binary_views(column: pa.BinaryArray) -> list[npt.NDArray[np.int16]]:
    """The rows of a binary column as int16 views of its buffer, without a copy."""
    _, offset_buffer, data_buffer = column.buffers()
    if data_buffer is None:
        return [np.empty(0, np.int16) for _ in range(len(column))]
    ends = np.frombuffer(offset_buffer, np.int32)[column.offset : column.offset + len(column) + 1].tolist()
    data = np.frombuffer(data_buffer, np.uint8)
    return [data[start:end].view("<i2") for start, end in itertools.pairwise(ends)]


def from_file(folder: Store, name: str, read: Callable[[pa.NativeFile], T]) -> T:
    """What `read` finds in an open file of a folder; tried anew where the store cannot just now (Store.again)."""

    def once() -> T:
        with folder.fs.open_input_file(folder.path(name)) as file:
            return read(file)

    return folder.again(once)


def _read_lengths(file: pa.NativeFile, indices: list[int]) -> pa.Table:
    return pq.ParquetFile(file).read_row_groups(indices, columns=["n_samples"])


def read_lengths(folder: Store, groups: list[RowGroup]) -> npt.NDArray[np.int32]:
    """Samples of every clip of some row groups, in order, int32 [N]; reads no audio.

    Raises StoreError when a file is missing or is not what the manifest says.
    """
    lengths = [np.empty(0, np.int32)]
    for file, of_file in itertools.groupby(groups, key=lambda group: group.file):
        indices, clips = zip(*((group.index, group.clips) for group in of_file), strict=True)
        try:
            table = from_file(folder, file, partial(_read_lengths, indices=list(indices)))
        except (OSError, pa.ArrowException, IndexError) as error:
            raise StoreError(f"cannot read {folder.uri}/{file}: {error}") from error
        if table.num_rows != sum(clips):
            raise StoreError(
                f"{folder.uri}/{file} has {table.num_rows} clips where the manifest says {sum(clips)}: the shards were "
                "changed after prepare; prepare again"
            )
        lengths.append(table["n_samples"].to_numpy())
    return np.concatenate(lengths)


def read_tags(folder: Store, manifest: Manifest, split: Split) -> npt.NDArray[np.float64]:
    """Tags of every clip of a split, {0, 1} [N, C]; reads no audio."""
    n_tags = len(manifest.data_spec.tags)
    rows: list[list[int]] = []
    for shard in manifest.shards:
        if shard.split == split:
            table = from_file(folder, shard.name, lambda file: pq.read_table(file, columns=["tags"]))
            rows += table["tags"].to_pylist()
    tags_NC = np.zeros((len(rows), n_tags))
    for row, tags in enumerate(rows):
        tags_NC[row, tags] = 1
    return tags_NC
