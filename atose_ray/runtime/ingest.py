"""Ray Data -> Batch. The source is a list of buffers of row groups; a task reads one and cuts its crops.

Each rank streams a dataset of its own, built anew for every epoch: order and crops are those of (seed, epoch), the same
as `data/batches.py` gives. The default Parquet reader is not used: it starts 32 actors per epoch, and it loses rows
when a path is repeated. Validation is read with plain pyarrow, so that no clip is dropped to make ranks equal.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data

from atose_ray.data.batches import Crops, CropSettings, LocalBatches, read_train_crops, rebatch
from atose_ray.runtime.cluster import DATA_CPUS
from atose_ray.types import Batch


class RayBatches(LocalBatches):
    """BatchSource whose training crops are read by Ray Data tasks, ahead of the training and on any node."""

    def train(self, epoch: int) -> Iterator[Batch]:
        """One random crop per clip."""
        yield from rebatch(self._stream(epoch), self.sizes)

    def _stream(self, epoch: int) -> Iterator[Crops]:
        ray.data.DataContext.get_current().execution_options.preserve_order = True
        items = [{"buffer": pickle.dumps(buffer)} for buffer in self.buffers(epoch)]
        read = functools.partial(read_buffer, settings=self.settings, epoch=epoch)
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        crops = dataset.map_batches(
            read, batch_size=1, batch_format="pyarrow", num_cpus=DATA_CPUS, zero_copy_batch=True
        )
        for table in crops.iter_batches(batch_size=None, batch_format="pyarrow"):
            yield from_table(table, self.settings)


def read_buffer(table: pa.Table, settings: CropSettings, epoch: int) -> pa.Table:
    """A one-row table holding a Buffer -> its crops as a table of fixed-size binary columns."""
    return to_table(read_train_crops(settings, pickle.loads(table["buffer"][0].as_py()), epoch))


def to_table(crops: Crops) -> pa.Table:
    """Crops -> Arrow, without a copy of the samples."""
    columns: dict[str, Any] = {
        "pcm": _fixed_binary(crops.pcm_NT),
        "scale": crops.scale_N,
        "tags": _fixed_binary(crops.tags_NC),
        "clip_id": crops.clip_id_N,
    }
    return pa.table(columns)


def _fixed_binary(array_NK: Any) -> pa.Array:
    array_NK = np.ascontiguousarray(array_NK)
    width = array_NK.shape[1] * array_NK.itemsize
    return pa.Array.from_buffers(pa.binary(width), len(array_NK), [None, pa.py_buffer(array_NK)])


def from_table(table: pa.Table, settings: CropSettings) -> Crops:
    """The inverse of `to_table`."""
    return Crops(
        _matrix(table["pcm"], np.int16, settings.crop_samples),
        table["scale"].to_numpy(),
        _matrix(table["tags"], np.uint8, settings.n_tags),
        table["clip_id"].to_numpy(),
    )


def _matrix(column: pa.ChunkedArray, dtype: Any, width: int) -> Any:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    flat = np.frombuffer(array.buffers()[1], dtype)
    return flat[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width)
