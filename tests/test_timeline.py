"""From scores over time to events: each step as a law, and all of them together by hand."""

from __future__ import annotations

import numpy as np
import pytest

from atose_ray.apps.timeline import Event, TimelineConfig, active, events_of, highest, joined, smoothed, without_losers
from atose_ray.evaluation.thresholds import fitted_thresholds, thresholds_by_rule

TAGS = ("rain", "wind", "dog")


def events(scores_S, **config) -> list[tuple[float, float]]:
    """Of one tag, at one score a second."""
    scores_SC = np.array(scores_S, np.float32)[:, None]
    found = events_of(scores_SC, ("rain",), 1.0, len(scores_S), TimelineConfig(**config))
    return [(event.start_s, event.end_s) for event in found]


def test_an_event_begins_at_its_threshold_and_ends_below_it() -> None:
    assert events([0.1, 0.5, 0.9, 0.4, 0.6], threshold=0.5) == [(1, 3), (4, 5)]
    assert events([0.1, 0.2], threshold=0.5) == []
    assert events([], threshold=0.5) == []


def test_hysteresis_keeps_an_event_but_begins_none() -> None:
    scores = [0.35, 0.5, 0.35, 0.35, 0.1, 0.35]
    assert events(scores, threshold=0.5) == [(1, 2)]
    assert events(scores, threshold=0.5, hysteresis=0.2) == [(0, 4)]  # what leads to it belongs to it
    assert active(np.array([0.4, 0.4]), 0.5, 0.2) == []


def test_gaps_are_joined_before_short_events_are_dropped() -> None:
    scores = [0.9, 0.1, 0.9, 0.1, 0.1, 0.9]
    assert events(scores, join_gap_s=1) == [(0, 3), (5, 6)]
    assert events(scores, join_gap_s=1, min_duration_s=2) == [(0, 3)]
    assert events(scores, min_duration_s=2) == []
    assert joined([(0, 2), (2, 3)], 0.0) == [(0, 2), (2, 3)]


def test_the_last_event_ends_with_the_recording() -> None:
    (found,) = events_of(np.array([[0.2], [0.8]]), ("rain",), 1.0, 1.3, TimelineConfig())
    assert found == Event(1.0, 1.3, "rain", 0.8, 0.8)


def test_at_fine_hops_short_gaps_and_short_events_are_left_out_unless_asked_for() -> None:
    """Of hops of 0.1 s: a gap of 0.3 s is joined, one of 0.4 s not; 0.2 s are no event, unless it is a whole hop."""
    scores_SC = np.array([[1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]], np.float32).T
    found = events_of(scores_SC, ("rain",), 0.1, 1.9, TimelineConfig())
    assert [(event.start_s, round(event.end_s, 3)) for event in found] == [(0.0, 0.8)]
    raw = TimelineConfig(min_duration_s=0, join_gap_s=0)
    assert len(events_of(scores_SC, ("rain",), 0.1, 1.9, raw)) == 4
    (cut,) = events_of(np.ones((1, 1)), ("rain",), 1.0, 0.1, TimelineConfig())  # a recording shorter than an event
    assert (cut.start_s, cut.end_s) == (0.0, 0.1)


@pytest.mark.parametrize("kind", ["mean", "median"])
def test_smoothing_is_centred_and_uses_what_there_is_at_the_ends(kind) -> None:
    scores_SC = np.random.default_rng(0).random((9, 2))
    over = np.mean if kind == "mean" else np.median
    expected = [over(scores_SC[max(0, i - 1) : i + 2], axis=0) for i in range(9)]
    assert smoothed(scores_SC, 3, kind) == pytest.approx(np.array(expected))
    assert smoothed(scores_SC, 1, kind) is scores_SC
    assert smoothed(scores_SC[:1], 5, kind) == pytest.approx(scores_SC[:1])


def test_of_exclusive_tags_one_is_left_and_others_stay() -> None:
    scores_SC = np.array([[0.6, 0.7, 0.9], [0.8, 0.7, 0.9], [0.5, 0.5, 0.9]])
    left_SC = without_losers(scores_SC, TAGS, (("rain", "wind"),))
    assert np.isinf(left_SC[0, 0]) and left_SC[0, 1] == 0.7 and left_SC[1, 0] == 0.8 and np.isinf(left_SC[1, 1])
    assert (left_SC[:, 2] == 0.9).all() and np.isfinite(left_SC[2, :2]).sum() == 1


def test_at_most_so_many_tags_sound_at_a_time() -> None:
    scores_SC = np.array([[0.6, 0.7, 0.9], [0.9, 0.9, 0.9]])
    left_SC = highest(scores_SC, 2)
    assert np.isfinite(left_SC).tolist() == [[False, True, True], [True, True, False]]
    assert highest(scores_SC, 3) is scores_SC and highest(scores_SC, None) is scores_SC
    found = events_of(scores_SC, TAGS, 1.0, 2.0, TimelineConfig(max_tags=1))
    assert [(event.tag, event.start_s) for event in found] == [("dog", 0.0), ("rain", 1.0)]


def test_single_tags_have_their_thresholds_and_scores_say_what_they_are() -> None:
    scores_SC = np.array([[0.3, 0.3, 0.3], [0.4, 0.4, 0.4]])
    (found,) = events_of(scores_SC, TAGS, 0.5, 1.0, TimelineConfig(thresholds={"wind": 0.25}))
    assert (found.tag, found.start_s, found.end_s) == ("wind", 0.0, 1.0)
    assert found.score == pytest.approx(0.35) and found.peak == pytest.approx(0.4)


@pytest.mark.parametrize("config", [{"thresholds": {"snow": 0.1}}, {"exclusive": (("rain", "snow"),)}])
def test_a_tag_that_is_not_scored_is_named(config) -> None:
    with pytest.raises(ValueError, match="names snow, but what is scored is rain, wind, dog"):
        events_of(np.zeros((2, 3)), TAGS, 1.0, 2.0, TimelineConfig(**config))


def test_thresholds_by_f1_and_by_precision_are_the_best_there_are() -> None:
    rng = np.random.default_rng(1)
    tags_N = (rng.random(60) < 0.3).astype(float)
    scores_N = np.round(np.clip(0.3 * tags_N + 0.3 * rng.random(60) + 0.1, 0, 1), 2)  # with ties

    def precision_and_f1(threshold: float) -> tuple[float, float]:
        passed = scores_N >= threshold
        right = float((passed * tags_N).sum())
        return right / passed.sum(), 2 * right / (passed.sum() + tags_N.sum())

    (by_f1,) = fitted_thresholds(scores_N[:, None], tags_N[:, None])
    assert precision_and_f1(by_f1)[1] == pytest.approx(max(precision_and_f1(t)[1] for t in scores_N))
    (by_precision,) = fitted_thresholds(scores_N[:, None], tags_N[:, None], precision=0.8)
    good = [t for t in scores_N if precision_and_f1(t)[0] >= 0.8]
    assert by_precision == min(good)
    assert fitted_thresholds(scores_N[:, None], np.zeros((60, 1))) == [None]
    both = thresholds_by_rule(("a", "b"), np.stack([scores_N] * 2, 1), np.stack([tags_N, 0 * tags_N], 1))
    assert both["f1"] == {"a": by_f1} and set(both["precision"]) <= {"a"}
    assert fitted_thresholds(np.ones((4, 1)), np.array([[1], [0], [0], [0]]), precision=0.9) == [None]
