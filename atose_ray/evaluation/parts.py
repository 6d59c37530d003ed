"""Scoring and encoding in as large parts as memory holds: what comes out depends on no batch's size."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from atose_ray.types import AnyBatch

T = TypeVar("T")


class Parts:
    """Takes batches whole until memory runs out, then in halves, and halves of these: from there on never more rows at
    a time than did fit. Only for what treats every row by itself (a model in eval mode)."""

    def __init__(self) -> None:
        self.rows: int | None = None

    def __call__(self, batch: AnyBatch, call: Callable[[AnyBatch], T]) -> Iterator[T]:
        """What `call` gives for a batch, part by part. Raises torch.OutOfMemoryError where not even one row fits."""
        first, count = 0, len(batch.clip_id_B)
        while first < count:
            size = min(self.rows or count, count - first)
            part = batch if size == count else type(batch)(*(tensor[first : first + size] for tensor in batch))
            try:
                found = call(part)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                self.rows = -(-size // 2)
            else:
                first += size
                yield found
                continue
            if torch.cuda.is_available():  # here the error and what it held on to are gone
                torch.cuda.empty_cache()
