"""`python -m atose_ray.train STUDY|CONFIG`: one run of one configuration, resumable."""

import argparse
import sys

from atose_ray import cli
from atose_ray.config import ConfigError, SearchConfig, apply_overrides, run_config
from atose_ray.data.shards import load_manifest
from atose_ray.evaluation.metrics import shown
from atose_ray.evaluation.names import interval_words
from atose_ray.evaluation.protocols import CLIP
from atose_ray.search.promotion import train_one
from atose_ray.search.space import load_tree
from atose_ray.storage import Store
from atose_ray.training.folds import finish
from atose_ray.training.notice import Notice, StoppedError, stopped_by_sigterm
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
    parser.add_argument("--workers", type=int, default=0, help="DDP workers on Ray; 0: in this process, without Ray")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of this configuration")
    cli.add_overrides(parser, "encoder.kind=sample_cnn")
    cli.add_cluster(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Resolve the config, run it, score the test split unless that was done."""
    options = arguments().parse_args(argv)
    if options.workers < 0:
        raise ConfigError(f"--workers is 0 or more, but got {options.workers}")
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
    if options.workers:
        from atose_ray.runtime.train import train_alone

        train_alone(job, SearchConfig(trials=1, workers_per_trial=options.workers), options.cpus, options.address)
        for record in RunFolder(folder).epochs():
            show(record, job)
    else:
        train_here(job)
    conclude(job, folder.child("best"))


def train_here(job: Job) -> None:
    """Train in this process. A batch system that ends it with SIGTERM finds it saved within seconds, with exit code
    143."""
    notice = Notice()
    try:
        with stopped_by_sigterm(notice):
            train_one(job, None, lambda record: show(record, job), notice)
    except StoppedError as error:
        print(f"{error}; --resume goes on from there", file=sys.stderr)
        sys.exit(143)


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
