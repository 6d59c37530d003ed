"""Clips in memory against clips streamed from shards: the feed alone, and training steps fed by it.

    python -m benchmarks.residency [--append] [--clips 96] [--seconds 29.1] [--batch 4] [--rounds 5] [--full-rounds 2]

Renders a demo set with clips as long as MTAT's, prepares it on the local disk (its files stay in the page cache, so
streaming is at its best) and runs whole epochs in this process: streamed, resident, streamed, ... A ratio is the median
over the rounds of (resident clips per second / streamed) of one round, with its range. Small: SampleCNN basic of 8
channels. Full: SampleCNN rese of 128. Crops of 59049 samples, Adam, float32, eager. Resident is in host memory, with
`--device cuda` on the GPU.
`--append` adds one JSON line to benchmarks/results/residency.jsonl.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from atose_ray.config import RunConfig, run_config
from atose_ray.data.batches import LocalBatches
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import Manifest
from atose_ray.datasets import dataset_config
from atose_ray.storage import Store
from atose_ray.training.run import make_batches, resolve
from benchmarks.timing import append, arguments, seconds

ENCODERS = {"small": {"block": "basic", "channels": 8}, "full": {"block": "rese", "channels": 128}}
Consume = Callable[[Any], None]


def run_of(store: Store, manifest: Manifest, encoder: str, batch: int, residency: str) -> RunConfig:
    """A supervised run on crops of the published length."""
    tree = {
        "data": {"dataset": "demo", "batch_size": batch, "residency": residency},
        "encoder": {"kind": "sample_cnn", **ENCODERS[encoder]},
    }
    return resolve(run_config(tree), store, manifest)


def feed_alone(device: torch.device) -> Consume:
    """Takes a batch to the device and leaves it."""

    def consume(batch: Any) -> None:
        batch.to(device)

    return consume


def training_step(run: RunConfig, manifest: Manifest, device: torch.device) -> Consume:
    """Takes a batch to the device and trains on it: forward, backward, Adam, and the loss back as the loop has it."""
    torch.manual_seed(0)
    method = run.build(manifest.data_spec).to(device).train()
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-4)

    def consume(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = method(batch.to(device), run.method.stages[0].name)["loss"]
        loss.backward()
        optimizer.step()
        float(loss.detach())

    return consume


def clips_per_second(source: LocalBatches, epoch: int, consume: Consume, device: torch.device) -> float:
    """Of one epoch."""
    start = seconds(device.type)
    for batch in source.train(epoch):
        consume(batch)
    return sum(source.sizes) / (seconds(device.type) - start)


def in_turns(sources: dict[str, LocalBatches], consume: Consume, rounds: int, device: torch.device) -> dict[str, float]:
    """Median clips per second of both, median ratio and its range."""
    for source in sources.values():
        consume(next(iter(source.train(0))))
    speeds = [
        {name: clips_per_second(source, number, consume, device) for name, source in sources.items()}
        for number in range(1, rounds + 1)
    ]
    ratios = [pair["resident"] / pair["stream"] for pair in speeds]
    return {
        **{f"{name}_clips_per_s": statistics.median(pair[name] for pair in speeds) for name in sources},
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rounds": rounds,
    }


def options() -> argparse.Namespace:
    """The command line."""
    parser = arguments(__doc__, rounds=5, batch=4, threads=1)
    parser.add_argument("--clips", type=int, default=96, help="of the demo set; about a third are trained on")
    parser.add_argument("--seconds", type=float, default=29.1)
    parser.add_argument("--full-rounds", type=int, default=2, help="rounds of the full-size encoder")
    return parser.parse_args()


def measure(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Render, prepare, and run everything in turns."""
    store, device = Store(f"{folder}/store"), torch.device(args.device)
    config = dataset_config("demo", source=f"{folder}/demo", clips=args.clips, seconds=args.seconds)
    manifest, _ = prepare(config, store)
    manifest = manifest.model_copy(update={"tag_counts": {}})  # a tag without a train clip among so few does not matter
    kept = "device" if device.type == "cuda" else "host"
    results: dict[str, Any] = {"residency": kept}
    for encoder, rounds in (("small", args.rounds), ("full", args.full_rounds)):
        sources = {}
        for name, residency in (("stream", "stream"), ("resident", kept)):
            run = run_of(store, manifest, encoder, args.batch, residency)
            start = seconds(device.type)
            sources[name] = make_batches(run, manifest, store.uri, device=device)
            results.setdefault(f"open_{name}_s", seconds(device.type) - start)
        if encoder == "small":
            results["train_clips"] = sum(sources["stream"].sizes)
            results["feed alone"] = show("feed alone", in_turns(sources, feed_alone(device), rounds, device))
        step, name = training_step(run, manifest, device), f"training, {encoder} encoder"
        results[name] = show(name, in_turns(sources, step, rounds, device))
    return results


def show(name: str, row: dict[str, float]) -> dict[str, float]:
    """Print a row as soon as it is there."""
    speeds = f"{row['resident_clips_per_s']:.1f} and {row['stream_clips_per_s']:.1f} clips/s"
    spread = f"{row['ratio_min']:.3f} to {row['ratio_max']:.3f} in {row['rounds']} rounds"
    print(f"{name}: resident / stream {row['ratio']:.3f} ({spread}; {speeds})", flush=True)
    return row


def main() -> None:
    """Measure, print, and append when asked."""
    args = options()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="atose-residency-") as folder:
        results = measure(args, folder)
    print(f"opened in {results['open_resident_s']:.2f} s (streaming: {results['open_stream_s']:.3f} s)")
    if args.append:
        append("residency", args, results, clips=args.clips, seconds=args.seconds, full_rounds=args.full_rounds)


if __name__ == "__main__":
    main()
