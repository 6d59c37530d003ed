"""Scores over time -> events: what sounds when.

    smoothing -> exclusive tags -> at most n tags -> thresholds with hysteresis -> gaps joined -> short ones dropped

Each step is a pure function of scores [S, C], S hops long. The order and the names are those of sound event detection
(Mesaros et al. 2021, "Sound event detection: a tutorial")."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from atose_ray.types import Array, Config


class TimelineConfig(Config):
    """smoothing_s: width of the centred mean or median over time; 0 is none.
    threshold: that a score must reach for an event to begin. thresholds: of single tags, instead.
    hysteresis: an event goes on while its score is at most this far below the threshold.
    min_duration_s: shorter events are dropped; an event is no shorter than its hops, also where the recording ends.
    join_gap_s: two events of a tag with no more between them are one. The defaults of both act on hops below 0.3 s,
        whose scores waver about a threshold (docs/RESULTS.md, events of DCASE 2016).
    max_tags: only so many tags sound at a time, the highest. exclusive: groups of tags of which only the highest does.
    """

    smoothing: Literal["mean", "median"] = "median"
    smoothing_s: float = Field(default=0.0, ge=0, le=3600)
    threshold: float = 0.5
    thresholds: dict[str, float] = Field(default_factory=dict)
    hysteresis: float = Field(default=0.0, ge=0)
    min_duration_s: float = Field(default=0.3, ge=0)
    join_gap_s: float = Field(default=0.3, ge=0)
    max_tags: int | None = Field(default=None, ge=1)
    exclusive: tuple[tuple[str, ...], ...] = ()

    def check(self, tags: tuple[str, ...]) -> None:
        """Raises ValueError for a tag that is not scored."""
        named = {*self.thresholds, *(tag for group in self.exclusive for tag in group)}
        if unknown := sorted(named - set(tags)):
            raise ValueError(f"the timeline names {', '.join(unknown)}, but what is scored is {', '.join(tags)}")


@dataclass(frozen=True)
class Event:
    """A tag that sounds from start_s to end_s. score: the mean of its (smoothed) scores; peak: the highest."""

    start_s: float
    end_s: float
    tag: str
    score: float
    peak: float


@dataclass(frozen=True)
class Timeline:
    """What was heard of a recording. scores_SC: of every hop, as they came; the last hop may be cut by the end.
    level_S: the highest magnitude in every hop. settings: everything that made the events, for later readers."""

    file: str
    seconds: float
    hop_s: float
    tags: tuple[str, ...]
    scores_SC: Array
    level_S: Array
    events: tuple[Event, ...]
    settings: dict[str, Any]


def events_of(
    scores_SC: Array, tags: tuple[str, ...], hop_s: float, seconds: float, config: TimelineConfig
) -> tuple[Event, ...]:
    """Events in the order of their starts. Raises ValueError for a config that names unknown tags."""
    config.check(tags)
    smooth_SC = smoothed(scores_SC, round(config.smoothing_s / hop_s), config.smoothing)
    shown_SC = highest(without_losers(smooth_SC, tags, config.exclusive), config.max_tags)
    events = []
    for column, tag in enumerate(tags):
        threshold = config.thresholds.get(tag, config.threshold)
        runs = active(shown_SC[:, column], threshold, config.hysteresis)
        for first, end in joined(runs, config.join_gap_s / hop_s):
            if (end - first) * hop_s >= config.min_duration_s - 1e-9:
                part_S, end_s = smooth_SC[first:end, column], min(end * hop_s, seconds)
                events.append(Event(first * hop_s, end_s, tag, float(part_S.mean()), float(part_S.max())))
    return tuple(sorted(events, key=lambda event: (event.start_s, event.end_s, event.tag)))


def smoothed(scores_SC: Array, width: int, kind: Literal["mean", "median"]) -> Array:
    """[S, C] -> [S, C]: the centred mean or median over `width` hops (made odd); at the ends over those there are."""
    half = width // 2
    if half < 1:
        return scores_SC
    padded_SC = np.pad(scores_SC.astype(np.float64), ((half, half), (0, 0)), constant_values=np.nan)
    over = np.nanmean if kind == "mean" else np.nanmedian
    smooth_SC = np.empty_like(scores_SC, np.float64)
    for column in range(scores_SC.shape[1]):  # one at a time: hours of many tags would need `width` times their memory
        windows_SW = np.lib.stride_tricks.sliding_window_view(padded_SC[:, column], 2 * half + 1)
        smooth_SC[:, column] = over(windows_SW, axis=1)
    return smooth_SC


def without_losers(scores_SC: Array, tags: tuple[str, ...], groups: tuple[tuple[str, ...], ...]) -> Array:
    """In every group of tags, at every hop, all but the highest become -inf."""
    if not groups:
        return scores_SC
    left_SC, steps_S = np.array(scores_SC, np.float64), np.arange(len(scores_SC))
    for group in groups:
        columns = [tags.index(tag) for tag in group]
        part_SG = left_SC[:, columns]
        kept_SG = np.full_like(part_SG, -np.inf)
        best_S = part_SG.argmax(axis=1)
        kept_SG[steps_S, best_S] = part_SG[steps_S, best_S]
        left_SC[:, columns] = kept_SG
    return left_SC


def highest(scores_SC: Array, most: int | None) -> Array:
    """At every hop all but the `most` highest become -inf; of equal ones the first stay."""
    if most is None or most >= scores_SC.shape[1]:
        return scores_SC
    order_SC = np.argsort(-scores_SC, axis=1, kind="stable")
    left_SC = np.full(scores_SC.shape, -np.inf)
    kept_SN = order_SC[:, :most]
    np.put_along_axis(left_SC, kept_SN, np.take_along_axis(scores_SC, kept_SN, axis=1), axis=1)
    return left_SC


def active(scores_S: Array, threshold: float, hysteresis: float) -> list[tuple[int, int]]:
    """[S] -> runs [first, end) that reach `threshold` and stay no more than `hysteresis` below it."""
    hold_S = scores_S >= threshold - hysteresis
    edges_S = np.flatnonzero(np.diff(np.concatenate([[False], hold_S, [False]]).astype(np.int8)))
    runs = zip(edges_S[::2].tolist(), edges_S[1::2].tolist(), strict=True)
    return [(first, end) for first, end in runs if scores_S[first:end].max() >= threshold]


def joined(runs: list[tuple[int, int]], gap: float) -> list[tuple[int, int]]:
    """Runs with at most `gap` hops between them become one."""
    out: list[tuple[int, int]] = []
    for first, end in runs:
        if out and first - out[-1][1] <= gap + 1e-9 and gap > 0:
            out[-1] = (out[-1][0], end)
        else:
            out.append((first, end))
    return out
