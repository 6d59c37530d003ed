"""Found events against annotated ones: protocols `segment`, `event` and `frame`.

Definitions: Mesaros, Heittola, Virtanen, "Metrics for Polyphonic Sound Event Detection", Applied Sciences 2016, 6(6),
162; counts are those of its toolbox sed_eval 0.2.1 (tests/test_sound_events.py). The toolbox is no dependency: it
imports pkg_resources, which setuptools dropped, librosa, and the C library libmagic. Departure: a tag that is annotated
and never found has F1 = 0 and counts in the mean over tags; the toolbox leaves it out unless told to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from sklearn.metrics import average_precision_score

from atose_ray.evaluation.metrics import rankable
from atose_ray.types import Array

SEGMENT_S = 1.0  # of protocol `segment`, as in DCASE 2016 and 2017
COLLAR_S = 0.2  # an onset is right within it; an offset within it or OFFSET_SHARE of the event's length
OFFSET_SHARE = 0.5
SUMMARIES = {
    "segment": f"F1 and error rate over segments of {SEGMENT_S:g} s, found events against annotated ones",
    "event": f"F1 and error rate over whole events: onset within {1000 * COLLAR_S:g} ms, offset within that or "
    f"{100 * OFFSET_SHARE:g} % of the length",
    "frame": "mean over tags of the average precision of the hops' scores; no threshold is asked for",
}


class Marked(NamedTuple):
    """A tag that sounds from start_s to end_s: annotated, or found."""

    start_s: float
    end_s: float
    tag: str


@dataclass
class Counts:
    """annotated, found: how many (segments or events); right: in both; substituted, deleted, inserted: errors."""

    annotated: int = 0
    found: int = 0
    right: int = 0
    substituted: int = 0
    deleted: int = 0
    inserted: int = 0

    def add(self, *numbers: int) -> None:
        """More of each, in the order of the fields."""
        for name, number in zip(vars(self), numbers, strict=True):
            setattr(self, name, getattr(self, name) + number)

    def figures(self) -> dict[str, float | None]:
        """f1 = 2 right / (annotated + found); error_rate = (substituted + deleted + inserted) / annotated, not bounded
        by 1. None where nothing is annotated (precision: nothing found)."""
        errors = self.substituted + self.deleted + self.inserted
        return {
            "f1": 2 * self.right / (self.annotated + self.found) if self.annotated else None,
            "precision": self.right / self.found if self.found else None,
            "recall": self.right / self.annotated if self.annotated else None,
            "error_rate": errors / self.annotated if self.annotated else None,
        }


@dataclass
class Tally:
    """Counts of some recordings, over all tags and of each."""

    tags: tuple[str, ...]
    overall: Counts = field(default_factory=Counts)
    per_tag: dict[str, Counts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.per_tag = {tag: Counts() for tag in self.tags}

    def metrics(self) -> dict[str, float]:
        """Over all tags together (micro), and the mean F1 and error rate of the tags that are annotated (macro).
        Raises ValueError where nothing is annotated."""
        counts, overall = self.overall, self.overall.figures()
        if not counts.annotated:
            raise ValueError("the annotations hold no event of the model's tags, so that nothing can be scored")
        named = {f"{name}_micro" if name == "f1" else name: value for name, value in overall.items()}
        for name in ("f1", "error_rate"):
            each = [value for one in self.per_tag.values() if (value := one.figures()[name]) is not None]
            named[f"{name}_macro"] = sum(each) / len(each)
        for name in ("substituted", "deleted", "inserted"):
            named[f"{name}_rate"] = getattr(counts, name) / counts.annotated
        named |= {"annotated": float(counts.annotated), "found": float(counts.found)}
        return {name: value for name, value in named.items() if value is not None}

    def table(self) -> list[dict[str, Any]]:
        """A row per tag."""
        return [
            {"tag": tag, **one.figures(), "annotated": one.annotated, "found": one.found}
            for tag, one in self.per_tag.items()
        ]


def roll(events: Sequence[Marked], tags: tuple[str, ...], step_s: float, steps: int) -> Array:
    """bool [S, C]: whether a tag sounds anywhere in a step. What lies behind the last step is left out."""
    roll_SC = np.zeros((steps, len(tags)), bool)
    for start_s, end_s, tag in events:
        roll_SC[math.floor(start_s / step_s) : math.ceil(end_s / step_s), tags.index(tag)] = True
    return roll_SC


def count_segments(tally: Tally, truth: Sequence[Marked], found: Sequence[Marked], seconds: float) -> None:
    """Add a recording, segment by segment. In a segment, a tag too few and one too many are one substitution."""
    steps = math.ceil(seconds / SEGMENT_S)
    truth_SC, found_SC = (roll(events, tally.tags, SEGMENT_S, steps) for events in (truth, found))
    missed_SC, extra_SC = truth_SC & ~found_SC, found_SC & ~truth_SC
    for column, tag in enumerate(tally.tags):
        both = (truth_SC & found_SC)[:, column].sum()
        missed, extra = missed_SC[:, column].sum(), extra_SC[:, column].sum()
        tally.per_tag[tag].add(*map(int, (both + missed, both + extra, both, 0, missed, extra)))
    missed_S, extra_S = missed_SC.sum(axis=1), extra_SC.sum(axis=1)
    substituted = int(np.minimum(missed_S, extra_S).sum())
    errors = (substituted, int(missed_S.sum()) - substituted, int(extra_S.sum()) - substituted)
    tally.overall.add(int(truth_SC.sum()), int(found_SC.sum()), int((truth_SC & found_SC).sum()), *errors)


def count_events(tally: Tally, truth: Sequence[Marked], found: Sequence[Marked]) -> None:
    """Add a recording, event by event: as many pairs of an annotated and a found event of one tag and time as there
    can be (Hopcroft and Karp). Of those that are left over, a pair of one time and two tags is a substitution."""
    timely = np.array([[in_time(one, other) for other in found] for one in truth], bool)
    timely = timely.reshape(len(truth), len(found))
    same = np.array([[one.tag == other.tag for other in found] for one in truth], bool).reshape(timely.shape)
    pair_T = maximum_bipartite_matching(csr_array(timely & same), perm_type="column")
    left = [row for row, column in enumerate(pair_T) if column < 0]
    taken = set(pair_T.tolist())
    substituted = 0
    for row in left:
        other = next((column for column in range(len(found)) if timely[row, column] and column not in taken), None)
        if other is not None:
            taken.add(other)
            substituted += 1
    right = len(truth) - len(left)
    rest = (len(truth) - right - substituted, len(found) - right - substituted)
    tally.overall.add(len(truth), len(found), right, substituted, *rest)
    for tag in tally.tags:
        annotated, there = (sum(event.tag == tag for event in events) for events in (truth, found))
        both = sum(truth[row].tag == tag for row, column in enumerate(pair_T) if column >= 0)
        tally.per_tag[tag].add(annotated, there, both, 0, annotated - both, there - both)


def in_time(truth: Marked, found: Marked) -> bool:
    """Whether onset and offset of a found event are right."""
    slack_s = max(COLLAR_S, OFFSET_SHARE * (truth.end_s - truth.start_s))
    return abs(truth.start_s - found.start_s) <= COLLAR_S and abs(truth.end_s - found.end_s) <= slack_s


def frame_metrics(
    scores_SC: Array, truth_SC: Array, tags: tuple[str, ...]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """[S, C] of all hops of all recordings -> frame_map, the mean average precision, and a row per tag. A hop is
    positive where the tag sounds anywhere in it. Raises ValueError where no tag can be ranked."""
    ranks_C = rankable(truth_SC)
    if not ranks_C.any():
        raise ValueError("no tag sounds in some hops and not in others, so that no ranking can be scored")
    rows: list[dict[str, Any]] = [
        {"tag": tag, "average_precision": float(average_precision_score(truth_S, scores_S)) if ranks else None}
        for tag, ranks, truth_S, scores_S in zip(tags, ranks_C, truth_SC.T, scores_SC.T, strict=True)
    ]
    scored = [row["average_precision"] for row in rows if row["average_precision"] is not None]
    figures = {"frame_map": sum(scored) / len(scored), "tags_scored": float(len(scored)), "hops": float(len(scores_SC))}
    return figures, rows
