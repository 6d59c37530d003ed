"""The step: its loss stays on the device, and what is no number there is found before anything is written."""

from __future__ import annotations

import pytest
import torch

from atose_ray.training import loop
from atose_ray.training.loop import DivergedError, agree, fit
from atose_ray.training.notice import Ask
from atose_ray.training.resume import last_checkpoint
from atose_ray.training.run import Job, open_run
from atose_ray.training.step import Step


def test_losses_that_are_read_together_name_the_first_that_is_no_number() -> None:
    losses, cpu = [0.5, 0.25, float("inf"), float("nan")], torch.device("cpu")
    assert agree(losses[:2], 6, "step {}", Ask.SAVE, cpu) is Ask.SAVE
    with pytest.raises(DivergedError, match="loss is inf in step 7;"):
        agree(losses, 8, "step {}", Ask.NOTHING, cpu)


def test_where_losses_are_read_late_nothing_of_a_diverged_epoch_is_saved(
    tiny_run, tiny_store, tmp_path, monkeypatch
) -> None:
    class OnDevice(Step):
        """A step that updates whatever the loss is, as on a device whose losses are read some steps later."""

        calls = 0

        def __call__(self, batch, lr):
            OnDevice.calls += 1
            loss = super().__call__(batch, lr)
            if OnDevice.calls != steps + 2:
                return loss
            with torch.no_grad():
                next(self.module.parameters()).fill_(float("nan"))
            return loss * float("nan")

    monkeypatch.setattr(loop, "Step", OnDevice)
    monkeypatch.setattr(loop, "read_every", lambda device: loop.READ_EVERY)
    opened = open_run(Job(tiny_run(), tiny_store.uri, str(tmp_path / "run")))
    steps = opened.batches.steps()
    result = fit(opened.run, opened.method, opened.batches, opened.folder)
    assert result.state == "diverged" and result.epochs == 1 and f"step 2 of {steps}" in result.reason
    assert OnDevice.calls == 2 * steps  # here they were read at the end of the epoch
    kept = last_checkpoint(opened.folder)
    assert kept.position.trained == 1 and all(value.isfinite().all() for value in kept.weights.values())
