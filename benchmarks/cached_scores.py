"""Does a head on cached embeddings score what a head behind the frozen encoder scores? Best validation score per seed.

    python -m benchmarks.cached_scores --store STORE --dataset folder [--append] [--seeds 5] [--caches off 8 2 1]

Stage "embed" (info_nce, 6 epochs), then 16 epochs of the head alone, once per number of cached crops; `off` hears a
fresh crop in every epoch. SampleCNN basic of 8 channels, half of the training clips, crops of 0.3 s, so that a clip has
many. `--append` adds a JSON line to benchmarks/results/cached_scores.jsonl.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
from typing import Any

import torch

from atose_ray.data.shards import load_manifest
from atose_ray.storage import Store
from benchmarks.joint_embedding_worth import ENCODERS, train
from benchmarks.timing import RESULTS


def tree(dataset: str, seed: int, cache: int | str) -> dict[str, Any]:
    """The configuration of one training."""
    stages = [{"name": "embed", "epochs": 6}, {"name": "classify", "epochs": 16, "cache": cache}]
    method = {"kind": "joint_embedding", "latent": 64, "objective": {"kind": "info_nce"}, "head": {"kind": "linear"}}
    return {
        "data": {"dataset": dataset, "crop_seconds": 0.3, "batch_size": 16, "eval_crops": 3, "train_share": 0.5},
        "encoder": ENCODERS["sample_cnn"],
        "method": {**method, "stages": stages},
        "optim": {"kind": "adam", "lr": 3e-3, "schedule": "cosine", "warmup_steps": 10},
        "seed": seed,
        "execution": {"threads": 1},
    }


def main() -> None:
    """Train, print, and append a line to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--caches", nargs="+", default=["off", "8", "2", "1"])
    parser.add_argument("--append", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    store = Store(options.store)
    manifest = load_manifest(store, options.dataset)
    scores: dict[str, list[float]] = {cache: [] for cache in options.caches}
    for seed in range(options.seeds):
        for cache in options.caches:
            kept = cache if cache == "off" else int(cache)
            line = train(tree(options.dataset, seed, kept), "frozen", manifest, store)
            scores[cache].append(line["valid"]["pr_auc_macro"])
            print(f"{options.dataset} seed {seed} cache {cache}: {scores[cache][-1]:.4f}", flush=True)
    for cache, values in scores.items():
        print(f"cache {cache}: {statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}")
    if options.append:
        facts = {"date": datetime.date.today().isoformat(), "torch": torch.__version__, "dataset": options.dataset}
        with (RESULTS / "cached_scores.jsonl").open("a") as file:
            file.write(json.dumps(facts | {"valid_pr_auc_macro": scores}) + "\n")


if __name__ == "__main__":
    main()
