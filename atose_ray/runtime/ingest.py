"""Ray Data -> Batch. The source is a list of buffers of row groups; a task reads one and cuts its crops.

Each rank streams a dataset of its own, built anew for every epoch: order and crops are those of (seed, epoch), the same
as `data/batches.py` gives. Tasks run on the consumer's own node while it has CPUs, then on any; Ray runs them again if
a node dies (tasks of Ray Data have no limit of tries). The default Parquet reader is not used: it starts 32 actors per
epoch, and it loses rows when a path is repeated. Validation is read with plain pyarrow, so that no clip is dropped to
make ranks equal.
"""

import functools
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
import ray.data

from atose_ray.data.batches import Crops, CropSettings, LocalBatches, read_train_crops, rebatch
from atose_ray.data.sampling import Buffer
from atose_ray.data.shards import Manifest
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

    def train(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """One random crop per clip."""
        buffers = self.buffers(epoch, first)
        if sizes := self.rows_of(buffers, first):
            yield from rebatch(self._stream(epoch, buffers), sizes, self.change)

    def _stream(self, epoch: int, buffers: list[Buffer]) -> Iterator[Crops]:
        """The first buffer is read here, while Ray's tasks begin with the others: they take seconds to start."""
        first, *others = buffers
        if not others:
            yield read_train_crops(self.settings, first, epoch)
            return
        rest = self._crops(others, epoch)
        with ThreadPoolExecutor(1) as ahead:
            waiting = ahead.submit(next, rest, None)
            yield read_train_crops(self.settings, first, epoch)
            second = waiting.result()
        if second is not None:
            yield second
            yield from rest

    def _crops(self, buffers: list[Buffer], epoch: int) -> Iterator[Crops]:
        """The crops of some buffers, read by Ray Data tasks, in order."""
        options = ray.data.DataContext.get_current().execution_options
        options.preserve_order = True
        options.resource_limits = ray.data.ExecutionResources(object_store_memory=self.stream_bytes)
        items = [{"buffer": pickle.dumps(buffer)} for buffer in buffers]
        read = functools.partial(read_buffer, settings=self.settings, epoch=epoch)
        dataset = ray.data.from_items(items, override_num_blocks=len(items))
        crops = dataset.map(read, num_cpus=DATA_CPUS, **near_here())
        for table in crops.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in range(len(table)):
                head, *arrays = (column[row].as_buffer() for column in table.columns)
                yield pickle.loads(head, buffers=arrays)  # views of the object store


def near_here() -> dict[str, Any]:
    """Options of data tasks: this process's node, or any where that one is full."""
    here = ray.get_runtime_context().get_node_id()
    return {"label_selector": {"ray.io/node-id": here}, "fallback_strategy": [{"label_selector": {}}]}


def read_buffer(row: dict[str, Any], settings: CropSettings, epoch: int) -> dict[str, Any]:
    """A Buffer -> its Crops, pickled, the arrays in columns of their own: plain bytes, whose size Ray counts right."""
    arrays: list[pickle.PickleBuffer] = []
    crops = read_train_crops(settings, pickle.loads(row["buffer"]), epoch)
    head = pickle.dumps(crops, protocol=5, buffer_callback=arrays.append)
    return {"head": head, **{f"array{i}": array.raw().tobytes() for i, array in enumerate(arrays)}}
