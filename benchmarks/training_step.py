"""Training step and inference of every encoder: as runs execute it, against plain float32 eager PyTorch.

    python -m benchmarks.training_step [--append] [--rounds 7] [--batch 8] [--threads 2] [--device cpu] [--encoders ...]

Ours: what execution.precision=auto and channels_last=true give, 1-D stacks as 2-D ones of height 1, fused AdamW.
Plain: float32, nn.Conv1d on [B, C, T] (benchmarks/plain_encoders.py) or the 2-D stack in NCHW, torch.optim.AdamW as it
comes. Both start from the same weights and run in this process, in turns; a ratio is the median over the rounds of
(plain / ours) of one round, with its range. Published sizes. The sinc front end is the fused one on both sides.
On a GPU also peak memory, and the share of the fastest measured bfloat16 matrix product that the step reaches.
`--append` adds one JSON line to benchmarks/results/training_step.jsonl.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atose_ray.config import ExecutionConfig
from atose_ray.encoders import EncoderConfig, HarmonicCNNConfig, SampleCNNConfig, TagSincNetConfig
from atose_ray.encoders.sample_cnn import SampleBody, SampleBodyConfig
from atose_ray.training.precision import prepare_encoder
from atose_ray.types import AudioInput, DataSpec
from benchmarks.plain_encoders import PlainBody
from benchmarks.timing import Timed, append, arguments, in_turns, noise, seconds, show, training_step

ENCODERS: dict[str, EncoderConfig] = {
    "harmonic_cnn": HarmonicCNNConfig(),
    **{f"sample_cnn {block}": SampleCNNConfig(block=block) for block in ("basic", "se", "res", "rese")},
    "tag_sinc_net": TagSincNetConfig(),
}
MATMUL_SIZE = 8192


def both_forms(config: EncoderConfig, device: torch.device) -> tuple[nn.Module, nn.Module, str]:
    """The plain encoder, ours with the same weights, and the precision ours computes in."""
    torch.manual_seed(0)
    audio = AudioInput(sample_rate_hz=16000, clip_samples=config.published_length)
    spec = DataSpec(input=audio, tags=("tag",), exclusive=False)
    encoder = config.build(spec)
    plain: nn.Module = copy.deepcopy(encoder)
    if isinstance(encoder, SampleBody) and isinstance(config, SampleBodyConfig):
        plain = PlainBody(copy.deepcopy(encoder), config.dropout)
    precision = prepare_encoder(encoder, ExecutionConfig(), device)
    return plain.to(device), encoder.to(device), precision


def inference(encoder: nn.Module, audio_BT: torch.Tensor) -> Timed:
    """One forward pass in eval mode: its seconds."""

    @torch.no_grad()
    def run() -> tuple[float, ...]:
        encoder.eval()
        start = seconds(audio_BT.device.type)
        encoder(audio_BT)
        return (seconds(audio_BT.device.type) - start,)

    return run


def peak_gib(timed: Timed) -> float:
    """GiB that one run holds at most on the GPU, with what lies there before it."""
    torch.cuda.reset_peak_memory_stats()
    timed()
    return float(torch.cuda.max_memory_allocated()) / 2**30


def matmul_flops() -> float:
    """Operations per second of the fastest of ten bfloat16 matrix products on the GPU."""
    one = torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda", dtype=torch.bfloat16)
    times = []
    for _ in range(10):
        start = seconds("cuda")
        one @ one
        times.append(seconds("cuda") - start)
    return 2 * MATMUL_SIZE**3 / min(times)


def on_gpu(plain: Timed, ours: Timed, ours_s: float) -> dict[str, float]:
    """Peak memory of both steps, and the share of the measured matrix product's speed that ours reaches."""
    with FlopCounterMode(display=False) as counter:
        plain()
    share = counter.get_total_flops() / ours_s / matmul_flops()
    return {"plain_peak_gib": peak_gib(plain), "peak_gib": peak_gib(ours), "share_of_matmul": share}


def measure(name: str, args: Any) -> tuple[dict[str, dict[str, float]], str]:
    """Both numbers of one encoder, and its precision."""
    config = ENCODERS[name]
    audio_BT = noise(args.batch, config.published_length, args.device)
    plain, ours, precision = both_forms(config, audio_BT.device)
    usual = torch.optim.AdamW(plain.parameters(), lr=1e-4)
    fused = torch.optim.AdamW(ours.parameters(), lr=1e-4, fused=True)
    steps = training_step(plain, usual, audio_BT), training_step(ours, fused, audio_BT)
    (step,) = in_turns(*steps, args.rounds)
    step["clips_per_s"] = args.batch / step["fast_s"]
    if args.device == "cuda":
        step |= on_gpu(*steps, step["fast_s"])
    (heard,) = in_turns(inference(plain, audio_BT), inference(ours, audio_BT), args.rounds)
    heard["clips_per_s"] = args.batch / heard["fast_s"]
    return {f"{name} training step: plain / ours": step, f"{name} inference: plain / ours": heard}, precision


def main() -> None:
    """Measure, print, and append when asked."""
    parser = arguments(__doc__, rounds=7, batch=8, threads=2)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS), metavar="NAME")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, dict[str, float]] = {}
    precision = ""
    for name in args.encoders:
        rows, precision = measure(name, args)
        for row_name, row in rows.items():
            show(row_name, row, args.rounds)
        results |= rows
    if args.append:
        append("training_step", args, results, precision=precision)


if __name__ == "__main__":
    main()
