"""Reading ahead: the same items in the same order, errors where they belong, and no thread that stays."""

from __future__ import annotations

import threading

import pytest
import torch

from atose_ray.data.shards import load_manifest
from atose_ray.training import feed
from atose_ray.training.feed import read_ahead, train_batches
from atose_ray.training.run import make_batches


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def test_items_come_in_order_and_are_made_before_they_are_asked_for() -> None:
    made, full = [], threading.Event()

    def items():
        for number in range(20):
            made.append(number)
            if number == 3:
                full.set()
            yield number

    ahead = read_ahead(items(), depth=3)
    assert next(ahead) == 0
    assert full.wait(60)  # 1, 2, 3 were made though nobody asked
    assert list(ahead) == list(range(1, 20)) == made[1:]
    assert not threads()


def test_an_error_comes_after_the_items_before_it() -> None:
    def items():
        yield "good"
        raise OSError("the shard is gone")

    ahead = read_ahead(items())
    assert next(ahead) == "good"
    with pytest.raises(OSError, match="the shard is gone"):
        next(ahead)
    assert not threads()


def test_who_stops_reading_ends_the_thread() -> None:
    ahead = read_ahead(iter(range(1000)), depth=2)
    assert next(ahead) == 0
    ahead.close()
    assert not threads()


def source_of(tiny_run, tiny_store):
    return make_batches(tiny_run(), load_manifest(tiny_store, "folder"), tiny_store.uri)


def test_on_a_cpu_nothing_is_read_ahead(tiny_run, tiny_store) -> None:
    batches = train_batches(source_of(tiny_run, tiny_store), 0, torch.device("cpu"))
    next(batches)
    assert not threads()


def test_what_the_host_makes_is_read_ahead_for_a_gpu(tiny_run, tiny_store, monkeypatch) -> None:
    """`meta` stands for a device; what lies on the device already is not touched by a thread."""
    monkeypatch.setattr(feed, "pinned", lambda batch: batch)
    source = source_of(tiny_run, tiny_store)
    batches = train_batches(source, 0, torch.device("meta"))
    assert next(batches).inputs.device.type == "meta" and threads()
    assert len(list(batches)) == source.steps() - 1 and not threads()
    source.residency = "device"
    next(train_batches(source, 0, torch.device("meta")))
    assert not threads()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_the_batches_are_those(tiny_run, tiny_store) -> None:
    source = source_of(tiny_run, tiny_store)
    there = list(train_batches(source, 0, torch.device("cuda")))
    for one, other in zip(source.train(0), there, strict=True):
        assert all(tensor.is_cuda for tensor in other)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(one, other, strict=True))
