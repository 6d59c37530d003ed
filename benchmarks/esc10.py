"""ESC-10, five folds: a search inside the training folds, beside a random forest and the published figures.

    python -m benchmarks.esc10 --esc10 DIR --folder DIR [--seeds 3] [--epochs 30 40] [--processes 2] [--append]

Nested: for every fold as the test fold, each candidate trains on three of the other four and is scored on the fourth
(the mean of its last five epochs, so that no single lucky one decides). The one with the best score trains on all four,
for a number of epochs that is set beforehand, with every seed; the weights of its last epoch, their average, hear the
fifth fold. That fold is read nowhere before. CANDIDATES were written down after trainings on fold 1 (validated on fold
2) and no other had been looked at.

Beside it: a random forest (500 trees) on the means and variances of MFCCs and of their changes (audio/mfcc.py), on the
very same files and folds, trained on three folds and on all four. Published (Piczak, ACM Multimedia 2015), four folds:
random forest 72.7 %, SVM 67.5 %, people 95.7 %.

--folder: kept, so that the same command goes on where it was stopped. `--append` adds a JSON line to
benchmarks/results/esc10.jsonl. --esc10: a folder in ESC-50's layout.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier

from atose_ray.audio.io import decode
from atose_ray.audio.mfcc import MFCC
from atose_ray.config import RunConfig, merge, run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import load_manifest
from atose_ray.data.views import View
from atose_ray.datasets import dataset_config
from atose_ray.evaluation.protocols import CLIP
from atose_ray.evaluation.significance import spread
from atose_ray.storage import Store
from atose_ray.training.checkpoint import Model
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, batches_in, open_run, resolve, score_split, view_for
from benchmarks.timing import append

PUBLISHED = {"random forest": 0.727, "SVM": 0.675, "people": 0.957}
FOLDS = (1, 2, 3, 4, 5)
BASE: dict[str, Any] = {
    "data": {
        "dataset": "esc50",
        "crop_seconds": 5.0,
        "eval_crops": 1,
        "augment": {"gain_db": 6.0, "shift": 1.0, "mixup": 0.3},
    },
    "encoder": {"kind": "pann_cnn", "layout": "cnn6", "hop_samples": 640},
    "method": {"kind": "supervised", "head": {"kind": "linear", "dropout": 0.2}},
    "optim": {"kind": "adam", "lr": 3e-3, "schedule": "cosine", "warmup_steps": 30, "average": 0.99},
    "metric": "accuracy",
    "execution": {"threads": 1, "device": "cpu"},
}
CANDIDATES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "masks": {"encoder": {"spec_augment": {"mel_share": 0.2}}},
    "speeds": {"data": {"augment": {"speed": 0.1}}},
    "two convolutions": {"encoder": {"layout": "cnn10"}},
}


def run_of(store: Store, candidate: str, fold: int, seed: int, epochs: int) -> RunConfig:
    """One training, resolved."""
    tree = merge(merge(BASE, CANDIDATES[candidate]), {"data": {"fold": fold}, "seed": seed})
    tree["method"] = {**tree["method"], "stages": [{"name": "classify", "epochs": epochs}]}
    return resolve(run_config(tree), store, load_manifest(store, "esc50"))


def kept(place: Store, train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `train` found, which is done once."""
    if not place.exists("row.json"):
        torch.set_num_threads(1)
        began = time.process_time()
        place.write_json("row.json", {**train(), "cpu_seconds": time.process_time() - began})
    return dict(place.read_json("row.json"))


def searched(store_uri: str, place: str, candidate: str, fold: int, epochs: int) -> dict[str, Any]:
    """A candidate on three folds: its validation accuracy on the fourth."""

    def train() -> dict[str, Any]:
        opened = open_run(Job(run_of(Store(store_uri), candidate, fold, 0, epochs), store_uri, place))
        fit(opened.run, opened.method, opened.batches, opened.folder)
        last = [record.valid["accuracy"] for record in opened.folder.epochs()][-5:]
        return {"candidate": candidate, "fold": fold, "valid": sum(last) / len(last)}

    return kept(Store(place), train)


def on_four_folds(view: View) -> View:
    """The view with its validation fold among the training clips too."""
    shards, spec = view.manifest.shards, view.manifest.data_spec
    again = tuple(shard.model_copy(update={"split": "train"}) for shard in shards if shard.split == "valid")
    counts = {**spec.counts, "train": spec.counts["train"] + spec.counts["valid"]}
    of_four = spec.model_copy(update={"counts": counts})
    return replace(view, manifest=view.manifest.model_copy(update={"shards": (*shards, *again), "data_spec": of_four}))


def tested(store_uri: str, place: str, candidate: str, fold: int, seed: int, epochs: int) -> dict[str, Any]:
    """A candidate on four folds, its last epoch on the fifth."""

    def train() -> dict[str, Any]:
        store = Store(store_uri)
        run = run_of(store, candidate, fold, seed, epochs)
        opened, view = open_run(Job(run, store_uri, place)), view_for(run, store)
        batches = batches_in(on_four_folds(view.without_test()), run, store_uri, device=opened.device)
        fit(opened.run, opened.method, batches, opened.folder)
        model = Model(opened.method.eval(), run, opened.method.spec, "classify", {})
        test = CLIP.metrics(score_split(model, view, store_uri, "test", CLIP.windows), True)
        return {"candidate": candidate, "fold": fold, "seed": seed, "test": test["accuracy"]}

    return kept(Store(place), train)


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


def chosen(rows: list[dict[str, Any]]) -> dict[int, str]:
    """Of every test fold the candidate that validated best inside its training folds; the first of equal ones."""
    of_fold = {fold: [row for row in rows if row["fold"] == fold] for fold in FOLDS}
    return {fold: max(group, key=lambda row: row["valid"])["candidate"] for fold, group in of_fold.items()}


def main() -> None:
    """Prepare, search, train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--esc10", metavar="DIR", required=True)
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--folder", metavar="DIR", required=True, help="for the prepared set and the trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, nargs=2, default=[30, 40], help="of the search, and of the chosen")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.batch, args.rounds, args.threads, args.device, began = 16, args.seeds, 1, "cpu", time.perf_counter()
    torch.set_num_threads(1)
    store, place = Store(str(Path(args.folder) / "store")), Path(args.folder)
    prepare(dataset_config("esc50", source=args.esc10, esc10=True), store)
    with ProcessPoolExecutor(args.processes, multiprocessing.get_context("spawn")) as pool:

        def done(train: Callable[..., dict[str, Any]], jobs: list[tuple[Any, ...]], kind: str) -> list[dict[str, Any]]:
            names = ("-".join(map(str, (kind, *job))).replace(" ", "_") for job in jobs)
            waiting = [
                pool.submit(train, store.uri, str(place / name), *job) for name, job in zip(names, jobs, strict=True)
            ]
            rows = []
            for training in waiting:
                rows.append(training.result())
                print(rows[-1], flush=True)
            return rows

        searches, trained = args.epochs
        inner = done(searched, [(name, fold, searches) for fold in FOLDS for name in args.candidates], "search")
        choice = chosen(inner)
        print("chosen:", choice, flush=True)
        jobs = [(choice[fold], fold, seed, trained) for seed in range(args.seeds) for fold in FOLDS]
        rows = done(tested, jobs, "test")
    minutes = (time.perf_counter() - began) / 60
    by_seed = {f"seed {seed}": [row["test"] for row in rows if row["seed"] == seed] for seed in range(args.seeds)}
    accuracies = {"chosen in the training folds": [row["test"] for row in rows], **by_seed}
    found = {name: vars(spread(values)) for name, values in (accuracies | forest(args.esc10, args.seeds)).items()}
    for name, one in found.items():
        print(f"{name:<32} {one['mean']:.3f}  deviation {one['deviation']:.3f}  {one['low']:.3f} to {one['high']:.3f}")
    print("published: " + ", ".join(f"{name} {value:.3f}" for name, value in PUBLISHED.items()))
    cpu_minutes = sum(row["cpu_seconds"] for row in (*inner, *rows)) / 60
    print(f"{minutes:.1f} minutes, {cpu_minutes:.1f} of CPU, but for the forests")
    if args.append:
        facts = {"table": found, "published": PUBLISHED, "search": inner, "chosen": choice, "runs": rows}
        append("esc10", args, {**facts, "minutes": minutes, "cpu_minutes": cpu_minutes})


if __name__ == "__main__":
    main()
