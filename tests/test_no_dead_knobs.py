"""No dead knob: every field of a run's config, changed alone, changes something real (losses, scores or weights)."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from conftest import tiny_tree
from pydantic import BaseModel

from atose_ray.config import RunConfig, _models_in, run_config
from atose_ray.methods import StageConfig
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, open_run, resolve
from atose_ray.types import ByKind

SAMPLE = {"kind": "sample_cnn", "block": "rese", "channels": 4, "se_ratio": 1}
SINC = {"kind": "tag_sinc_net", "channels": 4, "se_ratio": 1, "filters": 6, "filter_length": 31}
HARMONIC = {"kind": "harmonic_cnn", "channels": 4}
STAGES, JE_STAGES = (
    [{"name": "classify", "epochs": 1}],
    [{"name": "embed", "epochs": 1}, {"name": "classify", "epochs": 1}],
)
EMBED, CLASSIFY = {"name": "embed", "epochs": 1}, {"name": "classify", "epochs": 3}
FROZEN = {"je": True, "method.stages": [EMBED, {**CLASSIFY, "cache": "off"}]}
JOINT = {"je": True, "method.stages": [{"name": "joint", "epochs": 2}]}
PANN = {
    "encoder": {"kind": "pann_cnn", "channels": 2, "hop_samples": 160, "spec_augment": {}},
    "data.crop_seconds": 1.3,
}
MIXED = {"data.augment": {"mixup": 0.2}}
NOISE = {"data.noise": {"high_db": -20.0}}
TAGGING = {"method.tagging": {"focal": 1.0}}
CARRIES = {"method.stages": [*STAGES, *STAGES]}

# (what the base differs in, path, another value)
KNOBS: list[tuple[dict[str, Any], str, Any]] = [
    ({}, "data.crop_seconds", 0.5),
    ({}, "data.batch_size", 4),
    ({}, "data.eval_crops", 1),
    ({}, "data.crops_per_clip", 2),
    ({}, "data.shuffle_row_groups", 1),
    ({}, "data.train_share", 0.5),
    ({}, "data.noise", {}),
    (NOISE, "data.noise.low_db", -40.0),
    (NOISE, "data.noise.high_db", -10.0),
    (NOISE, "data.noise.blank", 0.5),
    (NOISE, "data.noise.below", "clip"),
    ({}, "data.augment.speed", 0.1),
    ({}, "data.augment.gain_db", 6.0),
    ({}, "data.augment.shift", 0.5),
    ({}, "data.augment.mixup", 0.2),
    (MIXED, "data.augment.mixup", 2.0),
    ({}, "data.augment.label_smoothing", 0.1),
    (PANN, "encoder.channels", 4),
    (PANN, "encoder.layout", "cnn6"),
    (PANN, "encoder.mels", 32),
    (PANN, "encoder.hop_samples", 200),
    (PANN, "encoder.dropout", 0.6),
    (PANN, "encoder.bn_momentum", 0.5),
    (PANN, "encoder.pooling", {"kind": "max"}),
    (PANN, "encoder.pooling.heads", 2),
    (PANN, "encoder.spec_augment", None),
    (PANN, "encoder.spec_augment.mel_masks", 4),
    (PANN, "encoder.spec_augment.mel_share", 0.5),
    (PANN, "encoder.spec_augment.time_masks", 4),
    (PANN, "encoder.spec_augment.time_share", 0.5),
    ({}, "encoder.block", "res"),
    ({}, "encoder.channels", 8),
    ({}, "encoder.se_ratio", 2),
    ({}, "encoder.dropout", 0.6),
    ({}, "encoder.bn_momentum", 0.5),
    ({"encoder": HARMONIC, "data.crop_seconds": 1.1}, "encoder.channels", 8),
    ({"encoder": HARMONIC, "data.crop_seconds": 1.1}, "encoder.bn_momentum", 0.5),
    ({"encoder": HARMONIC, "data.crop_seconds": 1.1}, "encoder.layout", "harmonic"),
    ({"encoder": SINC}, "encoder.filters", 8),
    ({"encoder": SINC}, "encoder.filter_length", 63),
    ({"encoder": SINC}, "encoder.published_filters", False),
    ({"encoder": SINC}, "encoder.block", "res"),
    ({"encoder": SINC}, "encoder.channels", 8),
    ({"encoder": SINC}, "encoder.se_ratio", 2),
    ({"encoder": SINC}, "encoder.dropout", 0.6),
    ({"encoder": SINC}, "encoder.bn_momentum", 0.5),
    ({}, "method.head.hidden", 16),
    ({}, "method.head.dropout", 0.0),
    ({}, "method.head", {"kind": "linear"}),
    ({"method.head": {"kind": "linear"}}, "method.head.dropout", 0.5),
    ({}, "method.stages", [{"name": "classify", "epochs": 2}]),
    ({}, "method.stages", [{"name": "classify", "epochs": 1, "trains": ["classifier"]}]),
    ({}, "method.stages", [{"name": "classify", "epochs": 1, "optimizer": {"kind": "sgd", "lr": 0.1}}]),
    ({}, "method.stages", [{"name": "classify", "epochs": 1, "lr_scale": 0.1}]),
    ({}, "method.stages", [{"name": "classify", "epochs": 9, "patience": 1}]),
    (CARRIES, "method.stages", [*STAGES, {**STAGES[0], "carry": True}]),
    (FROZEN, "method.stages", [EMBED, {**CLASSIFY, "cache": 1}]),
    (FROZEN, "method.stages", [EMBED, {**CLASSIFY, "cache": 2}]),
    (JOINT, "method.joint_weight", 0.1),
    ({"je": True, "method.objective": {"kind": "soft_targets"}}, "method.objective.temperature", 0.5),
    ({"je": True}, "method.latent", 4),
    ({"je": True}, "method.objective", {"kind": "cosine"}),
    ({"je": True}, "method.objective.margin", 0.9),
    ({"je": True, "method.objective": {"kind": "info_nce"}}, "method.objective.temperature", 0.5),
    ({"je": True}, "method.head.hidden", 16),
    ({"je": True}, "method.head.dropout", 0.0),
    ({}, "method.tagging", {"focal": 2.0}),
    ({"je": True}, "method.tagging", {"focal": 2.0}),
    (TAGGING, "method.tagging.focal", 2.0),
    (TAGGING, "method.tagging.class_weights", "balanced"),
    ({}, "optim.average", 0.9),
    ({"optim.average": 0.9}, "optim.average", 0.05),
    ({}, "optim.lr", 1e-2),
    ({}, "optim.weight_decay", 0.5),
    ({}, "optim.schedule", "cosine"),
    ({}, "optim.warmup_steps", 5),
    ({"optim": {"kind": "sgd", "lr": 0.1}}, "optim.momentum", 0.5),
    ({"optim": {"kind": "sgd", "lr": 0.1}}, "optim.nesterov", False),
    ({"optim": {"kind": "sgd", "lr": 0.1}}, "optim.weight_decay", 0.5),
    ({"optim": {"kind": "keras_adam"}}, "optim.lr", 1e-2),
    ({"optim": {"kind": "keras_adam"}}, "optim.weight_decay", 0.5),
    ({"optim": {"kind": "keras_adam"}}, "optim.steps_before", 1000),
    ({"optim": {"kind": "keras_sgd", "lr": 0.1}}, "optim.momentum", 0.5),
    ({"optim": {"kind": "keras_sgd", "lr": 0.1}}, "optim.nesterov", False),
    ({"optim": {"kind": "keras_sgd", "lr": 0.1}}, "optim.weight_decay", 0.5),
    ({}, "probe", {"dataset": "folder"}),
    ({"probe": {"dataset": "folder"}}, "probe.classifier", "mlp"),
    ({"probe": {"dataset": "folder", "classifier": "mlp"}}, "probe.seeds", 5),
    ({"probe": {"dataset": "folder"}, "method.stages": [{"name": "classify", "epochs": 3}]}, "probe.every", 3),
    ({}, "seed", 5),
    ({}, "metric", "roc_auc_macro"),
]
ELSEWHERE = {
    "data.dataset": "names the shards (tests/test_prepare.py)",
    "data.residency": "tests/test_resident.py",
    "data.fold": "tests/test_views.py",
    "data.tag_split": "tests/test_views.py",
    "data.tracks": "tests/test_views.py",
    "data.track_split": "tests/test_tag_splits.py",
    "data.sampling": "tests/test_views.py",
    "data.content_hash": "part of the identity (tests/test_config.py)",
    "probe.dataset": "tests/test_downstream.py: several_tags, as the two below",
    "probe.fold": "as probe.dataset",
    "probe.content_hash": "as probe.dataset",
    "encoder.model": "tests/test_conformance.py: run_folder_of_a_probe",
    "init_from": "tests/test_conformance.py: a_checkpoint_of_others",
    "tag_vectors": "tests/test_conformance.py: tag_vectors",
    "method.tag_side": "tests/test_conformance.py: joint_embedding vectors",
    "method.latent": "above; of zero_shot tests/test_parity_zero_shot.py: each_published_choice, as the five below",
    "method.ranking": "as method.latent",
    "method.margin": "as method.latent",
    "method.negatives": "as method.latent",
    "method.reduction": "as method.latent",
    "method.kernel_decay": "as method.latent",
    "method.hidden": "tests/test_coala.py: widths_are_settings, as the two below",
    "method.dropout": "as method.hidden",
    "method.learn_temperature": "tests/test_coala.py: learned_temperature",
    "method.audio_weight": "tests/test_coala.py: weights_and_stages, as the two below",
    "method.tag_weight": "as method.audio_weight",
    "method.contrast_weight": "as method.audio_weight",
    "method.objective.constant": "tests/test_coala.py: duplicates_are_positives_where_asked",
    "method.objective.duplicates": "tests/test_coala.py: duplicates_are_positives_where_asked",
    "encoder.hop_frames": "tests/test_coala.py: last_patch_and_hop, as the two below",
    "encoder.last_patch": "as encoder.hop_frames",
    "encoder.scaler": "tests/test_coala.py: scaler_is_fitted",
    "encoder.train_patch": "tests/test_parity_coala.py: loudest_patch",
    "encoder.embedding": "tests/test_encoders.py: shape",
    "encoder.hidden": "tests/test_encoders.py: vggish",
    "encoder.final_relu": "tests/test_parity_vggish.py: small_net",
    "encoder.postprocess": "tests/test_parity_vggish.py: quantised_training",
    "encoder.context": "tests/test_frames.py: encoder_of_frames",
    "encoder.width": "tests/test_frames.py: encoder_of_frames",
    "method.levels": "tests/test_parity_audiotagger.py: full_width",
    "method.width": "tests/test_parity_audiotagger.py: published_choices, as the four below",
    "method.pooling": "as method.width",
    "method.attention_over": "as method.width",
    "method.loss": "as method.width",
    "method.statistics": "tests/test_parity_audiotagger.py: statistics_of_todays_keras",
    "encoder.mels": "tests/test_encoders.py: mel_cnn",
    "encoder.padding": "tests/test_parity_mel.py: reflected_and_zero_padding; tests/test_coala.py: no_padding",
    "optim.decay": "tests/test_parity_zero_shot.py: optimizer_with_a_decaying_rate",
    "execution.device": "pick_device (tests/test_ray.py: a trial that cannot start)",
    "execution.threads": "below",
    "execution.eval_batch_size": "below",
    "execution.checkpoint_every": "tests/test_resume.py",
    "execution.keep_epochs": "tests/test_average.py",
    "execution.ingest": "source_of (tests/test_ray.py)",
    "execution.precision": "prepare_for (tests/test_precision.py)",
    "execution.channels_last": "prepare_for (tests/test_precision.py)",
    "execution.compile": "prepare_for (tests/test_precision.py), tests/test_compiling.py",
    "execution.cuda_graphs": "use_graphs (tests/test_graphs.py)",
    "execution.deterministic": "be_deterministic (tests/test_graphs.py)",
}


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    *branches, leaf = path.split(".")
    for key in branches:
        tree = tree.setdefault(key, {})
    tree[leaf] = value


def base_tree(differs: dict[str, Any]) -> dict[str, Any]:
    tree = copy.deepcopy(tiny_tree("joint_embedding" if differs.get("je") else "supervised"))
    tree["encoder"] = dict(SAMPLE)
    tree["method"]["stages"] = list(STAGES)
    if differs.get("je"):
        tree["method"] |= {"objective": {"kind": "pairwise_margin", "margin": 0.4}, "stages": JE_STAGES}
    for path, value in differs.items():
        if path != "je":
            put(tree, path, copy.deepcopy(value))
    return tree


def outcome(tree: dict[str, Any], manifest: Any, store: Any, folder: Any) -> tuple[Any, ...]:
    run = resolve(run_config(tree), store, manifest)
    opened = open_run(Job(run, store.uri, str(folder), {}))
    records = []
    fit(run, opened.method, opened.batches, opened.folder, report=records.append, probe=opened.probe)
    shapes = tuple(tuple(value.shape) for value in opened.method.state_dict().values())
    return shapes, [r.train_loss for r in records], [r.valid for r in records], [r.objective for r in records]


@pytest.fixture(scope="module")
def outcomes() -> dict[str, tuple[Any, ...]]:
    return {}


@pytest.mark.parametrize(("differs", "path", "value"), KNOBS, ids=[f"{p}={v}"[:60] for _, p, v in KNOBS])
def test_every_knob_turns_something(differs, path, value, outcomes, tiny_manifest, tiny_store, tmp_path) -> None:
    key = repr(differs)
    if key not in outcomes:
        outcomes[key] = outcome(base_tree(differs), tiny_manifest, tiny_store, tmp_path / "base")
    tree = base_tree(differs)
    put(tree, path, value)
    changed = outcome(tree, tiny_manifest, tiny_store, tmp_path / "changed")
    assert changed != outcomes[key], f"{path} = {value!r} changes nothing"


def test_every_field_of_a_stage_is_turned() -> None:
    turned = {key for _, path, value in KNOBS if path == "method.stages" for stage in value for key in stage}
    assert turned == set(StageConfig.model_fields)


def test_execution_knobs(tiny_manifest, tiny_store, tmp_path) -> None:
    from atose_ray.training.run import make_batches, use_threads

    tree = base_tree({})
    tree["execution"] = {"eval_batch_size": 5}
    run = resolve(run_config(tree), tiny_store, tiny_manifest)
    sizes = [len(batch.inputs) for batch in make_batches(run, tiny_manifest, tiny_store.uri).evaluate("valid")]
    assert max(sizes) == 5
    before = torch.get_num_threads()
    use_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    use_threads(before)


def leaves(model: type[BaseModel], path: str = "") -> set[str]:
    """The dotted paths of all leaf fields of a config, over all kinds that may stand in it."""
    found: set[str] = set()
    for name, field in model.model_fields.items():
        here = f"{path}.{name}" if path else name
        tables = [mark.table.values() for mark in field.metadata if isinstance(mark, ByKind)]
        arms = [*itertools.chain(*tables), *_models_in(field.annotation)]
        arms = [arm for arm in arms if arm.__module__ != "made_up"]  # in the tables where another test imported it
        found |= set().union(*(leaves(arm, here) for arm in arms)) if arms else {here}
    return found


SEARCH = {  # every setting of a search, and the test that turns it
    "metric": "test_ray: a search for another metric is another one",
    "costs": "test_study_flags: several objectives",
    "epochs": "test_space: epochs scale every trial",
    "trials": "test_ray: 6, then 7",
    "concurrency": "test_plan",
    "workers_per_trial": "test_plan, test_ray: worker groups",
    "cpus_per_worker": "test_plan",
    "gpus_per_worker": "test_plan",
    "sampler": "test_study_samplers: every sampler",
    "startup_trials": "test_study_samplers: populations of nsga2",
    "points": "test_study_samplers: points come first",
    "warm_start": "test_study_samplers: a warm start",
    "pruner": "test_ray, test_study_samplers: asha, median, none",
    "budget": "test_study_flags, test_study_samplers: a budget",
    "repeat": "test_search_true: an equal configuration takes the result",
    "storage": "test_study_storage",
    "seed": "below",
    "max_failures": "test_failures",
    "loggers": "test_loggers",
}


def test_no_setting_of_a_search_is_forgotten_here() -> None:
    from atose_ray.config import SearchConfig

    assert set(SEARCH) == set(SearchConfig.model_fields)


@pytest.mark.parametrize(
    ("knob", "value"), [("seed", 1), ("startup_trials", 3), ("pruner", {"grace_epochs": 4}), ("sampler", "random")]
)
def test_settings_that_steer_the_search_are_heard(knob: str, value: Any) -> None:
    """What is suggested, or when a trial is given up, is another with another value."""
    import optuna

    from atose_ray.config import StudyConfig
    from atose_ray.runtime.schedulers import scheduler
    from atose_ray.search.samplers import sampler

    def course(**settings: Any) -> tuple[list[float], list[float]]:
        space = {"optim": {"lr": {"range": [0.01, 1.0]}}, "seed": 1}
        study = StudyConfig.model_validate({"space": space, "search": settings})
        made = optuna.create_study(direction="maximize", sampler=sampler(study.search, study.search.seed))
        made.optimize(lambda trial: trial.suggest_float("optim.lr", 0.01, 1.0), n_trials=12)
        rungs = [rung for rung, _ in scheduler(study, [])._brackets[0]._rungs]
        return [trial.value for trial in made.get_trials(deepcopy=False)], rungs

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert course(**{knob: value}) != course()


def test_no_field_is_forgotten_here() -> None:
    fields = {path for path in leaves(RunConfig) if not path.endswith("kind")}
    tried = {path for _, path, _ in KNOBS} | set(ELSEWHERE)
    missing = {path for path in fields if not any(path == t or path.startswith(t + ".") for t in tried)}
    assert not missing, f"no test turns {sorted(missing)}"
