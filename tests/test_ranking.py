"""Retrieval and annotation: the published numbers (zsl_eval.npz), scikit-learn's, and seen and unseen tags apart."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from parity_vectors import load
from sklearn.metrics import average_precision_score, roc_auc_score

from atose_ray.evaluation.choi import (
    average_precision_at,
    choi_metrics,
    cumulative_thresholds,
    row_numbers,
    segment_starts,
)
from atose_ray.evaluation.metrics import NonFiniteError
from atose_ray.evaluation.ranking import (
    annotation_metrics,
    generalised_metrics,
    harmonic_mean,
    retrieval_metrics,
    row_areas,
    row_metrics,
    zero_shot_metrics,
)


def vectors() -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in load("zsl_eval").items()}


def published_rows(arrays: dict[str, np.ndarray], setup: str) -> np.ndarray:
    parts = [
        ["C_tracks"] if name == "C" else [f"{name}_train_tracks", f"{name}_valid_tracks"] for name in setup.split("+")
    ]
    return np.concatenate([arrays[key] for part in parts for key in part])


@pytest.mark.parametrize("setup", ["B+C", "B", "C", "A+B+C"])
@pytest.mark.parametrize("group", ["test", "train", "all"])
def test_published_numbers(setup: str, group: str) -> None:
    arrays = vectors()
    rows = published_rows(arrays, setup)
    unit = [
        one / np.linalg.norm(one, axis=1, keepdims=True) for one in (arrays["tag_embedding"], arrays["track_embedding"])
    ]
    cosine_CN = unit[0] @ unit[1].T
    assert np.allclose(cosine_CN, arrays["score_all_tags_by_all_tracks"], atol=1e-6)
    keys = {"test": arrays["test_tag_keys"], "train": arrays["train_tag_keys"], "all": np.arange(21)}[group]
    scores_CN = (1 + arrays["score_all_tags_by_all_tracks"][np.ix_(keys, rows)].astype(np.float64)) / 2
    tags_CN = arrays["tag_by_track"][np.ix_(keys, rows)]
    if (setup, group) == ("C", "train"):  # no track of C has a training tag: the published code divides by zero
        with pytest.raises(ValueError, match="none of 16 rankings"):
            row_numbers(scores_CN, tags_CN)
        return
    for way, pair in (("retrieval", (scores_CN, tags_CN)), ("annotation", (scores_CN.T, tags_CN.T))):
        prefix = f"{setup}/{group}_tags/{way}_"
        want = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
        got = row_numbers(*pair)
        skipped = want["auc_skipped_tags" if way == "retrieval" else "auc_skipped_tracks"]
        assert got["auc_left_out"] == skipped[0]
        expected = {"auc": want["auc"], "map_zeros": want["map_sklearn122"]}
        expected |= {f"hit_at_{k}_zeros": want[f"hit_at_{k}"] for k in (1, 5, 10)}
        expected |= {f"ap_at_{k}_zeros": want[f"map_at_{k}"] for k in (1, 5, 10)}
        table = want["threshold_f1_precision_recall_cumulative"]
        for name, value in expected.items():
            assert got[name] == pytest.approx(float(value[0]), abs=1e-6), (way, name)
        assert np.allclose(cumulative_thresholds(2 * pair[0] - 1, pair[1]), table, atol=1e-6), way
        assert got["f1_cosine_0_to_0.9"] == pytest.approx(table[-1, 1], abs=1e-6)
        ours = row_metrics(*pair)  # leaves rows without a positive out
        empty = int((pair[1].sum(axis=1) == 0).sum())
        assert ours["left_out"] == empty and ours["roc_auc"] == pytest.approx(got["auc"])
        assert ours["map"] == pytest.approx(got["map_zeros"] * len(pair[1]) / (len(pair[1]) - empty))
        assert (ours["hit_at_1"] > got["hit_at_1_zeros"]) == (empty > 0)


def test_published_average_precision_at_k() -> None:
    cases = [([], [1, 2, 3], 3), ([2], [1, 2, 3], 3), ([2, 3], [2, 3, 1], 2), ([5, 6, 7], [7, 5, 6], 2),
             ([1, 2, 3, 4], [9, 1, 8, 2, 7], 5), ([1], [1], 10)]  # fmt: skip
    got = []
    for actual, order, k in cases:
        hits = np.array([[one in actual for one in order]])
        got.append(average_precision_at(hits, np.array([len(actual)]), k)[0])
    assert np.allclose(got, vectors()["apk_edge_values"])


@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_those_of_scikit_learn(ties: bool) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((40, 12)), rng.random((40, 12)) < 0.2
    scores = np.round(scores, 1) if ties else scores
    counted = rng.random((40, 12)) < 0.8
    for mask in (None, counted):
        auc_R, ap_R = row_areas(scores, labels, mask)
        for row, (auc, ap) in enumerate(zip(auc_R, ap_R, strict=True)):
            kept = np.ones(12, bool) if mask is None else mask[row]
            own, got = labels[row, kept], scores[row, kept]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                want = [roc_auc_score(own, got) if 0 < own.sum() < len(own) else np.nan]
                want.append(average_precision_score(own, got) if own.any() else np.nan)
            assert np.allclose([auc, ap], want, equal_nan=True)


def test_retrieval_and_annotation_are_the_two_axes() -> None:
    scores_NC = np.array([[0.9, 0.1, 0.4], [0.8, 0.3, 0.2], [0.1, 0.7, 0.3], [0.2, 0.6, 0.9]])
    tags_NC = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]])
    by_tag, by_clip = retrieval_metrics(scores_NC, tags_NC), annotation_metrics(scores_NC, tags_NC)
    assert by_tag["retrieval_map"] == by_tag["retrieval_roc_auc"] == 1 and by_tag["retrieval_left_out"] == 1
    assert by_tag["retrieval_precision_at_1"] == 1 and by_tag["retrieval_precision_at_5"] == pytest.approx(
        (2 / 4 + 1 / 4) / 2
    )
    assert by_clip["annotation_left_out"] == 1 and by_clip["annotation_hit_at_1"] == 1
    with pytest.raises(ValueError, match="none of 3 rankings has both"):
        retrieval_metrics(scores_NC, np.zeros((4, 3)))
    scores_NC[0, 0] = np.nan
    with pytest.raises(NonFiniteError):
        annotation_metrics(scores_NC, tags_NC)


def test_unseen_tags_are_told_apart() -> None:
    """Perfect within each group, but unseen tags score low beside seen ones: the generalised ranking says so."""
    rng = np.random.default_rng(1)
    tags_NC = (rng.random((60, 8)) < 0.4).astype(float)
    unseen_C = np.arange(8) >= 5
    scores_NC = tags_NC * 0.2 + 0.5 * ~unseen_C + 0.01 * rng.random((60, 8))
    alone, both = zero_shot_metrics(scores_NC, tags_NC, unseen_C), generalised_metrics(scores_NC, tags_NC, unseen_C)
    assert alone["annotation_map"] == alone["retrieval_map"] == 1 and alone["tags_unseen"] == 3
    assert both["seen_annotation_map"] == both["seen_retrieval_map"] == both["unseen_retrieval_map"] == 1
    assert both["unseen_annotation_map"] < 0.6
    low = both["unseen_annotation_map"]
    assert both["harmonic_annotation_map"] == pytest.approx(2 * low / (1 + low))
    assert both["annotation_map"] == pytest.approx(annotation_metrics(scores_NC, tags_NC)["annotation_map"])
    published = choi_metrics(scores_NC, tags_NC, unseen_C)
    assert published["retrieval_auc"] == 1 and published["generalised_annotation_auc"] < 1
    assert harmonic_mean([0.0, 0.9]) == 0
    one = zero_shot_metrics(scores_NC, tags_NC, np.arange(8) == 5)
    assert "annotation_map" not in one and one["retrieval_map"] == 1


def test_published_segments_drop_the_tail() -> None:
    assert segment_starts(1292, 130) == [130 * i for i in range(9)] and segment_starts(130, 130) == [0]
    assert segment_starts(100, 130) == [-15]
