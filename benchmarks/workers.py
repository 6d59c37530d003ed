"""Does the number of workers change what a run reaches? One configuration, three seeds, 0, 1 and 2 workers.

    python benchmarks/workers.py --store atose_store [--append]

Prints the best validation score of every run and, per worker count, mean and range over the seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

from atose_ray.config import SearchConfig, apply_overrides, run_config
from atose_ray.data.shards import load_manifest
from atose_ray.runtime.cluster import cluster
from atose_ray.runtime.train import train_on_ray
from atose_ray.search.space import compose, load_study, versions
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, open_run, resolve, use_threads

SETTINGS = (
    "encoder.kind=sample_cnn",
    "encoder.block=basic",
    "encoder.channels=8",
    "encoder.bn_momentum=0.1",
    "method.kind=supervised",
    "method.head.kind=linear",
    "method.stages=[{name: classify, epochs: 10}]",
    "optim.lr=4e-3",
    "execution.ingest=ray_data",
    "execution.threads=1",
)


def best_value(job: Job, workers: int, ray_folder: str) -> float:
    """Train a job and return its best validation score."""
    if workers:
        search = SearchConfig(workers_per_trial=workers, cpus_per_worker=1)
        train_on_ray(job, search, 0.0, f"seed{job.run.seed}-w{workers}", ray_folder)
    else:
        opened = open_run(job)
        fit(opened.run, opened.method, opened.batches, opened.folder)
    return RunFolder(Store(job.folder_uri)).epochs()[-1].objective


def main() -> None:
    """Nine runs in turns, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", default="atose_store")
    parser.add_argument("--append", action="store_true", help="add a line to benchmarks/results/workers.jsonl")
    options = parser.parse_args()
    use_threads(1)
    store = Store(options.store)
    tree = apply_overrides(compose(load_study("demo"), {}).model_dump(mode="json"), SETTINGS)
    manifest = load_manifest(store, tree["data"]["dataset"])
    scores: dict[int, list[float]] = {0: [], 1: [], 2: []}
    folder = tempfile.mkdtemp(prefix="atose-workers-")
    with cluster(cpus=4):
        for seed in range(3):
            run = resolve(run_config({**tree, "seed": seed}), store, manifest)
            for workers in scores:
                job = Job(run, store.uri, f"{folder}/seed{seed}-w{workers}", {"number": seed, "name": "workers"})
                scores[workers].append(best_value(job, workers, f"{folder}/ray"))
                print(f"seed {seed}, {workers} workers: {run.metric} {scores[workers][-1]:.4f}", flush=True)
    shutil.rmtree(folder)
    for workers, values in scores.items():
        print(f"{workers} workers: mean {sum(values) / 3:.4f}, range {min(values):.4f} to {max(values):.4f}")
    if options.append:
        about = {"benchmark": "workers", "date": time.strftime("%Y-%m-%d"), "device": "CPU"}
        line = {**about, "scores": scores, **versions()}
        with Path("benchmarks/results/workers.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
