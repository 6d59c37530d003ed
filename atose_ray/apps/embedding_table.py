"""Embeddings of many sounds as one Parquet file.

    x.parquet             a row per sound, or per hop: path, size, mtime_ns, start_s, end_s, embedding [E] float32
    .x.parquet.parts/     on the way: parts (apps/embedding_parts.py)

When all is done the parts become the file, in which a sound that changed has its new rows only."""

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atose_ray.apps.embedding_parts import ROWS_AT_A_TIME, Parts, stamps_in, stamps_of
from atose_ray.apps.embeddings import Window, hops_of, windows_of
from atose_ray.storage import FileStamp, Store
from atose_ray.training.checkpoint import Model


@dataclasses.dataclass(frozen=True)
class Table:
    """The file `name` of a folder. hop_s: from one row to the next; None is one row per sound."""

    folder: Store
    name: str
    model: Model
    hop_s: float | None

    def about(self) -> dict[str, str]:
        """What every row depends on, for the file and for who goes on with it."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.method.state_dict().items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        return {"weights": digest.hexdigest()[:16], "hop_s": str(self.hop_s)}

    def fill(self, files: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Embed what is not there yet -> (file, why it was left out, or "") as they are done; then make the file.

        Raises StoreError where the file, or its parts, are of another model or hop."""
        growing, about = self.folder.child(f".{self.name}.parts"), self.about()
        parts, known = Parts(growing, growing, about), set[FileStamp]()
        if self.folder.exists(self.name):
            known.update(stamps_in(self.folder, self.name, about))
        stamps = [stamp_of(file) for file in files]
        missing = parts.missing(stamp for stamp in stamps if stamp not in known)
        for stamp, why in parts.fill(missing, lambda stamp: rows_of(stamp.name, self.model, self.hop_s)):
            yield stamp.name, why
        if parts.names():
            self.merge(parts, stamps)

    def merge(self, parts: Parts, stamps: list[FileStamp]) -> None:
        """Make one file of all; of a sound that was named now only what it is now."""
        now = {stamp.name: stamp for stamp in stamps}
        sources = [(self.folder, self.name)] if self.folder.exists(self.name) else []
        with self.folder.writing(self.name) as target, contextlib.ExitStack() as closing:
            writer: pq.ParquetWriter | None = None
            for store, name in [*sources, *((parts.folder, name) for name in parts.names())]:
                with store.reading(name) as file:
                    parquet = pq.ParquetFile(file)
                    writer = writer or closing.enter_context(pq.ParquetWriter(target, parquet.schema_arrow))
                    for batch in parquet.iter_batches(ROWS_AT_A_TIME):
                        kept = [now.get(row.name, row) == row for row in stamps_of(batch)]
                        writer.write_batch(batch.filter(pa.array(kept, pa.bool_())))
        self.folder.delete(f".{self.name}.parts")


def stamp_of(file: str) -> FileStamp:
    """Of a file that is not there sizes below 0: it is reported with those that are no sound."""
    try:
        found = os.stat(file)
    except OSError:
        return FileStamp(file, -1, 0)
    return FileStamp(file, found.st_size, found.st_mtime_ns)


def rows_of(path: str, model: Model, hop_s: float | None) -> Iterator[Window]:
    """The embedding of every hop, or of the whole sound, as a stream."""
    if hop_s is not None:
        yield from hops_of(model, path, hop_s, path)
        return
    total_E, count, last = np.zeros(1), 0, 0.0
    for window in windows_of(model, path, name=path):
        total_E, count, last = total_E + window.embed_E.astype(np.float64), count + 1, window.end_s
    yield Window(0.0, last, (total_E / count).astype(np.float32))
