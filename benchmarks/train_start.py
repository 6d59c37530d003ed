"""How long a trial takes from being asked for to its first step: `python -m benchmarks.train_start [--append]`.

A real search of small trainings (one epoch each), two trials at a time on a Ray that is up: once in the trial's own
process (`workers_per_trial: 0`), once in a Ray Train group of one worker. The time runs from Optuna's suggestion (the
run folder's `started`) to the beginning of the first training step (the first epoch's end less its seconds). The first
trials of a search import PyTorch in a new process; the later ones show what a search pays for each trial.
`--append` adds a line per kind to benchmarks/results/train_start.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from typing import Any

from benchmarks.timing import RESULTS

SLOTS = 2
BASE = {
    "data": {"dataset": "demo", "crop_seconds": 1.0, "batch_size": 8, "train_share": 0.2, "residency": "host"},
    "encoder": {"kind": "sample_cnn", "channels": 4},
    "method": {"kind": "supervised", "stages": [{"name": "classify", "epochs": 1}]},
}
SPACE = {"optim": {"lr": {"range": [1e-3, 1e-2], "log": True}}}


def delays(store_uri: str, workers: int, trials: int, slots: int) -> list[float]:
    """Seconds of each trial, in the order in which they were asked for."""
    from atose_ray.config import StudyConfig
    from atose_ray.data.shards import load_manifest
    from atose_ray.runtime.cluster import cluster_nodes
    from atose_ray.runtime.search import search
    from atose_ray.search.plan import make_plan
    from atose_ray.search.record import load_trials, study_store
    from atose_ray.search.session import Session
    from atose_ray.search.trials import Space
    from atose_ray.storage import Store

    search_settings = {"trials": trials, "concurrency": slots, "workers_per_trial": workers, "pruner": {"kind": "none"}}
    study = StudyConfig.model_validate({"base": BASE, "space": SPACE, "search": search_settings})
    store, name = Store(store_uri), f"start-{workers}-{slots}-{time.time():.0f}"
    manifest = load_manifest(store, "demo")
    plan = make_plan(study.search, False, cluster_nodes())
    space = Space(study, name, store.uri, manifest, plan)
    with Session(study_store(store, name)) as session:
        search(space, session, ())
    records = sorted(load_trials(study_store(store, name)), key=lambda one: one.started)
    failed = [one.reason for one in records if not one.epochs]
    if failed:
        raise RuntimeError(f"trials without an epoch: {failed}")
    return [one.epochs[0].time - one.epochs[0].seconds - one.started for one in records]


def main() -> None:
    """Both kinds, one after the other in one Ray."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--store", help="a store with the demo data (default: a new one)")
    parser.add_argument("--append", action="store_true", help="add lines to benchmarks/results/")
    options = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        os.environ.setdefault("RAY_TMPDIR", scratch)
        from atose_ray import prepare
        from atose_ray.runtime.cluster import cluster
        from atose_ray.search.space import versions

        store = options.store or scratch
        if not options.store:
            prepare.main(["demo", "--store", store])
        for workers, slots in ((0, SLOTS), (1, SLOTS), (1, 1)):
            with cluster(cpus=SLOTS + 1):
                found = delays(store, workers, options.trials, slots)
            rest = found[slots:]
            line: dict[str, Any] = {
                "workers_per_trial": workers,
                "slots": slots,
                "first_s": [round(one, 2) for one in found[:slots]],
                "later_s": [round(one, 2) for one in rest],
                "later_median_s": round(statistics.median(rest), 2),
                "load": round(os.getloadavg()[0], 1),
                "cpus": os.cpu_count(),
                "date": time.strftime("%Y-%m-%d"),
            }
            print(json.dumps(line), flush=True)
            if options.append:
                with (RESULTS / "train_start.jsonl").open("a") as stream:
                    stream.write(json.dumps({**line, "versions": versions()}) + "\n")


if __name__ == "__main__":
    main()
