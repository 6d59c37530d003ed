"""What joint embedding is worth: the same small encoder, trained with and without it, scored on the same test clips.

    python -m benchmarks.joint_embedding_worth run --store STORE --dataset demo [--seeds 5] [--arms A B ...]
    python -m benchmarks.joint_embedding_worth table

`run` trains every arm on three shares of the training clips (EPOCHS) and appends a JSON line per training to
benchmarks/results/joint_embedding_worth.jsonl; what stands there is not trained again. `table` prints the means.

Every arm trains for the same number of epochs with the same rates and the same head (linear). Frozen arms spend two
thirds of them on stage "embed", fine-tuned arms half. The model of the epoch with the best validation score is scored
on test, once. Arms:

    supervised             no joint embedding
    random/frozen          a linear head on an encoder that was never trained
    OBJECTIVE/frozen       stage "embed", then the head alone: the published recipe
    OBJECTIVE/fine_tuned   stage "embed", then the head alone, then head and encoder at 0.3 times the rate
    OBJECTIVE/joint        one stage, the joint embedding as an auxiliary loss of weight 0.3
    OBJECTIVE/light_joint  the same, of weight 0.03
    OBJECTIVE/warm_start   a third of the epochs in stage "embed", then head and encoder at the full rate
    OBJECTIVE/permuted/..  as frozen or fine_tuned, but in stage "embed" every clip has the tags of another clip
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atose_ray.config import run_config
from atose_ray.data.batches import BatchSource
from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, finish_run, open_run, resolve
from atose_ray.types import AnyBatch, Batch, Split

RESULTS = Path(__file__).parent / "results" / "joint_embedding_worth.jsonl"
OBJECTIVES = ("pairwise_margin", "cosine", "info_nce", "soft_targets")
ARMS = (
    "supervised",
    "random/frozen",
    *(f"{objective}/{mode}" for objective in OBJECTIVES for mode in ("frozen", "fine_tuned", "joint")),
    *(f"pairwise_margin/permuted/{mode}" for mode in ("frozen", "fine_tuned")),
    "info_nce/warm_start",
    "soft_targets/light_joint",
)
ENCODERS = {
    "sample_cnn": {"kind": "sample_cnn", "block": "basic", "channels": 8, "bn_momentum": 0.1},
    "harmonic_cnn": {"kind": "harmonic_cnn", "channels": 8, "bn_momentum": 0.1},
    "pann_cnn": {"kind": "pann_cnn", "layout": "cnn6", "channels": 8, "hop_samples": 640},
}
CROP_SECONDS = {"demo": 1.5, "folder": 0.8, "notes": 1.5}
EPOCHS = {  # data set -> share of the training clips -> epochs of all stages together
    "demo": {0.05: 60, 0.2: 36, 1.0: 18},
    "folder": {0.05: 45, 0.2: 24, 1.0: 12},
    "notes": {0.2: 36, 0.5: 24, 1.0: 18},
}
FINE_TUNED_RATE = 0.3
JOINT_WEIGHT, LIGHT_WEIGHT = 0.3, 0.03
KEPT = ("pr_auc_macro", "roc_auc_macro", "paired_cosine", "unpaired_cosine", "audio_uniformity", "tag_uniformity")


def stages(arm: str, epochs: int) -> list[dict[str, Any]]:
    """The stage list of an arm."""
    mode = arm.rpartition("/")[2]
    if arm in ("supervised", "random/frozen"):
        return [{"name": "classify", "epochs": epochs}]
    if mode in ("joint", "light_joint"):
        return [{"name": "joint", "epochs": epochs}]
    if mode == "frozen":
        first = epochs * 2 // 3
        return [{"name": "embed", "epochs": first}, {"name": "classify", "epochs": epochs - first}]
    if mode == "warm_start":
        both = {"epochs": epochs - epochs // 3, "trains": ["encoder", "classifier"]}
        return [{"name": "embed", "epochs": epochs // 3}, {"name": "classify", **both}]
    first, head = epochs // 2, epochs // 6
    both = {"epochs": epochs - first - head, "trains": ["encoder", "classifier"], "lr_scale": FINE_TUNED_RATE}
    return [{"name": "embed", "epochs": first}, {"name": "classify", "epochs": head}, {"name": "classify", **both}]


def run_tree(arm: str, dataset: str, encoder: str, share: float, seed: int, lr: float) -> dict[str, Any]:
    """The configuration of one training."""
    method: dict[str, Any] = {"kind": "supervised"}
    if arm != "supervised":
        objective = arm.partition("/")[0]
        kind = objective if objective in OBJECTIVES else "pairwise_margin"
        weight = LIGHT_WEIGHT if arm.endswith("light_joint") else JOINT_WEIGHT
        method = {"kind": "joint_embedding", "latent": 64, "joint_weight": weight, "objective": {"kind": kind}}
    method |= {"head": {"kind": "linear"}, "stages": stages(arm, EPOCHS[dataset][share])}
    return {
        "data": {
            "dataset": dataset,
            "crop_seconds": CROP_SECONDS[dataset],
            "batch_size": 16,
            "eval_crops": 1,
            "train_share": share,
        },
        "encoder": ENCODERS[encoder],
        "method": method,
        "optim": {"kind": "adam", "lr": lr, "schedule": "cosine", "warmup_steps": 10},
        "seed": seed,
        "execution": {"threads": 1},
    }


class PermutedTags:
    """A BatchSource whose training clips carry each other's tags for the first `epochs` epochs."""

    def __init__(self, source: BatchSource, epochs: int, seed: int) -> None:
        self.source, self.epochs = source, epochs
        batches = list(source.train(0))
        ids = torch.cat([batch.clip_id_B for batch in batches]).tolist()
        tags_NC = torch.cat([batch.tags_BC for batch in batches])
        order = np.random.default_rng(seed).permutation(len(ids))
        self.other = dict(zip(ids, tags_NC[torch.from_numpy(order)], strict=True))

    @property
    def sizes(self) -> list[int]:
        return self.source.sizes

    def steps(self) -> int:
        return self.source.steps()

    def evaluate(self, split: Split) -> Iterator[AnyBatch]:
        return self.source.evaluate(split)

    def train(self, epoch: int, first: int = 0) -> Iterator[AnyBatch]:
        for batch in self.source.train(epoch, first):
            if epoch >= self.epochs:
                yield batch
                continue
            assert isinstance(batch, Batch)
            tags_BC = torch.stack([self.other[clip] for clip in batch.clip_id_B.tolist()])
            yield batch._replace(tags_BC=tags_BC)


def train(tree: dict[str, Any], arm: str, manifest: Manifest, store: Store) -> dict[str, Any]:
    """One training: its best validation scores and the test scores of that epoch."""
    run = resolve(run_config(tree), store, manifest)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(run, store.uri, folder, {})
        opened = open_run(job)
        batches: BatchSource = opened.batches
        if "permuted" in arm:
            batches = PermutedTags(batches, run.method.stages[0].epochs, run.seed)
        start = time.perf_counter()
        result = fit(run, opened.method, batches, opened.folder, device=opened.device)
        seconds = time.perf_counter() - start
        metrics = finish_run(job, Store(folder).child("best"))
    kept = {split: {key: metrics[split][key] for key in KEPT if key in metrics[split]} for split in ("valid", "test")}
    return {
        **kept,
        "state": result.state,
        "epoch": metrics["epoch"],
        "stage": metrics["stage"],
        "tags_collapsed": metrics["tag_embedding_collapsed"],
        "protocol": metrics["protocol"],
        "prevalence": metrics["test_prevalence_mean"],
        "seconds": round(seconds, 1),
    }


def run(options: argparse.Namespace) -> None:
    """Train what is not in the results yet, seed by seed."""
    torch.set_num_threads(1)
    store = Store(options.store)
    manifest = load_manifest(store, options.dataset)
    done = {identity(line) for line in lines()}
    for seed in range(options.seeds):
        for share in options.shares or EPOCHS[options.dataset]:
            for arm in options.arms:
                head = {
                    "dataset": options.dataset,
                    "encoder": options.encoder,
                    "share": share,
                    "arm": arm,
                    "seed": seed,
                    "lr": options.lr,
                }
                if identity(head) in done:
                    continue
                tree = run_tree(arm, options.dataset, options.encoder, share, seed, options.lr)
                line = {**head, **train(tree, arm, manifest, store), "torch": torch.__version__}
                line |= {"python": platform.python_version(), "date": time.strftime("%Y-%m-%d")}
                with RESULTS.open("a") as stream:
                    stream.write(json.dumps(line) + "\n")
                print(f"{options.dataset} {share} {arm} seed {seed}: {line['test']['pr_auc_macro']:.4f}", flush=True)


def identity(line: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two trainings the same."""
    return tuple(line[key] for key in ("dataset", "encoder", "share", "arm", "seed", "lr"))


def lines() -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(options: argparse.Namespace) -> None:
    """Markdown: mean and standard deviation over the seeds of test `pr_auc_macro`, arm by share."""
    cells: dict[tuple[str, str], dict[tuple[str, float], list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in lines():
        cells[line["dataset"], line["encoder"]][line["arm"], line["share"]].append(line)
    for (dataset, encoder), arms in cells.items():
        shares = sorted({share for _, share in arms})
        print(f"\n{dataset}, {encoder}: test pr_auc_macro\n")
        print(
            "| arm | " + " | ".join(f"{share:.0%}" for share in shares) + " | paired / unpaired cosine | uniformity |"
        )
        print("|---" * (len(shares) + 3) + "|")
        for arm in ARMS:
            row = [arms[arm, share] for share in shares]
            if any(row):
                print("| " + " | ".join([arm, *map(spread, row), *joint_space(row[-1])]) + " |")


def spread(runs: list[dict[str, Any]]) -> str:
    """Mean, standard deviation over seeds, and how many."""
    values = [run["test"]["pr_auc_macro"] for run in runs]
    if not values:
        return ""
    deviation = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}" + (f" ({len(values)})" if len(values) != 5 else "")


def joint_space(runs: list[dict[str, Any]]) -> tuple[str, str]:
    """Means over the seeds of the joint space's figures on test, of the largest share."""
    tests = [run["test"] for run in runs if "paired_cosine" in run["test"]]
    if not tests:
        return "", ""
    paired, unpaired, audio, tag = (statistics.mean(test[key] for test in tests) for key in KEPT[2:])
    return f"{paired:+.2f} / {unpaired:+.2f}", f"audio {audio:.2f}, tags {tag:.2f}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    train_verb = verbs.add_parser("run")
    train_verb.add_argument("--store", required=True)
    train_verb.add_argument("--dataset", choices=sorted(EPOCHS), required=True)
    train_verb.add_argument("--encoder", choices=sorted(ENCODERS), default="sample_cnn")
    train_verb.add_argument("--seeds", type=int, default=5)
    train_verb.add_argument("--lr", type=float, default=3e-3)
    train_verb.add_argument("--shares", type=float, nargs="+", help="of the training clips; all of EPOCHS without")
    train_verb.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    train_verb.set_defaults(call=run)
    verbs.add_parser("table").set_defaults(call=table)
    options = parser.parse_args()
    options.call(options)


if __name__ == "__main__":
    main()
