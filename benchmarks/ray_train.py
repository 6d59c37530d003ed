"""What Ray Train costs: epochs in one of its workers against the bare loop in this process, on the same tensors.

    python -m benchmarks.ray_train [--append] [--rounds 5] [--epochs 4] [--channels 32] [--gpus 0]

Renders the demo set, then runs one configuration in turns: `training.loop.fit` here, `runtime.train.train_on_ray` with
one worker. Both keep the clips in memory and use one thread, and Ray's workers run at normal priority (it would nice
them, and on a shared machine their neighbours would win). Clips per second are those of all epochs after the first,
by the times at which epochs were logged, so that checkpoints and reports count and start-up does not. The ratio is the
median over the rounds of (Ray / bare), with its range; it must be at least 0.95 (exit code 1 otherwise).
`--append` adds one JSON line to benchmarks/results/ray_train.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from atose_ray.config import RunConfig, SearchConfig, run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import Manifest
from atose_ray.datasets import dataset_config
from atose_ray.runtime.cluster import cluster
from atose_ray.runtime.train import train_on_ray
from atose_ray.search.space import versions
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, open_run, resolve, use_threads

RESULTS = Path(__file__).parent / "results" / "ray_train.jsonl"
REQUIRED = 0.95


def run_of(store: Store, manifest: Manifest, epochs: int, channels: int, gpus: float) -> RunConfig:
    """A supervised run whose epoch takes some seconds on one core."""
    tree = {
        "data": {"dataset": "demo", "crop_seconds": 1.5, "residency": "device" if gpus else "host"},
        "encoder": {"kind": "sample_cnn", "block": "rese", "channels": channels},
        "method": {"kind": "supervised", "stages": [{"name": "classify", "epochs": epochs}]},
        "execution": {"device": "cuda" if gpus else "cpu", "threads": 1},
    }
    return resolve(run_config(tree), store, manifest)


def clips_per_second(job: Job, train_clips: int) -> float:
    """Trained clips per second between the end of the first epoch and the end of the last."""
    epochs = RunFolder(Store(job.folder_uri)).epochs()
    return train_clips * (len(epochs) - 1) / (epochs[-1].time - epochs[0].time)


def bare(job: Job) -> None:
    """The run in this process."""
    opened = open_run(job)
    fit(opened.run, opened.method, opened.batches, opened.folder, device=opened.device)


def on_ray(job: Job, gpus: float) -> None:
    """The run in a Ray Train worker."""
    search = SearchConfig(workers_per_trial=1, cpus_per_worker=1, gpus_per_worker=gpus)
    name = job.folder_uri.rpartition("/")[2]
    train_on_ray(job, search, gpus, name, f"{job.folder_uri}-ray")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", action="store_true", help="add a line to benchmarks/results/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--gpus", type=float, default=0, help="of the worker; the bare loop then runs on the GPU too")
    return parser.parse_args()


def main() -> None:
    """The rounds in turns, then the ratio."""
    args = arguments()
    use_threads(1)
    os.environ.setdefault("RAY_worker_niceness", "0")
    speeds: dict[str, list[float]] = {"bare": [], "ray": []}
    with tempfile.TemporaryDirectory(prefix="atose-ray-train-") as folder, cluster(cpus=2):
        store = Store(f"{folder}/store")
        manifest, _ = prepare(dataset_config("demo", source=f"{folder}/demo"), store)
        run = run_of(store, manifest, args.epochs, args.channels, args.gpus)
        for number in range(args.rounds):
            for side in speeds:
                job = Job(run, store.uri, f"{folder}/{side}-{number}", {"number": number, "name": side})
                bare(job) if side == "bare" else on_ray(job, args.gpus)
                speeds[side].append(clips_per_second(job, manifest.data_spec.counts["train"]))
            print(f"round {number + 1}: bare {speeds['bare'][-1]:.1f}, ray {speeds['ray'][-1]:.1f} clips/s", flush=True)
    ratios = [ray / alone for ray, alone in zip(speeds["ray"], speeds["bare"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"ray / bare: {ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), required {REQUIRED}")
    if args.append:
        device = torch.cuda.get_device_name() if args.gpus else "CPU"
        settings = {name: getattr(args, name) for name in ("rounds", "epochs", "channels", "gpus")}
        line = {"benchmark": "ray_train", "date": time.strftime("%Y-%m-%d"), "device": device, **settings}
        line |= {"clips_per_s": speeds, "ratio": ratio, "ratio_min": min(ratios), "ratio_max": max(ratios)}
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as stream:
            stream.write(json.dumps({**line, **versions()}) + "\n")
    sys.exit(ratio < REQUIRED)


if __name__ == "__main__":
    main()
