"""`python -m atose_ray.evaluate MODEL`: score a chosen model under a named protocol, beside published figures."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from atose_ray import cli
from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.data.store import Store
from atose_ray.protocols import PROTOCOLS, Protocol, published_figures, published_metrics
from atose_ray.training.checkpoint import Model, load_model
from atose_ray.training.evaluate import evaluate, score_windows
from atose_ray.training.run import make_batches, pick_device
from atose_ray.types import SPLITS, Split


def arguments() -> argparse.ArgumentParser:
    """The command line of this verb."""
    parser = cli.parser(
        "evaluate",
        "Score a model on a split of its data set and print the scores with the name of their protocol.\n"
        "clip: a clip's score is the mean of its crops', every clip counts once.\n"
        "published: 16 windows per clip, each alone, all tags in one ranking, 200 thresholds (ATOSE / JETATAG).\n"
        "Scores of two protocols cannot be compared. Nothing is written.",
        "  python -m atose_ray.evaluate atose_store/studies/demo/best\n"
        "  python -m atose_ray.evaluate atose_store/studies/mtat/best --protocol published --json",
    )
    parser.add_argument("model", help="a model folder: `best` of a study or of a run")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which clips (default: test)")
    parser.add_argument("--protocol", choices=PROTOCOLS, default="clip", help="how they are scored (default: clip)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Load the model, read its data set from the store, score, print."""
    options = arguments().parse_args(argv)
    model = load_model(options.model)
    store = cli.open_store(options)
    dataset = model.run.data.dataset
    manifest = load_manifest(store, dataset)
    check_same_data(model, manifest)
    kind = str(manifest.dataset.get("kind", dataset))
    result = {
        "model": options.model,
        "dataset": dataset,
        "split": options.split,
        "protocol": options.protocol,
        "metrics": score(model, manifest, store, options.split, options.protocol),
        "published": beside(kind, len(model.spec.tags), options.split, options.protocol),
    }
    print(json.dumps(result, ensure_ascii=False) if options.json else as_text(result))


def check_same_data(model: Model, manifest: Manifest) -> None:
    """Raises ValueError when the store's data set has other tags than the model; says so when its clips are others."""
    ours, theirs = model.spec.tags, manifest.data_spec.tags
    if ours != theirs:
        raise ValueError(
            f"the model was trained on other tags than {model.run.data.dataset!r} in this store has: "
            f"{', '.join(ours[:5])} against {', '.join(theirs[:5])}; "
            "give the store it was trained from with --store, or prepare the data set as it was"
        )
    if manifest.content_hash != model.run.data.content_hash:
        print("note: the shards in this store are not those that the model was trained on", file=sys.stderr)


def score(model: Model, manifest: Manifest, store: Store, split: Split, protocol: Protocol) -> dict[str, float]:
    """The metrics of a split under a protocol."""
    device = pick_device(model.run)
    model.method.to(device)
    if protocol == "published":
        windows = score_windows(model, manifest, store.uri, split, device=device)
        return published_metrics(windows.scores_NKC, windows.tags_NC)
    batches = make_batches(model.run, manifest, store.uri).evaluate(split)
    return evaluate(model.method, batches, model.stage, device, model.spec.exclusive)


def beside(kind: str, tags: int, split: Split, protocol: Protocol) -> dict[str, Any] | None:
    """Published figures of this data set under this protocol, or None: those of another are no comparison."""
    figures = published_figures(kind, tags, split, protocol)
    if figures is None:
        return None
    rows = [{"system": row.system, figures.roc_auc: row.roc_auc, figures.pr_auc: row.pr_auc} for row in figures.systems]
    return {"source": figures.source, "protocol": protocol, "systems": rows}


def as_text(result: dict[str, Any]) -> str:
    """One line per metric with its protocol, then the published figures and this model's in one table."""
    mark = f"[{result['protocol']}]"
    lines = [f"{result['model']} on {result['dataset']}, {result['split']} split, protocol {result['protocol']}"]
    lines += [f"  {name:<38} {value:10.4f}  {mark}" for name, value in result["metrics"].items()]
    published = result["published"]
    if published is None:
        return "\n".join([*lines, "no published figure for this data set and protocol"])
    names = [name for name in published["systems"][0] if name != "system"]
    own = {"system": "this model", **{name: result["metrics"][name] for name in names}}
    lines += [f"published: {published['source']}", f"  {'':<24} {'  '.join(names)}  {mark}"]
    for row in [*published["systems"], own]:
        cells = "  ".join(f"{row[name]:>{len(name)}.4f}" for name in names)
        lines.append(f"  {row['system']:<24} {cells}  {mark}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
