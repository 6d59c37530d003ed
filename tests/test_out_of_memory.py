"""Out of memory: the batch is halved once, the step stays that of the whole, and the log says so."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from atose_ray.encoders import SampleCNNConfig
from atose_ray.evaluation.scoring import score_clips
from atose_ray.methods.zero_shot import ZeroShotConfig
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, open_run
from atose_ray.training.step import NoMemoryError, Pieces, Step, backward
from atose_ray.types import Batch, DataSpec, EmbeddedBatch, TagSet


class Linear(nn.Module):
    """Mean squared error of a linear layer, with memory for `room` clips."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.layer = room, nn.Linear(6, 3)

    def forward(self, batch: Batch, stage: str) -> dict[str, torch.Tensor]:
        if len(batch.inputs) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"loss": ((self.layer(batch.inputs) - batch.tags_BC) ** 2).mean()}


def batch(clips: int) -> Batch:
    generator = torch.Generator().manual_seed(clips)
    return Batch(
        torch.rand(clips, 6, generator=generator), torch.rand(clips, 3, generator=generator), torch.arange(clips)
    )


def step_of(module: Linear, folder: RunFolder) -> Step:
    return Step(module, torch.optim.SGD(module.parameters()), "s", Pieces(folder))


@pytest.mark.parametrize("clips", [8, 7])
def test_two_halves_are_the_step_of_the_whole(clips: int, tmp_path) -> None:
    folder = RunFolder(Store(str(tmp_path)))
    small, large = Linear(4), Linear(8)
    small.load_state_dict(large.state_dict())
    expected = backward(large, batch(clips), "s")
    assert float(step_of(small, folder).backward(batch(clips))) == pytest.approx(float(expected), rel=1e-6)
    for a, b in zip(small.parameters(), large.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)
    notes = [event for event in folder.events() if event["event"] == "note"]
    assert len(notes) == 1 and f"with {clips} clips" in notes[0]["text"]
    assert Pieces(folder).count == 2, "a run that goes on begins halved"


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_halves_of_a_loss_that_is_a_sum(reduction: str) -> None:
    """Hinges summed over the clips count whole, and the decay of kernels counts once, however a batch is taken."""
    spec, tags = DataSpec(sample_rate_hz=4000, clip_samples=2400, tags=("a", "b", "c"), exclusive=False), torch.eye(3)
    encoder = SampleCNNConfig(channels=4, se_ratio=1).build(spec)
    config = ZeroShotConfig(negatives="all", reduction=reduction, kernel_decay=0.1, margin=1)
    method = config.build(encoder, spec, TagSet(spec.tags, tags)).eval()  # clips see each other in no BatchNorm
    generator = torch.Generator().manual_seed(0)
    clips = Batch(torch.rand(7, 2400, generator=generator), tags[torch.arange(7) % 3], torch.arange(7))
    found = []
    for pieces in (1, 2):
        method.zero_grad()
        loss = float(backward(method, clips, "align", pieces))
        found.append((loss, torch.cat([one.grad.flatten() for one in method.parameters()])))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-4, atol=1e-6)


def test_half_a_batch_that_does_not_fit_ends_the_run_with_the_way_out(tmp_path) -> None:
    with pytest.raises(NoMemoryError, match=r"with 4 clips at a time.*data\.batch_size"):
        step_of(Linear(3), RunFolder(Store(str(tmp_path))))(batch(8), 0.1)


def test_one_of_several_workers_leaves_the_change_to_the_next_group(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("atose_ray.training.step.world", lambda: 2)
    folder = RunFolder(Store(str(tmp_path)))
    with pytest.raises(torch.OutOfMemoryError):
        step_of(Linear(4), folder)(batch(8), 0.1)
    assert Pieces(folder).count == 2


def test_a_training_goes_on_in_halves(tiny_run, tiny_store: Store, tmp_path, monkeypatch) -> None:
    opened = open_run(Job(tiny_run(), tiny_store.uri, str(tmp_path / "run")))
    forward, whole = opened.method.forward, opened.run.data.batch_size
    seen: list[int] = []

    def small(self, heard, stage):
        if self.training:
            seen.append(len(heard.clip_id_B))
            if len(heard.clip_id_B) > whole // 2 + 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(heard, stage)

    monkeypatch.setattr(type(opened.method), "forward", small)
    result = fit(opened.run, opened.method, opened.batches, opened.folder)
    assert result.state == "complete" and result.objective is not None
    assert seen[0] > whole // 2 + 1 and max(seen[1:]) <= whole // 2 + 1
    assert sum(event["event"] == "note" for event in opened.folder.events()) == 1


@pytest.mark.parametrize("room", [1, 3, 64])
def test_scores_are_the_same_where_memory_holds_fewer_clips(room, tiny_run, tiny_store: Store, tmp_path, monkeypatch):
    opened = open_run(Job(tiny_run(), tiny_store.uri, str(tmp_path / "run")))
    device, embed, seen = torch.device("cpu"), type(opened.method).embed, []
    expected = score_clips(opened.method, opened.batches.evaluate("valid"), "classify", device)

    def small(self, batch):
        if isinstance(batch, EmbeddedBatch):
            return batch
        seen.append(len(batch.clip_id_B))
        if seen[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(self, batch)

    monkeypatch.setattr(type(opened.method), "embed", small)
    found = score_clips(opened.method, opened.batches.evaluate("valid"), "classify", device)
    np.testing.assert_allclose(found.scores_NC, expected.scores_NC, rtol=1e-5, atol=1e-7)
    assert (found.clip_id_N == expected.clip_id_N).all() and (found.tags_NC == expected.tags_NC).all()
    fits = [count for count in seen if count <= room]
    assert sum(fits) == len(expected.clip_R) and seen[seen.index(fits[0]) :] == fits, (
        "what did not fit is not tried again"
    )


def test_a_clip_that_does_not_fit_alone_is_an_error(tiny_run, tiny_store: Store, tmp_path, monkeypatch) -> None:
    opened = open_run(Job(tiny_run(), tiny_store.uri, str(tmp_path / "run")))

    def full(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(opened.method), "embed", full)
    with pytest.raises(torch.OutOfMemoryError):
        score_clips(opened.method, opened.batches.evaluate("valid"), "classify", torch.device("cpu"))


def test_two_clips_a_step_of_an_odd_number_train(tiny_run, tiny_store: Store, tmp_path) -> None:
    data = {"dataset": "folder", "crop_seconds": 0.6, "batch_size": 2, "eval_crops": 1, "train_share": 0.25}
    opened = open_run(Job(tiny_run(data=data), tiny_store.uri, str(tmp_path / "run")))
    assert sum(opened.batches.sizes) % 2 == 1 and min(opened.batches.sizes) > 1
    assert fit(opened.run, opened.method, opened.batches, opened.folder).state == "complete"
