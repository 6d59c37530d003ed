"""Batches read ahead: while a GPU computes, a thread makes the next ones, where one copy takes them over."""

import threading
from collections.abc import Iterator
from queue import Full, Queue
from typing import TypeVar

import torch

from atose_ray.data.batches import BatchSource, LocalBatches
from atose_ray.types import AnyBatch

DEPTH = 3  # batches that wait
LOOK_S = 0.1  # between looks at whether anybody still reads

T = TypeVar("T")


def train_batches(source: BatchSource, epoch: int, device: torch.device, first: int = 0) -> Iterator[AnyBatch]:
    """The batches of an epoch from step `first` on, on the device. For a GPU what the host makes is read ahead into
    pinned memory and copied without waiting; what lies on the GPU, or is computed there, comes as it is. On a CPU a
    thread would only take the time that training needs."""
    batches = source.train(epoch, first)
    if device.type != "cpu" and isinstance(source, LocalBatches) and source.residency != "device":
        batches = read_ahead(map(pinned, batches))
    return (batch.to(device) for batch in batches)


def pinned(batch: AnyBatch) -> AnyBatch:
    """A batch in page-locked memory."""
    return type(batch)(*(tensor.pin_memory() for tensor in batch))


def read_ahead(items: Iterator[T], depth: int = DEPTH) -> Iterator[T]:
    """The same items, made by a thread, up to `depth` of them before they are asked for. What `items` raises is raised
    in its place. Whoever stops reading ends the thread."""
    waiting: Queue[tuple[bool, T | BaseException | None]] = Queue(depth)
    left = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> bool:
        while not left.is_set():
            try:
                waiting.put(entry, timeout=LOOK_S)
                return True
            except Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:
            put((False, error))

    thread = threading.Thread(target=make, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            is_item, item = waiting.get()
            if is_item:
                yield item  # type: ignore[misc]  # an item it is
            elif item is None:
                return
            else:
                raise item  # type: ignore[misc]
    finally:
        left.set()
        thread.join()
