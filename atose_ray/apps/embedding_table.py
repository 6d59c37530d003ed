"""Embeddings of many sounds as one Parquet file, resumable and in bounded memory.

    x.parquet             a row per sound, or per hop: path, size, mtime_ns, start_s, end_s, embedding [E] float32
    .x.parquet.parts/     on the way: parts of whole sounds, and skipped.jsonl, what is no sound and why

What was cut goes on after its last part. When all is done the parts become the file, in which a sound that changed
has its new rows only. A sound's rows wait on the disk until it is known whole: a broken tail is found at the end."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atose_ray.apps.embeddings import crops_of, hops_of
from atose_ray.audio.io import AudioError
from atose_ray.storage import Store, StoreError
from atose_ray.training.checkpoint import Model
from atose_ray.types import Array

ROWS_AT_A_TIME, PART_ROWS, PART_SOUNDS = 4096, 65536, 256
ABOUT, SKIPPED = b"atose_ray", "skipped.jsonl"


class Stamp(NamedTuple):
    """A sound as it was when it was embedded."""

    path: str
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True)
class Table:
    """The file `name` of a folder. hop_s: from one row to the next; None is one row per sound."""

    folder: Store
    name: str
    model: Model
    hop_s: float | None

    @property
    def parts(self) -> Store:
        """Where it grows."""
        return self.folder.child(f".{self.name}.parts")

    def about(self) -> dict[str, str]:
        """What every row depends on, for the file and for who goes on with it."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.method.state_dict().items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        return {"weights": digest.hexdigest()[:16], "hop_s": str(self.hop_s)}

    def fill(self, files: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Embed what is not there yet -> (file, why it was left out, or "") as they are done; then make the file.

        Raises StoreError where the file, or its parts, are of another model or hop."""
        about = self.about()
        known = set(self.stamps(about))
        skipped = {Stamp(*json.loads(line)["file"]) for line in self.parts.read_lines(SKIPPED)}
        stamps = [stamp_of(file) for file in files]
        todo = iter([stamp for stamp in stamps if stamp not in known | skipped])
        more = True
        while more:
            more = False
            for stamp, why in self.part(todo, about):
                more = True
                if why:
                    self.parts.append_line(SKIPPED, json.dumps({"file": list(stamp), "reason": why}))
                yield stamp.path, why
        if self.part_names():
            self.merge(stamps, about)

    def part(self, todo: Iterator[Stamp], about: dict[str, str]) -> Iterator[tuple[Stamp, str]]:
        """The next sounds as a part; a reader sees it whole or not at all."""
        first = next(todo, None)
        if first is None:
            return
        number = len(self.part_names())
        done: list[tuple[Stamp, str]] = []
        with tempfile.TemporaryFile() as file:
            with Rows(file, about) as rows:
                stamp: Stamp | None = first
                while stamp is not None:
                    why = rows.add(stamp, self.model, self.hop_s)
                    if why:
                        yield stamp, why
                    else:
                        done.append((stamp, why))
                    full = rows.count >= PART_ROWS or len(done) >= PART_SOUNDS
                    stamp = None if full else next(todo, None)
            if done:
                file.seek(0)
                with self.parts.writing(f"{number:05d}.parquet") as part:
                    shutil.copyfileobj(file, part)
        yield from done

    def part_names(self) -> list[str]:
        """The parts there are, in order."""
        return [name for name in self.parts.names() if name.endswith(".parquet")]

    def sources(self) -> list[tuple[Store, str]]:
        """The file, where it is there, and the parts, the newest last."""
        whole = [(self.folder, self.name)] if self.folder.exists(self.name) else []
        return [*whole, *((self.parts, name) for name in self.part_names())]

    def stamps(self, about: dict[str, str]) -> Iterator[Stamp]:
        """Of every sound that is embedded. Raises StoreError for rows of another model or hop."""
        for store, name in self.sources():
            with store.reading(name) as file:
                parquet = pq.ParquetFile(file)
                found = json.loads((parquet.schema_arrow.metadata or {}).get(ABOUT, b"{}"))
                if found != about:
                    raise StoreError(
                        f"{store.uri_of(name)} holds embeddings of another model or hop ({found or 'unknown'}, asked "
                        f"for {about}); name another file with --out, or delete that"
                    )
                for batch in parquet.iter_batches(ROWS_AT_A_TIME, columns=list(Stamp._fields)):
                    yield from dict.fromkeys(Stamp(*row.values()) for row in batch.to_pylist())

    def merge(self, stamps: list[Stamp], about: dict[str, str]) -> None:
        """Make one file of all; of a sound that was named now only what it is now."""
        now = {stamp.path: stamp for stamp in stamps}
        with self.folder.writing(self.name) as target, contextlib.ExitStack() as closing:
            writer: pq.ParquetWriter | None = None
            for store, name in self.sources():
                with store.reading(name) as file:
                    parquet = pq.ParquetFile(file)
                    writer = writer or closing.enter_context(pq.ParquetWriter(target, parquet.schema_arrow))
                    for batch in parquet.iter_batches(ROWS_AT_A_TIME):
                        rows = (Stamp(*row.values()) for row in batch.select(list(Stamp._fields)).to_pylist())
                        kept = batch.filter(pa.array([now.get(row.path, row) == row for row in rows], pa.bool_()))
                        writer.write_batch(kept)
        self.folder.delete(f".{self.name}.parts")


def stamp_of(file: str) -> Stamp:
    """Of a file that is not there sizes below 0: it is reported with those that are no sound."""
    try:
        found = os.stat(file)
    except OSError:
        return Stamp(file, -1, 0)
    return Stamp(file, found.st_size, found.st_mtime_ns)


class Rows:
    """The rows of a part, into an open file. A sound's rows are spooled, and written once it is whole."""

    def __init__(self, file: BinaryIO, about: dict[str, str]) -> None:
        self.file, self.about, self.count = file, about, 0
        self.writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()

    def schema(self, width: int) -> pa.Schema:
        """Columns, and what the rows depend on."""
        fields = {"path": pa.string(), "size": pa.int64(), "mtime_ns": pa.int64()}
        fields |= {"start_s": pa.float64(), "end_s": pa.float64(), "embedding": pa.list_(pa.float32(), width)}
        return pa.schema(list(fields.items()), metadata={ABOUT: json.dumps(self.about).encode()})

    def add(self, stamp: Stamp, model: Model, hop_s: float | None) -> str:
        """Embed a sound; "" or why it is none."""
        with tempfile.TemporaryFile() as spool:
            times: list[tuple[float, float]] = []
            width = 0
            try:
                for start_s, end_s, vector_E in rows_of(stamp.path, model, hop_s):
                    times.append((start_s, end_s))
                    width = len(vector_E)
                    spool.write(vector_E.astype("<f4").tobytes())
            except AudioError as error:
                return str(error)
            self.writer = self.writer or pq.ParquetWriter(self.file, self.schema(width))
            spool.seek(0)
            for at in range(0, len(times), ROWS_AT_A_TIME):
                some = times[at : at + ROWS_AT_A_TIME]
                flat = np.frombuffer(spool.read(len(some) * width * 4), "<f4")
                starts, ends = zip(*some, strict=True)
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
                about = [pa.array([value] * len(some)) for value in stamp]
                columns = [*about, pa.array(starts), pa.array(ends), vectors]
                self.writer.write_table(pa.Table.from_arrays(columns, schema=self.schema(width)))
                self.count += len(some)
        return ""


def rows_of(path: str, model: Model, hop_s: float | None) -> Iterator[tuple[float, float, Array]]:
    """(start, end, embedding): of every hop, or of the whole sound, as a stream."""
    if hop_s is not None:
        yield from hops_of(model, path, hop_s, path)
        return
    total_E, count, last = np.zeros(1), 0, 0.0
    for _, end_s, vector_E in crops_of(model, path, path):
        total_E, count, last = total_E + vector_E.astype(np.float64), count + 1, end_s
    yield 0.0, last, (total_E / count).astype(np.float32)
