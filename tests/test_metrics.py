"""Metrics: their formulas on hand-made cases, and the published vectors."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from atose_ray.data.tag_statistics import tag_correlation
from atose_ray.evaluation import areas as areas_module
from atose_ray.evaluation.areas import areas_of_columns
from atose_ray.evaluation.metrics import (
    NonFiniteError,
    clip_metrics,
    joint_space_metrics,
    mean_prevalence,
    per_tag_table,
    shown,
)
from atose_ray.evaluation.scoring import mean_over_windows

TAGS = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], float)


def test_perfect_and_reversed() -> None:
    assert clip_metrics(TAGS * 0.8 + 0.1, TAGS, False)["pr_auc_macro"] == 1
    assert clip_metrics(TAGS * 0.8 + 0.1, TAGS, False)["f1_macro_at_0.5"] == 1
    reversed_ = clip_metrics(1 - TAGS, TAGS, False)
    assert reversed_["roc_auc_macro"] == 0


def test_average_precision_by_hand() -> None:
    scores = np.array([[0.9], [0.8], [0.7], [0.1]])
    tags = np.array([[1], [0], [1], [0]], float)
    assert clip_metrics(scores, tags, False)["pr_auc_macro"] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_tags_without_positives_do_not_count_and_are_counted() -> None:
    tags = np.c_[TAGS, np.zeros(4)]
    scores = np.random.default_rng(0).random((4, 3))
    metrics = clip_metrics(scores, tags, False)
    assert metrics["tags_scored"] == 2 and metrics["tags_total"] == 3
    assert metrics["pr_auc_macro"] == clip_metrics(scores[:, :2], TAGS, False)["pr_auc_macro"]
    assert per_tag_table(scores, tags, ("a", "b", "c"))[2]["average_precision"] is None
    with pytest.raises(ValueError, match="no tag has both a positive and a negative"):
        clip_metrics(scores, np.zeros((4, 3)), False)


def test_accuracy_only_for_exclusive_tags() -> None:
    tags = np.eye(3)
    scores = np.array([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.1, 0.2, 0.7]])
    assert clip_metrics(scores, tags, True)["accuracy"] == pytest.approx(2 / 3)
    assert "accuracy" not in clip_metrics(scores, tags, False)


def test_exclusive_tags_have_precision_recall_and_f1_by_the_highest_score() -> None:
    tags = np.eye(4)[[0, 0, 1, 2]]
    scores = np.array([[0.9, 0.1, 0, 0], [0.4, 0.6, 0, 0], [0.1, 0.8, 0.1, 0], [0.2, 0.7, 0.1, 0]])
    rows = per_tag_table(scores, tags, ("a", "b", "c", "d"), exclusive=True)
    found = [[row[name] for name in ("precision", "recall", "f1", "positives")] for row in rows]
    assert found[0] == [1, 0.5, pytest.approx(2 / 3), 2] and found[1] == [pytest.approx(1 / 3), 1, 0.5, 1]
    assert found[2] == [None, 0, 0, 1], "no clip was given it"
    assert found[3] == [None, None, None, 0], "no clip carries it"
    assert "precision" not in per_tag_table(scores, tags, ("a", "b", "c", "d"))[0]


def test_non_finite_scores_are_refused() -> None:
    scores = TAGS.copy()
    scores[1, 1] = np.nan
    with pytest.raises(NonFiniteError, match="1 of 4 clips"):
        clip_metrics(scores, TAGS, False)


def test_correlation_and_prevalence() -> None:
    tags = (np.random.default_rng(1).random((50, 3)) < 0.4).astype(float)
    assert np.allclose(tag_correlation(tags), np.corrcoef(tags.T))
    assert tag_correlation(np.c_[tags, np.zeros(50)])[3] == [0, 0, 0, 0]
    assert mean_prevalence(tags) == pytest.approx(tags.mean())


def test_published_vectors(shared) -> None:
    vectors = np.load(shared / "parity" / "metrics.npz")
    scores = vectors["scores"].astype(float).mean(axis=1)
    ours = clip_metrics(scores, vectors["labels"].astype(float), False)
    assert ours["pr_auc_macro"] == pytest.approx(float(vectors["sk_ap_macro_clipmean"]), abs=1e-6)
    assert ours["roc_auc_macro"] == pytest.approx(float(vectors["sk_roc_macro_clipmean"]), abs=1e-6)
    assert ours["pr_auc_micro"] == pytest.approx(float(vectors["sk_ap_micro_clipmean"]), abs=1e-6)
    assert average_precision_score(vectors["labels"].ravel(), scores.ravel()) == pytest.approx(ours["pr_auc_micro"])


def test_a_count_is_shown_as_the_integer_that_it_is() -> None:
    assert [shown(name, 96.0) for name in ("clips", "tags_scored", "tags_total", "crops_per_clip")] == ["96"] * 4
    assert shown("pr_auc_macro", 1.0) == "1.0000"


@pytest.mark.parametrize("steps", [2, 5, 1000, None])
def test_areas_are_those_of_scikit_learn_with_ties_too(steps: int | None, monkeypatch) -> None:
    """Scores of few steps stand together in long ties; two columns are tied throughout, or have one positive."""
    rng = np.random.default_rng(0)
    scores = rng.random((300, 12)) if steps is None else rng.integers(0, steps, (300, 12)) / steps
    tags = (rng.random((300, 12)) < 0.3).astype(np.float32)
    scores[:, 0], tags[:, 1], tags[:, 2] = 0.25, np.eye(300)[7], 1 - np.eye(300)[7]
    scores[:, 3] = -np.abs(scores[:, 3]) * 0.0  # minus zero equals zero
    monkeypatch.setattr(areas_module, "COLUMNS", 1000)  # three columns at a time
    precision, roc = areas_of_columns(scores.astype(np.float32), tags)
    for column in range(12):
        pair = (tags[:, column], scores.astype(np.float32)[:, column])
        assert precision[column] == pytest.approx(average_precision_score(*pair), abs=1e-13)
        assert roc[column] == pytest.approx(roc_auc_score(*pair), abs=1e-13)
    found = clip_metrics(scores, tags, False)
    assert found["pr_auc_micro"] == pytest.approx(average_precision_score(tags.ravel(), scores.ravel()), abs=1e-13)
    assert found["pr_auc_macro"] == pytest.approx(average_precision_score(tags, scores, average="macro"), abs=1e-13)
    assert found["roc_auc_macro"] == pytest.approx(roc_auc_score(tags, scores, average="macro"), abs=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_windows_are_summed_in_their_order(dtype) -> None:
    """To the bit what a loop over the windows gives, in whatever order they come."""
    rng = np.random.default_rng(3)
    clip_R = rng.permutation(np.concatenate([np.arange(40), rng.integers(0, 40, 300)]))
    values_RX = rng.standard_normal((len(clip_R), 7)).astype(dtype)
    total_NX = np.zeros((40, 7))
    for clip, values_X in zip(clip_R, values_RX, strict=True):
        total_NX[clip] += values_X
    assert np.array_equal(mean_over_windows(clip_R, values_RX), total_NX / np.bincount(clip_R)[:, None])


def test_the_joint_space_pair_by_pair() -> None:
    rng = np.random.default_rng(4)
    audio_ND, tag_ND, tags_NC = rng.standard_normal((30, 5)) + 0.5, rng.standard_normal((30, 5)), np.eye(30, 3)
    tags_NC[5:12, 1] = 1
    found = joint_space_metrics(audio_ND, tag_ND, tags_NC)
    audio_ND /= np.linalg.norm(audio_ND, axis=1)[:, None]
    tag_ND /= np.linalg.norm(tag_ND, axis=1)[:, None]
    differ = [(i, j) for i in range(30) for j in range(30) if (tags_NC[i] != tags_NC[j]).any()]
    sets = {tuple(tags): tag_D for tags, tag_D in zip(tags_NC[::-1], tag_ND[::-1], strict=True)}  # of the first clip
    assert found["paired_cosine"] == pytest.approx(np.mean([a @ t for a, t in zip(audio_ND, tag_ND, strict=True)]))
    assert found["unpaired_cosine"] == pytest.approx(np.mean([audio_ND[i] @ tag_ND[j] for i, j in differ]))
    for name, vectors in (("audio_uniformity", list(audio_ND)), ("tag_uniformity", list(sets.values()))):
        pairs = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(vectors) for b in vectors[:i]]
        assert found[name] == pytest.approx(np.log(np.mean(pairs)))
    alone = joint_space_metrics(audio_ND[:1], tag_ND[:1], tags_NC[:1])
    assert alone.keys() == {"paired_cosine"}
