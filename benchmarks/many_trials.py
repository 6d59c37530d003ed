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
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from atose_ray.search.session import Session
from benchmarks.overhead import SLOTS, prepare_demo, stub_trial
from benchmarks.search_quality import quiet

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
    assert {one.state for one in after} <= {"complete", "running"}, "those that ran when it was stopped"
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


def drive(store_uri: str, trials: int, sampler: str) -> dict[str, Any]:
    """The driver's own part of a search, one trial after another, without Ray: the sampler, the run folders (with the
    trial's own lines), the listeners. CPU seconds of it per trial, over the NEAR before a number of trials."""
    from atose_ray.data.shards import load_manifest
    from atose_ray.data.views import view_of
    from atose_ray.search.asking import Asking
    from atose_ray.search.events import Ended, Epoch, Started
    from atose_ray.search.listeners import Console, Listeners, OptunaListener, TrialLog
    from atose_ray.search.nodes import Nodes
    from atose_ray.search.plan import Plan
    from atose_ray.search.record import load_trials, study_store
    from atose_ray.search.samplers import sampler as made_sampler
    from atose_ray.search.space import begin, compose, load_study
    from atose_ray.search.study_storage import open_storage, rebuild
    from atose_ray.search.trials import Space
    from atose_ray.storage import Store
    from atose_ray.training.record import EpochRecord, RunFolder

    quiet()
    store = Store(store_uri)
    study, manifest = (
        load_study("demo", (f"search.trials={trials}", f"search.sampler={sampler}")),
        load_manifest(store, "demo"),
    )
    folder = study_store(store, NAME)
    begin(folder, study, view_of(manifest, compose(study, {}).data, store), store)
    began = time.process_time()
    earlier = load_trials(folder)
    listed = time.process_time()
    space = Space(study, NAME, store.uri, manifest, Plan(SLOTS, 0, 1.0, 1.0, 0.0, 0.0, Nodes(())))
    log = TrialLog(folder, trials, None, earlier)
    space = dataclasses.replace(space, trials=log.trials)
    curve = []
    with tempfile.TemporaryDirectory() as scratch, open_storage(study.search, folder, NAME, Path(scratch)) as kept, log:
        asked = rebuild(kept, study, NAME, earlier, [], made_sampler(study.search, len(earlier)))
        rebuilt = time.process_time()
        listeners = Listeners(log, OptunaListener(asked, kept), Console(study.search, earlier))
        asking = Asking(space, listeners, trials - len(earlier))
        marks = [time.process_time()]
        while setup := asking.next():
            job, number = setup.job, setup.job.about["number"]
            value = min(1.0, 10 * job.run.optim.lr)
            record = EpochRecord(1, "classify", WORK_S, 0.1, 0.1, {"pr_auc_macro": value}, value, time.time())
            RunFolder(Store(job.folder_uri)).add_epoch(record)
            for event in (Started(number, job), Epoch(number, job, record), Ended(number, job, "complete")):
                for listener in listeners:
                    listener.on_event(event)
            marks.append(time.process_time())
    for count in (*(at for at in AT if len(earlier) + NEAR <= at < trials), trials):
        at = count - len(earlier)
        each = (marks[at] - marks[max(0, at - NEAR)]) / min(NEAR, at)
        curve.append({"trials": count, "driver_cpu_s": round(each, 4)})
    mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    journal_mb = (Path(folder.local_path or "") / "optuna.journal").stat().st_size / 2**20
    line = {"before": len(earlier), "listing_cpu_s": listed - began, "rebuild_cpu_s": rebuilt - listed, "mb": mb}
    line |= {"journal_mb": journal_mb}
    return {**{key: round(value, 2) for key, value in line.items()}, "ended": trials, "curve": curve}


def timed(*command: str) -> dict[str, float]:
    """Seconds of a process. Raises RuntimeError where it fails."""
    began = time.time()
    child = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with {status}")
    return {"seconds": round(time.time() - began, 2), "cpu_s": round(usage.ru_utime + usage.ru_stime, 2)}


def measure(store_uri: str, trials: int, sampler: str, minutes: float, profile: str | None) -> dict[str, Any]:
    """All of it. No minutes: without Ray."""
    from atose_ray.search.record import load_trials, study_store
    from atose_ray.storage import Store

    line: dict[str, Any] = {"trials": trials, "sampler": sampler, "slots": SLOTS, "work_s": WORK_S}
    line["tune"] = minutes > 0
    line |= search(store_uri, trials, sampler, minutes, profile) if minutes else drive(store_uri, trials, sampler)
    folder = study_store(Store(store_uri), NAME)
    files = [path for path in Path(folder.local_path or "").rglob("*") if path.is_file()]
    line["files"], line["folder_mb"] = len(files), round(sum(path.stat().st_size for path in files) / 2**20, 1)
    began, cpu = time.time(), time.process_time()
    load_trials(folder)
    line["listing_s"], line["listing_cpu_s"] = round(time.time() - began, 2), round(time.process_time() - cpu, 2)
    line["status"] = timed("atose_ray.status", NAME, "--store", store_uri)
    line["report"] = timed("atose_ray.report", NAME, "--store", store_uri)
    line["report"]["page_mb"] = round((Path(folder.local_path or "") / "report.html").stat().st_size / 2**20, 1)
    again = search(store_uri, line["ended"] + 20, sampler, 2) if minutes else drive(store_uri, trials + 20, sampler)
    line["goes_on"] = {key: value for key, value in again.items() if key != "curve"}
    line["load"] = round(os.getloadavg()[0], 1)
    return line


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which the search is stopped; 0: without Ray")
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
