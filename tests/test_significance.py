"""The paired bootstrap against the metrics that it resamples, and its verdicts on models whose order is known."""

from __future__ import annotations

import numpy as np
import pytest

from atose_ray.config import OF_CLIPS
from atose_ray.evaluation.metrics import clip_metrics
from atose_ray.evaluation.significance import figure_of, interval, paired_bootstrap, score_intervals, spread, wilson


def clips(seed: int, count: int = 60, tags: int = 5, exclusive: bool = False):
    rng = np.random.default_rng(seed)
    tags_NC = np.eye(tags)[rng.integers(0, tags, count)] if exclusive else (rng.random((count, tags)) < 0.3) * 1.0
    scores_NC = np.round(1 / (1 + np.exp(-(2 * tags_NC - 1 + 1.5 * rng.standard_normal(tags_NC.shape)))), 2)
    return scores_NC, tags_NC


@pytest.mark.parametrize("metric", OF_CLIPS)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_resample_scores_as_the_clips_that_were_drawn(metric: str, seed: int) -> None:
    scores_NC, tags_NC = clips(seed, exclusive=metric == "accuracy")
    rng = np.random.default_rng(seed + 10)
    drawn_RN = rng.integers(0, len(tags_NC), (8, len(tags_NC)))
    weight_RN = np.stack([np.bincount(drawn_N, minlength=len(tags_NC)) for drawn_N in drawn_RN])
    expected = [clip_metrics(scores_NC[d], tags_NC[d], metric == "accuracy")[metric] for d in drawn_RN]
    figure = figure_of(scores_NC, tags_NC, metric)
    np.testing.assert_allclose(figure(weight_RN), expected, atol=1e-12)
    one_by_one = [figure(weight_RN[row : row + 1])[0] for row in range(8)]
    np.testing.assert_allclose(one_by_one, expected, atol=1e-12)


@pytest.mark.parametrize("metric", OF_CLIPS)
def test_a_better_model_is_seen_and_the_same_one_is_not(metric: str) -> None:
    scores_NC, tags_NC = clips(3, count=300, exclusive=metric == "accuracy")
    worse_NC = np.clip(scores_NC + 0.8 * np.random.default_rng(4).standard_normal(scores_NC.shape), 0, 1)
    found = paired_bootstrap([scores_NC], [worse_NC], tags_NC, metric, resamples=300)
    assert found.low > 0 and found.better > 0.99
    assert found.low < found.difference < found.high
    flipped = paired_bootstrap([worse_NC], [scores_NC], tags_NC, metric, resamples=300)
    np.testing.assert_allclose((flipped.low, flipped.high), (-found.high, -found.low))
    same = paired_bootstrap([scores_NC], [scores_NC], tags_NC, metric, resamples=50)
    assert (same.difference, same.low, same.high, same.better) == (0, 0, 0, 0.5)


def test_the_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    """Two models of equal worth, 100 samples of clips: about 5 of 100 intervals may miss zero."""
    rng = np.random.default_rng(0)
    missed = 0
    for number in range(100):
        tags_NC = (rng.random((80, 2)) < 0.4) * 1.0
        a_NC, b_NC = (tags_NC + rng.standard_normal(tags_NC.shape) for _ in range(2))
        a_NC, b_NC = 1 / (1 + np.exp(-a_NC)), 1 / (1 + np.exp(-b_NC))
        found = paired_bootstrap([a_NC], [b_NC], tags_NC, "pr_auc_macro", resamples=200, seed=number)
        missed += found.low > 0 or found.high < 0
    assert missed <= 12


def test_a_block_of_resamples_changes_nothing(monkeypatch) -> None:
    scores_NC, tags_NC = clips(5)
    whole = paired_bootstrap([scores_NC], [scores_NC[:, ::-1]], tags_NC, "pr_auc_macro", resamples=40)
    monkeypatch.setattr("atose_ray.evaluation.significance.BLOCK_NUMBERS", 3 * len(tags_NC))
    assert paired_bootstrap([scores_NC], [scores_NC[:, ::-1]], tags_NC, "pr_auc_macro", resamples=40) == whole


def test_several_trainings_count_as_their_mean() -> None:
    scores_NC, tags_NC = clips(6)
    other_NC = scores_NC[:, ::-1]
    both = paired_bootstrap([scores_NC, other_NC], [scores_NC], tags_NC, "pr_auc_macro", resamples=30)
    alone = paired_bootstrap([other_NC], [scores_NC], tags_NC, "pr_auc_macro", resamples=30)
    assert both.difference == pytest.approx(alone.difference / 2) and both.low == pytest.approx(alone.low / 2)


def test_spread_of_seeds() -> None:
    found = spread([0.5, 0.6, 0.7])
    assert found.mean == pytest.approx(0.6) and found.deviation == pytest.approx(0.1)
    assert (found.low, found.high) == (pytest.approx(0.6 - 0.248414, abs=1e-5), pytest.approx(0.6 + 0.248414, abs=1e-5))
    assert spread([0.5]).low == spread([0.5]).high == 0.5
    with pytest.raises(ValueError, match="got none"):
        spread([])


def test_bad_inputs() -> None:
    scores_NC, tags_NC = clips(1)
    with pytest.raises(ValueError, match="pr_auc_macro"):
        paired_bootstrap([scores_NC], [scores_NC], tags_NC, "f1")
    with pytest.raises(ValueError, match="clips, tags"):
        paired_bootstrap([scores_NC[:, :2]], [scores_NC], tags_NC, "accuracy")


def test_an_accuracy_has_wilsons_interval_and_other_scores_the_bootstraps() -> None:
    scores_NC, tags_NC = clips(5, exclusive=True)
    metrics = clip_metrics(scores_NC, tags_NC, True)
    found = score_intervals(scores_NC, tags_NC, metrics)
    assert set(found) == set(OF_CLIPS), "counts have none"
    assert found["accuracy"] == wilson(round(metrics["accuracy"] * 60), 60)
    assert found["roc_auc_macro"] == interval(scores_NC, tags_NC, "roc_auc_macro")
    assert all(low <= metrics[name] <= high for name, (low, high) in found.items())


def test_wilsons_interval_has_a_width_where_all_clips_are_right() -> None:
    assert wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=1e-4), "Newcombe 1998, table I"
    assert wilson(10, 10) == pytest.approx([0.7225, 1.0], abs=1e-4) and wilson(0, 10) == pytest.approx(
        [0, 0.2775], abs=1e-4
    )
    for right, count in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="share of one clip or more"):
            wilson(right, count)
