"""A run goes on from the middle of an epoch to the same end; its folder holds what is frozen once."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors

from atose_ray.data.batches import LocalBatches
from atose_ray.data.resident import ResidentBatches
from atose_ray.storage import Store
from atose_ray.training import loop, resume
from atose_ray.training.checkpoint import best_model
from atose_ray.training.loop import fit, run_epochs
from atose_ray.training.notice import Ask, Notice, StoppedError, stopped_by_sigterm
from atose_ray.training.record import BEST_WEIGHTS, CHECKPOINT, RunFolder
from atose_ray.training.resume import Checkpoints, last_checkpoint
from atose_ray.training.run import Job, OpenRun, make_batches, open_run
from atose_ray.training.step import Step

DROPOUT = {"kind": "mlp", "hidden": 8, "dropout": 0.5}
STAGES = [{"name": "embed", "epochs": 2}, {"name": "classify", "epochs": 3, "cache": 2}]


@pytest.fixture
def run(tiny_run):
    tree = tiny_run("joint_embedding").model_dump(mode="json")
    tree["method"] |= {"head": DROPOUT, "stages": STAGES}
    tree["encoder"] |= {"block": "res", "dropout": 0.2}
    tree["optim"] |= {"average": 0.9}
    tree["data"] |= {"augment": {"gain_db": 6.0, "shift": 0.5, "mixup": 0.4, "label_smoothing": 0.1}}
    return type(tiny_run()).model_validate(tree)


def opened_in(folder: Path, run, store: Store) -> OpenRun:
    return open_run(Job(run, store.uri, str(folder), {}))


def train(folder: Path, run, store: Store, notice: Notice | None = None) -> OpenRun:
    opened = opened_in(folder, run, store)
    fit(opened.run, opened.method, opened.batches, opened.folder, notice=notice)
    return opened


@pytest.fixture
def whole(run, tiny_store, tmp_path) -> OpenRun:
    return train(tmp_path / "whole", run, tiny_store)


def same_end(one: OpenRun, other: OpenRun) -> None:
    logs = [[(r.epoch, r.train_loss, r.lr, r.valid) for r in opened.folder.epochs()] for opened in (one, other)]
    assert logs[0] == logs[1]
    lines = [[event for event in opened.folder.events() if event["event"] == "epoch"] for opened in (one, other)]
    assert len(lines[0]) == len(lines[1]) == len(logs[0]), "no epoch stands twice in a log"
    weights = [opened.method.state_dict() for opened in (one, other)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    best = [best_model(opened.folder) for opened in (one, other)]
    assert best[0].metrics["epoch"] == best[1].metrics["epoch"]
    found = [model.method.state_dict() for model in best]
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


class After(Notice):
    """Asks for something after so many steps, once."""

    def __init__(self, steps: int, what: Ask) -> None:
        super().__init__()
        self.steps, self.what = steps, what

    def take(self) -> Ask:
        self.steps -= 1
        return self.what if self.steps == 0 else Ask.NOTHING


@pytest.mark.parametrize("steps", [1, 6, 11])  # in the first epoch, the second, and one of a head on kept embeddings
def test_a_run_stopped_within_an_epoch_goes_on_bitwise(steps, whole, run, tiny_store, tmp_path) -> None:
    with pytest.raises(StoppedError, match=r"after step \d+ of 5 of epoch") as caught:
        train(tmp_path / "cut", run, tiny_store, After(steps, Ask.STOP))
    kept = last_checkpoint(RunFolder(Store(str(tmp_path / "cut"))))
    assert 0 < kept.position.step < kept.position.steps
    assert f"step {kept.position.step} of 5 of epoch {kept.position.epochs + 1}" in str(caught.value)
    same_end(whole, train(tmp_path / "cut", run, tiny_store))


def test_what_spec_augment_hides_is_the_same_after_a_stop_within_an_epoch(tiny_run, tiny_store, tmp_path) -> None:
    masked = tiny_run(
        data={"dataset": "folder", "crop_seconds": 1.3, "batch_size": 8, "eval_crops": 1},
        encoder={"kind": "pann_cnn", "channels": 2, "hop_samples": 160, "spec_augment": {}},
    )
    with pytest.raises(StoppedError):
        train(tmp_path / "cut", masked, tiny_store, After(7, Ask.STOP))
    assert last_checkpoint(RunFolder(Store(str(tmp_path / "cut")))).position.step == 3
    same_end(train(tmp_path / "whole", masked, tiny_store), train(tmp_path / "cut", masked, tiny_store))


class KilledError(BaseException):
    """Stands for SIGKILL."""


def test_a_run_saves_itself_within_epochs_and_a_killed_one_goes_on_from_there(
    whole, run, tiny_store, tmp_path, monkeypatch
) -> None:
    often = run.model_copy(update={"execution": run.execution.model_copy(update={"checkpoint_every": "0.0001s"})})
    opened, steps = opened_in(tmp_path / "cut", often, tiny_store), []
    heed = loop.Training.heed

    def dies(self, ask, position, step) -> None:
        steps.append(position.step)
        if len(steps) == 7:
            self.checkpoints.wait()
            raise KilledError
        heed(self, ask, position, step)

    monkeypatch.setattr(loop.Training, "heed", dies)
    with pytest.raises(KilledError):
        fit(opened.run, opened.method, opened.batches, opened.folder)
    assert steps == [1, 2, 3, 4, 1, 2, 3], "after every step but an epoch's last, where the epoch itself is kept"
    position = last_checkpoint(opened.folder).position
    assert (position.epochs, position.step) == (1, 2)
    monkeypatch.undo()
    same_end(whole, train(tmp_path / "cut", run, tiny_store))


def test_epochs_in_the_log_that_no_checkpoint_holds_are_trained_again_and_stay_as_they_are(
    whole, run, tiny_store, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(loop, "RARELY_S", 1e9)  # only the best so far and the last of a stage
    scores = iter([0.5, 0.4, 0.3, 0.2])
    monkeypatch.setattr(loop.CLIP.__class__, "evaluate", lambda *rest: {"pr_auc_macro": next(scores)})
    opened = opened_in(tmp_path / "cut", run, tiny_store)
    epochs = run_epochs(run, opened.method, opened.batches, opened.folder)
    for _ in range(4):
        last = next(epochs)
    epochs.close()
    assert last_checkpoint(opened.folder).position.trained == 2 and len(opened.folder.epochs()) == 4
    before = opened.folder.events()
    again = opened_in(tmp_path / "cut", run, tiny_store)
    going_on = run_epochs(run, again.method, again.batches, again.folder)
    assert next(going_on) == last, "the last one on record is reported once more, and no other one"
    with pytest.raises(RuntimeError, match="StopIteration"):  # the next one that is validated is the fifth
        next(going_on)
    assert again.folder.events() == before


@pytest.mark.parametrize("epochs", [1, 3, 4])
def test_fast_epochs_that_were_cut_are_the_same_again(epochs, whole, run, tiny_store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "RARELY_S", 1e9)
    opened = opened_in(tmp_path / "cut", run, tiny_store)
    training = run_epochs(run, opened.method, opened.batches, opened.folder)
    for _ in range(epochs):
        next(training)
    training.close()
    same_end(whole, train(tmp_path / "cut", run, tiny_store))


def test_what_is_frozen_stands_in_the_folder_once(whole, tmp_path) -> None:
    folder = tmp_path / "whole"
    frozen = [path for path in folder.iterdir() if path.name.startswith("frozen-")]
    kept = torch.load(folder / CHECKPOINT, weights_only=True)
    assert {name.split(".")[0] for name in kept["method"]} == {"classifier"}
    files = {path.name: {name.split(".")[0] for name in load_tensors(path.read_bytes())} for path in frozen}
    assert len(files) == 2 and "encoder" in files[kept["frozen"]], "one of what each of the two stages does not train"
    assert {"classifier"} in files.values()
    weights = best_model(whole.folder).method.state_dict()
    assert weights.keys() == whole.method.state_dict().keys()


def test_a_checkpoint_of_before_goes_on(whole, run, tiny_store, tmp_path) -> None:
    """As 0.1.0 wrote it: all weights, the record inside, the line of the epoch after it."""
    opened = opened_in(tmp_path / "old", run, tiny_store)
    steps: list[Step] = []

    def noted(*parts: Any) -> Step:
        steps.append(Step(*parts))
        return steps[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "Step", noted)
        epochs = run_epochs(run, opened.method, opened.batches, opened.folder)
        records = [next(epochs) for _ in range(3)]
    state = {"method": opened.method.state_dict(), "optimizer": steps[-1].state_dict()}
    buffer = io.BytesIO()
    torch.save({**state, "record": json.dumps(records[-1].as_json())}, buffer)
    epochs.close()
    opened.folder.store.write(CHECKPOINT, buffer.getvalue())
    log = tmp_path / "old" / "log.jsonl"
    log.write_text("".join(f"{line}\n" for line in log.read_text().splitlines()[:2]))  # cut before its line
    same_end(whole, train(tmp_path / "old", run, tiny_store))


def test_a_run_that_has_ended_writes_no_checkpoint(run, tiny_store, tmp_path) -> None:
    opened = opened_in(tmp_path / "ended", run, tiny_store)
    opened.folder.end("pruned", "by the driver, of whom this process hears later")
    opened.method.train_only(("encoder",))
    with Checkpoints(opened.folder, opened.method) as checkpoints:
        checkpoints.begin_stage(("encoder",))
        checkpoints.save(resume.Position(0, 5, 5), torch.optim.SGD(opened.method.encoder.parameters()))
    assert not opened.folder.store.exists(CHECKPOINT) and not opened.folder.store.exists(BEST_WEIGHTS)


def test_what_the_writing_of_a_checkpoint_raises_ends_the_training(run, tiny_store, tmp_path, monkeypatch) -> None:
    write = Store.write

    def full(self, name: str, content: bytes) -> None:
        if name == CHECKPOINT:
            raise OSError("No space left on device (a fake)")
        write(self, name, content)

    monkeypatch.setattr(Store, "write", full)
    with pytest.raises(OSError, match="No space left"):
        train(tmp_path / "full", run, tiny_store)
    assert not RunFolder(Store(str(tmp_path / "full"))).epochs(), "no epoch is on record that is not safe"


def test_sigterm_saves_a_training_and_a_second_one_ends_what_does_not_train(
    whole, run, tiny_store, tmp_path, monkeypatch
) -> None:
    notice, steps, forward = Notice(), [], type(whole.method).forward

    def counting(self, batch, stage):
        steps.append(stage)
        if len(steps) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, batch, stage)

    monkeypatch.setattr(type(whole.method), "forward", counting)
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_sigterm(notice), pytest.raises(StoppedError, match="stopped after step 2 of 5 of epoch 2"):
        train(tmp_path / "cut", run, tiny_store, notice)
    with stopped_by_sigterm(Notice()), pytest.raises(StoppedError, match="will be trained again"):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
    assert signal.getsignal(signal.SIGTERM) == before
    same_end(whole, train(tmp_path / "cut", run, tiny_store))


@pytest.mark.parametrize("reader", [LocalBatches, ResidentBatches])
@pytest.mark.parametrize("data", [{}, {"sampling": "class_balanced", "crops_per_clip": 2}, {"sampling": "class_queue"}])
def test_an_epoch_begins_at_any_step(reader, data, run, tiny_store, tiny_manifest) -> None:
    chosen = run.model_copy(update={"data": run.data.model_copy(update=data)})
    place = torch.device("cpu") if reader is ResidentBatches else None
    residency = {"residency": "host"} if place else {}
    chosen = chosen.model_copy(update={"data": chosen.data.model_copy(update=residency)})
    batches = make_batches(chosen, tiny_manifest, tiny_store.uri, device=place)
    assert type(batches) is reader
    every = list(batches.train(3))
    for first in range(len(every) + 1):
        rest: Iterator[Any] = batches.train(3, first)
        for one, other in zip(every[first:], rest, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_what_was_measured_of_a_run_stays_when_a_late_process_opens_it_again(tiny_run, tiny_store, tmp_path) -> None:
    job = Job(tiny_run(), tiny_store.uri, str(tmp_path / "run"), {})
    opened = open_run(job)
    first = opened.folder.about()
    opened.folder.store.write_json("about.json", {**first, "latency_ms": 1.5})  # as `search.costs` writes it
    assert open_run(job).folder.about() == {**first, "latency_ms": 1.5}
