"""`python -m atose_ray.tune STUDY`: search, resumable, on this machine or on a Ray cluster."""

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atose_ray import cli
from atose_ray.search.finished import hash_of, is_done, note_finished, nothing_left_if_refused, study_file, was_asked
from atose_ray.search.record import StudyRecord, load_study_record, load_trials, study_store
from atose_ray.storage import Store
from atose_ray.training.record import test_scorings

if TYPE_CHECKING:  # what brings PyTorch is imported once it is known that there is something to do
    import pandas as pd

    from atose_ray.config import StudyConfig
    from atose_ray.data.shards import Manifest


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "tune",
        "Search a study's space. Killed or stopped, the same command goes on where it was.",
        "  python -m atose_ray.tune demo\n"
        "  python -m atose_ray.tune mtat --trials 99 --set search.workers_per_trial=2\n"
        "  ray job submit -- python -m atose_ray.tune mtat --store s3://bucket/atose",
    )
    add, number = parser.add_argument, cli.at_least_one
    add("study", help="name of a shipped study or path of a YAML file")
    add("--name", help="name of the study folder (default: the study's name)")
    count = parser.add_mutually_exclusive_group().add_argument
    count("--trials", type=number, help="how many configurations in all (default: the file's)")
    count("--extend", type=number, metavar="N", help="N more configurations than the study has tried so far")
    text = "epochs of every trial in all, for a quick look: its stages are scaled in proportion, at least one each. "
    add("--epochs", type=number, metavar="N", help=text + "Another study than the one without: give it a --name")
    text = "`all` scores every trial on all folds of its data set, trained side by side; a number picks one (data.fold)"
    add("--folds", metavar="WHICH", help=text)
    add("--budget", metavar="LIMIT", help="begin no trial beyond 20m, 3h, 2d, 40gpu-h, 200cpu-h or $25")
    add("--resume", action="store_true", help="go on with a study, and do not begin one by mistake")
    text = "run failed trials again, same configuration; from the last epoch where not a bug of the code ended them"
    add("--retry-failed", action="store_true", help=text)
    text = "let the sampler learn from an earlier study in this store; repeatable"
    add("--warm-start", action="append", default=[], metavar="STUDY", help=text)
    text = "plan for the node types of this `ray up` file or KubeRay manifest, where the cluster does not tell its own"
    add("--cluster", metavar="YAML", help=text)
    text = "object store of a Ray started here (default: Ray's, 30 %% of the memory); trials share clips in it"
    add("--object-store", type=number, metavar="GIB", help=text)
    cli.add_overrides(parser, "base.data.batch_size=32")
    cli.add_cluster(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Check everything, plan, search, report; of a search that is over, say so."""
    options = arguments().parse_args(argv)
    file, store, changes = study_file(options.study), cli.open_store(options), options.extend or options.retry_failed
    name = options.name or (file or Path(options.study)).stem
    asked = ""
    if file is not None and re.fullmatch(r"\w[\w.-]*", name):
        given = [getattr(options, one) for one in ("overrides", "trials", "epochs", "folds", "budget", "warm_start")]
        asked, folder = hash_of(file, given), study_store(store, name)
        if not changes and was_asked(folder, asked):
            return say_done(store, name)
    begin_or_go_on(options, name, store, asked)


def run_study(
    study: str,
    *,
    name: str | None = None,
    trials: int | None = None,
    epochs: int | None = None,
    budget: str | None = None,
    overrides: Sequence[str] = (),
    store: str | None = None,
    address: str | None = None,
    cpus: int | None = None,
) -> "pd.DataFrame":
    """Search from Python or a notebook, as this command does, on a Ray of its own or the cluster at `address`; then the
    trials as a pandas frame (search/frame.py). Interrupted, the same call goes on; of a finished search it only reads.

    study: name of a shipped study or path of a YAML file. overrides: `base.data.batch_size=32`, each validated. The
    others are the command's options. Raises ValueError, before any trial, for what cannot be searched.
    """
    given = {"name": name, "trials": trials, "epochs": epochs, "budget": budget, "store": store}
    given |= {"address": address, "cpus": cpus}
    words = [f"--{key}={value}" for key, value in given.items() if value is not None]
    main([study, *words, *(f"--set={one}" for one in overrides)])
    from atose_ray.search.frame import read_study

    return read_study(name or Path(study).stem, store)


def say_done(store: Store, name: str) -> None:
    """How a search that is over ended."""
    print(f"study {name}: all trials have ended, nothing is left to do (more: --extend N, or --trials N)")
    print(closing(load_study_record(store, name), study_store(store, name)))


def begin_or_go_on(options: argparse.Namespace, name: str, store: Store, asked: str) -> None:
    """Check everything, plan, search, report. asked: what the command was given, for the next time."""
    from atose_ray.config import ConfigError
    from atose_ray.data.views import view_of
    from atose_ray.search.budget import parse_budget, prices_of
    from atose_ray.search.clip_plan import plan_clips
    from atose_ray.search.cluster_file import read_cluster_file
    from atose_ray.search.plan import make_plan
    from atose_ray.search.samplers import check_warm_start
    from atose_ray.search.space import check, check_same, find_study, with_its_probe

    find_study(options.study)
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"--name is a folder name of letters, digits, '.', '-' and '_', but got {name!r}")
    folder = study_store(store, name)
    study = with_its_probe(wanted(options, folder), folder, store)
    nodes = read_cluster_file(options.cluster) if options.cluster else {}
    prices = prices_of(nodes, options.cluster) if (nodes.get("metadata") or {}).get("usd_per_hour") else None
    budget = parse_budget(study.search.budget, prices) if study.search.budget else None
    manifest = data_of(study, store, folder)
    base = check(study, f"on the data set {manifest.name}", store, manifest)
    check_warm_start(study, store)
    if folder.exists("study.json"):
        check_same(folder, study, manifest.content_hash)
        if not options.retry_failed and is_done(folder, load_trials(folder), study.search.trials):
            note_finished(folder, asked, study.search.trials)
            return say_done(store, name)

    from atose_ray.runtime.cluster import cluster, cluster_nodes
    from atose_ray.runtime.object_store import node_stores
    from atose_ray.runtime.tune import run_study

    object_store_bytes = options.object_store and options.object_store << 30
    job = {"study": name, "store": store.uri, "trials": str(study.search.trials), "metric": study.search.metric}
    with nothing_left_if_refused(folder):
        folder.check_writable()
        with cluster(options.cpus, options.address, object_store_bytes, job):
            available = cluster_nodes(options.cluster)
            view = view_of(manifest, base.data, store)
            clips = plan_clips(base, study.search, view.manifest, available, node_stores())
            plan = make_plan(study.search, clips.streams, available)
            print(f"study {name}: {study.search.trials} trials, {plan.concurrency} at a time")
            print("\n".join([*plan.lines(), clips.line(plan)]), flush=True)
            record = run_study(study, name, store, plan, manifest, clips, budget, options.retry_failed)
    note_finished(folder, asked, study.search.trials)
    print(closing(record, folder))


def data_of(study: "StudyConfig", store: Store, folder: Store) -> "Manifest":
    """The prepared set of a study: for one that goes on that which it began with, whatever the set's name means now."""
    from atose_ray.data.shards import load_manifest
    from atose_ray.search.space import compose

    dataset = compose(study, {}).data.dataset
    if not folder.exists("data.json"):
        return load_manifest(store, dataset)
    began = str(folder.read_json("data.json")["content_hash"])
    manifest = load_manifest(store, dataset, began)
    if load_manifest(store, dataset).content_hash != began:
        print(f"data: {dataset!r} was prepared anew since this study began, which goes on with the data it began with")
    return manifest


def wanted(options: argparse.Namespace, folder: Store) -> "StudyConfig":
    """The study that the command line asks for. Raises ConfigError where it does not fit what stands in `folder`."""
    from atose_ray.config import ConfigError
    from atose_ray.search.space import load_study, on_a_grid

    given = {"trials": options.trials, "epochs": options.epochs, "budget": options.budget}
    if any(re.match(r"\s*search\.storage=\w+(\+\w+)?://[^/@]*:", one) for one in options.overrides):
        raise ConfigError(
            "a password on the command line is shown by the process list and by Ray's dashboard; leave it out of the "
            "URL and set PGPASSWORD, or write the URL into the study's file"
        )
    folds = [f"base.data.fold={options.folds}"] if options.folds is not None else []
    settings = [f"search.{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    if options.warm_start:
        settings.append(f"search.warm_start={json.dumps(options.warm_start)}")
    study = load_study(options.study, (*options.overrides, *folds, *settings))
    there = folder.exists("study.json")
    asked = [f"--{what}" for what in ("resume", "extend", "retry-failed") if getattr(options, what.replace("-", "_"))]
    if asked and not there:
        raise ConfigError(
            f"{' and '.join(asked)}: there is no study in {folder.uri}; check --store and --name, or leave it out to "
            "begin one"
        )
    if options.extend or options.retry_failed:
        tried = len(load_trials(folder))
        trials = tried + options.extend if options.extend else max(tried, study.search.trials)
        study = on_a_grid(study.model_copy(update={"search": study.search.model_copy(update={"trials": trials})}))
    pruner = study.search.pruner
    if study.search.costs and pruner.kind != "none" and "kind" in pruner.model_fields_set and not there:
        print(f"several objectives: nothing is pruned, so search.pruner.kind={pruner.kind} is not used", flush=True)
    return study


def closing(record: StudyRecord, folder: Store) -> str:
    """How the search ended."""
    states = [trial.state for trial in record.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"{len(states)} trials: {counts}"]
    if record.best is None:
        lines.append("no trial finished an epoch, so there is no model; the reasons are in the report")
    else:
        from atose_ray.evaluation.names import interval_words

        metrics = record.best.metrics
        sure = interval_words(record.metric, metrics.get("test_intervals", {}), len(metrics.get("folds", ())))
        chance = f" (mean tag prevalence {metrics['test_prevalence_mean']:.4f})"
        if record.metric.startswith("probe_"):  # of another set's tags
            chance = f" of {record.config['base']['probe']['dataset']}"
        lines.append(
            f"best: trial {record.best.number}, valid {record.metric} {metrics['valid'][record.metric]:.4f}, "
            f"test {metrics['test'][record.metric]:.4f} {f'({sure}) ' if sure else ''}[{metrics['protocol']}]{chance}"
        )
        lines.append(scorings_line(test_scorings(metrics)))
        costs = tuple(record.config["search"].get("costs", ()))
        if costs:  # the trials that no other one beats
            from atose_ray.search.costs import front

            lines.append(f"front: {record.metric} against {', '.join(costs)}")
        for trial, values in front(record.trials, costs) if costs else ():
            shown = ", ".join(f"{name} {value:g}" for name, value in zip(costs, values[1:], strict=True))
            lines.append(f"  {trial.name}  {values[0]:.4f}  {shown}")
        lines.append(f"model:  {folder.child('best').uri}\nagain:  {record.rerun_command}")
    return "\n".join([*lines, f"report: {folder.child('report.html').uri}"])


def scorings_line(scorings: Sequence[Mapping[str, Any]]) -> str:
    """How often this study scored its test split: once for each winner that it found."""
    least = "at least " if any(one["time"] is None for one in scorings) else ""  # 0.1.0 kept no count
    if len(scorings) == 1:
        return f"test split: scored {least}once by this study"
    rows = [f"trial {one['number']} {one['value']:.4f} [{one['protocol']}]" for one in scorings]
    return f"test split: scored {least}{len(scorings)} times by this study, once for each winner: {', '.join(rows)}"


if __name__ == "__main__":
    cli.run(main)
