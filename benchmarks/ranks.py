"""A step on two ranks over gloo that average gradients in the step and agree after it, against DDP without agreement.

    python -m benchmarks.ranks [--append] [--rounds 5] [--batch 2]

Both in the same two processes of one thread each, in turns, a round being five steps; SampleCNN (basic) at 16 and at
64 channels, half of the published width, stage `classify`. `ratio` is DDP's time by ours.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from atose_ray.config import run_config
from atose_ray.storage import Store
from atose_ray.training.loop import agree
from atose_ray.training.notice import Ask
from atose_ray.training.record import RunFolder
from atose_ray.training.step import Pieces, Step
from atose_ray.training.sync_norm import ddp, synchronise
from atose_ray.types import AudioInput, Batch, DataSpec
from benchmarks.timing import Timed, append, arguments, in_turns, noise, show

STEPS, TAGS, CPU = 5, 50, torch.device("cpu")
CHANNELS = {"16 channels": 16, "64 channels": 64}


def step_of(channels: int, folder: str, averaged: bool, batch: int) -> Timed:
    """Some steps of a new model."""
    encoder = {"kind": "sample_cnn", "block": "basic", "channels": channels}
    run = run_config({"encoder": encoder, "data": {"crop_seconds": 59049 / 16000}, "execution": {"threads": 1}})
    tags = tuple(map(str, range(TAGS)))
    spec = DataSpec(input=AudioInput(sample_rate_hz=16000, clip_samples=59049), tags=tags, exclusive=False)
    method = run.build(spec)
    stage = run.method.stages[0]
    optimizer = run.optim.build(method.train_only(run.method.trained_parts(stage)))
    module: nn.Module
    if averaged:
        module = ddp(CPU, 2)(method)
    else:
        synchronise(method, CPU)
        module = DistributedDataParallel(method)
    step = Step(module, optimizer, stage.name, Pieces(RunFolder(Store(folder))))
    audio_BT = noise(batch, 59049, "cpu")
    data = Batch(audio_BT, (torch.rand(batch, TAGS) < 0.3).float(), torch.arange(batch))

    def run_it() -> tuple[float, ...]:
        dist.barrier()
        began = time.perf_counter()
        for number in range(STEPS):
            loss = float(step(data, 1e-3))
            if averaged:
                agree([loss], number + 1, "", Ask.NOTHING, CPU)
        return ((time.perf_counter() - began) / STEPS,)

    return run_it


def worker(rank: int, rounds: int, batch: int, folder: str) -> None:
    """One of the two."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name, channels in CHANNELS.items():
        as_before, now = (step_of(channels, folder, averaged, batch) for averaged in (False, True))
        found[name] = in_turns(as_before, now, rounds)[0]
    if rank == 0:
        Path(folder, "found.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Measure, print, and append a line to the results."""
    options = arguments(__doc__, rounds=5, batch=2, threads=1).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, (options.rounds, options.batch, folder), nprocs=2)  # type: ignore[no-untyped-call]
        results = json.loads(Path(folder, "found.json").read_text())
    for name, result in results.items():
        show(f"step of two ranks, {name}", result, options.rounds)
    if options.append:
        append("ranks", options, results)


if __name__ == "__main__":
    main()
