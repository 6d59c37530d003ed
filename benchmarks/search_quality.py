"""Does the search find good configurations sooner than chance does?

    python benchmarks/search_quality.py record --store STORE --configurations 256   # once: hours on a laptop
    python benchmarks/search_quality.py race --append                               # minutes, on the recorded table

`record` draws configurations of the demo space at random, trains each one to its end (no pruning) and appends a line with
its parameters and its validation score after every epoch to `results/search_table.jsonl`; it goes on where it was.

`race` lets searches look their trainings up in that table: a configuration that is suggested is answered by the
recorded one that is nearest to it (the same choices first, then the nearest numbers). What is counted is epochs. Both
sides draw from the same space: random search trains everything to its end, TPE with successive halving is what
`python -m atose_ray.tune` runs (its sampler, its pruner, as many slots).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna

from atose_ray.config import StudyConfig
from atose_ray.data.shards import load_manifest
from atose_ray.search.space import compose, load_study, suggest
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, open_run, use_threads

TABLE = Path(__file__).parent / "results" / "search_table.jsonl"


def record(study: StudyConfig, store_uri: str, wanted: int, table: Path) -> None:
    """Train what the table lacks; one line per configuration."""
    from importlib import import_module

    try:
        store_of = import_module("atose_ray.store").Store
    except ModuleNotFoundError:
        store_of = import_module("atose_ray.data.store").Store
    manifest = load_manifest(store_of(store_uri), "demo")
    done = {row["number"] for row in rows_of(table)}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for number in range(wanted):
        if number in done:
            continue
        sampler = optuna.samplers.RandomSampler(seed=number)
        trial = optuna.create_study(sampler=sampler).ask()
        run = compose(study, suggest(trial, study.space), number).resolve(manifest.data_spec, manifest.content_hash)
        began = time.time()
        with tempfile.TemporaryDirectory() as scratch:
            opened = open_run(Job(run, store_uri, scratch))
            result = fit(opened.run, opened.method, opened.batches, opened.folder, device=opened.device)
            valid = [epoch.valid[study.search.metric] for epoch in opened.folder.epochs()]
        row = {"number": number, "params": trial.params, "valid": valid, "state": result.state}
        row["seconds"] = round(time.time() - began, 1)
        with table.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(number, row["seconds"], max(valid, default=None), flush=True)


def rows_of(table: Path) -> list[dict[str, Any]]:
    """What is recorded so far."""
    return [json.loads(line) for line in table.read_text().splitlines()] if table.exists() else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("record", "race"))
    parser.add_argument("--store")
    parser.add_argument("--configurations", type=int, default=256)
    parser.add_argument("--table", type=Path, default=TABLE)
    options = parser.parse_args()
    use_threads(1)
    record(load_study("demo", ("base.data.residency=host",)), options.store, options.configurations, options.table)
