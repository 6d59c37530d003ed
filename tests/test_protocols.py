"""The published protocol: its areas, its windows, its verb; and no comparison across protocols."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_tree
from parity_vectors import load

from atose_ray import evaluate, train
from atose_ray.data.sampling import published_starts
from atose_ray.data.shards import load_manifest
from atose_ray.data.store import Store
from atose_ray.metrics import NonFiniteError
from atose_ray.protocols import FIGURES, THRESHOLDS, keras_auc, published_figures, published_metrics
from atose_ray.training.checkpoint import load_model
from atose_ray.training.evaluate import score_windows


def vectors() -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in load("metrics").items()}


def test_keras_auc_is_the_published_number() -> None:
    arrays = vectors()
    labels, scores = arrays["labels"], arrays["scores"]
    got = published_metrics(scores, labels)
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


def test_published_metrics_refuses_what_has_no_ranking() -> None:
    scores = np.full((2, 3, 4), 0.5)
    with pytest.raises(ValueError, match="nothing to rank"):
        published_metrics(scores, np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"must be \[clips, windows, tags\].* got \(2, 4\)"):
        published_metrics(scores[:, 0], np.eye(2, 4))
    with pytest.raises(ValueError, match="must both be"):
        published_metrics(scores, np.eye(3, 4))
    scores[0, 1, 2] = np.nan
    with pytest.raises(NonFiniteError):
        published_metrics(scores, np.eye(2, 4))


def test_windows_never_reach_the_tail() -> None:
    starts = published_starts(465_984, 59_049)
    assert starts == [i * ((465_984 - 59_049) // 16) for i in range(16)]
    assert starts[-1] + 59_049 < 465_984
    assert published_starts(100, 100) == [0] * 16 and published_starts(115, 100) == [0] * 16
    assert published_starts(95, 100) == [-2] * 16
    assert published_starts(100, 20, windows=4) == [0, 20, 40, 60]


def test_figures_stand_only_beside_their_own_protocol() -> None:
    clip, published = (published_figures("mtat", 50, "test", protocol) for protocol in ("clip", "published"))
    assert clip is not None and published is not None
    assert {clip.roc_auc, clip.pr_auc}.isdisjoint({published.roc_auc, published.pr_auc})
    assert published_figures("mtat", 50, "valid", "clip") is None
    assert published_figures("mtat", 188, "test", "clip") is None
    assert published_figures("demo", 50, "test", "clip") is None
    for figures in FIGURES.values():
        assert all(0.3 < row.pr_auc < row.roc_auc < 1 for row in figures.systems)


@pytest.fixture(scope="module")
def trained(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """(model folder, store) of a tiny run."""
    root = tmp_path_factory.mktemp("trained")
    shutil.copytree(Path(tiny_store.root) / "data", root / "store" / "data")
    (root / "one.json").write_text(json.dumps(tiny_tree()))
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


def test_published_protocol_scores_sixteen_windows(trained, capsys) -> None:
    folder, store = trained
    model = load_model(folder)
    manifest = load_manifest(Store(store), "folder")
    whole = score_windows(model, manifest, store, "test")
    assert whole.scores_NKC.shape == (manifest.data_spec.counts["test"], 16, 4)
    result = json.loads(run_verb(capsys, folder, "--store", store, "--protocol", "published", "--json"))
    assert result["metrics"] == pytest.approx(published_metrics(whole.scores_NKC, whole.tags_NC), abs=1e-9)
    for batch_size in (1, 7):
        parts = score_windows(model, manifest, store, "test", batch_size=batch_size)
        assert np.allclose(parts.scores_NKC, whole.scores_NKC, atol=1e-6)
        assert np.array_equal(parts.tags_NC, whole.tags_NC)


def test_every_printed_score_names_its_protocol(trained, capsys) -> None:
    model, store = trained
    for protocol in ("clip", "published"):
        out = run_verb(capsys, model, "--store", store, "--protocol", protocol)
        scores = [line for line in out.splitlines() if line.startswith("  ")]
        assert scores and all(line.endswith(f"[{protocol}]") for line in scores)
        assert "no published figure for this data set and protocol" in out


def test_published_figures_are_printed_beside_ours(trained) -> None:
    metrics = {"roc_auc_macro": 0.9, "pr_auc_macro": 0.4, "clips": 4332.0}
    text = evaluate.as_text({"model": "m", "dataset": "mtat", "split": "test", "protocol": "clip", "metrics": metrics,
                             "published": evaluate.beside("mtat", 50, "test", "clip")})  # fmt: skip
    assert "HarmonicCNN" in text and "0.4611" in text and "Won et al. 2020" in text and "this model" in text
    assert "0.5595" not in text and "no published figure" not in text


def test_other_tags_are_refused(trained, tmp_path: Path) -> None:
    model, store = trained
    shutil.copytree(store, tmp_path / "store")
    path = tmp_path / "store" / "data" / "folder" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["data_spec"]["tags"][0] = "renamed"
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"was trained on other tags .* renamed"):
        evaluate.main([model, "--store", str(tmp_path / "store")])
