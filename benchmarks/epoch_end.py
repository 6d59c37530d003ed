"""What the end of an epoch costs beside its validation: checkpoint, log line and best weights, all on disk.

    python -m benchmarks.epoch_end [--append] [--rounds 9]

Before: the whole model and the optimizer's state, then the whole model again. Now: what the stage trains, the frozen
encoder once. Both on one disk, in turns, every epoch the best so far (the dearest kind); an epoch that is not costs a
line. `save` is how long the loop waits for a checkpoint within an epoch, which is written while it trains on.
"""

from __future__ import annotations

import io
import itertools
import json
import statistics
import tempfile
import time
from typing import Any

import torch

from atose_ray.config import run_config
from atose_ray.storage import Store
from atose_ray.training.record import BEST_WEIGHTS, CHECKPOINT, EpochRecord, RunFolder
from atose_ray.training.resume import Checkpoints, Position, as_bytes, keep_epoch
from atose_ray.types import AudioInput, DataSpec
from benchmarks.timing import append, arguments, in_turns, show

HEAD = {"kind": "joint_embedding", "stages": [{"name": "classify", "epochs": 200}]}
CASES: dict[str, dict[str, Any]] = {
    "a head on TagSincNet": {"encoder": {"kind": "tag_sinc_net"}, "method": HEAD},
    "SampleCNN of 16 channels": {"encoder": {"kind": "sample_cnn", "block": "basic", "channels": 16}},
    "SampleCNN, published width": {"encoder": {"kind": "sample_cnn", "block": "basic"}},
}


def measure(tree: dict[str, Any], rounds: int) -> dict[str, float]:
    """Median seconds before and now, and of the wait for a checkpoint within an epoch."""
    run = run_config({**tree, "data": {"crop_seconds": 59049 / 16000}})
    tags = tuple(map(str, range(50)))
    spec = DataSpec(input=AudioInput(sample_rate_hz=16000, clip_samples=59049), tags=tags, exclusive=False)
    method = run.build(spec)
    parts = run.method.trained_parts(run.method.stages[0])
    optimizer = run.optim.build(method.train_only(parts))
    for group in optimizer.param_groups:
        for weight in group["params"]:
            weight.grad = torch.zeros_like(weight)
    optimizer.step()
    numbers, waits = itertools.count(1), list[float]()

    def record() -> EpochRecord:
        number = next(numbers)
        return EpochRecord(number, "classify", 1.0, 0.5, 1e-3, {run.metric: number / 1000}, number / 1000, time.time())

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        before, now = RunFolder(Store(one)), RunFolder(Store(other))

        def whole() -> tuple[float, ...]:
            began, made, buffer = time.perf_counter(), record(), io.BytesIO()
            state = {"method": method.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "record": json.dumps(made.as_json())}, buffer)
            before.store.write(CHECKPOINT, buffer.getvalue())
            before.add_epoch(made)
            if before.best_epoch(run.metric).epoch == made.epoch:
                before.store.write(BEST_WEIGHTS, as_bytes(dict(method.state_dict()), made.epoch))
            return (time.perf_counter() - began,)

        with Checkpoints(now, method) as checkpoints:
            checkpoints.begin_stage(parts)

            def trained() -> tuple[float, ...]:
                began, made = time.perf_counter(), record()
                checkpoints.save(Position(made.epoch - 1, 1, 1), optimizer.state_dict())
                waits.append(time.perf_counter() - began)
                keep_epoch(checkpoints, made, run.metric)
                return (time.perf_counter() - began,)

            found = in_turns(whole, trained, rounds)[0]
    return {**found, "save_s": statistics.median(waits)}


def main() -> None:
    """Measure, print, and append a line to the results."""
    options = arguments(__doc__, rounds=9, batch=1, threads=2).parse_args()
    torch.set_num_threads(options.threads)
    results = {}
    for name, tree in CASES.items():
        results[name] = measure(tree, options.rounds)
        show(f"epoch end, {name}", results[name], options.rounds)
        print(f"  the loop waits {1000 * results[name]['save_s']:.1f} ms for a checkpoint within an epoch")
    if options.append:
        append("epoch_end", options, results)


if __name__ == "__main__":
    main()
