"""`python -m atose_ray.tune STUDY`: search, resumable, on this machine or on a Ray cluster."""

from __future__ import annotations

import argparse
import re

from atose_ray import cli
from atose_ray.config import ConfigError
from atose_ray.data.shards import load_manifest
from atose_ray.search.record import StudyRecord, study_store
from atose_ray.search.space import check_on_data, compose, find_study, load_study
from atose_ray.store import Store


def arguments() -> argparse.ArgumentParser:
    """The command line of this verb."""
    parser = cli.parser(
        "tune",
        "Search a study's space. Killed or stopped, the same command goes on where it was.",
        "  python -m atose_ray.tune demo\n"
        "  python -m atose_ray.tune mtat --trials 99 --set search.workers_per_trial=2\n"
        "  ray job submit -- python -m atose_ray.tune mtat --store s3://bucket/atose",
    )
    parser.add_argument("study", help="name of a shipped study or path of a YAML file")
    parser.add_argument("--name", help="name of the study folder (default: the study's name)")
    parser.add_argument("--trials", type=int, help="how many configurations in all (default: the file's)")
    parser.add_argument(
        "--cluster", metavar="YAML", help="plan for the maxima of this `ray up` file (an autoscaling cluster)"
    )
    parser.add_argument(
        "--object-store",
        type=cli.at_least_one,
        metavar="GIB",
        help="object store of a Ray started here (default: Ray's, 30 %% of the memory); trials share clips in it",
    )
    cli.add_overrides(parser, "base.data.batch_size=32")
    cli.add_cluster(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Check everything, plan, search, report."""
    options = arguments().parse_args(argv)
    if options.trials is not None and options.trials < 1:
        raise ConfigError(f"--trials is 1 or more, but got {options.trials}")
    trials = () if options.trials is None else (f"search.trials={options.trials}",)
    study = load_study(options.study, (*options.overrides, *trials))
    name = options.name or find_study(options.study).stem
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"--name is a folder name of letters, digits, '.', '-' and '_', but got {name!r}")
    store = cli.open_store(options)
    base = compose(study, {})
    manifest = load_manifest(store, base.data.dataset)
    check_on_data(study, manifest)
    study_store(store, name).check_writable()

    from atose_ray.runtime.cluster import cluster, cluster_resources, make_plan, yaml_resources
    from atose_ray.runtime.shared import plan_clips
    from atose_ray.runtime.tune import run_study

    object_store_bytes = options.object_store and options.object_store << 30
    with cluster(options.cpus, options.address, object_store_bytes):
        available = yaml_resources(options.cluster) if options.cluster else cluster_resources()
        clips = plan_clips(base, study.search, manifest, available)
        plan = make_plan(study.search, clips.streams, available)
        print(
            f"study {name}: {study.search.trials} trials, {plan.concurrency} at a time\nplan: {plan.arithmetic()}\n"
            f"{clips.line(plan)}",
            flush=True,
        )
        record = run_study(study, name, store, plan, clips)
    print(closing(record, study_store(store, name)))


def closing(record: StudyRecord, folder: Store) -> str:
    """How the search ended."""
    states = [trial.state for trial in record.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"{len(states)} trials: {counts}"]
    if record.best is None:
        lines.append("no trial finished an epoch, so there is no model; the reasons are in the report")
    else:
        metrics = record.best.metrics
        lines.append(
            f"best: trial {record.best.number}, valid {record.metric} {metrics['valid'][record.metric]:.4f}, "
            f"test {metrics['test'][record.metric]:.4f} [{metrics['protocol']}] "
            f"(mean tag prevalence {metrics['test_prevalence_mean']:.4f})"
        )
        lines.append(f"model:  {folder.child('best').uri}\nagain:  {record.rerun_command}")
    return "\n".join([*lines, f"report: {folder.child('report.html').uri}"])


if __name__ == "__main__":
    cli.run(main)
