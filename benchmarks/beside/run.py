"""Four ways to search the same space with the same network on the same files, one after the other.

    python -m benchmarks.beside.run data --work DIR [--data FOLDER]     # render the demo (or take FOLDER), prepare ours
    python -m benchmarks.beside.run race --work DIR                     # a line per contender and seed; goes on
    python -m benchmarks.beside.run overhead --work DIR                 # seconds per trial beside a stub of 0.05 s
    python -m benchmarks.beside.hardship kill --work DIR                # kill -9 in the middle, then the same command
    python -m benchmarks.beside.hardship bad --work DIR                 # a cut and a false file among the audio
    python -m benchmarks.beside.page                                    # docs/comparison.svg and the tables

FOLDER holds audio and a tags.csv (path,split,tags). --lightning DIR: where this put what the environment lacks:
`pip install --target DIR --no-deps lightning lightning-utilities torchmetrics pytorch-lightning optuna-integration`.

Every search has two cores and two trials at a time, of one thread each. What it may spend is CPU seconds, its own and
those of all processes it starts, so that others at work on the machine change a result little; both clocks start with
its command, and are kept. Lines go to benchmarks/results/beside.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import math
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "beside.jsonl"
HERE = Path(__file__).parent
CONTENDERS = ("optuna", "ray_tune", "lightning", "ours")
BUDGET_CPU_S, LONGEST_S, STUB_S, STUB_TRIALS = 80.0, 400.0, 0.05, 30
PACKAGES = ("torch", "ray", "optuna", "lightning", "optuna-integration", "torchmetrics")


def environment(work: Path, lightning: str | None, **given: Any) -> dict[str, str]:
    """Of a contender's process: one thread, this checkout, its settings."""
    paths = [str(ROOT), *([lightning] if lightning else []), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    scratch = work / "ray"
    scratch.mkdir(parents=True, exist_ok=True)
    fixed = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled"}
    named = {f"BESIDE_{key.upper()}": str(value) for key, value in given.items() if value is not None}
    return {**os.environ, **fixed, "RAY_TMPDIR": str(scratch), **named}


def command(name: str, work: Path, out: Path, seed: int, seconds: float) -> list[str]:
    """What a user types."""
    if name != "ours":
        return [sys.executable, "-m", f"benchmarks.beside.with_{name}"]
    options = ["--store", str(work / "store"), "--name", out.name, "--cpus", "2", "--budget", f"{seconds:g}s"]
    study = str(HERE / "ours.yaml")
    return [sys.executable, "-m", "atose_ray.tune", study, *options, "--set", f"search.seed={seed}"]


def events(name: str, work: Path, out: Path) -> list[dict[str, Any]]:
    """Every finished epoch of a search, in order of time: time, trial, epoch, value."""
    found: list[dict[str, Any]] = []
    if name == "ours":
        for log in (work / "store" / "studies" / out.name / "trials").glob("*/log.jsonl"):
            for line in map(json.loads, log.read_text().splitlines()):
                if line["event"] == "epoch":
                    told = {"time": line["time"], "trial": log.parent.name[:3], "epoch": line["epoch"]}
                    found.append({**told, "value": round(line["valid"]["pr_auc_macro"], 6)})
    elif (out / "events.jsonl").exists():
        found = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    return sorted(found, key=lambda one: one["time"])


def fresh(name: str, work: Path, label: str) -> Path:
    """An empty place for a search; ours keeps its things in the store, under the place's name."""
    out = work / f"{name}-{label}"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(work / "store" / "studies" / out.name, ignore_errors=True)
    out.mkdir(parents=True)
    return out


def search(name: str, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """One search, ended when it and all it started had `options.budget` CPU seconds: its line."""
    work = options.work.absolute()
    out = fresh(name, work, f"seed{seed}")
    env = environment(work, options.lightning, data=data_of(work), out=out, seed=seed, seconds=LONGEST_S)
    load, began = os.getloadavg()[0], time.time()
    with (out / "output.txt").open("w") as stream:
        call = command(name, work, out, seed, LONGEST_S)
        process = subprocess.Popen(call, cwd=ROOT, env=env, stdout=stream, stderr=subprocess.STDOUT)
        got = watched(process, options.budget)
    found = [one for one in events(name, work, out) if one["time"] <= got[-1][0]]
    cpu = cpu_at(got, [one["time"] for one in found])
    curve: list[tuple[float, float, float]] = []
    for one, spent in zip(found, cpu, strict=True):
        if not curve or one["value"] > curve[-1][2]:
            curve.append((round(one["time"] - began, 2), spent, one["value"]))
    return {
        "what": "race",
        "contender": name,
        "seed": seed,
        "budget_cpu_s": options.budget,
        "best": curve[-1][2] if curve else None,
        "curve": curve,
        "first_epoch_s": round(found[0]["time"] - began, 2) if found else None,
        "first_epoch_cpu_s": cpu[0] if cpu else None,
        "epochs": len(found),
        "trials": len({one["trial"] for one in found}),
        "wall_s": round(got[-1][0] - began, 1),
        "cpu_s": round(got[-1][1], 1),
        **circumstances(load),
    }


def watched(process: subprocess.Popen[bytes], budget: float) -> list[tuple[float, float]]:
    """The CPU seconds that a search and all it started had got, about every half second: (Unix time, CPU seconds)
    each. At the budget all of it is ended."""
    seen: dict[int, float] = {}
    got = [(time.time(), 0.0)]
    try:
        while process.poll() is None and got[-1][1] < budget and got[-1][0] - got[0][0] < LONGEST_S:
            time.sleep(0.5)
            seen.update(cpu_seconds(process.pid))
            got.append((time.time(), sum(seen.values())))
    finally:
        for number in cpu_seconds(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
    process.wait()
    return got


def cpu_at(got: list[tuple[float, float]], times: list[float]) -> list[float]:
    """The CPU seconds at some times."""
    clock, spent = np.array(got).T
    return [round(float(value), 2) for value in np.interp(times, clock, spent)]


def cpu_seconds(root: int) -> dict[int, float]:
    """Process -> CPU seconds so far, of `root` and all below it. Linux."""
    parents, spent, tick = {}, {}, os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        number = int(stat.parent.name)
        parents[number], spent[number] = int(fields[1]), (int(fields[11]) + int(fields[12])) / tick
    below = {root}
    while more := {number for number, parent in parents.items() if parent in below} - below:
        below |= more
    return {number: spent[number] for number in below if number in spent}


def circumstances(load_before: float) -> dict[str, Any]:
    """The machine and what is installed; load: of others too, when a measurement began and ended."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    load = [round(load_before, 1), round(os.getloadavg()[0], 1)]
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "versions": found}
    return {"load": load, **machine, "date": time.strftime("%Y-%m-%d %H:%M")}


def lines(what: str | None = None) -> list[dict[str, Any]]:
    """All results so far, or those of one kind."""
    every = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return [line for line in every if what in (None, line["what"])]


def add(line: dict[str, Any]) -> None:
    """Append a result."""
    with RESULTS.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print({key: value for key, value in line.items() if key not in ("curve", "versions")}, flush=True)


def data_of(work: Path) -> Path:
    """The folder that all read."""
    return Path((work / "data.txt").read_text().strip())


def data(options: argparse.Namespace) -> None:
    """The folder of audio, and ours prepared from it. What each takes is a line."""
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    folder = options.data.absolute() if options.data else work / "demo"
    if not options.data:
        render(folder)
    (work / "data.txt").write_text(str(folder))
    before, began = os.getloadavg()[0], time.time()
    place = ["--source", str(folder), "--name", "beside", "--store", str(work / "store")]
    prepare = ["atose_ray.prepare", "folder", *place]
    subprocess.run([sys.executable, "-m", *prepare], cwd=ROOT, env=environment(work, None), check=True)
    prepared = time.time() - began
    loading = "from pathlib import Path; import sys, time; from benchmarks.beside.clips import load; b = time.time(); "
    loading += "load(Path(sys.argv[1]), 59200); print(time.time() - b)"
    call = [sys.executable, "-c", loading, str(folder)]
    loaded = subprocess.run(call, cwd=ROOT, env=environment(work, None), check=True, capture_output=True, text=True)
    took = {"ours_prepare_s": round(prepared, 1), "others_decode_s": round(float(loaded.stdout), 2)}
    add({"what": "data", **took, **circumstances(before)})


def render(folder: Path) -> None:
    """The demo's clips, and their tags as a table."""
    from atose_ray.datasets.demo.adapter import DemoConfig

    clips = DemoConfig(source=str(folder)).list_clips().clips
    with (folder / "tags.csv").open("w", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["path", "split", "tags"])
        for clip in clips:
            table.writerow([Path(str(clip.source)).relative_to(folder), clip.split, "|".join(clip.tags)])


def race(options: argparse.Namespace) -> None:
    """Seed by seed, the contenders in turn, every second time backwards; what has a line is not run again."""
    done, began = {(line["contender"], line["seed"], line["budget_cpu_s"]) for line in lines("race")}, time.time()
    for seed in (1, 2, 3, 4, 5):
        for name in CONTENDERS if seed % 2 else reversed(CONTENDERS):
            if (name, seed, options.budget) not in done and time.time() - began < 60 * options.minutes:
                add(search(name, options, seed))


def overhead(options: argparse.Namespace) -> None:
    """Seconds of a trial beside its stub, two at a time: from the end of the first tenth of the trials to the last, by
    the clock and by the CPU seconds of all processes. What has a line is not run again."""
    work, done = options.work.absolute(), {line["contender"] for line in lines("overhead")}
    for name in CONTENDERS:
        if name in done:
            continue
        before, out = os.getloadavg()[0], fresh(name, work, "stub")
        given = {"data": data_of(work), "out": out, "trials": STUB_TRIALS, "seconds": 500, "stub": STUB_S}
        given["epochs"] = 1
        env = environment(work, options.lightning, **given)
        call = command(name, work, out, 0, 500)
        if name == "ours":
            call = [sys.executable, "-m", "benchmarks.beside.stub", str(work / "store"), out.name, str(STUB_TRIALS)]
        with (out / "output.txt").open("w") as stream:
            process = subprocess.Popen(call, cwd=ROOT, env=env, stdout=stream, stderr=subprocess.STDOUT)
            got = watched(process, math.inf)
        ends = [one["time"] for one in events(name, work, out)]
        first = len(ends) // 10
        count = len(ends) - 1 - first
        begun, ended = cpu_at(got, [ends[first], ends[-1]])
        told = {"trials": len(ends), "s": round(2 * (ends[-1] - ends[first]) / count - STUB_S, 3)}
        told["cpu_s"] = round((ended - begun) / count, 3)
        add({"what": "overhead", "contender": name, **told, **circumstances(before)})


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = made.add_subparsers(required=True)
    for call in (data, race, overhead):
        verb = verbs.add_parser(call.__name__, help=call.__doc__)
        verb.add_argument("--work", type=Path, required=True)
        verb.add_argument("--lightning")
        verb.set_defaults(call=call)
        if call is data:
            verb.add_argument("--data", type=Path)
        if call is race:
            verb.add_argument("--budget", type=float, default=BUDGET_CPU_S, help="CPU seconds of each search")
            verb.add_argument("--minutes", type=float, default=120, help="begin no search later than that")
    return made


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    options = parser().parse_args()
    options.call(options)
