"""A search of thousands of trials that train nothing: what grows with their number.

    python -m benchmarks.many_trials --store STORE --trials 2500 --append   # a store with the demo data
    python -m benchmarks.many_trials --store STORE --trials 5000 --append   # goes on to 5,000

As benchmarks/overhead.py (a real search: Optuna, Tune with two slots, run folders, console), with trials of 0.05 s, and
afterwards `status`, `report` and a search that goes on, each in a process of its own. Seconds per trial are those of
the clock between two ends, at so many trials; the driver's memory and Optuna's journal were read at the same time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from atose_ray.search.session import Session
from benchmarks.overhead import SLOTS, prepare_demo, stub_trial

RESULTS = Path(__file__).parent / "results" / "many_trials.jsonl"
NAME, WORK_S, AT = "many", 0.05, (100, 500, 1000, 2000, 3000, 4000, 5000)
NEAR = 100  # ended trials over which a rate is taken


def search(store_uri: str, trials: int, sampler: str, minutes: float, profile: str | None = None) -> dict[str, Any]:
    """Run, or go on with, the study of so many trials in all, as far as it comes in `minutes`. What it took, and when
    its first trial began."""
    from ray import tune

    from atose_ray.data.shards import load_manifest
    from atose_ray.data.views import view_of
    from atose_ray.runtime import search as searching
    from atose_ray.runtime.cluster import cluster, cluster_nodes
    from atose_ray.search.plan import make_plan
    from atose_ray.search.record import load_trials, study_store
    from atose_ray.search.space import begin, compose, load_study
    from atose_ray.search.trials import Space
    from atose_ray.storage import Store

    store = Store(store_uri)
    chosen = (f"search.trials={trials}", f"search.concurrency={SLOTS}", f"search.sampler={sampler}")
    study, manifest = load_study("demo", chosen), load_manifest(store, "demo")
    vars(searching)["trainable"] = lambda plan, shared: tune.with_resources(stub_trial(WORK_S), {"CPU": 1})
    folder = study_store(store, NAME)
    with cluster(cpus=SLOTS):
        space = Space(study, NAME, store.uri, manifest, make_plan(study.search, False, cluster_nodes()))
        began, cpu = time.time(), time.process_time()
        with Session(folder) as session:
            begin(folder, study, view_of(manifest, compose(study, {}).data, store), store)
            earlier = load_trials(folder)
            listed = time.time()
            watch = Watch(Path(folder.local_path or ""), session, time.time() + 60 * minutes, profile)
            with contextlib.suppress(KeyboardInterrupt):  # how a search that is asked to stop ends
                searching.search(space, session, earlier)
            watch.done.set()
        ended = time.time()
    after = load_trials(folder)
    known = {trial.number for trial in earlier}
    first = min((trial.started for trial in after if trial.number not in known), default=ended)
    assert {one.state for one in after} == {"complete"}
    return {
        "wall_s": round(ended - began, 1),
        "driver_cpu_s": round(time.process_time() - cpu, 1),
        "listing_s": round(listed - began, 2),
        "to_the_first_trial_s": round(first - began, 2),
        "before": len(earlier),
        "ended": len(after),
        "curve": growth(sorted(one.finished for one in after if one.finished), watch.seen, len(earlier)),
    }


class Watch(threading.Thread):
    """Reads this process's memory and the journal's size every two seconds, and ends the search when its time is up."""

    def __init__(self, folder: Path, session: Session, until: float, profile: str | None) -> None:
        super().__init__(daemon=True)
        self.folder, self.session, self.until, self.profile = folder, session, until, profile
        self.seen: list[tuple[float, float, float, float]] = []
        self.done = threading.Event()
        self.start()

    def run(self) -> None:
        """Until the search is over."""
        while not self.done.wait(2):
            if self.profile and time.time() > self.until - 90:
                spy = ["py-spy", "record", "--format", "raw", "--duration", "60", "--pid", str(os.getpid())]
                subprocess.Popen([str(Path(sys.executable).with_name(spy[0])), *spy[1:], "--output", self.profile])
                self.profile = None
            if time.time() > self.until:
                self.session.asked = "stop"
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            journal = self.folder / "optuna.journal"
            size = journal.stat().st_size if journal.exists() else 0
            used = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
            self.seen.append((time.time(), used, size / 2**20, time.process_time()))


def growth(ends: list[float], seen: list[tuple[float, float, float, float]], before: int) -> list[dict[str, float]]:
    """A line per number of trials past those of `before`: seconds from one end to the next, of the clock
    and of the driver's CPU, over the NEAR before, MB of the driver and of the journal."""
    lines = []
    for count in (*(at for at in AT if before + NEAR <= at < len(ends)), len(ends)):
        first, last = ends[max(0, count - NEAR)], ends[count - 1]
        if last <= first or not seen:
            continue
        at, then = (min(seen, key=lambda one, when=when: abs(one[0] - when)) for when in (last, first))  # type: ignore[misc]
        cpu = (at[3] - then[3]) / max(at[0] - then[0], 1e-9) * (last - first) / (NEAR - 1)
        each = (last - first) / (min(NEAR, count) - 1)
        lines.append({"trials": count, "s_per_trial": each, "driver_cpu_s": cpu, "mb": at[1], "journal_mb": at[2]})
    return [{key: round(value, 4) for key, value in line.items()} for line in lines]


def timed(*command: str) -> dict[str, float]:
    """Seconds and MB of a process. Raises RuntimeError where it fails."""
    began = time.time()
    child = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {status}")
    return {"seconds": round(time.time() - began, 2), "mb": round(usage.ru_maxrss / 1024, 1)}


def measure(store_uri: str, trials: int, sampler: str, minutes: float, profile: str | None) -> dict[str, Any]:
    """All of it."""
    from atose_ray.search.record import load_trials, study_store
    from atose_ray.storage import Store

    line: dict[str, Any] = {"trials": trials, "sampler": sampler, "slots": SLOTS, "work_s": WORK_S}
    line |= search(store_uri, trials, sampler, minutes, profile)
    folder = study_store(Store(store_uri), NAME)
    files = [path for path in Path(folder.local_path or "").rglob("*") if path.is_file()]
    line["files"], line["folder_mb"] = len(files), round(sum(path.stat().st_size for path in files) / 2**20, 1)
    began = time.time()
    load_trials(folder)
    line["listing_s"] = round(time.time() - began, 2)
    line["status"] = timed("atose_ray.status", NAME, "--store", store_uri)
    line["report"] = timed("atose_ray.report", NAME, "--store", store_uri)
    line["report"]["page_mb"] = round((Path(folder.local_path or "") / "report.html").stat().st_size / 2**20, 1)
    again = search(store_uri, line["ended"] + 20, sampler, 2)
    line["goes_on"] = {key: value for key, value in again.items() if key != "curve"}
    line["load"] = round(os.getloadavg()[0], 1)
    return line


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which the search is stopped, to go on later")
    parser.add_argument("--store", help="a store with the demo data (default: a new one)")
    parser.add_argument("--profile", help="file for the last minute in py-spy's samples of the driver")
    parser.add_argument("--append", action="store_true", help=f"add the result to {RESULTS.name}")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        os.environ.setdefault("RAY_TMPDIR", scratch)
        if not options.store:
            prepare_demo(scratch)
        result = measure(options.store or scratch, options.trials, options.sampler, options.minutes, options.profile)
    print(json.dumps(result), flush=True)
    if options.append:
        from atose_ray.search.space import versions

        with RESULTS.open("a") as stream:
            stream.write(json.dumps({**result, "cpus": os.cpu_count(), "versions": versions()}) + "\n")
