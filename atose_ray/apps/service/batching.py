"""Crops of several requests, computed together."""

import contextvars
import queue
import threading
import time
from concurrent.futures import Future
from typing import NamedTuple

import torch

from atose_ray.methods import Method
from atose_ray.types import AnyBatch, Batch, EmbeddedBatch, TagSet, untagged

Key = tuple[tuple[str, ...] | None, str]  # the tags that are scored and the stage; None: embeddings


class TimeUp(Exception):
    """A request has had its time."""


deadline: contextvars.ContextVar[float] = contextvars.ContextVar("deadline", default=float("inf"))
Passes = list[tuple[int, int]]  # of each forward pass: its clips, and the requests that they are of
passes: contextvars.ContextVar[Passes] = contextvars.ContextVar("passes")  # of a request; shared ones of the first


def seconds_left() -> float:
    """Of the request that this thread answers. Raises TimeUp where there are none."""
    left = deadline.get() - time.monotonic()
    if left <= 0:
        raise TimeUp
    return left


class Waiting(NamedTuple):
    """inputs_BX of one request, with all that its result depends on. tags: of scores. passes: where they are noted."""

    key: Key
    tags: TagSet | None
    inputs_BX: torch.Tensor
    result: "Future[torch.Tensor]"
    passes: Passes


class Together(Method):
    """A method that several threads ask at a time. Their crops are computed in one call, by a thread of its own, once
    there are `most`, once every request that is open has asked, or after `wait_s`. most=0: each computes its own."""

    def __init__(self, method: Method, most: int, wait_s: float) -> None:
        super().__init__(method.encoder, method.spec)
        self.method, self.most, self.wait_s = method, most, wait_s
        self.open = 0  # requests that may ask yet
        self._waiting: queue.SimpleQueue[Waiting] = queue.SimpleQueue()
        if most:
            threading.Thread(target=self._run, daemon=True, name="batches").start()

    def losses(self, batch: AnyBatch, stage: str) -> dict[str, torch.Tensor]:
        """Raises NotImplementedError: it does not train."""
        raise NotImplementedError("a service does not train; train its method")

    def score(self, batch: AnyBatch, tags: TagSet, stage: str) -> torch.Tensor:
        """B clips -> [B, len(tags)]. Raises TimeUp."""
        assert isinstance(batch, Batch)
        return self._ask((tags.names, stage), tags, batch.inputs)

    def embed(self, batch: AnyBatch) -> EmbeddedBatch:
        """B clips -> [B, E]. Raises TimeUp."""
        if isinstance(batch, EmbeddedBatch):
            return batch
        return EmbeddedBatch(self._ask((None, ""), None, batch.inputs), batch.tags_BC, batch.clip_id_B)

    def _ask(self, key: Key, tags: TagSet | None, inputs_BX: torch.Tensor) -> torch.Tensor:
        left = seconds_left()
        noted = passes.get([])
        if not self.most:
            noted.append((len(inputs_BX), 1))
            return self._compute(key, tags, inputs_BX)
        waiting = Waiting(key, tags, inputs_BX, Future(), noted)
        self._waiting.put(waiting)
        try:
            return waiting.result.result(timeout=min(left, threading.TIMEOUT_MAX))
        except TimeoutError:
            waiting.result.cancel()
            raise TimeUp from None

    @torch.no_grad()
    def _compute(self, key: Key, tags: TagSet | None, inputs_BX: torch.Tensor) -> torch.Tensor:
        batch = untagged(Batch, inputs_BX, len(self.spec.tags))
        return self.method.embed(batch).embed_BE if tags is None else self.method.score(batch, tags, key[1])

    def _run(self) -> None:
        while True:
            found = self._next()
            for key in dict.fromkeys(one.key for one in found):
                self._answer([one for one in found if one.key == key])

    def _next(self) -> list[Waiting]:
        found = [self._waiting.get()]
        until = time.monotonic() + self.wait_s
        while sum(len(one.inputs_BX) for one in found) < self.most:
            full = len(found) >= self.open
            try:
                found.append(self._waiting.get(timeout=0 if full else max(0.0, until - time.monotonic())))
            except queue.Empty:
                break
        return [one for one in found if one.result.set_running_or_notify_cancel()]

    def _answer(self, alike: list[Waiting]) -> None:
        try:
            alike[0].passes.append((sum(len(one.inputs_BX) for one in alike), len(alike)))
            rows_BX = self._compute(alike[0].key, alike[0].tags, torch.cat([one.inputs_BX for one in alike]))
            parts = torch.split(rows_BX, [len(one.inputs_BX) for one in alike])
            for one, part_BX in zip(alike, parts, strict=True):
                one.result.set_result(part_BX)
        except Exception as error:  # each that waits hears of it
            for one in alike:
                if not one.result.done():
                    one.result.set_exception(error)
