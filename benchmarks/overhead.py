"""What a trial costs beside its training: `python benchmarks/overhead.py [--trials 200] [--append]`.

A real search (Optuna asked and told, Tune with two slots, run folders, console) over trials that do nothing for 0.2 s:

    overhead = wall * slots / trials - 0.2

The wall time runs from the first trial's start to the search's return. Trials keep their process, as in every search
without worker groups, so that the first start of each slot (importing PyTorch) is in it once.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SLOTS, WORK_S = 2, 0.2
RESULTS = Path(__file__).parent / "results" / "overhead.jsonl"


def stub_trial(work_s: float = WORK_S) -> Any:
    """A trial that trains nothing: one epoch of `work_s` seconds, and its run folder as a real one writes it."""
    from ray import tune

    from atose_ray.runtime.trial import KEY
    from atose_ray.storage import Store
    from atose_ray.training.record import EpochRecord, RunFolder

    class Stub(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any]) -> None:
            self.job = config[KEY].job

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.setup(new_config)
            return True

        def step(self) -> dict[str, Any]:
            time.sleep(work_s)
            folder = RunFolder(Store(self.job.folder_uri))
            value = min(1.0, 10 * self.job.run.optim.lr)
            record = EpochRecord(1, "classify", work_s, 0.1, 0.1, {"pr_auc_macro": value}, value, time.time())
            folder.add_epoch(record)
            folder.end("complete")
            return {"pr_auc_macro": value, "epoch": 1, "record": record, "done": True}

    return Stub


def measure(store_uri: str, name: str, trials: int, profile: bool) -> dict[str, Any]:
    """Seconds of overhead per trial, and of the driver's slowest steps."""
    from ray import tune

    from atose_ray.data.shards import load_manifest
    from atose_ray.runtime import search as searching
    from atose_ray.runtime.cluster import cluster, cluster_nodes
    from atose_ray.search.plan import make_plan
    from atose_ray.search.record import load_trials, study_store
    from atose_ray.search.session import Session
    from atose_ray.search.space import load_study
    from atose_ray.search.trials import Space
    from atose_ray.storage import Store

    store = Store(store_uri)
    study = load_study("demo", (f"search.trials={trials}", f"search.concurrency={SLOTS}"))
    manifest = load_manifest(store, "demo")
    vars(searching)["trainable"] = lambda plan, shared: tune.with_resources(stub_trial(), {"CPU": 1})
    with cluster(cpus=SLOTS):
        plan = make_plan(study.search, False, cluster_nodes())
        space = Space(study, name, store.uri, manifest, plan)
        folder = study_store(store, name)
        profiler = cProfile.Profile()
        began = time.time()
        if profile:
            profiler.enable()
        with Session(folder) as session:
            searching.search(space, session, ())
        profiler.disable()
        ended = time.time()
    records = load_trials(folder)
    assert len(records) == trials and {one.state for one in records} == {"complete"}
    if profile:
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(60)
    ends = sorted(one.finished for one in records if one.finished)
    gaps = [SLOTS * (ends[-1] - ends[i]) / (trials - 1 - i) - WORK_S for i in (trials // 10, trials // 2)]
    return {
        "trials": trials,
        "slots": SLOTS,
        "overhead_s": round((ended - began) * SLOTS / trials - WORK_S, 3),
        "after_the_first_tenth_s": round(gaps[0], 3),
        "second_half_s": round(gaps[1], 3),
        "wall_s": round(ended - began, 1),
        "load": round(os.getloadavg()[0], 1),  # of the machine: others at work make everything slower
    }


def prepare_demo(store_uri: str) -> None:
    """The demo's data, which the configurations are checked on."""
    from atose_ray import prepare

    prepare.main(["demo", "--store", store_uri])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--store", help="a store with the demo data (default: a new one)")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--append", action="store_true", help=f"add the result to {RESULTS.name}")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    lines = []
    for repeat in range(options.repeats):
        with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
            os.environ.setdefault("RAY_TMPDIR", scratch)
            uri = options.store or scratch
            if not options.store:
                prepare_demo(uri)
            lines.append(measure(uri, f"overhead-{time.time():.0f}-{repeat}", options.trials, options.profile))
            print(json.dumps(lines[-1]), flush=True)
    print("median overhead per trial:", statistics.median(line["overhead_s"] for line in lines), "s")
    if options.append:
        from atose_ray.search.space import versions

        with RESULTS.open("a") as stream:
            for line in lines:
                stream.write(json.dumps({**line, "cpus": os.cpu_count(), "versions": versions()}) + "\n")
