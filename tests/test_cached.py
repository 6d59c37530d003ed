"""A head on cached embeddings is the head on the frozen encoder: the same numbers while crops last, each heard once."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from atose_ray.config import ConfigError, run_config
from atose_ray.data.shards import load_manifest
from atose_ray.storage import Store
from atose_ray.training import cached
from atose_ray.training.cached import CachedEmbeddings, Table, cached_span
from atose_ray.training.loop import fit, run_epochs
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, make_batches, open_run
from atose_ray.types import EmbeddedBatch

EMBED = {"name": "embed", "epochs": 1}


def stages(*heads: tuple[int, object], embed: int = 1) -> list[dict]:
    head = [{"name": "classify", "epochs": epochs, "cache": cache} for epochs, cache in heads]
    return [{"name": "embed", "epochs": embed}, *head]


def with_stages(tiny_run, phases: list[dict]):
    run = tiny_run("joint_embedding")
    tree = run.model_dump(mode="json")
    tree["method"]["stages"] = phases
    tree["optim"]["schedule"] = "constant"
    return type(run).model_validate(tree)


def train(run, store: Store, folder, device: torch.device | None = None):
    """On the device that the run picks; the tests that count what the encoder hears name the host."""
    opened = open_run(Job(run, store.uri, str(folder), {}))
    records, heard = [], []
    opened.method.encoder.register_forward_hook(lambda _, args, out: heard.append(len(args[0])))
    fit(opened.run, opened.method, opened.batches, opened.folder, report=records.append, device=device or opened.device)
    return opened, records, heard


def history(records) -> list[tuple[float, dict]]:
    return [(record.train_loss, record.valid) for record in records]


def test_with_enough_crops_nothing_changes_but_the_time(tiny_run, tiny_store, tmp_path) -> None:
    off, plain, _ = train(with_stages(tiny_run, stages((3, "off"))), tiny_store, tmp_path / "off")
    on, kept, _ = train(with_stages(tiny_run, stages((3, 3))), tiny_store, tmp_path / "on")
    for (loss, valid), (other_loss, other_valid) in zip(history(plain), history(kept), strict=True):
        assert loss == pytest.approx(other_loss, rel=1e-5)
        assert valid == pytest.approx(other_valid, abs=1e-6)
    for (name, one), other in zip(off.method.state_dict().items(), on.method.state_dict().values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6), name


def test_each_crop_is_heard_once(tiny_run, tiny_store, tmp_path) -> None:
    run = with_stages(tiny_run, stages((4, 2), (3, 2)))
    opened, records, heard = train(run, tiny_store, tmp_path, torch.device("cpu"))
    train_clips, valid_crops = 36, sum(len(batch.clip_id_B) for batch in opened.batches.evaluate("valid"))
    assert sum(heard) == 3 * train_clips + 2 * valid_crops  # stage embed: both once; then two crops, and valid once
    assert len(records) == 8 and len({record.train_loss for record in records}) == 8


def test_a_cached_run_cut_short_goes_on_bitwise(tiny_run, tiny_store, tmp_path) -> None:
    run = with_stages(tiny_run, stages((2, 2), (3, 2)))
    _, whole, _ = train(run, tiny_store, tmp_path / "whole")
    for stop_after in (2, 3, 4):
        folder = tmp_path / f"cut{stop_after}"
        opened = open_run(Job(run, tiny_store.uri, str(folder), {}))
        epochs = run_epochs(run, opened.method, opened.batches, opened.folder, device=opened.device)
        for _ in range(stop_after):
            next(epochs)
        epochs.close()
        train(run, tiny_store, folder)
        times = {"seconds": 0, "time": 0, "gpu_memory": 0}
        again = [dataclasses.replace(record, **times) for record in RunFolder(Store(str(folder))).epochs()]
        assert again == [dataclasses.replace(record, **times) for record in whole]


def test_spans(tiny_run) -> None:
    def span(phases, index):
        return cached_span(with_stages(tiny_run, phases).method, index)

    phases = stages((6, None), (5, None), embed=4)
    assert span(phases, 0) is None
    assert span(phases, 1) == span(phases, 2) and (span(phases, 1).first_epoch, span(phases, 1).crops) == (4, 8)
    assert span(stages((3, 5)), 1).crops == 3, "never more crops than epochs"
    assert span(stages((3, 5), (3, 4)), 1) != span(stages((3, 5), (3, 4)), 2)
    assert span(stages((3, "off")), 1) is None
    both = [EMBED, {"name": "classify", "epochs": 2, "trains": ["encoder", "classifier"]}]
    assert span(both, 1) is None


def test_off_may_be_yamls_false_and_a_trained_encoder_has_no_cache(tiny_run) -> None:
    assert with_stages(tiny_run, stages((3, False))).method.stages[1].cache == "off"
    tree = {"method": {"kind": "supervised", "stages": [{"name": "classify", "epochs": 2, "cache": 4}]}}
    with pytest.raises(ConfigError, match=r"cache=4 of stage 'classify' needs a frozen encoder.*trains encoder"):
        run_config(tree)
    with pytest.raises(ConfigError, match="cache"):
        run_config({"method": {"kind": "joint_embedding", "stages": stages((3, 0))}})


def test_a_clip_that_one_epoch_left_out_is_served_by_another_crop() -> None:
    embed_RE = torch.tensor([1.0, 1.0, 2.0, 2.0])[:, None].expand(4, 2)
    table = Table(embed_RE, [(np.array([5, 3]), torch.ones(2, 3)), (np.array([3, 9]), torch.ones(2, 3))])
    assert table.clip_id_N.tolist() == [3, 5, 9]
    for epoch in range(20):
        batch = table.batch(*table.draw(np.arange(3), seed=0, epoch=epoch))
        assert batch.embed_BE[1, 0] == 1.0 and batch.embed_BE[2, 0] == 2.0
    drawn = {float(table.batch(*table.draw(np.array([0]), 0, epoch)).embed_BE[0, 0]) for epoch in range(20)}
    assert drawn == {1.0, 2.0}


def test_too_many_embeddings_are_refused_before_the_first_epoch(tiny_run, tiny_store, tmp_path, monkeypatch) -> None:
    opened = open_run(Job(with_stages(tiny_run, stages((3, 2))), tiny_store.uri, str(tmp_path), {}))
    width, tags = opened.method.encoder.embed_dim, len(opened.method.spec.tags)
    valid = opened.method.spec.counts["valid"] * opened.run.data.eval_crops
    need = 36 * 2 * (4 * width + tags) + valid * 4 * (width + tags)
    monkeypatch.setattr(cached, "free_host_bytes", lambda: need)
    with pytest.raises(ValueError, match=r"would keep .* GB of embeddings \(2 crops .*, or `cache: off`"):
        next(run_epochs(opened.run, opened.method, opened.batches, opened.folder))
    assert not opened.folder.epochs()
    monkeypatch.setattr(cached, "free_host_bytes", lambda: int(2 * need / cached.ROOM))
    monkeypatch.setattr(cached, "world", lambda: 4)  # of which each takes a quarter of the memory
    with pytest.raises(ValueError, match="would keep"):
        cached.check_room(opened.run, opened.method, [9], torch.device("cpu"))
    monkeypatch.setattr(cached, "world", lambda: 1)
    monkeypatch.setattr(cached, "free_host_bytes", lambda: int(need / cached.ROOM) + 1)
    assert next(run_epochs(opened.run, opened.method, opened.batches, opened.folder)).epoch == 1


class Made(TorchDispatchMode):
    """Remembers how many numbers every tensor that is made has; a view makes none."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            storage = out.untyped_storage()
            self.storages[storage.data_ptr()] = max(storage.nbytes() // 4, self.storages.get(storage.data_ptr(), 0))
        return out


def test_no_embedding_is_in_memory_twice() -> None:
    sizes, width, crops = [10] * 8, 5, 3
    method = SimpleNamespace(encoder=SimpleNamespace(embed_dim=width), embed=lambda batch: batch)

    class Source:
        def __init__(self) -> None:
            self.sizes = sizes

        def train(self, epoch: int, first: int = 0):
            for step, size in enumerate(sizes):
                ids = torch.arange(step * size, (step + 1) * size)
                yield EmbeddedBatch((100.0 * epoch + ids)[:, None].repeat(1, width), torch.ones(size, 2), ids)

    feed = CachedEmbeddings(method, Source(), cached.Span(0, crops), 0, torch.device("cpu"))
    with Made() as made:
        for epoch in range(5):
            heard = [batch for batch in feed.train(epoch)]
            assert sorted(torch.cat([batch.clip_id_B for batch in heard]).tolist()) == list(range(80))
    whole = crops * 80 * width
    large = sorted(count for count in made.storages.values() if count >= 80 * width)
    assert large == [whole], "one tensor, filled in place, and nothing else of even one epoch's size"
    for batch in heard:
        assert all(
            float(row[0]) in {clip, 100 + clip, 200 + clip}
            for row, clip in zip(batch.embed_BE, batch.clip_id_B.tolist(), strict=True)
        )


def rank_worker(rank: int, folder: str, store_uri: str, tree: dict) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    manifest = load_manifest(Store(store_uri), "folder")
    run = run_config(tree)
    torch.manual_seed(0)
    method = run.build(manifest.data_spec).eval()
    source = make_batches(run, manifest, store_uri, rank=rank, world=2)
    feed = CachedEmbeddings(method, source, cached_span(run.method, 1), run.seed, torch.device("cpu"))
    epochs = [torch.cat([batch.clip_id_B for batch in feed.train(epoch)]) for epoch in range(1, 5)]
    torch.save({"epochs": epochs, "table": feed.table.embed_RE, "has": feed.table.has_NK.sum()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_hear_their_shares_and_hold_one_table(tiny_run, tiny_store, tmp_path) -> None:
    tree = with_stages(tiny_run, stages((4, 2))).model_dump(mode="json")
    torch.multiprocessing.spawn(rank_worker, (str(tmp_path), tiny_store.uri, tree), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert torch.equal(one["table"], two["table"]) and one["has"] == 2 * 36
    for mine, other in zip(one["epochs"], two["epochs"], strict=True):
        assert not set(mine.tolist()) & set(other.tolist())
        assert len(mine) + len(other) == 36


def test_several_crops_of_a_clip_in_an_epoch(tiny_run, tiny_store, tmp_path) -> None:
    run = with_stages(tiny_run, stages((4, 2)))
    run = run.model_copy(update={"data": run.data.model_copy(update={"crops_per_clip": 3})})
    opened, records, heard = train(run, tiny_store, tmp_path, torch.device("cpu"))
    valid_crops = sum(len(batch.clip_id_B) for batch in opened.batches.evaluate("valid"))
    assert sum(heard) == 3 * 36 * 3 + 2 * valid_crops
    source = opened.batches
    feed = CachedEmbeddings(opened.method, source, cached_span(run.method, 1), run.seed, torch.device("cpu"))
    for epoch in range(1, 5):
        ids = torch.cat([batch.clip_id_B for batch in feed.train(epoch)])
        assert torch.equal(ids.unique(return_counts=True)[1], torch.full((36,), 3))
    assert feed.table.has_NK.shape[1] == 6 and feed.table.has_NK.all() and len(records) == 5
