"""The published recipes as data: phases, sizes and optimizers; and optimizer state carried from phase to phase.

And the searches of the published data sets, on data as long and as many-tagged as theirs.
"""

from __future__ import annotations

import copy
import itertools
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import resolved

from atose_ray import prepare as prepare_verb
from atose_ray import tune as tune_verb
from atose_ray.config import ConfigError, apply_overrides, merge, run_config, yaml_value
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import load_manifest
from atose_ray.datasets import KINDS, dataset_config
from atose_ray.objectives import NTXentConfig
from atose_ray.optim import KerasSGD
from atose_ray.search.space import check, compose, find_study, load_study, load_tree, longest_run, probes, walk
from atose_ray.storage import Store
from atose_ray.training import loop
from atose_ray.training.loop import carry_state, fit, run_epochs
from atose_ray.training.run import Job, open_run, resolve
from atose_ray.types import DataSpec, FrameInput

SETS = {
    "mtat": (128, tuple(f"tag {i}" for i in range(50)), False, 16000 * 29),
    "dcase2017": (50, tuple(f"tag {i}" for i in range(17)), False, 160_000),
    "speech_commands": (64, tuple(f"tag {i}" for i in range(35)), True, 16_000),
}
CROPS = {"harmonic_cnn": 80_000, "sample_cnn": 59_049, "tag_sinc_net": 59_049}


def recipe(name: str, *overrides: str):
    return run_config(apply_overrides(load_tree(f"published_{name}", overrides), overrides))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("encoder", CROPS)
def test_recipe_is_the_published_one(name, encoder) -> None:
    latent, tags, exclusive, longest = SETS[name]
    run = recipe(name, f"encoder.kind={encoder}", "method.kind=joint_embedding")
    phases = [(stage.name, stage.epochs, stage.optimizer.kind, stage.optimizer.lr) for stage in run.method.stages]
    adam, sgd = ("keras_adam", 1e-4), "keras_sgd"
    first = [("embed", 60, *adam), ("embed", 20, sgd, 1e-3), ("embed", 20, sgd, 1e-4)]
    last = [("classify", 60, *adam), *(("classify", n, sgd, lr) for n, lr in ((20, 1e-3), (20, 1e-4), (100, 1e-5)))]
    assert phases == first + last
    assert [stage.carry for stage in run.method.stages] == [False, False, True, False, False, True, True]
    assert run.method.stages[3].optimizer.steps_before >= 57_180
    assert (run.method.latent, run.data.batch_size, run.method.objective.margin) == (latent, 16, 0.4)
    spec = DataSpec(sample_rate_hz=16_000, clip_samples=longest, tags=tags, exclusive=exclusive)
    assert resolved(run, spec).model_spec(spec).input.length == CROPS[encoder]


class Scored:
    """Stands for the protocol of validation: the n-th epoch has the n-th score."""

    def __init__(self, *scores: float) -> None:
        self.scores = list(scores)

    def evaluate(self, *rest: object) -> dict[str, float]:
        return {"pr_auc_macro": self.scores.pop(0)}


def test_the_last_stage_ends_when_its_patience_does(tiny_run, tiny_store, tmp_path, monkeypatch) -> None:
    """Five epochs of nine: none of the last three is better than the second. Cut short before, it is the same."""
    tree = tiny_run().model_dump(mode="json")
    tree["method"]["stages"] = [{"name": "classify", "epochs": 9, "patience": 3}]
    run = run_config(tree)
    scores = (0.1, 0.3, 0.2, 0.3, 0.25, 0.9)
    for folder, cut in (("whole", 9), ("halves", 3)):
        monkeypatch.setattr(loop, "CLIP", Scored(*scores))
        opened = open_run(Job(run, tiny_store.uri, str(tmp_path / folder), {}))
        training = run_epochs(run, opened.method, opened.batches, opened.folder)
        assert len(list(itertools.islice(training, cut))) == min(cut, 5)
        training.close()
        opened = open_run(Job(run, tiny_store.uri, str(tmp_path / folder), {}))
        result = fit(run, opened.method, opened.batches, opened.folder)
        assert (result.state, result.epochs, result.objective) == ("complete", 5, 0.3)
        assert [record.epoch for record in opened.folder.epochs()] == [1, 2, 3, 4, 5]
        assert opened.folder.best_epoch("pr_auc_macro").epoch == 2


def test_patience_is_of_the_last_stage(tiny_run) -> None:
    first = {"name": "classify", "epochs": 2, "patience": 1}
    with pytest.raises(ConfigError, match=r"patience ends the last stage, .* but stage 'classify' has one"):
        run_config({"method": {"kind": "supervised", "stages": [first, {"name": "classify", "epochs": 2}]}})
    assert "patience" not in json.dumps(tiny_run().model_dump(mode="json"))  # an older run keeps its identity


def test_zero_shot_recipe_is_the_published_one() -> None:
    run = recipe("zero_shot", "data.tracks=B")
    assert (run.method.margin, run.method.negatives, run.method.reduction, run.method.kernel_decay) == (
        0.4,
        1,
        "sum",
        1e-5,
    )
    assert (run.optim.kind, run.optim.lr, run.optim.decay, run.optim.momentum) == ("keras_sgd", 1e-3, 1e-6, 0.9)
    assert (run.optim.nesterov, run.optim.schedule, run.data.batch_size, run.method.epochs) == (True, "plateau", 64, 20)
    assert run.method.stages[0].patience == 20
    assert run.data.tracks == "B" and run.data.tag_split.draw == "published" and run.data.track_split.test == ("B", "C")
    spec = DataSpec(sample_rate_hz=22_050, clip_samples=661_500, tags=("a", "b"), exclusive=False)
    data = run.data.model_copy(update={"tag_split": None, "track_split": None})
    crop = resolved(run.model_copy(update={"data": data, "tag_vectors": None}), spec)
    assert crop.encoder.front_end.frames_of(crop.model_spec(spec).input.length) == 130


def test_coala_recipe_is_the_published_one() -> None:
    run = recipe("coala")
    assert [(stage.name, stage.epochs) for stage in run.method.stages] == [("ae_c", 200)]
    weights = run.method.audio_weight, run.method.tag_weight, run.method.contrast_weight
    assert weights == (5, 5, 10) and run.method.objective == NTXentConfig(temperature=0.1, constant=1e-5)
    assert (run.optim.kind, run.optim.lr, run.optim.momentum, run.optim.weight_decay) == ("sgd", 5e-3, 0, 0)
    assert (run.data.batch_size, run.optim.schedule) == (128, "constant")
    assert (run.encoder.dropout, run.method.dropout, run.encoder.scaler) == (0.25, 0.25, "none")
    frames = {"kind": "frames", "frames": 96, "bins": 96, "frame_hop_seconds": 512 / 22_000}
    spec = DataSpec(input=frames, tags=tuple(map(str, range(1000))), exclusive=False)
    crop = resolved(run, spec)
    assert crop.model_spec(spec).input.length == 96
    assert sum(parameter.numel() for parameter in crop.build(spec).parameters()) == 7_499_451
    searched = {parameter for parameter, _, _ in probes(load_study("published_coala").space)}
    assert searched >= {"method[coala].audio_weight", "method[coala].tag_weight"}


def test_audiotagger_recipe_is_the_published_one() -> None:
    """Its space on data as the published: every arm is built, with the parameters that the published one has."""
    frames = FrameInput(frames=10, bins=128, frame_hop_seconds=1.0, dtype="uint8")
    spec = DataSpec(input=frames, tags=tuple(f"tag {i}" for i in range(527)), exclusive=False)
    study = load_study("audioset_frames")
    run = resolved(compose(study, {}), spec)
    assert (run.method.levels, run.method.width, run.method.dropout, run.method.loss) == ((2, 3), 600, 0.4, "clipped")
    assert (run.optim.kind, run.optim.lr, run.data.batch_size) == ("keras_adam", 1e-3, 500)
    assert sum(p.numel() for p in run.build(spec).parameters()) == 2_630_619
    arms = [partial for name, _, partial in probes(study.space) if name.endswith(("levels", "pooling", "context"))]
    assert len(arms) == 13 and all(resolved(compose(study, partial), spec).build(spec) for partial in arms)


def test_without_joint_embedding_the_same_200_epochs() -> None:
    run = recipe("mtat", "encoder.kind=sample_cnn", "encoder.block=rese", "method.kind=supervised")
    assert [stage.epochs for stage in run.method.stages] == [60, 20, 20, 100]
    assert run.method.stages[0].optimizer.steps_before == 0 and run.encoder.block == "rese"
    assert longest_run(load_study("published_mtat")) == 300


def test_an_arm_is_taken_with_its_plain_values() -> None:
    run = run_config(apply_overrides(load_tree("demo", ("encoder.kind=harmonic_cnn",)), ("encoder.kind=harmonic_cnn",)))
    assert (run.encoder.kind, run.encoder.channels, run.encoder.bn_momentum) == ("harmonic_cnn", 8, 0.1)


# Searches: data set -> its longest clip and the crop of a SampleCNN in seconds, tags, one tag per clip
SEARCHES = {
    "fma": (30.0, 59_049 / 16_000, 8, True),
    "mtg_jamendo": (60.0, 59_049 / 16_000, 195, False),
    "audioset": (10.0, 10.0, 527, False),
    "gtzan": (30.0, 59_049 / 16_000, 10, True),
    "urbansound8k": (4.0, 4.0, 10, True),
    "nsynth": (4.0, 4.0, 11, True),
    "esc50": (5.0, 5.0, 50, True),
}


def test_every_data_set_has_a_search() -> None:
    for kind in set(KINDS) - {"frames", "made_up_frames", "coala_hdf5"}:  # of the last published_coala
        assert compose(load_study(kind), {}).data.dataset == kind


@pytest.mark.parametrize("name", SEARCHES)
def test_every_arm_of_a_search_is_built_on_data_like_the_published(name: str) -> None:
    longest_s, crop_s, tags, exclusive = SEARCHES[name]
    names = tuple(f"tag {i}" for i in range(tags))
    spec = DataSpec(sample_rate_hz=16_000, clip_samples=round(16_000 * longest_s), tags=names, exclusive=exclusive)
    study = load_study(name)
    arms = [partial for parameter, _, partial in probes(study.space) if parameter in ("encoder.kind", "method.kind")]
    assert len(arms) >= 4
    for partial in [{}, *arms]:
        run = resolved(compose(study, partial), spec)
        assert run.metric == ("accuracy" if exclusive else "pr_auc_macro")
        heard = run.data.crop_seconds * run.data.eval_crops
        assert heard >= min(longest_s, 25.0)  # evaluation hears all of a clip, or nearly all of an excerpt of 30 s
        if run.encoder.kind == "sample_cnn":
            assert run.data.crop_seconds == crop_s
    if not exclusive:
        with pytest.raises(ConfigError, match="needs exclusive tags"):
            resolved(compose(load_study(name, ("search.metric=accuracy",)), {}), spec)


@pytest.mark.parametrize("name", SEARCHES)
def test_the_commands_that_a_search_names_are_good(name: str) -> None:
    text = find_study(name).read_text()
    lines = [line.removeprefix("#   ") for line in text.splitlines() if line.startswith("#   ")]
    commands = [shlex.split(part) for line in lines for part in line.split(" && ") if part.startswith("python")]
    stored = set()
    for _, _, verb, *arguments in commands:
        if verb == "atose_ray.prepare":
            options = prepare_verb.arguments().parse_args(arguments)
            pairs = dict(pair.split("=") for pair in options.option)
            dataset_config(options.dataset, **{key: yaml_value(value, key) for key, value in pairs.items()})
            stored.add(options.name or options.dataset)
        elif verb == "atose_ray.tune":
            chosen = tune_verb.arguments().parse_args(arguments)
            searched = compose(load_study(chosen.study, tuple(chosen.overrides)), {}).data.dataset
            assert chosen.study == name and searched in stored
    assert name in stored
    assert set(re.findall(r"data\.dataset=(\S+)", text)) <= stored
    for override in re.findall(r"^#   --set (\S+)", text, re.M):
        load_study(name, (override,))


def sgd(weight: torch.nn.Parameter, lr: float) -> KerasSGD:
    return KerasSGD([weight], lr=lr, momentum=0.9, nesterov=True)


def test_carried_velocity_decays_after_the_rate_drops() -> None:
    """Keras' velocity holds the old rate: after a drop to a tenth it is what two phases of one optimizer do."""
    weight, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    one = sgd(weight, 1e-1)
    for _ in range(4):
        weight.grad = weight.detach().clone()
        one.step()
    other.data.copy_(weight.data)
    two = sgd(other, 1e-2)
    carry_state(two, copy.deepcopy(one.state_dict()))
    for group in one.param_groups:
        group["lr"] = 1e-2
    for _ in range(5):
        for each, optimizer in ((weight, one), (other, two)):
            each.grad = each.detach().clone()
            optimizer.step()
    assert torch.equal(weight, other) and two.param_groups[0]["lr"] == 1e-2 and two.param_groups[0]["t"] == 9


PHASES = [
    {"name": "classify", "epochs": 2, "optimizer": {"kind": "keras_sgd", "lr": 0.1}},
    {"name": "classify", "epochs": 2, "optimizer": {"kind": "keras_sgd", "lr": 0.01}, "carry": True},
]


def test_a_resume_between_two_phases_carries_too(tiny_run, tiny_store, tmp_path) -> None:
    tree = tiny_run().model_dump(mode="json")
    tree["method"]["stages"] = PHASES
    run = run_config(tree)
    opened = open_run(Job(run, tiny_store.uri, str(tmp_path / "whole"), {}))
    whole = []
    fit(run, opened.method, opened.batches, opened.folder, report=whole.append)
    for stop_after in (1, 2, 3):
        folder = str(tmp_path / f"cut{stop_after}")
        cut = open_run(Job(run, tiny_store.uri, folder, {}))
        epochs = run_epochs(run, cut.method, cut.batches, cut.folder)
        for _ in range(stop_after):
            next(epochs)
        epochs.close()
        again = open_run(Job(run, tiny_store.uri, folder, {}))
        records = list(run_epochs(run, again.method, again.batches, again.folder))
        assert [r.train_loss for r in records] == [r.train_loss for r in whole[stop_after - 1 :]]


def test_a_rate_falls_where_validation_stands_still(tiny_run, tiny_store, tmp_path, monkeypatch) -> None:
    """A fifth after five epochs that are no better, counted anew in every phase; a resumed run remembers them."""
    tree = tiny_run().model_dump(mode="json")
    phase = {"name": "classify", "epochs": 7, "optimizer": {"kind": "sgd", "lr": 0.01, "schedule": "plateau"}}
    tree["method"]["stages"] = [phase, {**phase, "epochs": 2}]
    run = run_config(tree)
    monkeypatch.setattr(loop, "CLIP", SimpleNamespace(evaluate=lambda *_: {run.metric: 0.5}))
    opened = open_run(Job(run, tiny_store.uri, str(tmp_path / "run"), {}))
    epochs = run_epochs(run, opened.method, opened.batches, opened.folder)
    first = [next(epochs).lr for _ in range(4)]
    epochs.close()
    again = open_run(Job(run, tiny_store.uri, str(tmp_path / "run"), {}))
    rates = first[:-1] + [one.lr for one in run_epochs(run, again.method, again.batches, again.folder)]
    assert rates == pytest.approx([0.01] * 6 + [0.002] + [0.01] * 2)


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([{**PHASES[1]}], "there must be one"),
        ([{**PHASES[0], "trains": ["classifier"]}, PHASES[1]], "train the same parts"),
        (
            [{"name": "classify", "epochs": 1}, PHASES[1]],
            "same kind of optimizer, but got the run's optim and keras_sgd",
        ),
    ],
)
def test_what_cannot_be_carried_is_refused(phases, message) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config({"method": {"kind": "supervised", "stages": phases}})


OWN = {"zero_shot_fma": 22_050, "zero_shot_mtat": 22_050, "zero_shot_folder": 22_050, "coala_folder": 22_000}  # Hz
GENRES = (
    "rock",
    "jazz",
    "folk",
    "blues",
    "metal",
    "pop",
    "soul",
    "house",
    "punk",
    "funk",
    "noise",
    "techno",
    "disco",
    "country",
    "ambient",
)


def prepare_genres(folder: Path, rate: int, name: str) -> Store:
    """Twelve clips a split, of 3.2 s, each of three genres; and vectors of their names."""
    rng, rows = np.random.default_rng(0), ["path,split,tags"]
    for split, start in (("train", 0), ("valid", 4), ("test", 8)):
        for index in range(12):
            noise = rng.standard_normal(round(3.2 * rate)) * (0.02 if index % 2 else 0.2)
            soundfile.write(folder / f"{split}{index}.wav", noise.astype(np.float32), rate)
            own = {GENRES[(start + index + step) % len(GENRES)] for step in (0, 1, 5)}
            rows.append(f"{split}{index}.wav,{split},{'|'.join(sorted(own))}")
    (folder / "tags.csv").write_text("\n".join(rows))
    vectors = rng.standard_normal((len(GENRES) + 1, 8))
    words = (" ".join([word, *map(str, row)]) for word, row in zip((*GENRES, "music"), vectors, strict=True))
    (folder / "words.txt").write_text("\n".join(words))
    store = Store(str(folder / "store"))
    prepare(dataset_config("folder", source=str(folder), sample_rate_hz=rate), store, name=name)
    return store


@pytest.mark.parametrize("name", OWN)
def test_every_method_of_a_search_for_words_is_trained(name: str, tmp_path: Path) -> None:
    """Of each an epoch, on the first encoder, scored by the metric that the search is for."""
    study = load_study(name, ("search.epochs=1", "base.execution.ingest=local", "base.data.batch_size=6"))
    dataset = compose(study, {}).data.dataset
    store = prepare_genres(tmp_path, OWN[name], dataset)
    if "tag_vectors" in study.base:
        study.base["tag_vectors"]["file"] = str(tmp_path / "words.txt")
    manifest = load_manifest(store, dataset)
    check(study, name, store, manifest)
    first = walk(lambda name, node: node.ends()[0], study.space)
    arms = [partial for parameter, _, partial in probes(study.space) if parameter == "method.kind"]
    kinds = set()
    for number, partial in enumerate(arms):
        run = resolve(compose(study, merge(first, partial)), store, manifest)
        opened = open_run(Job(run, store.uri, str(tmp_path / str(number)), {}))
        result = fit(run, opened.method, opened.batches, opened.folder)
        assert result.state == "complete" and 0 < result.objective <= 1
        kinds.add(run.method.kind)
    assert kinds == ({"coala"} if name == "coala_folder" else {"zero_shot", "joint_embedding"})
