"""ESC-10, five folds: a small search inside the training folds, beside a random forest and the published figures.

    python -m benchmarks.esc10 --esc10 DIR [--append] [--seeds 1] [--epochs 12] [--waveform] [--candidates ...]

For every fold as the test fold, each candidate trains on three folds, its epoch is chosen on a fourth; so is the
candidate. The fifth is heard once, by the one that was chosen: a search that is nested, of a grid (CANDIDATES). Given
are the accuracies of the chosen over the folds, and, not nested, of every candidate alone.

Beside it: a random forest (500 trees) on the means and variances of MFCCs and of their changes (audio/mfcc.py), on the
very same files and folds, trained on the same three folds and on all four. Published (Piczak, ACM Multimedia 2015),
four folds: random forest 72.7 %, SVM 67.5 %, people 95.7 %.

--waveform: encoders of the bare waveform too, on fold 1, in about the same CPU seconds as a candidate; they are not
chosen from. --folder DIR: kept, so that the same command goes on where it was stopped. `--append` adds a JSON line to
benchmarks/results/esc10.jsonl. DIR is in ESC-50's layout.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier

from atose_ray.audio.io import decode
from atose_ray.audio.mfcc import MFCC
from atose_ray.config import run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import load_manifest
from atose_ray.datasets import dataset_config
from atose_ray.evaluation.significance import spread
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, finish_run, open_run, resolve
from benchmarks.timing import append

PUBLISHED = {"random forest": 0.727, "SVM": 0.675, "people": 0.957}
FOLDS = (1, 2, 3, 4, 5)
PANN = {"kind": "pann_cnn", "layout": "cnn6", "hop_samples": 640}
CANDIDATES: dict[str, dict[str, Any]] = {
    "plain": {"encoder": PANN},
    "turned": {"encoder": PANN, "data": {"augment": {"gain_db": 6.0, "shift": 1.0}}},
}
WAVEFORM: dict[str, dict[str, Any]] = {  # epochs: what takes as long as 12 of the candidates
    "sample_cnn": {"encoder": {"kind": "sample_cnn", "channels": 16, "se_ratio": 1, "bn_momentum": 0.1}, "epochs": 4},
    "harmonic_cnn": {"encoder": {"kind": "harmonic_cnn", "channels": 16, "bn_momentum": 0.1}, "epochs": 2},
}


def trained(store_uri: str, place: str, name: str, fold: int, seed: int, epochs: int) -> dict[str, Any]:
    """One training: accuracy on validation and test of its best epoch, and the CPU seconds it took. One that `place`
    has is taken as it is."""
    if Store(place).exists("row.json"):
        return dict(Store(place).read_json("row.json"))
    torch.set_num_threads(1)
    arm, began = {**CANDIDATES, **WAVEFORM}[name], time.process_time()
    tree = {
        "data": {"dataset": "esc50", "crop_seconds": 5.0, "eval_crops": 1, "fold": fold, **arm.get("data", {})},
        "encoder": arm["encoder"],
        "method": {
            "kind": "supervised",
            "head": {"kind": "linear", "dropout": 0.2},
            "stages": [{"name": "classify", "epochs": arm.get("epochs", epochs)}],
        },
        "optim": {"kind": "adam", "lr": 3e-3, "schedule": "cosine", "warmup_steps": 30},
        "metric": "accuracy",
        "seed": seed,
        "execution": {"threads": 1, "device": "cpu"},
    }
    store = Store(store_uri)
    run = resolve(run_config(tree), store, load_manifest(store, "esc50"))
    job = Job(run, store.uri, place, {"number": 0, "name": name, "params": {}, "distributions": {}})
    opened = open_run(job)
    fit(opened.run, opened.method, opened.batches, opened.folder)
    best = Store(place).child("best")
    finish_run(job, best)
    metrics = best.read_json("metrics.json")
    accuracies = {split: metrics[split]["accuracy"] for split in ("valid", "test")}
    row = {"arm": name, "fold": fold, "seed": seed, **accuracies, "cpu_seconds": time.process_time() - began}
    Store(place).write_json("row.json", row)
    return row


def forest(source: str, seeds: int) -> dict[str, list[float]]:
    """Accuracy of random forests on every fold, of three training folds (without the next one) and of all four."""
    clips = dataset_config("esc50", source=source, esc10=True).list_clips().clips
    mfcc = MFCC(16000)
    features_NX = np.stack(
        [mfcc(torch.from_numpy(decode(clip.source, sample_rate_hz=16000).audio_T)) for clip in clips]
    )
    class_N, fold_N = np.array([clip.tags[0] for clip in clips]), np.array([clip.fold for clip in clips])
    found: dict[str, list[float]] = {"random forest, three folds": [], "random forest, four folds": []}
    for seed in range(seeds):
        for fold in FOLDS:
            for name, left_out in zip(found, ((fold, fold % len(FOLDS) + 1), (fold,)), strict=True):
                train_N, test_N = ~np.isin(fold_N, left_out), fold_N == fold
                model = RandomForestClassifier(500, random_state=seed).fit(features_NX[train_N], class_N[train_N])
                found[name].append(float(model.score(features_NX[test_N], class_N[test_N])))
    return found


def chosen(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every fold and seed the candidate that validated best; the first of equal ones."""
    places = dict.fromkeys((row["fold"], row["seed"]) for row in rows)
    of_place = ([row for row in rows if (row["fold"], row["seed"]) == place] for place in places)
    return [max(group, key=lambda row: row["valid"]) for group in of_place]


def table(rows: list[dict[str, Any]], forests: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Mean, deviation and interval of the test accuracies, of all there is."""
    found: dict[str, list[float]] = {}
    names = list(dict.fromkeys(row["arm"] for row in rows))
    if len(names) > 1:
        found["chosen in the training folds"] = [row["test"] for row in chosen(rows)]
    for name in names:
        found[f"{name} alone"] = [row["test"] for row in rows if row["arm"] == name]
    return {name: vars(spread(values)) for name, values in (found | forests).items()}


def main() -> None:
    """Prepare, train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc10", metavar="DIR", required=True)
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--waveform", action="store_true")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--folder", metavar="DIR", help="for the prepared set and the trainings")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.batch, args.rounds, args.threads, args.device, began = 16, args.seeds, 1, "cpu", time.perf_counter()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="esc10-") as scratch:
        scratch = args.folder or scratch
        store = Store(str(Path(scratch) / "store"))
        prepare(dataset_config("esc50", source=args.esc10, esc10=True), store)
        jobs = [(name, fold, seed) for name in args.candidates for seed in range(args.seeds) for fold in FOLDS]
        jobs[len(FOLDS) : len(FOLDS)] = [(name, 1, 0) for name in WAVEFORM if args.waveform]
        rows = []
        with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:
            waiting = [
                pool.submit(trained, store.uri, str(Path(scratch) / "-".join(map(str, job))), *job, args.epochs)
                for job in jobs
            ]
            for training in waiting:
                rows.append(training.result())
                print(rows[-1], flush=True)
    minutes = (time.perf_counter() - began) / 60
    found = table([row for row in rows if row["arm"] in CANDIDATES], forest(args.esc10, args.seeds))
    for name, one in found.items():
        print(f"{name:<32} {one['mean']:.3f}  deviation {one['deviation']:.3f}  {one['low']:.3f} to {one['high']:.3f}")
    print("published: " + ", ".join(f"{name} {value:.3f}" for name, value in PUBLISHED.items()))
    print(f"{minutes:.1f} minutes, {sum(row['cpu_seconds'] for row in rows) / 60:.1f} of CPU, but for the forests")
    if args.append:
        append("esc10", args, {"table": found, "published": PUBLISHED, "runs": rows, "minutes": minutes})


if __name__ == "__main__":
    main()
