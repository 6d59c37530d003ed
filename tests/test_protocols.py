"""The published protocol: its areas, its windows, its verb; and no comparison across protocols."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_tree
from parity_vectors import load

from atose_ray import evaluate, train
from atose_ray.data.sampling import published_starts
from atose_ray.data.shards import Manifest, data_store, load_manifest
from atose_ray.evaluation.jetatag import THRESHOLDS, jetatag_metrics, keras_auc
from atose_ray.evaluation.metrics import NonFiniteError
from atose_ray.evaluation.protocols import JETATAG
from atose_ray.evaluation.published import figures as all_figures
from atose_ray.evaluation.published import no_figures, published_figures
from atose_ray.evaluation.scoring import ClipScores, score_clips
from atose_ray.storage import Store
from atose_ray.training.checkpoint import Model, load_model
from atose_ray.training.run import make_batches


def vectors() -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in load("metrics").items()}


def test_keras_auc_is_the_published_number() -> None:
    arrays = vectors()
    labels, scores = arrays["labels"], arrays["scores"]
    got = jetatag_metrics(scores, labels, exclusive=False)
    assert "accuracy_crops" not in got
    for name, pair in {
        "micro_crops": (got["roc_auc_micro_crops_200"], got["pr_auc_micro_crops_200"]),
        "micro_clipmean": keras_auc(scores.mean(axis=1), labels),
    }.items():
        want = [arrays[f"np_{kind}_{name}"][0] for kind in ("roc", "pr")]
        assert np.allclose(pair, want, rtol=0, atol=1e-12), name
        keras = [arrays[f"keras_{kind}_{name}"][0] for kind in ("roc", "pr")]
        assert np.allclose(pair, keras, rtol=0, atol=1e-7), name
    assert (got["clips"], got["crops_per_clip"]) == (60, 8)


def test_ties_and_thresholds() -> None:
    arrays = vectors()
    assert len(arrays["thresholds"]) == THRESHOLDS
    for scores, keras, own in zip(
        arrays["edge_scores"], arrays["edge_keras_roc_pr"], arrays["edge_np_tf24_roc_pr"], strict=True
    ):
        got = keras_auc(scores, arrays["edge_labels"][0])
        assert np.allclose(got, keras, rtol=0, atol=1e-7) and np.allclose(got, own, rtol=0, atol=1e-12)


def test_jetatag_metrics_refuses_what_has_no_ranking() -> None:
    scores = np.full((2, 3, 4), 0.5)
    with pytest.raises(ValueError, match="nothing to rank"):
        jetatag_metrics(scores, np.zeros((2, 4)), False)
    with pytest.raises(ValueError, match=r"must be \[clips, windows, tags\].* got \(2, 4\)"):
        jetatag_metrics(scores[:, 0], np.eye(2, 4), False)
    with pytest.raises(ValueError, match="must both be"):
        jetatag_metrics(scores, np.eye(3, 4), False)
    scores[0, 1, 2] = np.nan
    with pytest.raises(NonFiniteError):
        jetatag_metrics(scores, np.eye(2, 4), False)


def test_accuracy_counts_windows_of_exclusive_tags() -> None:
    scores = np.full((2, 3, 4), 0.1)
    scores[0, :2, 1] = scores[0, 2, 0] = scores[1, 0, 3] = scores[1, 1:, 2] = 0.9
    tags = np.eye(4)[[1, 2]]
    assert jetatag_metrics(scores, tags, exclusive=True)["accuracy_crops"] == pytest.approx(4 / 6)


def test_windows_never_reach_the_tail() -> None:
    starts = published_starts(465_984, 59_049)
    assert starts == [i * ((465_984 - 59_049) // 16) for i in range(16)]
    assert starts[-1] + 59_049 < 465_984
    assert published_starts(100, 100) == [0] * 16 and published_starts(115, 100) == [0] * 16
    assert published_starts(95, 100) == [-2] * 16
    assert published_starts(100, 20, windows=4) == [0, 20, 40, 60]


def test_figures_stand_only_beside_their_own_protocol() -> None:
    clip, published = (published_figures("mtat", 50, "test", protocol) for protocol in ("clip", "jetatag"))
    words = published_figures("speech_commands", 35, "test", "jetatag")
    assert clip is not None and published is not None and words is not None
    assert set(clip.metrics).isdisjoint(published.metrics) and words.metrics == ("accuracy_crops",)
    assert published_figures("mtat", 50, "valid", "clip") is None
    assert published_figures("mtat", 188, "test", "clip") is None
    assert published_figures("demo", 50, "test", "clip") is None
    assert published_figures("speech_commands", 28, "test", "jetatag") is None
    assert published_figures("speech_commands", 35, "test", "clip") is None
    for figures in [one for of in all_figures().values() for one in of.values() if one.systems]:
        assert {len(scores) for scores in figures.systems.values()} == {len(figures.metrics)}
        if "accuracy_deviation" in figures.metrics:  # over repetitions
            assert all(0.3 < mean < 1 and 0 < deviation < 0.02 for mean, deviation in figures.systems.values())
            continue
        for name, score in (
            (n, s) for row in figures.systems.values() for n, s in zip(figures.metrics, row, strict=True)
        ):
            least = 0.01 if "map_zeros" in name else 0.25
            assert score is None or least < score < (3 if name == "d_prime" else 1), name
        if len(figures.metrics) == 2:
            assert all(roc_auc > pr_auc for roc_auc, pr_auc in figures.systems.values())


def test_where_there_is_no_figure_it_says_why() -> None:
    plain = no_figures("demo", "test", "clip")
    assert plain == "no published figure for this data set and protocol"
    assert '"F1"' in no_figures("dcase2017", "test", "jetatag") and no_figures("dcase2017", "test", "clip") == plain
    assert "test split with 50 tags" in no_figures("mtat", "valid", "jetatag")


def test_published_accuracies_are_those_of_the_logs(shared: Path) -> None:
    figures = all_figures()["speech_commands"]["jetatag"].systems
    with (shared / "parity" / "reference_results.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["dataset"] == "keyword"]
    logged = {
        row["encoder"].replace("+", " + ").replace("+ se", "+ SE") + (", JE" if row["JE"] == "True" else ""): row
        for row in rows
    }
    assert {name.replace("SEt", "se") for name in logged} == set(figures) and len(rows) == 12
    assert all(float(logged[name]["test_acc"]) == score for name, (score,) in figures.items())


@pytest.fixture(scope="module")
def trained(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(model folder, store) of a tiny run."""
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(Path(tiny_store.root) / "data", root / "store" / "data")
    (root / "one.json").write_text(json.dumps(tiny_tree(execution={"precision": "float32"})))
    train.main([str(root / "one.json"), "--store", str(root / "store")])
    (run,) = (root / "store" / "runs").iterdir()
    return str(run / "best"), str(root / "store")


def run_verb(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    evaluate.main(list(arguments))
    return capsys.readouterr().out


def test_clip_protocol_is_the_score_of_the_model_folder(trained, capsys) -> None:
    model, store = trained
    before = {path.name: path.read_bytes() for path in Path(model).iterdir()}
    result = json.loads(run_verb(capsys, model, "--store", store, "--json"))
    assert (result["protocol"], result["split"], result["dataset"]) == ("clip", "test", "folder")
    kept = load_model(model).metrics
    assert result["metrics"] == pytest.approx(kept["test"], abs=1e-6) and result["published"] is None
    assert {path.name: path.read_bytes() for path in Path(model).iterdir()} == before
    valid = json.loads(run_verb(capsys, model, "--store", store, "--json", "--split", "valid"))
    assert valid["metrics"]["pr_auc_macro"] == pytest.approx(kept["valid"]["pr_auc_macro"], abs=1e-6)


def windows(model: Model, manifest: Manifest, store: str, batch_size: int = 64) -> ClipScores:
    execution = model.run.execution.model_copy(update={"eval_batch_size": batch_size})
    run = model.run.model_copy(update={"execution": execution})
    batches = make_batches(run, manifest, store).evaluate("test", JETATAG.windows)
    return score_clips(model.method, batches, model.stage, torch.device("cpu"))


def test_published_protocol_scores_sixteen_windows(trained, capsys) -> None:
    folder, store = trained
    model = load_model(folder)
    manifest = load_manifest(Store(store), "folder")
    whole = windows(model, manifest, store)
    assert whole.windows_NKC.shape == (manifest.data_spec.counts["test"], 16, 4)
    result = json.loads(run_verb(capsys, folder, "--store", store, "--protocol", "jetatag", "--json"))
    assert result["metrics"] == pytest.approx(jetatag_metrics(whole.windows_NKC, whole.tags_NC, False), abs=1e-9)
    for batch_size in (1, 7):
        parts = windows(model, manifest, store, batch_size)
        assert np.allclose(parts.windows_NKC, whole.windows_NKC, atol=1e-6)
        assert np.array_equal(parts.tags_NC, whole.tags_NC)


def test_every_printed_score_names_its_protocol(trained, capsys) -> None:
    model, store = trained
    for protocol in ("clip", "jetatag"):
        out = run_verb(capsys, model, "--store", store, "--protocol", protocol)
        scores = [line for line in out.splitlines() if line.startswith("  ")]
        assert scores and all(line.endswith(f"[{protocol}]") for line in scores)
        assert "no published figure for this data set and protocol" in out


def test_published_figures_are_printed_beside_ours(trained) -> None:
    metrics = {"roc_auc_macro": 0.9, "pr_auc_macro": 0.4, "clips": 4332.0}
    one = {"model": "m", "dataset": "mtat", "kind": "mtat", "split": "test", "protocol": "clip", "metrics": metrics,
           "published": evaluate.beside("mtat", 50, "test", "clip")}  # fmt: skip
    text = evaluate.as_text([one])
    assert re.search(r"clips +4332  \[clip\]", text), "counts are whole numbers"
    assert "HarmonicCNN" in text and "0.4611" in text and "Won et al. 2020" in text and "this model" in text
    assert "0.5595" not in text and "no published figure" not in text
    words = {
        **one,
        "dataset": "speech_commands",
        "kind": "speech_commands",
        "protocol": "jetatag",
        "metrics": {"accuracy_crops": 0.9},
        "published": evaluate.beside("speech_commands", 35, "test", "jetatag"),
    }
    text = evaluate.as_text([words, words])  # fmt: skip
    assert "0.9695  [jetatag]" in text and text.count("0.9000  [jetatag]") == 3 and "model 2: m" in text


def test_an_interval_says_how_it_was_made() -> None:
    metrics, bounds = {"accuracy": 0.9, "pr_auc_macro": 0.4}, {"accuracy": [0.8, 0.95], "pr_auc_macro": [0.3, 0.5]}
    one = {"model": "m", "dataset": "d", "kind": "d", "split": "test", "protocol": "clip", "metrics": metrics,
           "intervals": bounds, "published": None}  # fmt: skip
    text = evaluate.as_text([one])
    assert "95 % (Wilson): 0.8000 to 0.9500  [clip]" in text
    assert "95 % (bootstrap over clips): 0.3000 to 0.5000  [clip]" in text


def test_other_tags_are_refused(trained, tmp_path: Path) -> None:
    model, store = trained
    shutil.copytree(store, tmp_path / "store")
    path = Path(data_store(Store(str(tmp_path / "store")), "folder").path("manifest.json"))
    manifest = json.loads(path.read_text())
    manifest["data_spec"]["tags"][0] = "renamed"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"was trained on other tags .* renamed"):
        evaluate.main([model, "--store", str(tmp_path / "store")])


def test_several_models_stand_side_by_side(trained, capsys) -> None:
    model, store = trained
    one = json.loads(run_verb(capsys, model, "--store", store, "--json"))
    two = json.loads(run_verb(capsys, model, model, "--store", store, "--json"))
    assert two == [one, one] and one["content_hash"] == load_manifest(Store(store), "folder").content_hash
    assert one["tags"] == list(load_model(model).spec.tags)
    out = run_verb(capsys, model, model, "--store", store)
    assert f"model 1: {model}\nmodel 2: {model}\n" in out
    scores = [line for line in out.splitlines() if line.startswith("  ")]
    value = f"{one['metrics']['pr_auc_macro']:.4f}"
    assert f"pr_auc_macro {value} {value} [clip]" in [" ".join(line.split()) for line in scores]
    assert all(line.endswith("[clip]") for line in scores)


def changed_copy(model: str, folder: Path, dataset: str = "folder", tag: str = "high") -> str:
    """A copy of a model folder that says it is of another data set, or has another first tag."""
    shutil.copytree(model, folder)
    config, spec = json.loads((folder / "config.json").read_text()), json.loads((folder / "data_spec.json").read_text())
    config["data"]["dataset"] = dataset
    spec["tags"] = [tag, *spec["tags"][1:]]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "data_spec.json").write_text(json.dumps(spec))
    return str(folder)


def test_models_of_other_data_are_refused(trained, tmp_path: Path) -> None:
    model, store = trained
    other = changed_copy(model, tmp_path / "other", dataset="mtat")
    with pytest.raises(ValueError, match=r"one data set, but .* on 'folder' and .* on 'mtat'; score them one by one"):
        evaluate.main([model, other, "--store", store])
    tags = changed_copy(model, tmp_path / "tags", tag="zither")
    with pytest.raises(ValueError, match=r"the same tags, but .* has .* and .* zither"):
        evaluate.main([model, tags, "--store", store])


def test_against_prints_the_difference_to_an_earlier_result(trained, capsys, tmp_path: Path) -> None:
    model, store = trained
    before = json.loads(run_verb(capsys, model, "--store", store, "--json"))
    before["metrics"]["pr_auc_macro"] -= 0.125
    del before["metrics"]["roc_auc_macro"]
    file = tmp_path / "before.json"
    file.write_text(json.dumps(before))
    out = run_verb(capsys, model, "--store", store, "--against", str(file))
    rows = [" ".join(line.split()) for line in out.splitlines()]
    assert f"this model minus {model} in {file}:" in rows and "pr_auc_macro +0.1250 [clip]" in rows
    assert all(line.endswith("[clip]") for line in out.splitlines() if line.startswith("  "))
    file.write_text(json.dumps([before, before]))
    result = json.loads(run_verb(capsys, model, "--store", store, "--against", str(file), "--json"))
    first, second = result["against"]
    assert first == second and first["difference"]["pr_auc_macro"] == pytest.approx(0.125, abs=1e-6)
    assert {"roc_auc_macro", "clips", "tags_total"}.isdisjoint(first["difference"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "published"}, r"protocol is the same, but expected 'clip' and .* has 'jetatag'; .*--protocol"),
        ({"dataset": "mtat"}, r"dataset is the same, but expected 'folder' and .* 'mtat'; compare models of one"),
        ({"split": "valid"}, r"split is the same, but expected 'test' and .* has 'valid'; .*--split"),
        ({"tags": ["high"]}, r"tags is the same, but expected 4, number 2 being '\w+' and .* has 1; score both"),
        ({"content_hash": "0"}, r"content_hash is the same, but expected .* has '0'; .*prepared anew"),
    ],
)
def test_a_comparison_across_protocols_or_data_is_refused(trained, capsys, tmp_path: Path, change, message) -> None:
    model, store = trained
    taken = {"dataset": "folder", "split": "test", "protocol": "clip"}
    manifest = load_manifest(Store(store), "folder")
    taken |= {"tags": list(manifest.data_spec.tags), "content_hash": manifest.content_hash}
    file = tmp_path / "before.json"
    file.write_text(json.dumps({"model": "old", "metrics": {"pr_auc_macro": 0.5}, **taken, **change}))
    with pytest.raises(ValueError, match=message):
        evaluate.main([model, "--store", store, "--against", str(file)])
    assert capsys.readouterr().out == ""


def test_against_refuses_what_is_no_earlier_result(trained, tmp_path: Path) -> None:
    model, store = trained
    file = tmp_path / "before.json"
    arguments = [model, "--store", store, "--against", str(file)]
    with pytest.raises(ValueError, match=r"cannot read .*before.json"):
        evaluate.main(arguments)
    for text, message in {
        "pr_auc_macro 0.5": "is not JSON",
        '{"model": "m", "metrics": {}}': "lacks protocol, dataset, split, tags, content_hash",
        "[1]": "lacks model",
        "[]": "empty list",
    }.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            evaluate.main(arguments)
