"""What torch.compile costs and gains in a training step: plain, compiled, and what the next process pays.

    python -m benchmarks.compile_worth [--append] [--rounds 9] [--batch 16] [--threads 1] [--device cuda]
                                       [--encoders mel_cnn ...]

Each encoder in a process of its own with an empty cache folder, then in a second process with what the first one left
there. A step is forward, backward and update, in the precision and layout that runs have; plain and compiled in
turns, of one crop length. first_s: the first compiled step, of which a usual one is taken off (so: compiling).
`--append` adds a JSON line for every encoder to benchmarks/results/compile_worth.jsonl. Run on a CPU only so far: on a
GPU it never was.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

import torch

from atose_ray.config import ExecutionConfig
from atose_ray.encoders import CoalaCNNConfig, EncoderConfig, MelCNNConfig, SampleCNNConfig
from atose_ray.training.compiler import compiled, node_cache
from atose_ray.training.precision import prepare_encoder
from atose_ray.types import AudioInput, DataSpec
from benchmarks.timing import append, arguments, in_turns, noise, seconds, training_step
from benchmarks.training_step import instruction_set

ENCODERS: dict[str, tuple[EncoderConfig, int]] = {  # and the rate it was published with
    "mel_cnn": (MelCNNConfig(channels=32), 22050),
    "coala_cnn": (CoalaCNNConfig(channels=16, scaler="none"), 22000),
    "sample_cnn": (SampleCNNConfig(block="basic", channels=16), 16000),
}


def measure(name: str, args: Any) -> dict[str, Any]:
    """Both forms of one encoder, in this process."""
    node_cache()
    config, rate = ENCODERS[name]
    audio = AudioInput(sample_rate_hz=rate, clip_samples=config.published_length)
    torch.manual_seed(0)
    encoder = config.build(DataSpec(input=audio, tags=("one", "other"), exclusive=False)).to(args.device)
    precision = prepare_encoder(encoder, ExecutionConfig(cuda_graphs=False), torch.device(args.device))
    audio_BT = noise(args.batch, config.published_length, args.device)
    plain, fast = encoder.compute, compiled(encoder.compute)
    step = training_step(encoder, torch.optim.AdamW(encoder.parameters(), lr=1e-4, fused=True), audio_BT)

    def form(compute: Any) -> Any:
        def run() -> tuple[float, ...]:
            vars(encoder)["compute"] = compute
            return step()

        return run

    form(plain)(), form(plain)()
    start = seconds(args.device)
    form(fast)()
    first_s = seconds(args.device) - start
    (row,) = in_turns(form(plain), form(fast), args.rounds)
    return {**row, "first_s": first_s, "compile_s": first_s - row["fast_s"], "precision": precision}


def main() -> None:
    """Measure in two processes for every encoder, print, and append when asked."""
    parser = arguments(__doc__, rounds=9, batch=16, threads=1)
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS), choices=list(ENCODERS), metavar="NAME")
    parser.add_argument("--here", action="store_true", help="in this process, and print JSON: what the others run")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.here:
        print(json.dumps(measure(args.encoders[0], args)))
        return
    print(instruction_set())
    options = [f"--{key}={getattr(args, key)}" for key in ("rounds", "batch", "threads", "device")]
    command = [sys.executable, "-m", "benchmarks.compile_worth", "--here", *options]
    for name in args.encoders:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            places = {"ATOSE_CACHE": folder}
            rest = {key: value for key, value in os.environ.items() if not key.endswith("_CACHE_DIR")}
            for _ in ("cold", "warm"):
                done = subprocess.run([*command, "--encoders", name], env=rest | places, check=True, stdout=-1)
                rows.append(json.loads(done.stdout.splitlines()[-1]))
        cold, warm = rows
        print(
            f"{name}, batch {args.batch}, {cold['precision']}: plain {cold['slow_s']:.3f} s, compiled "
            f"{cold['fast_s']:.3f} s, {cold['ratio']:.2f}x ({cold['ratio_min']:.2f} to {cold['ratio_max']:.2f}) after "
            f"{cold['compile_s']:.1f} s; second process {warm['ratio']:.2f}x after {warm['compile_s']:.1f} s",
            flush=True,
        )
        if args.append:
            append("compile_worth", args, {name: {"cold": cold, "warm": warm}}, instructions=instruction_set())


if __name__ == "__main__":
    main()
