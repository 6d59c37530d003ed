"""Embeddings of many sounds, in parts that grow: resumable and in bounded memory.

    00000.parquet      a row per window: path, size, mtime_ns, start_s, end_s, embedding [E] float32
    skipped.jsonl      files that are no sound, with the reason

A part holds whole sounds, PART_SOUNDS of them or PART_ROWS rows; what was cut goes on after the last part. A sound's
rows wait on the disk until it is known whole: a broken tail is found at the end."""

import dataclasses
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atose_ray.apps.embeddings import Window
from atose_ray.audio.io import AudioError
from atose_ray.storage import FileStamp, Store, StoreError

ROWS_AT_A_TIME, PART_ROWS, PART_SOUNDS = 4096, 8192, 256
STAMP = ("path", "size", "mtime_ns")
ABOUT, SKIPPED = b"atose_ray", "skipped.jsonl"


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a folder. beside: where skipped.jsonl is. about: what every row depends on, said in each part."""

    folder: Store
    beside: Store
    about: dict[str, str] = dataclasses.field(default_factory=dict)

    def names(self) -> list[str]:
        """The parts there are, in order."""
        return sorted(name for name in self.folder.names() if name.endswith(".parquet"))

    def stamps(self) -> set[FileStamp]:
        """Every sound that has its rows. Raises StoreError for rows that depend on something else."""
        return {stamp for name in self.names() for stamp in stamps_in(self.folder, name, self.about)}

    def missing(self, stamps: Iterable[FileStamp]) -> list[FileStamp]:
        """Those that have no rows yet, and were not found to be no sound."""
        skipped = {FileStamp(*json.loads(line)["file"]) for line in self.beside.read_lines(SKIPPED)}
        known = self.stamps() | skipped
        return [stamp for stamp in stamps if stamp not in known]

    def fill(
        self, missing: Iterable[FileStamp], windows_of: Callable[[FileStamp], Iterable[Window]]
    ) -> Iterator[tuple[FileStamp, str]]:
        """Add these sounds -> (sound, why it was left out, or "") as they are done."""
        todo = deque(missing)
        while todo:
            yield from self._part(todo, windows_of)

    def _part(
        self, todo: deque[FileStamp], windows_of: Callable[[FileStamp], Iterable[Window]]
    ) -> Iterator[tuple[FileStamp, str]]:
        """The next part, in `folder` when it is whole. What it takes is gone from `todo`."""
        with tempfile.TemporaryFile() as file:
            with PartWriter(file, self.about) as rows:
                while todo and not rows.full():
                    stamp = todo.popleft()
                    why = rows.add(stamp, windows_of(stamp))
                    if why:
                        self.beside.append_line(SKIPPED, json.dumps({"file": list(stamp), "reason": why}))
                    yield stamp, why
            if rows.sounds:
                file.seek(0)
                with self.folder.writing(f"{len(self.names()):05d}.parquet") as part:
                    shutil.copyfileobj(file, part)


def stamps_in(folder: Store, name: str, about: dict[str, str]) -> Iterator[FileStamp]:
    """Of every sound of a file; no embedding is read. Raises StoreError for rows that depend on something else."""
    with folder.reading(name) as file:
        parquet = pq.ParquetFile(file)
        found = json.loads((parquet.schema_arrow.metadata or {}).get(ABOUT, b"{}"))
        if found != about:
            raise StoreError(
                f"{folder.uri_of(name)} holds embeddings of another model or hop ({found or 'unknown'}, asked "
                f"for {about}); name another file with --out, or delete that"
            )
        for batch in parquet.iter_batches(ROWS_AT_A_TIME, columns=list(STAMP)):
            yield from dict.fromkeys(stamps_of(batch))


def stamps_of(batch: pa.RecordBatch) -> Iterator[FileStamp]:
    """Of every row."""
    return map(FileStamp, *(batch[column].to_pylist() for column in STAMP))


class PartWriter:
    """The rows of a part, into an open file."""

    def __init__(self, file: BinaryIO, about: dict[str, str]) -> None:
        self.file, self.about, self.rows, self.sounds = file, about, 0, 0
        self.writer: pq.ParquetWriter | None = None
        self.unwritten = list[pa.Table]()  # of several sounds: a row group of each would be slow to read

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._write()
        if self.writer is not None:
            self.writer.close()

    def full(self) -> bool:
        """Whether a part should end here."""
        return self.rows >= PART_ROWS or self.sounds >= PART_SOUNDS

    def schema(self, width: int) -> pa.Schema:
        """Columns, and what the rows depend on."""
        fields = {"path": pa.string(), "size": pa.int64(), "mtime_ns": pa.int64()}
        fields |= {"start_s": pa.float64(), "end_s": pa.float64(), "embedding": pa.list_(pa.float32(), width)}
        return pa.schema(list(fields.items()), metadata={ABOUT: json.dumps(self.about).encode()})

    def add(self, stamp: FileStamp, windows: Iterable[Window]) -> str:
        """All of a sound; "" or why it is none."""
        with tempfile.TemporaryFile() as spool:
            times: list[tuple[float, float]] = []
            width = 0
            try:
                for start_s, end_s, embed_E in windows:
                    times.append((start_s, end_s))
                    width = len(embed_E)
                    spool.write(embed_E.astype("<f4").tobytes())
            except AudioError as error:
                return str(error)
            schema = self.schema(width)
            spool.seek(0)
            for at in range(0, len(times), ROWS_AT_A_TIME):
                some = times[at : at + ROWS_AT_A_TIME]
                flat = np.frombuffer(spool.read(len(some) * width * 4), "<f4")
                starts, ends = zip(*some, strict=True)
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
                same = [pa.array([value] * len(some)) for value in stamp]
                columns = [*same, pa.array(starts), pa.array(ends), vectors]
                self.unwritten.append(pa.Table.from_arrays(columns, schema=schema))
                if sum(map(len, self.unwritten)) >= ROWS_AT_A_TIME:
                    self._write()
        self.rows, self.sounds = self.rows + len(times), self.sounds + 1
        return ""

    def _write(self) -> None:
        """A row group of what waits."""
        if self.unwritten:
            rows, self.unwritten = pa.concat_tables(self.unwritten), []
            self.writer = self.writer or pq.ParquetWriter(self.file, rows.schema)
            self.writer.write_table(rows)
