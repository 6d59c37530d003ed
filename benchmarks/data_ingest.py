"""Random crops from whole clips, delivered to one training process: our readers against those that others use.

    python -m pip install -r benchmarks/requirements.txt        (in an environment of its own)
    python -m benchmarks.data_ingest [--where local|s3] [--clips 1024] [--batch 16] [--rounds 5] [--append]

Clips of 29 s at 16 kHz, int16 noise, 0.93 MB each; crops of 59,049 samples; one crop per clip and epoch. Contenders:

    npy whole      torch DataLoader, np.load of a whole clip, then the crop: the published loader (S3: a whole GET)
    npy cropped    the same with np.load(mmap_mode="r") (S3: a ranged GET): reads the crop alone
    webdataset     WebDataset, tar shards of 64 clips, crops in a shuffle buffer of 256 (S3: pipe:curl)
    mosaicml       MosaicML StreamingDataset, MDS shards (S3: keeps what it has read on the local disk)
    ours local     LocalBatches in the training process
    ours ray       RayBatches: Ray Data tasks on the CPUs of this machine; Ray is up before the clock starts
    ours resident  ResidentBatches in host memory: the split is read once, before the first batch

Those of others run with 0, 1 and 2 workers, and their best is taken: the count whose median is the highest. Every run
is a process of its own; a round runs all, each round begins with another. Measured: clips per second over whole
epochs after the first (at least two, and --seconds), the first epoch from the making of the source on, seconds to the
first batch (imports and Ray are up before); in one more run each, not timed, the peak memory (PSS) of the process and
all that it started. The files stay in the page cache: that is every contender's best case. `--where s3` reads from
moto's S3 in a process of its own on this machine: its latency is none and it is slow at serving, so only the order of
the contenders means something.
A ratio is the median over the rounds of (ours / theirs) of one round, with its range.
`--append` adds one JSON line to benchmarks/results/data_ingest.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.data_clips import emulated_s3, make_all
from benchmarks.data_contenders import CONTENDERS, Order
from benchmarks.data_memory import PeakMemory
from benchmarks.timing import append

ROOT = Path(__file__).resolve().parents[1]
OURS = [name for name in CONTENDERS if name.startswith("ours")]
THEIRS = [name for name in CONTENDERS if name not in OURS]
PACKAGES = {"webdataset": "webdataset", "mosaicml": "mosaicml-streaming"}
FORMS = {"npy whole": "npy", "npy cropped": "npy", "webdataset": "tar", "mosaicml": "mds"}
Case = tuple[str, int]


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", action="store_true", help="add a line to benchmarks/results/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of torch in the training process")
    parser.set_defaults(device="cpu")
    parser.add_argument("--where", choices=["local", "s3"], default="local")
    parser.add_argument("--clips", type=int, default=1024, help="in the train split")
    parser.add_argument("--seconds", type=float, default=3.0, help="of epochs after the first, at least")
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="of Ray")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="of the others' loaders")
    parser.add_argument("--only", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    return parser.parse_args()


def cases(args: argparse.Namespace) -> list[Case]:
    """Every contender and worker count that can run here."""
    found: list[Case] = []
    for name in args.only:
        try:
            if name in PACKAGES:
                version(PACKAGES[name])
        except PackageNotFoundError:
            print(f"{name}: left out, {PACKAGES[name]} is not installed (benchmarks/requirements.txt)")
            continue
        found += [(name, workers) for workers in (args.workers if name in THEIRS else [0])]
    return found


def run(case: Case, args: argparse.Namespace, folder: str, endpoint: str | None, memory: bool = False) -> Any:
    """One contender in a process of its own: what it measured, or its peak memory. None, and said, where it failed."""
    order = Order(*case, folder, endpoint, args.clips, args.batch, args.threads, args.seconds, args.cpus)
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "RAY_TMPDIR": scratch}
        command = [sys.executable, "-m", "benchmarks.data_contenders", order.as_json()]
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        peak = PeakMemory(child.pid) if memory else None
        out, errors = child.communicate()
    if child.returncode:
        print(f"{case[0]} with {case[1]} workers cannot run here: {errors.strip().splitlines()[-1:]}", flush=True)
        return None
    return peak.stop() if peak else json.loads(out.strip().splitlines()[-1])


def rounds_of(
    todo: list[Case], args: argparse.Namespace, folder: str, endpoint: str | None
) -> dict[Case, list[dict[str, float]]]:
    """Every case once per round, in turns; a case that fails is left out from then on."""
    taken: dict[Case, list[dict[str, float]]] = {}
    for number in range(args.rounds):
        for case in todo[number % len(todo) :] + todo[: number % len(todo)]:
            row = run(case, args, folder, endpoint) if number == 0 or case in taken else None
            if row is not None:
                taken.setdefault(case, []).append(row)
                speeds = f"{row['clips_per_s']:8.0f} clips/s, first epoch {row['first_epoch_clips_per_s']:.0f}"
                print(f"round {number + 1}: {case[0]:<14} {case[1]} workers {speeds}, first batch after "
                      f"{row['first_batch_s']:.2f} s", flush=True)  # fmt: skip
    return {case: rows for case, rows in taken.items() if len(rows) == args.rounds}


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of every figure, with the range of the main one."""
    speeds = [row["clips_per_s"] for row in rows]
    middle = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return middle | {"clips_per_s_min": min(speeds), "clips_per_s_max": max(speeds)}


def best_cases(taken: dict[Case, list[dict[str, float]]]) -> dict[str, Case]:
    """The worker count of each contender whose median is the highest."""
    best: dict[str, Case] = {}
    for case, rows in taken.items():
        known = best.get(case[0])
        if known is None or medians(rows)["clips_per_s"] > medians(taken[known])["clips_per_s"]:
            best[case[0]] = case
    return best


def compare(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, float]:
    """ours / theirs, round by round: of clips per second after the first epoch, and in it; and of the first batch."""
    compared: dict[str, float] = {}
    for name in ("clips_per_s", "first_epoch_clips_per_s", "first_batch_s"):
        ratios = [one[name] / other[name] for one, other in zip(ours, theirs, strict=True)]
        compared |= {name: statistics.median(ratios), f"{name}_min": min(ratios), f"{name}_max": max(ratios)}
    return compared


def summary(taken: dict[Case, list[dict[str, float]]], args: argparse.Namespace) -> dict[str, Any]:
    """Medians of every case, whose best is which, and the ratios; printed too."""
    best = best_cases(taken)
    results: dict[str, Any] = {
        "medians": {f"{name}, {workers} workers": medians(rows) for (name, workers), rows in taken.items()},
        "best_workers": {name: workers for name, workers in best.values()},
        "ratios": {},
    }
    for one in filter(best.__contains__, OURS):
        for other in filter(best.__contains__, THEIRS):
            row = compare(taken[best[one]], taken[best[other]])
            results["ratios"][f"{one} / {other}"] = row
            spread = f"{row['clips_per_s_min']:.2f} to {row['clips_per_s_max']:.2f} in {args.rounds} rounds"
            more = f"first epoch {row['first_epoch_clips_per_s']:.2f}, first batch {row['first_batch_s']:.2f}"
            print(f"{one} / {other} ({best[other][1]} workers): {row['clips_per_s']:.2f} ({spread}); {more}")
    return results


def main() -> None:
    """Make the data, run everything in turns, print, and append when asked."""
    args = options()
    with tempfile.TemporaryDirectory(prefix="atose-ingest-") as folder, emulated_s3(args.where == "s3") as endpoint:
        todo = cases(args)
        forms = dict.fromkeys(FORMS.get(name, "ours") for name, _ in todo)
        seconds = make_all(Path(folder), args.clips, endpoint, forms)
        print(f"made {args.clips} clips in each form; seconds: {seconds}", flush=True)
        taken = rounds_of(todo, args, folder, endpoint)
        results = summary(taken, args)
        results["memory"] = {}
        for name, case in best_cases(taken).items():
            results["memory"][name] = run(case, args, folder, endpoint, memory=True)
            print(f"peak memory, {name}: {results['memory'][name]}", flush=True)
    if args.append:
        more = {"where": args.where, "clips": args.clips, "cpus": args.cpus, "seconds": args.seconds}
        used = [PACKAGES[name] for name in PACKAGES if name in results["best_workers"]]
        packages = {name: version(name) for name in ("ray", "numpy", "pyarrow", *used)}
        append("data_ingest", args, results, **more, packages=packages)


if __name__ == "__main__":
    main()
