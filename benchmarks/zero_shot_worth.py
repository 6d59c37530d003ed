"""What words are worth for tags that were never trained on: retrieval of unseen tags, by method and tag vectors.

    python -m benchmarks.zero_shot_worth --notes DIR --esc10 DIR [--append] [--seeds 5] [--epochs 15]

Per seed 15 or 20 % of the tags are drawn and kept unseen (data.tag_split); every arm trains on the same clips with the
same seed, MelCNN at the published length, and ranks all test clips for each unseen tag: ROC-AUC, mean over the unseen
tags (protocol generalised_zero_shot). Arms: zero_shot with GloVe (pip install 'atose_ray[glove]'),
with random vectors, and joint_embedding (InfoNCE) with GloVe on its tag side. Given are means over seeds with Student's
95 % intervals, of the arms and of their differences from zero_shot with GloVe. `--append` adds a JSON line to
benchmarks/results/zero_shot_worth.jsonl.

DIR of --notes is a folder with a tags.csv, several tags per clip; of --esc10 one in ESC-50's layout.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atose_ray.config import run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import Manifest
from atose_ray.data.views import of_all_tags
from atose_ray.datasets import dataset_config
from atose_ray.evaluation.protocols import PROTOCOLS
from atose_ray.evaluation.significance import spread
from atose_ray.storage import Store
from atose_ray.training.checkpoint import best_model
from atose_ray.training.loop import fit
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, open_run, resolve, score_split
from atose_ray.training.sources import tags_with_vectors
from benchmarks.timing import append

GLOVE, RANDOM = {"kind": "glove"}, {"kind": "random", "size": 50}
ALIGN = {"kind": "zero_shot", "negatives": "all", "reduction": "mean", "margin": 0.4}
JOINT = {
    "kind": "joint_embedding",
    "tag_side": "vectors",
    "objective": {"kind": "info_nce"},
    "head": {"kind": "linear"},
}
ARMS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "zero_shot, GloVe": (ALIGN, "align", GLOVE),
    "zero_shot, random": (ALIGN, "align", RANDOM),
    "joint_embedding, GloVe": (JOINT, "joint", GLOVE),
}
METRICS = ("unseen_retrieval_roc_auc", "seen_retrieval_roc_auc")


def score(arm: str, seed: int, store: Store, manifest: Manifest, place: str, args: Any) -> dict[str, float]:
    """One training, and what its best epoch makes of the test clips."""
    method, stage, vectors = ARMS[arm]
    share = 0.8 if len(manifest.data_spec.tags) <= 10 else 0.85
    tree = {
        "data": {
            "dataset": manifest.name,
            "crop_seconds": "published",
            "batch_size": 32,
            "eval_crops": 2,
            "tag_split": {"seen_share": share, "seed": seed},
        },
        "encoder": {"kind": "mel_cnn"},
        "method": {**method, "stages": [{"name": stage, "epochs": args.epochs}]},
        "tag_vectors": vectors,
        "optim": {"kind": "adam", "lr": 1e-3},
        "metric": "roc_auc_macro",
        "seed": seed,
        "execution": {"threads": args.threads, "device": args.device},
    }
    run = resolve(run_config(tree), store, manifest)
    opened = open_run(Job(run, store.uri, place, {}))
    fit(opened.run, opened.method, opened.batches, opened.folder, device=opened.device)
    model = best_model(RunFolder(Store(place)))
    view, unseen = of_all_tags(manifest, run.data, store)
    names, protocol = view.manifest.data_spec.tags, PROTOCOLS["generalised_zero_shot"]
    scores = score_split(model, view, store.uri, "test", protocol.windows, None, tags_with_vectors(model, names))
    scores = dataclasses.replace(scores, unseen_C=np.array([name in unseen for name in names]))
    found = protocol.metrics(scores, manifest.data_spec.exclusive)
    return {name: found[name] for name in METRICS}


def compare(name: str, kind: str, source: str, args: Any, folder: Path) -> dict[str, Any]:
    """All arms on one set."""
    store = Store(str(folder / "store"))
    options: dict[str, Any] = {"exclusive": True} if name == "esc10" and kind == "folder" else {}
    manifest, _ = prepare(dataset_config(kind, source=source, sample_rate_hz=22050, **options), store, name=name)
    values: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(args.seeds):
        for arm in ARMS:
            start = time.perf_counter()
            place = str(folder / name / f"{arm.replace(', ', '-')}-{seed}")
            values[arm].append(score(arm, seed, store, manifest, place, args))
            print(f"{name} seed {seed} {arm}: {values[arm][-1]} ({time.perf_counter() - start:.0f} s)", flush=True)
    rows: dict[str, Any] = {}
    first = values["zero_shot, GloVe"]
    for arm, found in values.items():
        each = {metric: [one[metric] for one in found] for metric in METRICS}
        behind = [base[METRICS[0]] - one[METRICS[0]] for base, one in zip(first, found, strict=True)]
        rows[arm] = {metric: vars(spread(each[metric])) for metric in METRICS} | {"values": each[METRICS[0]]}
        if arm != "zero_shot, GloVe":
            rows[arm]["GloVe's lead"] = vars(spread(behind))
        mean = rows[arm][METRICS[0]]
        print(f"{name} {arm}: unseen {mean['mean']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})", flush=True)
    return rows


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--notes", metavar="DIR")
    parser.add_argument("--esc10", metavar="DIR")
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    args.batch, args.rounds = 32, args.seeds
    torch.set_num_threads(args.threads)
    results = {}
    with tempfile.TemporaryDirectory(prefix="zero-shot-") as scratch:
        for name, kind, source in (("notes", "folder", args.notes), ("esc10", "esc50", args.esc10)):
            if source:
                results[name] = compare(name, kind, source, args, Path(scratch))
    if args.append:
        append("zero_shot_worth", args, results, epochs=args.epochs)


if __name__ == "__main__":
    main()
