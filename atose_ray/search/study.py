"""A study's folder before and after its trials: its head, failed trials once more, and what the best trial learned."""

import dataclasses
import platform
from importlib.metadata import version
from typing import Any

import atose_ray
from atose_ray.config import ConfigError, RunConfig, StudyConfig, without_speed
from atose_ray.data.tag_statistics import tag_correlation
from atose_ray.data.views import View
from atose_ray.evaluation.scoring import has_collapsed, tag_embedding_cosine
from atose_ray.search.record import EMBEDDINGS, TagEmbeddings, TrialRecord, best_trial, load_trials, trial_store
from atose_ray.storage import Store
from atose_ray.training.checkpoint import BEST_WEIGHTS, CHECKPOINT, load_weights
from atose_ray.training.record import LOG
from atose_ray.types import DataSpec


def begin(folder: Store, study: StudyConfig, view: View, store: Store) -> None:
    """Write the head of the study folder, or check that this is the study that stands there.

    More trials and other resources are fine. Raises ConfigError for another space, base or sampler, or other data.
    """
    if folder.exists("study.json"):
        before = StudyConfig.model_validate(folder.read_json("study.json")["config"])
        same_data = folder.read_json("data.json")["content_hash"] == view.manifest.content_hash
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
        folder.write_json("data.json", data_facts(view, store))
    config = study.model_copy(update={"search": study.search.without_password()}).model_dump(mode="json")
    folder.write_json("study.json", {"config": config, "versions": versions()})


def identity(study: StudyConfig) -> dict[str, Any]:
    """What makes two studies the same: base, space, what is optimised, sampler, pruner and seed.

    Not how many trials there are, the budget, the resources, where clips are kept or Optuna's storage: they change no
    trial. Nor points and studies to learn from, which change only what is tried next (`begin` checks the points).
    """
    execution = {"trials", "concurrency", "workers_per_trial", "cpus_per_worker", "gpus_per_worker", "max_failures"}
    course = {"budget", "storage", "points", "warm_start"}
    tree = study.model_dump(mode="json", exclude={"search": execution | course})
    return {**tree, "base": without_speed(tree["base"])}


def data_facts(view: View, store: Store) -> dict[str, Any]:
    """What data.json holds; reads the tags of the train split."""
    manifest = view.manifest
    return {
        "data_spec": manifest.data_spec.model_dump(mode="json"),
        "tag_counts": manifest.tag_counts,
        "tag_correlation_CC": tag_correlation(view.tags(store, "train")),
        "skipped": [[clip.name, clip.reason] for clip in manifest.skipped],
        "content_hash": manifest.content_hash,
    }


def versions() -> dict[str, str]:
    """What ran the study."""
    libraries = {name: version(name) for name in ("ray", "optuna", "torch", "pyarrow")}
    return {"atose_ray": atose_ray.__version__, "python": platform.python_version(), **libraries}


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


def keep_tag_embeddings(folder: Store, trials: tuple[TrialRecord, ...]) -> None:
    """Write what the best trial that embeds tags learned of them, for the report."""
    embeds = best_trial(trial for trial in trials if RunConfig.model_validate(trial.config).method.embeds_tags)
    if embeds is None:
        return
    store = trial_store(folder, embeds.signature)
    method = RunConfig.model_validate(embeds.config).build(DataSpec.model_validate(store.read_json("data_spec.json")))
    load_weights(store, BEST_WEIGHTS, method)
    cosine_CC = tag_embedding_cosine(method)
    if cosine_CC is not None:
        learned = TagEmbeddings(embeds.number, embeds.name, cosine_CC.tolist(), has_collapsed(cosine_CC))
        folder.write_json(EMBEDDINGS, dataclasses.asdict(learned))
