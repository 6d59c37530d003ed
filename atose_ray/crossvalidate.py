"""`python -m atose_ray.crossvalidate CONFIG|MODEL`: one configuration on every fold of its data set."""

import argparse
from typing import Any

from atose_ray import cli
from atose_ray.config import ConfigError, RunConfig, apply_overrides, run_config
from atose_ray.data.shards import load_manifest
from atose_ray.data.views import fold_numbers
from atose_ray.evaluation.metrics import COUNTS
from atose_ray.evaluation.names import interval_words
from atose_ray.evaluation.protocols import CLIP
from atose_ray.evaluation.significance import spread
from atose_ray.search.record import CROSSVALIDATION, load_study_record
from atose_ray.search.report import render_report
from atose_ray.search.space import load_tree
from atose_ray.storage import Store
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, finish_run, resolve


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "crossvalidate",
        "Train a configuration once per fold: that fold is tested on, the next one is for validation, the others are\n"
        "trained on. Prints the test scores of every fold, their mean and spread. Stopped, the same command goes on.\n"
        "A configuration that a search chose on one fold was chosen with clips that others test on: say so.",
        "  python -m atose_ray.crossvalidate esc50 --set encoder.kind=sample_cnn\n"
        "  python -m atose_ray.crossvalidate atose_store/studies/esc50/best",
    )
    source = "name or file of a study (its base), a config.json, or a model folder"
    parser.add_argument("config", help=source)
    cli.add_overrides(parser, "optim.lr=1e-3")
    cli.add_workers(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train and score every fold, then print and write what came of it."""
    options = arguments().parse_args(argv)
    store = cli.open_store(options)
    source, study = options.config, None
    if Store(source).exists("config.json"):
        study = study_of(Store(source), store)
        source = Store(source).uri_of("config.json")
    run = run_config(apply_overrides(load_tree(source, options.overrides), options.overrides), options.config)
    manifest = load_manifest(store, run.data.dataset)
    numbers = fold_numbers(manifest)
    if not numbers:
        raise ConfigError(
            f"the data set {manifest.name!r} has no folds; prepare one that has (of `folder`: a column `fold` in the "
            "table), or train this configuration with several seeds: --set seed=1, 2, ..."
        )
    rows = []
    for number in numbers:
        data = run.data.model_copy(update={"fold": number, "content_hash": None})
        of_fold = resolve(run.model_copy(update={"data": data}), store, manifest)
        rows.append({"fold": number, **score_fold(of_fold, store, options)})
        print(line(rows[-1], run.metric), flush=True)
    found = {"metric": run.metric, "protocol": CLIP.name, "folds": rows, "summary": summary(rows)}
    if study is not None:  # which of its winners; a search that goes on may find another
        number = study.child("best").read_json("metrics.json").get("number")
        found |= {"number": number, "overrides": list(options.overrides)}
    print("\n".join(summary_lines(found)))
    (study or store.child("crossvalidations", of_fold.signature())).write_json(CROSSVALIDATION, found)
    if study is not None:
        record = load_study_record(store, study.uri.partition("?")[0].rpartition("/")[2])
        study.write("report.html", render_report(record).encode())
        print(f"report: {study.child('report.html').uri}")


def study_of(model: Store, store: Store) -> Store | None:
    """The study folder in this store whose `best` a model is, or None."""
    studies = store.child("studies")
    same = [studies.child(name) for name in studies.names() if studies.child(name, "best").uri == model.uri]
    return same[0] if same else None


def score_fold(run: RunConfig, store: Store, options: argparse.Namespace) -> dict[str, Any]:
    """The scores of one fold: those of an earlier training where it was finished, else of one now."""
    signature = run.signature(options.workers)
    folder = store.child("runs", signature)
    best = folder.child("best")
    if not best.exists("metrics.json"):
        name = f"{run.encoder.kind}-{run.method.kind}-fold{run.data.fold}"
        job = Job(run, store.uri, folder.uri, {"number": 0, "name": name, "params": {}, "distributions": {}})
        print(f"fold {run.data.fold}: {folder.uri}", flush=True)
        cli.train(job, options, lambda record: None)
        finish_run(job, best)
    metrics = best.read_json("metrics.json")
    seconds = sum(record.seconds for record in RunFolder(folder).epochs())
    kept = {name: metrics.get(name) for name in KEPT}
    return {"run": signature, "seed": run.seed, "seconds": seconds, **kept}


KEPT = ("epoch", "valid", "test", "test_intervals")


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of every test score: mean over the folds, sample standard deviation, 95 % interval of the mean (Student)."""
    names = [name for name in rows[0]["test"] if name not in COUNTS]
    spreads = {name: spread([row["test"][name] for row in rows]) for name in names if rows[0]["test"][name] is not None}
    return {name: vars(one) for name, one in spreads.items()}


def line(row: dict[str, Any], metric: str) -> str:
    """One fold, for a person."""
    shown = []
    for name, value in row["test"].items():
        if name not in COUNTS and value is not None:
            sure = interval_words(name, row.get("test_intervals") or {}) if name == metric else ""
            shown.append(f"{name} {value:.4f}{f' ({sure})' if sure else ''}")
    return (
        f"fold {row['fold']}: valid {metric} {row['valid'][metric]:.4f} at epoch {row['epoch']}; "
        f"test {', '.join(shown)} [{CLIP.name}]"
    )


def summary_lines(found: dict[str, Any]) -> list[str]:
    """Mean and spread over the folds, for a person."""
    lines = [f"{len(found['folds'])} folds, each tested once [{found['protocol']}]: mean, deviation, 95 % of the mean"]
    for name, one in found["summary"].items():
        lines.append(f"  {name:<24} {one['mean']:.4f}  {one['deviation']:.4f}  {one['low']:.4f} to {one['high']:.4f}")
    return lines


if __name__ == "__main__":
    cli.run(main)
