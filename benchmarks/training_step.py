"""Training step and inference of every encoder: as runs execute it, against plain float32 eager PyTorch.

    python -m benchmarks.training_step [--append] [--rounds 7] [--batches 4 16 64] [--threads 2] [--encoders ...]
                                       [--device cuda] [--own-clock] [--joint-embedding]

Ours: what execution.precision=auto and channels_last=true give, 1-D stacks as 2-D ones of height 1, fused AdamW.
Plain: float32, nn.Conv1d on [B, C, T] (benchmarks/plain_encoders.py) or the 2-D stack in NCHW, torch.optim.AdamW as it
comes. Both start from the same weights and run in this process, in turns; a ratio is the median over the rounds of
(plain / ours) of one round, with its range, then that of the best rounds of both. Published sizes. The sinc front end
is the fused one on both sides. On a GPU also peak memory, and the share of the fastest measured bfloat16 matrix product
that the step reaches.

A CPU as one without AVX512 has it: ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2.
`--own-clock`, with `--threads 1`: the thread's own seconds, which other processes on the machine lengthen less.
`--joint-embedding`: instead, the step of stage 1 with heads and losses: before, with all gradients of weights by oneDNN
channels last, against now.
`--append` adds one JSON line for each batch size to benchmarks/results/training_step.jsonl.
"""

from __future__ import annotations

import copy
import os
import time
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from atose_ray.config import ExecutionConfig
from atose_ray.encoders import EncoderConfig, HarmonicCNNConfig, SampleCNNConfig, TagSincNetConfig
from atose_ray.encoders.convolution import onednn_has_avx512
from atose_ray.encoders.sample_cnn import SampleBody, SampleBodyConfig
from atose_ray.methods.joint_embedding import JointEmbeddingConfig
from atose_ray.training.precision import prepare_encoder, prepare_for
from atose_ray.types import AudioInput, Batch, DataSpec, TagSet
from benchmarks import timing
from benchmarks.plain_encoders import PlainBody
from benchmarks.timing import Timed, append, arguments, in_turns, noise, seconds, show, training_step

ENCODERS: dict[str, EncoderConfig] = {
    "harmonic_cnn": HarmonicCNNConfig(),
    **{f"sample_cnn {block}": SampleCNNConfig(block=block) for block in ("basic", "se", "res", "rese")},
    "tag_sinc_net": TagSincNetConfig(),
}
MATMUL_SIZE = 8192
TAGS = 50
BOUNDS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")


def instruction_set() -> str:
    """What the CPU's kernels may use, and the variables that say so."""
    said = " ".join(f"{name}={os.environ[name]}" for name in BOUNDS if name in os.environ)
    onednn = "oneDNN with AVX512" if onednn_has_avx512() else "oneDNN without AVX512"
    return f"ATen {torch.backends.cpu.get_cpu_capability()}, {onednn} ({said or 'nothing set'})"


def spec_for(config: EncoderConfig) -> DataSpec:
    """Clips of the published length, with MTAT's number of tags."""
    audio = AudioInput(sample_rate_hz=16000, clip_samples=config.published_length)
    return DataSpec(input=audio, tags=tuple(f"tag {number}" for number in range(TAGS)), exclusive=False)


def both_forms(config: EncoderConfig, device: torch.device) -> tuple[nn.Module, nn.Module, str]:
    """The plain encoder, ours with the same weights, and the precision ours computes in."""
    torch.manual_seed(0)
    encoder = config.build(spec_for(config))
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


def joint_embedding_step(name: str, args: Any) -> tuple[dict[str, dict[str, float]], str]:
    """Stage 1 of one encoder, before and now, and its precision."""
    torch.manual_seed(0)
    config = ENCODERS[name]
    joint, spec, device = JointEmbeddingConfig(), spec_for(config), torch.device(args.device)
    method = joint.build(config.build(spec), spec, TagSet(spec.tags)).to(device)
    precision = prepare_for(method, ExecutionConfig(), device)
    optimizer = torch.optim.AdamW(method.train_only(joint.trained_parts(joint.stages[0])), 1e-4, fused=True)
    tags_BC = (torch.rand(args.batch, TAGS) < 0.1).float()
    batch = Batch(noise(args.batch, config.published_length, "cpu"), tags_BC, torch.arange(args.batch)).to(device)

    def now() -> tuple[float, ...]:
        start = seconds(args.device)
        optimizer.zero_grad()
        method(batch, "embed")["loss"].backward()
        optimizer.step()
        return (seconds(args.device) - start,)

    def before() -> tuple[float, ...]:
        with mock.patch("atose_ray.encoders.convolution.products_are_faster", return_value=False):
            return now()

    (step,) = in_turns(before, now, args.rounds)
    return {f"{name} joint-embedding step: before / now": step}, precision


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
    parser.add_argument("--batches", nargs="+", type=int, help="several batch sizes, in place of --batch")
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS), metavar="NAME")
    parser.add_argument("--own-clock", action="store_true", help="seconds of this thread; wants --threads 1")
    parser.add_argument("--joint-embedding", action="store_true", help="stage 1's step, before and now")
    args = parser.parse_args()
    if args.own_clock and (args.threads != 1 or args.device != "cpu"):
        parser.error("--own-clock counts one thread of a CPU: give --threads 1 and no other --device")
    torch.set_num_threads(args.threads)
    if args.own_clock:
        timing.clock = time.thread_time
    print(instruction_set())
    for batch in args.batches or [args.batch]:
        args.batch = batch
        results: dict[str, dict[str, float]] = {}
        precision = ""
        for name in args.encoders:
            rows, precision = (joint_embedding_step if args.joint_embedding else measure)(name, args)
            for row_name, row in rows.items():
                show(f"batch {args.batch}, {precision}: {row_name}", row, args.rounds)
            results |= rows
        if args.append:
            more = {"precision": precision, "instructions": instruction_set(), "own_clock": args.own_clock}
            append("training_step", args, results, **more)


if __name__ == "__main__":
    main()
