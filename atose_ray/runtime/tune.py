"""A study from its folder to its report: checks before the first trial, the search, the choice, the one test score."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping
from typing import Any

import optuna
import pyarrow
import ray
import torch

import atose_ray
from atose_ray.config import ConfigError, RunConfig, StudyConfig, without_speed
from atose_ray.data.shards import Manifest, data_store, load_manifest, read_tags
from atose_ray.data.tag_statistics import tag_correlation
from atose_ray.evaluation.scoring import has_collapsed, tag_embedding_cosine
from atose_ray.runtime.nodes import check_nodes
from atose_ray.runtime.search import Space, search
from atose_ray.runtime.shared import ClipPlan, SharedClipsLostError, SharedRefs, share_clips
from atose_ray.search.budget import Budget
from atose_ray.search.plan import Plan
from atose_ray.search.record import (
    EMBEDDINGS,
    StudyRecord,
    TagEmbeddings,
    TrialRecord,
    best_trial,
    load_study_record,
    load_trials,
    study_store,
    trial_store,
)
from atose_ray.search.report import render_report
from atose_ray.search.session import Session
from atose_ray.search.space import compose
from atose_ray.storage import Store
from atose_ray.training.checkpoint import BEST_WEIGHTS, CHECKPOINT, load_weights
from atose_ray.training.examples import write_examples
from atose_ray.training.record import LOG
from atose_ray.training.run import Job, finish_run
from atose_ray.types import DataSpec


def run_study(
    study: StudyConfig,
    name: str,
    store: Store,
    plan: Plan,
    clips: ClipPlan | None = None,
    budget: Budget | None = None,
    again: bool = False,
) -> StudyRecord:
    """Run (or go on with) a study on the cluster this process has joined, choose the best, score its test split once,
    and write the report.

    clips: where trials get their clips; None leaves it to each of them. budget: where the search ends at the latest.
    again: whether failed trials are run once more. Raises StoreError, ConfigError or PlanError, before any trial, when
    data, space, an earlier study of this name, or a node do not fit.
    """
    dataset = compose(study, {}).data.dataset
    manifest = load_manifest(store, dataset)
    folder = study_store(store, name)
    check_nodes(store, folder, dataset)
    with Session(folder) as session:
        begin(folder, study, manifest, data_store(store, dataset))
        earlier = retry_failed(folder) if again else load_trials(folder)
        finished = [trial for trial in earlier if trial.state != "running"]
        stream_bytes = clips.stream_bytes(plan) if clips else None
        space = Space(study, name, store.uri, manifest.data_spec, manifest.content_hash, plan, stream_bytes)
        if len(finished) < study.search.trials:
            search(space, session, earlier, share(store, dataset, manifest, clips), budget)
        conclude(folder, store, plan)
        record = load_study_record(store, name)
        folder.write("report.html", render_report(record).encode())
    return record


def share(store: Store, dataset: str, manifest: Manifest, clips: ClipPlan | None) -> SharedRefs | None:
    """The one copy that trials share, if the plan has one."""
    if clips is None or not clips.shared:
        return None
    try:
        return share_clips(store, dataset, manifest, [home.node_id for home in clips.homes])
    except SharedClipsLostError as error:
        print(f"data: sharing the clips failed ({error}), so every trial reads them by itself", flush=True)
        return SharedRefs(manifest.content_hash, {}, str(error))  # not None: no CPU is planned for Ray Data


def begin(folder: Store, study: StudyConfig, manifest: Manifest, data: Store) -> None:
    """Write the head of the study folder, or check that this is the study that stands there.

    More trials and other resources are fine. Raises ConfigError for another space, base or sampler, or other data.
    """
    if folder.exists("study.json"):
        before = StudyConfig.model_validate(folder.read_json("study.json")["config"])
        same_data = folder.read_json("data.json")["content_hash"] == manifest.content_hash
        tried = before.search.points
        if identity(before) != identity(study) or not same_data:
            what = "other data" if not same_data else "another base, space or search"
            raise ConfigError(
                f"the study in {folder.uri} was begun with {what}; give this one its own --name, or delete that folder"
            )
        if study.search.points[: len(tried)] != tried:
            raise ConfigError(
                f"the study in {folder.uri} was begun with other search.points; new ones are added at the end of the "
                "list, or give this one its own --name"
            )
    else:
        folder.write_json("data.json", data_facts(manifest, data))
    config = study.model_copy(update={"search": study.search.without_password()}).model_dump(mode="json")
    folder.write_json("study.json", {"config": config, "versions": versions()})


def retry_failed(folder: Store) -> tuple[TrialRecord, ...]:
    """All trials of a study, with those that failed made unfinished again: same number, same configuration.

    A trial's old log is kept as log.1.jsonl, log.2.jsonl, ...; it goes on from its last checkpoint if it has one.
    """
    failed = [trial for trial in load_trials(folder) if trial.state == "failed"]
    for trial in failed:
        reopen(trial_store(folder, trial.signature))
    if failed:
        print(f"once more: {', '.join(trial.name for trial in failed)}", flush=True)
    return load_trials(folder)


def reopen(run: Store) -> None:
    """Keep the log of a run that ended, and begin it anew without its end."""
    kept = len([name for name in run.names("log.") if name.count(".") == 2]) + 1
    before = run.read(LOG)
    run.write(f"log.{kept}.jsonl", before)
    lines = [line for line in before.splitlines(keepends=True) if b'"event": "end"' not in line]
    run.write(LOG, b"".join(lines) if run.exists(CHECKPOINT) else b"")


def data_facts(manifest: Manifest, data: Store) -> dict[str, Any]:
    """What data.json holds; reads the tags of the train split."""
    return {
        "data_spec": manifest.data_spec.model_dump(mode="json"),
        "tag_counts": manifest.tag_counts,
        "tag_correlation_CC": tag_correlation(read_tags(data, manifest, "train")),
        "skipped": [[clip.name, clip.reason] for clip in manifest.skipped],
        "content_hash": manifest.content_hash,
    }


def identity(study: StudyConfig) -> dict[str, Any]:
    """What makes two studies the same: base, space, what is optimised, sampler, pruner and seed.

    Not how many trials there are, the budget, the resources, where clips are kept or Optuna's storage: they change no
    trial. Nor points and studies to learn from, which change only what is tried next (`begin` checks the points).
    """
    execution = {"trials", "concurrency", "workers_per_trial", "cpus_per_worker", "gpus_per_worker", "max_failures"}
    course = {"budget", "storage", "points", "warm_start"}
    tree = study.model_dump(mode="json", exclude={"search": execution | course})
    return {**tree, "base": without_speed(tree["base"])}


def versions() -> dict[str, str]:
    """What ran the study."""
    return {
        "atose_ray": atose_ray.__version__,
        "python": platform.python_version(),
        "ray": ray.__version__,
        "optuna": optuna.__version__,
        "torch": torch.__version__,
        "pyarrow": pyarrow.__version__,
    }


def keep_tag_embeddings(folder: Store, trials: tuple[TrialRecord, ...]) -> None:
    """Write what the best trial that embeds tags learned of them, for the report."""
    embeds = best_trial(trial for trial in trials if RunConfig.model_validate(trial.config).method.embeds_tags)
    if embeds is None:
        return
    store = trial_store(folder, embeds.signature)
    spec = DataSpec.model_validate(store.read_json("data_spec.json"))
    method = RunConfig.model_validate(embeds.config).build(spec)
    load_weights(store, BEST_WEIGHTS, method)
    cosine_CC = tag_embedding_cosine(method)
    if cosine_CC is not None:
        learned = TagEmbeddings(embeds.number, embeds.name, cosine_CC.tolist(), has_collapsed(cosine_CC))
        folder.write_json(EMBEDDINGS, dataclasses.asdict(learned))


def conclude(folder: Store, store: Store, plan: Plan) -> None:
    """Choose the best trial and, unless it is the chosen one already, score its test split: once. Then gather its
    mistakes on the validation split, for the report."""
    trials = load_trials(folder)
    best = best_trial(trials)
    if best is None:
        return
    keep_tag_embeddings(folder, trials)
    chosen = folder.child("best")
    on_one = ray.remote(num_cpus=plan.trial_cpus, num_gpus=plan.worker_gpus)
    if not (chosen.exists("metrics.json") and chosen.read_json("metrics.json")["number"] == best.number):
        run = RunConfig.model_validate(best.config)
        job = Job(run, store.uri, trial_store(folder, best.signature).uri)
        metrics: Mapping[str, Any] = ray.get(on_one(finish_run).remote(job, chosen))
        test = metrics["test"][run.metric]
        print(f"test scored once, with trial {best.number}: {run.metric} {test:.4f} [{metrics['protocol']}]")
    ray.get(on_one(write_examples).remote(chosen, store))
