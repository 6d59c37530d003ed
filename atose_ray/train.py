"""`python -m atose_ray.train STUDY|CONFIG`: one run of one configuration, resumable."""

import argparse

from atose_ray import cli
from atose_ray.config import ConfigError, apply_overrides, run_config
from atose_ray.data.shards import load_manifest
from atose_ray.evaluation.metrics import shown
from atose_ray.evaluation.names import interval_words
from atose_ray.evaluation.protocols import CLIP
from atose_ray.search.space import load_tree
from atose_ray.storage import Store
from atose_ray.training.folds import finish
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.run import Job, resolve


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "train",
        "Train one configuration: the base of a study, or a config.json that a trial left, with --set changes.",
        "  python -m atose_ray.train demo --set optim.lr=1e-3\n"
        "  python -m atose_ray.train atose_store/studies/demo/best/config.json",
    )
    source = "name or file of a study (its base, and the arms that --set PATH.kind=... picks), or a config.json"
    parser.add_argument("config", help=source)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of this configuration")
    cli.add_overrides(parser, "encoder.kind=sample_cnn")
    cli.add_workers(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Resolve the config, run it, score the test split unless that was done."""
    options = arguments().parse_args(argv)
    store = cli.open_store(options)
    tree = load_tree(options.config, options.overrides)
    run = run_config(apply_overrides(tree, options.overrides), options.config)
    manifest = load_manifest(store, run.data.dataset)
    run = resolve(run, store, manifest)
    folder = store.child("runs", run.signature(options.workers))
    if RunFolder(folder).about() and not options.resume:
        raise ConfigError(
            f"this configuration was trained before, in {folder.uri}; use --resume to go on from its last checkpoint "
            "(or to see its result), or delete that folder, or change --set seed=N"
        )
    folder.check_writable()
    name = f"{run.encoder.kind}-{run.method.kind}"
    job = Job(run, store.uri, folder.uri, {"number": 0, "name": name, "params": {}, "distributions": {}})
    cli.train(job, options, lambda record: show(record, job), "--resume goes on from there")
    conclude(job, folder.child("best"))


def show(record: EpochRecord, job: Job) -> None:
    """One line per epoch."""
    valid = record.valid[job.run.metric]
    print(
        f"epoch {record.epoch}/{job.run.method.epochs} {record.stage:<8} loss {record.train_loss:.4f} "
        f"valid {job.run.metric} {valid:.4f} (best {record.objective:.4f}) [{CLIP.name}] {record.seconds:.1f} s",
        flush=True,
    )


def conclude(job: Job, best: Store) -> None:
    """Score the test split unless it was done, and say where the model is."""
    ending = RunFolder(Store(job.folder_uri)).ending()
    if ending and ending["state"] == "diverged":
        print(f"diverged: {ending['reason']}")
    metrics = best.read_json("metrics.json") if best.exists("metrics.json") else finish(job, best)
    bounds, lines, folds = metrics.get("test_intervals", {}), [], len(metrics.get("folds", ()))
    for name, value in (metrics["test"] or {}).items():
        sure = interval_words(name, bounds, folds)
        lines.append(f"\n  {name} {shown(name, value)}{f' ({sure})' if sure else ''}")
    print(
        f"test, scored with the best epoch on validation, {metrics['epoch']} ({metrics['protocol']} protocol):"
        f"{''.join(lines)}\nmodel: {best.uri}"
    )


if __name__ == "__main__":
    cli.run(main)
