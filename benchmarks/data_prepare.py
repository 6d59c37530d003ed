"""`prepare` on Ray against a plain loop that decodes and resamples the same files; and its memory as files get many.

    python -m benchmarks.data_prepare [--files 200] [--format mp3] [--cpus 2] [--rounds 3] [--append]
        [--counts 2000 20000]

Throughput: stereo files of 30 s at 44.1 kHz, tones and noise, made here (200 of them, then links to them), to 16 kHz
mono. The loop, in one process with one thread: soundfile.read, half the sum of the channels, torchaudio's Resample with
its kernel made once; nothing is kept. Ours is what the verb runs, on a Ray of --cpus CPUs that is up before the clock
starts: list, decode, resample, measure each clip for the doctor, check, write Parquet shards and the manifest. What the
verb does beside that is timed by itself: the start of Ray, and the doctor's examination with its page. In turns, each
run in a process of its own, each prepare into a new store. A ratio is the median over the rounds of (files per second
and CPU of prepare / files per second of the loop) of one round, with its range.

Memory: WAV files of 0.5 s at 16 kHz; the peak sum (PSS) of the driver, the workers and Ray's own processes while the
verb runs, sampled every 0.25 s, and of the driver alone; each count in a process of its own.
`--append` adds one JSON line to benchmarks/results/data_prepare.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data_memory import PeakMemory
from benchmarks.timing import append

ROOT = Path(__file__).resolve().parents[1]
SOURCE_HZ, TARGET_HZ, SECONDS = 44_100, 16_000, 30
SHORT_S = 0.5
DISTINCT = 200  # files that are made; further ones are links to these, to be decoded like any other


def music(number: int) -> np.ndarray:
    """float32 [T, 2]: five tones and noise."""
    rng = np.random.default_rng(number)
    time_T = np.arange(SOURCE_HZ * SECONDS, dtype=np.float32) / SOURCE_HZ
    tones_T = np.sum([np.sin(np.float32(2 * np.pi * hz) * time_T) for hz in rng.uniform(80, 5000, 5)], axis=0)
    noise_TC = 0.02 * rng.standard_normal((len(time_T), 2), np.float32)
    both_TC: np.ndarray = 0.12 * tones_T[:, None] + noise_TC
    return both_TC.astype(np.float32)


def write_source(folder: Path, files: int, suffix: str, short: bool) -> None:
    """Audio and tags.csv in the layout of the data set `folder`."""
    import soundfile

    folder.mkdir(parents=True)
    lines = ["path,split,tags"]
    for number in range(files):
        name = f"{number:06d}.{suffix}"
        if short:
            noise_T = 0.1 * np.random.default_rng(number).standard_normal(int(SHORT_S * TARGET_HZ))
            soundfile.write(folder / name, noise_T, TARGET_HZ, subtype="PCM_16")
        elif number < DISTINCT:
            soundfile.write(folder / name, music(number), SOURCE_HZ)
        else:
            os.link(folder / f"{number % DISTINCT:06d}.{suffix}", folder / name)
        split = {8: "valid", 9: "test"}.get(number % 10, "train")
        lines.append(f"{name},{split},{'even' if number % 2 == 0 else 'odd'}|all")
    (folder / "tags.csv").write_text("\n".join(lines) + "\n")


def loop(source: str) -> dict[str, float]:
    """Decode and resample every file, one after the other; seconds."""
    import soundfile
    import torch
    import torchaudio

    torch.set_num_threads(1)
    resample = torchaudio.transforms.Resample(SOURCE_HZ, TARGET_HZ)
    paths = [path for path in sorted(Path(source).iterdir()) if path.name != "tags.csv"]
    start = time.perf_counter()
    for path in paths:
        audio_TC, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
        assert rate_hz == SOURCE_HZ
        resample(torch.from_numpy((audio_TC[:, 0] + audio_TC[:, 1]) / 2))  # mean(axis=1) takes longer than decoding
    return {"seconds": time.perf_counter() - start}


def ours(source: str, store_uri: str, cpus: int) -> dict[str, float]:
    """The parts of the verb, each timed: Ray's start, prepare, the doctor."""
    from atose_ray.data.doctor.checks import examine
    from atose_ray.data.doctor.page import write_examination
    from atose_ray.data.prepare import prepare
    from atose_ray.datasets import dataset_config
    from atose_ray.runtime.cluster import cluster
    from atose_ray.runtime.prepare import run_on_ray
    from atose_ray.storage import Store

    store, start = Store(store_uri), time.perf_counter()
    config = dataset_config("folder", source=source, sample_rate_hz=TARGET_HZ)
    with cluster(cpus):
        up = time.perf_counter()
        manifest, _ = prepare(config, store, run_on_ray)
        done = time.perf_counter()
    stopped = time.perf_counter()
    write_examination(store, examine(store, "folder"))
    clips = sum(manifest.data_spec.counts.values())
    return {"clips": clips, "ray_s": up - start, "seconds": done - up, "doctor_s": time.perf_counter() - stopped}


def verb(source: str, store_uri: str, cpus: int) -> dict[str, float]:
    """The verb as a person runs it."""
    from atose_ray import prepare as prepare_verb

    rate = f"sample_rate_hz={TARGET_HZ}"
    start = time.perf_counter()
    arguments = ["folder", "--source", source, "--store", store_uri, "--cpus", str(cpus), "--option", rate]
    prepare_verb.main(arguments)
    return {"seconds": time.perf_counter() - start}


def child(form: str, *arguments: Any, memory: bool = False) -> dict[str, float]:
    """One form in a process of its own: what it measured, and with `memory` its peaks. Raises RuntimeError."""
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": scratch}
        command = [sys.executable, "-m", "benchmarks.data_prepare", "--child", json.dumps([form, *arguments])]
        pipe = subprocess.PIPE
        started = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=pipe, stderr=pipe)
        peak = PeakMemory(started.pid) if memory else None
        out, errors = started.communicate()
    peaks = peak.stop() if peak else {}
    if started.returncode:
        raise RuntimeError(f"{form} failed: {errors[-2000:]}")
    return {**json.loads(out.strip().splitlines()[-1]), **peaks}


def throughput(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The loop and prepare in turns; medians, and the ratio per CPU with its range."""
    source = folder / "songs"
    write_source(source, args.files, args.format, short=False)
    print(f"made {args.files} files, {sum(p.stat().st_size for p in source.iterdir()) / 1e6:.0f} MB", flush=True)
    child("loop", str(source))  # the files into the page cache
    pairs = []
    for number in range(args.rounds):
        plain = child("loop", str(source))
        prepared = child("ours", str(source), str(folder / f"store-{number}"), args.cpus)
        if prepared["clips"] != args.files:
            raise RuntimeError(f"prepare kept {prepared['clips']} of {args.files} files")
        pairs.append((plain, prepared))
        print(f"round {number + 1}: loop {args.files / plain['seconds']:.2f} files/s, prepare "
              f"{args.files / prepared['seconds']:.2f} files/s on {args.cpus} CPUs", flush=True)  # fmt: skip
    ratios = [plain["seconds"] / (prepared["seconds"] * args.cpus) for plain, prepared in pairs]
    loop_s = statistics.median(plain["seconds"] for plain, _ in pairs)
    results = {name: statistics.median(prepared[name] for _, prepared in pairs) for name in ("ray_s", "doctor_s")}
    results |= {"loop_files_per_s": args.files / loop_s}
    results["prepare_files_per_s"] = args.files / statistics.median(prepared["seconds"] for _, prepared in pairs)
    results |= {"ratio_per_cpu": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}
    spread = f"{min(ratios):.2f} to {max(ratios):.2f} in {args.rounds} rounds"
    beside = f"Ray's start {results['ray_s']:.1f} s, the doctor {results['doctor_s']:.1f} s"
    print(f"prepare / loop, per CPU: {results['ratio_per_cpu']:.2f} ({spread}); beside it {beside}", flush=True)
    return results


def memory(counts: Iterable[int], cpus: int, folder: Path) -> dict[str, dict[str, float]]:
    """The peaks of the verb on so many short files."""
    results = {}
    for count in counts:
        write_source(folder / f"short-{count}", count, "wav", short=True)
        row = child("verb", str(folder / f"short-{count}"), str(folder / f"store-{count}"), cpus, memory=True)
        results[str(count)] = row
        print(f"{count} files: peak {row['family_mb']:.0f} MB with the workers and Ray, {row['process_mb']:.0f} MB "
              f"the driver alone; {row['seconds']:.1f} s", flush=True)  # fmt: skip
    return results


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--append", action="store_true", help="add a line to benchmarks/results/")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--files", type=int, default=1600, help="of 30 s; 0 leaves the throughput out; 200 cannot pay for Ray's workers"
    )
    parser.add_argument("--format", default="mp3", choices=["mp3", "flac", "wav"])
    parser.add_argument("--counts", type=int, nargs="*", default=[2000, 20000], help="of short files; none: no memory")
    parser.add_argument("--cpus", type=int, default=os.cpu_count(), help="of Ray")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.set_defaults(device="cpu", threads=1, batch=None)
    return parser.parse_args()


def main() -> None:
    """Measure, print, and append when asked."""
    args = options()
    if args.child:
        form, *arguments = json.loads(args.child)
        forms: dict[str, Callable[..., Any]] = {"loop": loop, "ours": ours, "verb": verb}
        print(json.dumps(forms[form](*arguments)), flush=True)
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="atose-prepare-") as folder:
        if args.files:
            results["throughput"] = throughput(args, Path(folder))
        results["memory"] = memory(args.counts, args.cpus, Path(folder))
    if args.append:
        facts = {"files": args.files, "format": args.format, "cpus": args.cpus, "counts": args.counts}
        packages = {name: version(name) for name in ("ray", "numpy", "pyarrow", "torchaudio", "soundfile")}
        append("data_prepare", args, results, **facts, packages=packages)


if __name__ == "__main__":
    main()
