"""TagSincNet's fused sinc front end against its two-convolution form, and its training step against SampleCNN's.

    python -m benchmarks.sinc_front_end [--append] [--rounds 7] [--batch 4] [--threads 1] [--device cpu]

Both sides run in this process, in turns; a ratio is the median over the rounds of (slow / fast) of one round, with its
range. Published size: 256 filters of 2501 taps, 128 channels, crops of 59049 samples, float32, eager.
`--append` adds one JSON line to benchmarks/results/sinc_front_end.jsonl.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from atose_ray.audio.sinc import PUBLISHED_RATE_HZ, SincBank, sinc_stem
from atose_ray.encoders import EncoderConfig, SampleCNNConfig, TagSincNetConfig
from atose_ray.types import DataSpec

RESULTS = Path(__file__).parent / "results" / "sinc_front_end.jsonl"
FILTERS, LENGTH, CHANNELS, SAMPLES = 256, 2501, 128, 59049
Timed = Callable[[], tuple[float, ...]]


def two_convolutions(audio_BT: torch.Tensor, bank_SL: torch.Tensor, stem: nn.Conv1d) -> torch.Tensor:
    """The published form: zeros on both sides, the bank without change of length, the stem."""
    half = bank_SL.shape[1] // 2
    padded_BT = functional.pad(audio_BT, (half, half))
    return stem(functional.conv1d(padded_BT[:, None], bank_SL[:, None], padding=half))


def seconds(device: str) -> float:
    """The time, after all work queued on a GPU is done."""
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def front_end(form: Callable[..., torch.Tensor], audio_BT: torch.Tensor) -> Timed:
    """One run of bank and stem: seconds of the forward pass, and of forward and backward."""
    torch.manual_seed(0)
    device = audio_BT.device.type
    bank = SincBank(FILTERS, LENGTH, PUBLISHED_RATE_HZ, published=True).to(device)
    stem = nn.Conv1d(FILTERS, CHANNELS, 3, stride=3).to(device)
    cotangent = torch.randn(len(audio_BT), CHANNELS, (SAMPLES + LENGTH - 1) // 3).to(device)

    def run() -> tuple[float, ...]:
        start = seconds(device)
        out_BCF = form(audio_BT, bank(), stem)
        heard = seconds(device)
        out_BCF.backward(cotangent)
        return heard - start, seconds(device) - start

    return run


def training_step(config: EncoderConfig, audio_BT: torch.Tensor) -> Timed:
    """One run of forward, backward and Adam: its seconds."""
    torch.manual_seed(0)
    device = audio_BT.device.type
    spec = DataSpec(sample_rate_hz=16000, clip_samples=SAMPLES, tags=("tag",), exclusive=False)
    encoder = config.build(spec).to(device)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-4)

    def run() -> tuple[float, ...]:
        start = seconds(device)
        optimizer.zero_grad()
        encoder(audio_BT).square().mean().backward()
        optimizer.step()
        return (seconds(device) - start,)

    return run


def in_turns(slow: Timed, fast: Timed, rounds: int) -> list[dict[str, float]]:
    """For every number that a run gives: median seconds of both sides, median ratio and its range."""
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


def main() -> None:
    """Measure, print, and append when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", action="store_true", help="add a line to benchmarks/results/")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    audio_BT = 0.3 * torch.randn(args.batch, SAMPLES, generator=torch.Generator().manual_seed(1)).to(args.device)

    forward, both = in_turns(front_end(two_convolutions, audio_BT), front_end(sinc_stem, audio_BT), args.rounds)
    sinc, sample = TagSincNetConfig(), SampleCNNConfig(block="rese")
    (step,) = in_turns(training_step(sinc, audio_BT), training_step(sample, audio_BT), args.rounds)
    results = {
        "front end forward: two convolutions / fused": forward,
        "front end forward and backward: two convolutions / fused": both,
        "training step: tag_sinc_net / sample_cnn rese": step,
    }
    for name, row in results.items():
        print(
            f"{name}: {row['ratio']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f} in {args.rounds} rounds; "
            f"{row['slow_s']:.3f} s and {row['fast_s']:.3f} s)"
        )
    if args.append:
        facts = {
            "date": datetime.date.today().isoformat(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": processor(args.device),
            "threads": args.threads,
            "batch": args.batch,
            "rounds": args.rounds,
        }
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(facts | {"results": results}) + "\n")


if __name__ == "__main__":
    main()
