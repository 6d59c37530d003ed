"""Everything to know of a GPU in one command, in at most eight minutes.

    python -m benchmarks.gpu_ladder --out FILE [--device cuda|cpu] [--quick] [--rungs 1 2 3 4 5]

Rung by rung, each in a process of its own with its own time limit, each printed as it ends; JSON lines in FILE:
1 the tests marked `gpu`, and those of training laws (resume, two runs, cached stages)
2 training step and inference of every encoder against plain PyTorch (benchmarks/gpu_steps.py)
3 the published recipe on an MTAT-like set that it makes, epochs timed (benchmarks/gpu_recipe.py)
4 DDP over the GPUs there are, by `train --workers`
5 `tune` with four trials on one GPU, and with one
Rungs 1 to 3 need neither Ray nor PyAV nor a network. 4 and 5 need Ray as `pip install 'ray[data,train,tune]'` brings
it, jsonschema included; no PyAV, no dashboard, no network. `--device cpu --quick` runs all of it on small models, to
know that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import gpu_recipe, gpu_steps
from benchmarks.timing import processor

LIMITS_S = {1: 80, 2: 150, 3: 110, 4: 50, 5: 90}
QUICK_LIMIT_S = 600  # on a CPU that others use too
LAWS = [f"tests/test_{name}.py" for name in ("training", "cached", "graphs", "feed", "fused")]
ROOT = Path(__file__).resolve().parent.parent


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="file that gets a JSON line for every figure")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models and few clips")
    parser.add_argument("--rungs", type=int, nargs="+", default=list(LIMITS_S), choices=list(LIMITS_S))
    parser.add_argument("--alone", type=int, choices=list(LIMITS_S), help=argparse.SUPPRESS)
    args = parser.parse_args()
    gpu = args.device == "cuda"
    args.batches, args.rounds, args.steps = ((16, 128, 64), 5, 4) if gpu else ((2,), 2, 1)
    args.clips, args.seconds, args.epochs = (24, 6.0, 3) if args.quick else (1024, 29.1, 3)
    return args


def main() -> None:
    """Climb, or be one rung."""
    args = options()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: PyTorch sees no CUDA device here; use --device cpu --quick to check the script")
    if args.alone is not None:
        with tempfile.TemporaryDirectory(prefix="ladder-") as folder:
            for row in RUNGS[args.alone](args, Path(folder)):
                keep(args, args.alone, row)
        return
    keep(args, 0, {"what": "machine", "torch": torch.__version__, "python": platform.python_version()})
    for rung in args.rungs:
        climb(args, rung)


def climb(args: argparse.Namespace, rung: int) -> None:
    """One rung in its own process group, ended at its limit."""
    limit, start = QUICK_LIMIT_S if args.quick else LIMITS_S[rung], time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu_ladder", "--out", args.out, "--device", args.device]
    command += ["--alone", str(rung), *(["--quick"] if args.quick else [])]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        code: int | str = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        code = f"ended at its limit of {limit} s"
    keep(args, rung, {"what": "end of rung", "code": code, "wall_s": time.perf_counter() - start})


def keep(args: argparse.Namespace, rung: int, row: dict[str, Any]) -> None:
    """Print a row, and write it down."""
    head = {"date": datetime.date.today().isoformat(), "processor": processor(args.device), "quick": args.quick}
    with open(args.out, "a", encoding="utf-8") as file:
        file.write(json.dumps({**head, "rung": rung, **row}) + "\n")
    lines = {2: gpu_steps.line_of, 3: gpu_recipe.line_of}
    ends = row["what"] == "end of rung"
    text = lines[rung](row) if rung in lines and not ends else json.dumps({k: v for k, v in row.items() if k != "log"})
    print(f"[{rung}] {text}", flush=True)
    if row.get("code"):
        print(row.get("log", ""), flush=True)


def tests(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Rung 1."""
    together = ["-n", "8"] if not args.quick and importlib.util.find_spec("xdist") else []
    select = ["-m", "not slow", *LAWS[:1]] if args.quick else ["-m", "not slow and not ray", *LAWS]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *together, "-p", "no:cacheprovider", *select],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
    summary = (ran.stdout.strip().splitlines() or [ran.stderr[-500:]])[-1]
    yield {"what": "tests", "code": ran.returncode, "summary": summary, "failed": failed}


def steps(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Rung 2: the batches that matter most first, as time may end."""
    if args.device == "cpu":
        torch.set_num_threads(2)
    for batch in args.batches:
        for name in gpu_steps.encoders(args.quick):
            try:
                yield from gpu_steps.measure(name, batch, args, folder / f"{name}-{batch}")
            except RuntimeError as error:  # of one encoder: the others have their turn
                keep(args, 0, {"what": f"failed: {name} at batch {batch}", "error": str(error)[:500]})
            if args.device == "cuda":
                torch.cuda.empty_cache()


def recipe(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Rung 3."""
    yield from gpu_recipe.measure(args, folder)


def command(args: argparse.Namespace, folder: Path, *words: str) -> dict[str, Any]:
    """Run a command of the package: how it ended, and how long it took."""
    start = time.perf_counter()
    ran = subprocess.run(
        [sys.executable, "-m", *words, "--store", str(folder / "store")], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "code": ran.returncode,
        "wall_s": time.perf_counter() - start,
        "log": ran.stdout[-4000:] + ran.stderr[-2000:],
    }


def ddp(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Rung 4."""
    workers = torch.cuda.device_count() if args.device == "cuda" else 2
    if workers < 2:
        yield {"what": "DDP", "skipped": "this machine has one GPU"}
        return
    command(args, folder, "atose_ray.prepare", "demo")
    words = ["atose_ray.train", "demo", "--workers", str(workers), "--set", "encoder.kind=sample_cnn"]
    ran = command(args, folder, *words, "--set", "method.kind=supervised", *short(args))
    yield {"what": f"DDP, {workers} workers", **ran, "epochs": re.findall(r"^epoch .*$", ran["log"], re.MULTILINE)}


def short(args: argparse.Namespace) -> list[str]:
    """Two epochs, for the check of the script."""
    return ["--set", "method.stages=[{name: classify, epochs: 2}]"] if args.quick else []


def tune(args: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Rung 5."""
    made = command(args, folder, "atose_ray.prepare", "demo")
    if made["code"]:
        yield {"what": "prepare for tune", **made}
        return
    trials = "2" if args.quick else "8"
    shares = [("four on one GPU", "0.25"), ("one on one GPU", "1")] if args.device == "cuda" else [("on CPUs", "0")]
    for what, gpus in shares:
        words = ["atose_ray.tune", "demo", "--name", f"share{gpus}", "--trials", trials]
        words += [*(["--epochs", "2"] if args.quick else []), "--set", f"search.gpus_per_worker={gpus}"]
        yield {"what": f"tune, {trials} trials, {what}", **command(args, folder, *words)}


RUNGS = {1: tests, 2: steps, 3: recipe, 4: ddp, 5: tune}


if __name__ == "__main__":
    main()
