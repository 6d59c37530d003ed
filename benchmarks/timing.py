"""What the benchmarks share: two forms timed in turns in one process, and a JSON line that says where."""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"
Timed = Callable[[], tuple[float, ...]]
clock = time.perf_counter


def arguments(description: str | None, rounds: int, batch: int, threads: int) -> argparse.ArgumentParser:
    """The options that every benchmark of two forms has, with these defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", action="store_true", help="add a line to benchmarks/results/")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--threads", type=int, default=threads)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    return parser


def noise(batch: int, samples: int, device: str) -> torch.Tensor:
    """[B, T] of the same noise every time."""
    return 0.3 * torch.randn(batch, samples, generator=torch.Generator().manual_seed(1)).to(device)


def seconds(device: str) -> float:
    """The time, after all work queued on a GPU is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return clock()


def training_step(encoder: torch.nn.Module, optimizer: torch.optim.Optimizer, audio_BT: torch.Tensor) -> Timed:
    """One run of forward, backward and update: its seconds."""
    device = audio_BT.device.type

    def run() -> tuple[float, ...]:
        encoder.train()
        start = seconds(device)
        optimizer.zero_grad()
        encoder(audio_BT).square().mean().backward()
        optimizer.step()
        return (seconds(device) - start,)

    return run


def in_turns(slow: Timed, fast: Timed, rounds: int) -> list[dict[str, float]]:
    """For every number that a run gives: median and least seconds of both sides, median ratio and its range, and the
    ratio of the least seconds."""
    slow(), fast()
    pairs = [(slow(), fast()) for _ in range(rounds)]
    results = []
    for number in range(len(pairs[0][0])):
        slow_s, fast_s = ([pair[side][number] for pair in pairs] for side in (0, 1))
        ratios = [one / other for one, other in zip(slow_s, fast_s, strict=True)]
        results.append(
            {
                "slow_s": statistics.median(slow_s),
                "fast_s": statistics.median(fast_s),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "best_slow_s": min(slow_s),
                "best_fast_s": min(fast_s),
                "best_ratio": min(slow_s) / min(fast_s),
            }
        )
    return results


def processor(device: str) -> str:
    """What ran it."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def show(name: str, row: dict[str, float], rounds: int) -> None:
    """One line of numbers."""
    best = f"; best {row['best_ratio']:.2f}" if "best_ratio" in row else ""
    print(
        f"{name}: {row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f} in {rounds} rounds; "
        f"{row['slow_s']:.3f} s and {row['fast_s']:.3f} s{best})",
        flush=True,
    )


def append(name: str, args: argparse.Namespace, results: dict[str, Any], **more: Any) -> None:
    """Add a line with the results, and what and where they are, to benchmarks/results/<name>.jsonl."""
    facts = {
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(args.device),
        "threads": args.threads,
        "batch": args.batch,
        "rounds": args.rounds,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(facts | more | {"results": results}) + "\n")
