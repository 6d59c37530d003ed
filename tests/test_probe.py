"""Probes: the published protocol's numbers, the controls, and the command on sets with folds and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, tiny_tree
from parity_vectors import PARITY, load

from atose_ray import probe as command
from atose_ray.audio.mfcc import MFCC
from atose_ray.data.prepare import prepare
from atose_ray.datasets import dataset_config
from atose_ray.encoders import CoalaCNNConfig
from atose_ray.evaluation.probe import (
    Embedded,
    average_by_clip,
    classifier,
    drawn_evenly,
    mean_and_deviation,
    pairs_of_folds,
    probe,
    repeated,
    without_first,
)
from atose_ray.evaluation.published import published_figures
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, finish_run, open_run
from atose_ray.types import DataSpec


def clips_of(arrays: dict[str, np.ndarray], name: str) -> Embedded:
    """Pooled over patches, as one row each came."""
    patches, label = arrays[f"{name}/embeddings_clip_patch_E"].astype(np.float32), arrays[f"{name}/label"]
    count, rows = patches.shape[:2]
    tags_RC = np.repeat(np.eye(label.max() + 1)[label], rows, axis=0)
    return average_by_clip(patches.reshape(count * rows, -1), tags_RC, np.repeat(np.arange(count), rows))


@pytest.fixture(scope="module")
def downstream() -> dict[str, np.ndarray]:
    if not (PARITY / "coala_downstream.npz").exists():
        pytest.skip("needs the published numbers")
    with np.load(PARITY / "coala_downstream.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def test_ten_folds_as_published(downstream: dict[str, np.ndarray]) -> None:
    clips, fold_N = clips_of(downstream, "us8k_like"), downstream["us8k_like/fold_1_to_10"]
    folds = {int(number): clips.at(fold_N == number) for number in np.unique(fold_N)}
    random = np.random.RandomState(int(downstream["us8k_like/numpy_seed_before"]))
    accuracies = [probe(pair, "mlp", random, exclusive=True)["accuracy"] for pair in pairs_of_folds(folds)]
    assert accuracies == downstream["us8k_like/accuracy_per_fold"].tolist()
    seeds = [int(downstream["us8k_like/numpy_seed_before"])]
    whole = repeated(list(pairs_of_folds(folds)), "mlp", seeds, exclusive=True)
    assert whole == {"accuracy": [pytest.approx(float(downstream["us8k_like/accuracy_mean_over_folds"]))]}


def test_one_fit_as_published(downstream: dict[str, np.ndarray]) -> None:
    random = np.random.RandomState(int(downstream["us8k_like/numpy_seed_before"]))
    model = classifier("mlp", random, exclusive=True)
    with pytest.warns(match="hasn't converged"):
        model.fit(downstream["mlp/x_NE"], downstream["mlp/y_N"])
    assert np.allclose(model.loss_curve_, downstream["mlp/loss_curve"], rtol=1e-5)
    got = model.predict_proba(downstream["mlp/x_NE"])
    assert np.abs(got - downstream["mlp/probabilities_on_x"]).max() < 1e-4


def test_the_first_line_of_each_list_is_lost_where_it_was(downstream: dict[str, np.ndarray]) -> None:
    clips, train = clips_of(downstream, "gtzan_like"), int(downstream["gtzan_like/listed_train_then_test"][0])
    pair = clips.at(np.arange(train)), clips.at(np.arange(train, len(clips.clip_id_N)))
    lost = without_first(pair[0]), without_first(pair[1])
    assert [len(one.clip_id_N) for one in lost] == downstream["gtzan_like/used_train_then_test"].tolist()
    seed, want = int(downstream["gtzan_like/numpy_seed_before"]), float(downstream["gtzan_like/accuracy"])
    found = [probe(one, "mlp", np.random.RandomState(seed), exclusive=True)["accuracy"] for one in (lost, pair)]
    assert found[0] == pytest.approx(want) and found[1] != pytest.approx(want)


def test_mfcc_as_published() -> None:
    arrays = load("coala_frontend")
    short_T = arrays["wave/short_int16"].float() / 32768
    mfcc = MFCC(int(arrays["wave/sample_rate_hz"]))
    for name, wave_T in (("short", short_T), ("long", short_T.repeat(5))):
        want = arrays[f"mfcc/{name}_120"].double().numpy()
        assert np.abs(mfcc(wave_T) - want).max() < 1e-6 * np.abs(want).max()
        theirs = arrays[f"mfcc_zero_padding/{name}_120"].double().numpy()
        assert np.abs(mfcc(wave_T) - theirs).max() > 1e-4 * np.abs(want).max()  # a later librosa
    assert np.isfinite(mfcc(torch.ones(7))).all() and np.isfinite(mfcc(torch.zeros(3000))).all()


def made_up(clips: int = 200, classes: int = 4, spread: float = 0.5, seed: int = 0) -> Embedded:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, clips)
    centre = np.random.default_rng(9).standard_normal((classes, 8))
    embed_NE = centre[label] + spread * rng.standard_normal((clips, 8))
    return Embedded(embed_NE, np.eye(classes)[label], np.arange(clips))


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_permuted_tags_are_chance_and_seeds_differ(kind: str) -> None:
    pair = (made_up(), made_up(seed=1))
    true = repeated([pair], kind, range(2), exclusive=True)["accuracy"]
    chance = repeated([pair], kind, range(2), exclusive=True, permuted=True)["accuracy"]
    assert min(true) > 0.8 and max(chance) < 0.5
    assert repeated([pair], kind, [1], exclusive=True)["accuracy"] == true[1:]


def test_several_tags_are_scored_by_their_areas() -> None:
    train, test = made_up(), made_up(seed=1)
    both = [Embedded(one.embed_NE, np.maximum(one.tags_NC, one.tags_NC[:, [1, 0, 2, 3]]), one.clip_id_N) for one in
            (train, test)]  # fmt: skip
    found = probe((both[0], both[1]), "linear", np.random.RandomState(0), exclusive=False)
    assert set(found) == {"pr_auc_macro", "roc_auc_macro"} and found["roc_auc_macro"] > 0.95


def test_classes_are_drawn_evenly_where_they_are_tested() -> None:
    train, test = made_up(), made_up(seed=1)
    test = test.at(test.tags_NC[:, 2] == 0)
    few, same = drawn_evenly(train, test, 20)
    assert few.tags_NC.sum(axis=0).tolist() == [20, 20, 0, 20] and same is test
    assert (np.diff(few.clip_id_N) > 0).all()
    assert mean_and_deviation([1.0, 3.0]) == {"mean": 2.0, "deviation": 1.0, "values": [1.0, 3.0]}


APART, ALIKE = ((120, 250), (700, 1200)), ((200, 700), (300, 900))  # Hz of low and of high clips


def prepare_in_folds(folder: Path, store: Store, clips: int = 36, pitches: Any = APART) -> None:
    """`three_folds`: each clip high or low, in three folds."""
    rng, rows = np.random.default_rng(0), ["path,fold,tags"]
    for index in range(clips):
        high = index % 2
        time = np.arange(int(RATE * (0.5 + 0.02 * index))) / RATE
        tone = 0.5 * np.sin(2 * np.pi * rng.uniform(*pitches[high]) * time)
        soundfile.write(folder / f"{index}.wav", tone, RATE)
        rows.append(f"{index}.wav,{index // 2 % 3},{'high' if high else 'low'}")
    (folder / "tags.csv").write_text("\n".join(rows))
    config = dataset_config("folder", source=str(folder), sample_rate_hz=RATE, exclusive=True)
    prepare(config, store, name="three_folds")


@pytest.fixture(scope="module")
def sets(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Beside the tiny set one in folds."""
    prepare_in_folds(tmp_path_factory.mktemp("folds"), tiny_store)
    return tiny_store


@pytest.fixture(scope="module")
def model(sets: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    from atose_ray.config import run_config
    from atose_ray.data.shards import load_manifest
    from atose_ray.training.run import resolve

    tree = {
        **tiny_tree(encoder={"kind": "coala_cnn", "channels": 4}),
        "method": {"kind": "coala", "hidden": 16, "stages": [{"name": "e_c", "epochs": 2}]},
    }
    run = resolve(run_config(tree), sets, load_manifest(sets, "folder"))
    folder = tmp_path_factory.mktemp("model")
    job = Job(run, sets.uri, str(folder / "run"), {})
    opened = open_run(job)
    fit(run, opened.method, opened.batches, opened.folder)
    finish_run(job, Store(str(folder / "best")))
    return str(folder / "best")


def results(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    command.main([*words, "--json", "--seeds", "2"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_command(sets: Store, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Folds and splits, one class and several, crops and whole clips; the same twice; every system is there."""
    first = results(capsys, model, "three_folds", "folder", "--store", sets.uri)
    assert results(capsys, model, "three_folds", "folder", "--store", sets.uri) == first
    folds, splits = first
    systems = {"embeddings", "untrained encoder", "MFCC", "permuted tags"}
    assert set(folds["scores"]) == set(splits["scores"]) == systems
    assert folds["dimensions"] == {"embeddings": 36, "untrained encoder": 36, "MFCC": 120}
    assert folds["clips"] == [[24, 12]] * 3 and folds["folds"] == 3 and folds["protocol"] == "probe_mlp"
    assert folds["scores"]["MFCC"]["accuracy"]["mean"] > 0.9 > folds["scores"]["permuted tags"]["accuracy"]["mean"]
    assert set(splits["scores"]["MFCC"]) == {"pr_auc_macro", "roc_auc_macro"} and splits["folds"] == 0
    assert len(splits["scores"]["MFCC"]["roc_auc_macro"]["values"]) == 2 and splits["published"] is None
    whole = results(capsys, model, "three_folds", "--whole", "--classifier", "linear", "--store", sets.uri)[0]
    assert whole["protocol"] == "probe_linear_whole" and whole["scores"]["MFCC"]["accuracy"]["mean"] > 0.9
    command.main([model, "three_folds", "--seeds", "1", "--store", sets.uri])
    text = capsys.readouterr().out
    assert "3 folds, 0 skipped, 1 seeds" in text and "[probe_mlp]" in text


def test_published_protocol_stands_beside_published_figures(
    sets: Store, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from atose_ray.evaluation import published

    for name, tags in (("urbansound8k", 10), ("gtzan", 10), ("nsynth", 11)):
        figures = published_figures(name, tags, "test", "probe_coala")
        assert (
            figures is not None and figures.systems["AE-C"][0] > figures.systems["MFCC"][0] > figures.systems["CNN"][0]
        )
        assert published_figures(name, tags, "test", "probe_mlp") is None
    two = published.Figures(
        source="them", tags=2, metrics=("accuracy", "accuracy_deviation"), systems={"X": (0.5, 0.1)}
    )
    monkeypatch.setattr(published, "figures", lambda: {"folder": {"probe_coala": two}})
    command.main([model, "three_folds", "--published", "--seeds", "1", "--store", sets.uri])
    text = capsys.readouterr().out
    assert "published: them" in text and "0.5000 +- 0.1000  [probe_coala]" in text
    with pytest.raises(ValueError, match="leave one of the two out"):
        command.main([model, "three_folds", "--published", "--classifier", "linear", "--store", sets.uri])


def test_a_configuration_is_probed_from_the_weights_that_it_names(
    sets: Store, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = tiny_tree(encoder={"kind": "coala_cnn", "channels": 4}, init_from={"uri": model})
    (tmp_path / "one.json").write_text(json.dumps(tree))
    found = results(capsys, str(tmp_path / "one.json"), "three_folds", "--store", sets.uri)[0]
    wanted = results(capsys, model, "three_folds", "--store", sets.uri)[0]
    assert found["scores"]["embeddings"] == wanted["scores"]["embeddings"]


def test_an_untrained_encoder_keeps_what_was_fitted() -> None:
    spec = DataSpec(sample_rate_hz=RATE, clip_samples=4000, tags=("a",), exclusive=False)
    from atose_ray.config import RunConfig

    run = RunConfig(encoder=CoalaCNNConfig(channels=2))
    trained = run.encoder.build(spec)
    with torch.no_grad():
        trained.scaler_2X += 0.5
        trained.audio_encoder[1].running_mean += 3
    fresh = command.untrained(run, trained, spec)
    assert torch.equal(fresh.scaler_2X, trained.scaler_2X)
    assert not fresh.audio_encoder[1].running_mean.any()
    assert not torch.equal(fresh.audio_encoder[0].weight, trained.audio_encoder[0].weight)


def test_another_rate_is_refused(sets: Store, model: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 8000)
    (tmp_path / "tags.csv").write_text("path,split,tags\n" + "\n".join(f"a.wav,{s},x" for s in ("train",)))
    prepare(dataset_config("folder", source=str(tmp_path), sample_rate_hz=8000), sets, name="other_rate")
    with pytest.raises(ValueError, match="takes audio, 4000 Hz, but 'other_rate' holds audio, 8000 Hz"):
        command.main([model, "other_rate", "--store", sets.uri])
