"""Two ranks over gloo: what happens to one of them ends the step on both, at once and for the same reason."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from conftest import tiny_tree
from processes import PATIENCE_S

from atose_ray.config import run_config
from atose_ray.ranks import average_over_all_ranks
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.notice import Ask, Notice
from atose_ray.training.record import OUT_OF_MEMORY, RunFolder
from atose_ray.training.run import Job, OpenRun, open_run, resolve
from atose_ray.training.sync_norm import ddp

SECONDS = 60.0  # for what takes one or two; the collective that is waited for would give up after 30 minutes
CPU = torch.device("cpu")


def nan_on_one(opened: OpenRun, rank: int) -> Notice:
    """The second loss of the first epoch is no number, on rank 1."""
    if rank == 1:
        forward, calls = opened.method.forward, []

        def poisoned(batch, stage):
            calls.append(1)
            losses = forward(batch, stage)
            return {**losses, "loss": losses["loss"] * float("nan")} if len(calls) == 2 else losses

        opened.method.forward = poisoned
    return Notice()


def no_memory_on_one(opened: OpenRun, rank: int) -> Notice:
    """The second forward pass of a whole batch does not fit, on rank 1: rank 0 waits for it in a BatchNorm."""
    if rank == 1:
        forward, calls = opened.method.forward, []

        def full(batch, stage):
            calls.append(1)
            if len(calls) > 1 and len(batch.clip_id_B) == opened.batches.batch_size:
                raise torch.OutOfMemoryError("CUDA out of memory (a fake)")
            return forward(batch, stage)

        opened.method.forward = full
    return Notice()


def stop_on_one(opened: OpenRun, rank: int) -> Notice:
    """Rank 1 is asked to stop after its second step of the second epoch."""
    notice = Notice()
    if rank == 1:
        forward, calls = opened.method.forward, []

        def counting(batch, stage):
            calls.append(1)
            if len(calls) == opened.batches.steps() + 2:
                notice.ask(Ask.STOP)
            return forward(batch, stage)

        opened.method.forward = counting
    return notice


def nothing(opened: OpenRun, rank: int) -> Notice:
    return Notice()


def one_case(rank: int, case: Callable[[OpenRun, int], Notice], job: Job, folder: Path) -> None:
    """Train on this rank, write down what came of it, and wait for the other: one that ended would cut the other's
    connection, which is not the point."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    opened = open_run(job, rank=rank, world=2)
    notice = case(opened, rank)
    began = time.monotonic()
    try:
        wrap = ddp(CPU, 2)
        result = fit(opened.run, opened.method, opened.batches, opened.folder, wrap=wrap, notice=notice)
        outcome = [result.state, result.reason]
    except Exception as error:
        outcome = [type(error).__name__, str(error)]
    seconds = time.monotonic() - began
    torch.save(opened.method.state_dict(), folder / f"{rank}.pt")
    (folder / f"{rank}.json").write_text(json.dumps([*outcome, seconds]))
    until = time.monotonic() + PATIENCE_S
    while not (folder / f"{1 - rank}.json").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    dist.destroy_process_group()


def means_over_all_ranks(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    parts = [torch.full((2, 3), float(rank)), torch.arange(4.0) * (rank + 1)]
    average_over_all_ranks(parts)
    assert torch.equal(parts[0], torch.full((2, 3), 0.5)) and torch.equal(parts[1], torch.arange(4.0) * 1.5)
    dist.destroy_process_group()


def all_cases(rank: int, jobs: list[tuple[str, Job]], folder: str) -> None:
    """What one process of the two does: case after case, as a process is slow to start."""
    torch.set_num_threads(1)
    means_over_all_ranks(rank, Path(folder))
    cases = (nothing, nan_on_one, stop_on_one, no_memory_on_one)
    for number, (name, job) in enumerate(jobs):
        one_case(rank, {case.__name__: case for case in cases}[name], job, Path(folder, str(number)))


ORDER = {"whole": "nothing", "nan": "nan_on_one", "stop": "stop_on_one", "memory": "no_memory_on_one"}


class Ended(NamedTuple):
    """What both ranks came to, first of all and when the run was begun again. folder: of the run; weights: of both
    ranks at the end."""

    first: list[list[Any]]
    again: list[list[Any]]
    folder: RunFolder
    weights: list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def ended(tiny_store, tiny_manifest, tmp_path_factory) -> dict[str, Ended]:
    """Every case, on two ranks, and once more without (but for memory) what went wrong."""
    folder = tmp_path_factory.mktemp("ranks")
    encoder = {"kind": "sample_cnn", "block": "res", "channels": 4, "dropout": 0.2}
    head = {"kind": "mlp", "hidden": 8, "dropout": 0.5}
    tree = tiny_tree("joint_embedding", encoder=encoder)
    tree["method"]["head"] = head
    run = resolve(run_config(tree), tiny_store, tiny_manifest)
    jobs = []
    for name, case in ORDER.items():
        job = Job(run, tiny_store.uri, str(folder / name), {})
        jobs += [(case, job), (case if name == "memory" else "nothing", job)]
    for number in range(len(jobs)):
        (folder / str(number)).mkdir()
    torch.multiprocessing.spawn(all_cases, (jobs, str(folder)), nprocs=2)
    outcomes = [
        [json.loads((folder / str(n) / f"{rank}.json").read_text()) for rank in (0, 1)] for n in range(len(jobs))
    ]
    assert all(seconds < SECONDS for pair in outcomes for *_, seconds in pair), outcomes
    found = {}
    for at, name in enumerate(ORDER):
        weights = [torch.load(folder / str(2 * at + 1) / f"{rank}.pt") for rank in (0, 1)]
        pairs = ([outcome[:2] for outcome in outcomes[2 * at + again]] for again in (0, 1))
        found[name] = Ended(*pairs, RunFolder(Store(str(folder / name))), weights)
    return found


def test_a_loss_that_is_no_number_on_one_rank_ends_both(ended: dict[str, Ended]) -> None:
    (state, reason), other = ended["nan"].first
    assert [state, reason] == other and state == "diverged" and "loss is nan on rank 1 in stage" in reason
    assert ended["nan"].folder.ending()["reason"] == reason


def test_no_memory_on_one_rank_ends_both_and_the_next_group_goes_halved(ended: dict[str, Ended]) -> None:
    (kind, text), (other_kind, other) = ended["memory"].first
    assert kind == other_kind == "OutOfMemoryError" and text == f"rank 1 left: {other}"
    events = ended["memory"].folder.events()
    assert [event["cause"] for event in events if event["event"] == "note"] == [OUT_OF_MEMORY]
    assert [state for state, _ in ended["memory"].again] == ["complete"] * 2


def test_a_stop_that_one_rank_hears_of_stops_both_after_the_same_step(ended: dict[str, Ended]) -> None:
    (kind, text), other = ended["stop"].first
    assert [kind, text] == other and kind == "StoppedError" and "after step 2 of" in text and "epoch 2" in text
    assert [state for state, _ in ended["stop"].again] == ["complete"] * 2
    whole, stopped = ended["whole"], ended["stop"]
    for name, value in whole.weights[0].items():
        others = (*whole.weights, *stopped.weights)
        assert all(torch.equal(value, weights[name]) for weights in others), f"{name} differs"
    logs = [[(r.epoch, r.train_loss, r.valid) for r in one.folder.epochs()] for one in (whole, stopped)]
    assert logs[0] == logs[1], "a run that goes on from the middle of an epoch is the one that was not stopped"
