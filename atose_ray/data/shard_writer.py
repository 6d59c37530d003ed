"""Rows -> a Parquet shard, one row group in memory at a time."""

import hashlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from atose_ray.data.shards import LENGTH_BYTES, SCHEMA, ShardFile
from atose_ray.storage import StoreError
from atose_ray.types import Split

MAX_ROW_GROUP_BYTES = 16 << 20
MAX_ROW_GROUP_CLIPS = 64
ONE_PAGE = 1 << 30  # a column of a row group is one page, so that a clip of it can be read alone


@dataclass(frozen=True)
class ClipRow:
    """One row of a shard. stored: int16 [T], or of frames uint8 or float32 [F, M]."""

    clip_id: int
    name: str
    group: str | None
    tags: tuple[int, ...]
    scale: float
    stored: npt.NDArray[Any]


class ShardWriter:
    """Rows -> one Parquet file in `sink`, a row group in memory at a time. The same rows give the same bytes. sink:
    empty, open for writing and reading."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._rows: list[ClipRow] = []
        self._row_groups: list[tuple[int, ...]] = []  # bytes of each clip
        self._metadata: list[pq.FileMetaData] = []
        self._writer = pq.ParquetWriter(
            pa.PythonFile(sink, mode="w"),
            SCHEMA,
            compression="none",
            use_dictionary=False,
            write_statistics=["clip_id"],
            data_page_size=ONE_PAGE,
            metadata_collector=self._metadata,
        )

    @property
    def bytes(self) -> int:
        """What stands in the sink, and what waits for its row group to be full."""
        return self._sink.tell() + sum(row.stored.nbytes for row in self._rows)

    def add(self, row: ClipRow) -> None:
        """Append a clip."""
        if self._rows:
            waiting = sum(other.stored.nbytes for other in self._rows)
            if len(self._rows) == MAX_ROW_GROUP_CLIPS or waiting + row.stored.nbytes > MAX_ROW_GROUP_BYTES:
                self._flush()
        self._rows.append(row)

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        plain = ("clip_id", "name", "group", "tags", "scale")
        columns: dict[str, Any] = {name: [getattr(row, name) for row in rows] for name in plain}
        columns["n_samples"] = [len(row.stored) for row in rows]
        columns["pcm"] = [little_endian(row.stored).tobytes() for row in rows]
        self._row_groups.append(tuple(row.stored.nbytes for row in rows))
        self._writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=len(rows))

    def finish(self, name: str, split: Split, fold: int | None = None) -> ShardFile:
        """Write what waits and the footer."""
        if self._rows:
            self._flush()
        self._writer.close()
        size, digest = self._sink.tell(), hashlib.sha256()
        self._sink.seek(0)
        for block in iter(lambda: self._sink.read(1 << 20), b""):
            digest.update(block)
        return ShardFile(
            name=name,
            split=split,
            fold=fold,
            row_groups=tuple(len(clips) for clips in self._row_groups),
            pcm_offsets=tuple(self._pcm_offset(index, clips) for index, clips in enumerate(self._row_groups)),
            bytes=size,
            sha256=digest.hexdigest(),
        )

    def _pcm_offset(self, index: int, clips: tuple[int, ...]) -> int:
        """Where the samples of a row group's first clip begin: its page ends with them. Raises StoreError when not."""
        column = self._metadata[0].row_group(index).column(SCHEMA.get_field_index("pcm"))
        first = column.data_page_offset + column.total_compressed_size - sum(LENGTH_BYTES + size for size in clips)
        last = first + sum(LENGTH_BYTES + size for size in clips[:-1])
        for place, size in ((first, clips[0]), (last, clips[-1])):
            self._sink.seek(place)
            if self._sink.read(LENGTH_BYTES) != size.to_bytes(LENGTH_BYTES, "little"):
                raise StoreError("pyarrow lays out a binary column in an unknown way; use another version of it")
        return int(first + LENGTH_BYTES)


def little_endian(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same values as the shards hold them; no copy where they are so already."""
    return stored.astype(stored.dtype.newbyteorder("<"), copy=False)
