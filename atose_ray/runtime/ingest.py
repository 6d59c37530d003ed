"""Ray Data -> Batch. The source is a list of buffers of row groups; a task reads one and cuts its crops.

Each rank streams a dataset of its own, built anew for every epoch: order and crops are those of (seed, epoch), the same
as `data/batches.py` gives. Tasks run on the consumer's own node while it has CPUs, then on any; Ray runs them again if
a node dies (tasks of Ray Data have no limit of tries). The default Parquet reader is not used: it starts 32 actors per
epoch, and it loses rows when a path is repeated. Validation is read with plain pyarrow, so that no clip is dropped to
make ranks equal.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data

from atose_ray.data.batches import Crops, CropSettings, LocalBatches, read_train_crops, rebatch
from atose_ray.data.sampling import Buffer
from atose_ray.data.shards import Manifest, Unit
from atose_ray.search.plan import DATA_CPUS
from atose_ray.types import Batch


class RayBatches(LocalBatches):
    """BatchSource whose training crops are read by Ray Data tasks, ahead of the training.

    stream_bytes: the most they may fill of the object store; of itself every data set would take half of all of it.
    """

    def __init__(
        self, manifest: Manifest, settings: CropSettings, *, stream_bytes: int | None = None, **sizes: Any
    ) -> None:
        super().__init__(manifest, settings, **sizes)
        self.stream_bytes = stream_bytes

    def train(self, epoch: int) -> Iterator[Batch]:
        """One random crop per clip."""
        yield from rebatch(self._stream(epoch), self.sizes)

    def _stream(self, epoch: int) -> Iterator[Crops]:
        """The first buffer is read here, while Ray's tasks begin with the others: they take seconds to start."""
        first, *others = self.buffers(epoch)
        if not others:
            yield read_train_crops(self.settings, first, epoch)
            return
        tables = self._tables(others, epoch)
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(next, tables, None)
            yield read_train_crops(self.settings, first, epoch)
            table = waiting.result()
        while table is not None:
            yield from_table(table, self.settings)
            table = next(tables, None)

    def _tables(self, buffers: list[Buffer], epoch: int) -> Iterator[pa.Table]:
        """The crops of some buffers, read by Ray Data tasks, in order."""
        options = ray.data.DataContext.get_current().execution_options
        options.preserve_order = True
        options.resource_limits = ray.data.ExecutionResources(object_store_memory=self.stream_bytes)
        items = [{"buffer": pickle.dumps(buffer)} for buffer in buffers]
        read = functools.partial(read_buffer, settings=self.settings, epoch=epoch)
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        crops = dataset.map_batches(
            read, batch_size=1, batch_format="pyarrow", num_cpus=DATA_CPUS, zero_copy_batch=True, **near_here()
        )
        yield from crops.iter_batches(batch_size=None, batch_format="pyarrow")


def near_here() -> dict[str, Any]:
    """Options of data tasks: this process's node, or any where that one is full."""
    here = ray.get_runtime_context().get_node_id()
    return {"label_selector": {"ray.io/node-id": here}, "fallback_strategy": [{"label_selector": {}}]}


def read_buffer(table: pa.Table, settings: CropSettings, epoch: int) -> pa.Table:
    """A one-row table holding a Buffer -> its crops as a table of fixed-size binary columns."""
    return to_table(read_train_crops(settings, pickle.loads(table["buffer"][0].as_py()), epoch))


def to_table(crops: Crops) -> pa.Table:
    """Crops -> Arrow, without a copy of what is stored."""
    columns: dict[str, Any] = {
        "pcm": _fixed_binary(crops.stored_NT),
        "scale": crops.scale_N,
        "tags": _fixed_binary(crops.tags_NC),
        "clip_id": crops.clip_id_N,
    }
    return pa.table(columns)


def _fixed_binary(array_NK: Any) -> pa.Array:
    array_NK = np.ascontiguousarray(array_NK)
    width = array_NK[0].nbytes
    return pa.Array.from_buffers(pa.binary(width), len(array_NK), [None, pa.py_buffer(array_NK)])


def from_table(table: pa.Table, settings: CropSettings) -> Crops:
    """The inverse of `to_table`."""
    return Crops(
        _matrix(table["pcm"], settings.unit, settings.crop_samples),
        table["scale"].to_numpy(),
        _matrix(table["tags"], np.dtype("u1"), settings.n_tags),
        table["clip_id"].to_numpy(),
    )


def _matrix(column: pa.ChunkedArray, unit: Unit, width: int) -> Any:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    flat = np.frombuffer(array.buffers()[1], unit)
    return flat[array.offset * width : (array.offset + len(array)) * width].reshape(len(array), width, *unit.shape)
