"""From scores to yes or no: a threshold per tag, fitted on the validation split."""

from collections.abc import Sequence

import numpy as np

from atose_ray.types import Array

PRECISION = 0.9  # that the stricter of the two rules asks for


def thresholds_by_rule(tags: Sequence[str], scores_NC: Array, tags_NC: Array) -> dict[str, dict[str, float]]:
    """Rule (`f1`, `precision`) -> {tag: threshold}, without the tags for which a rule finds none."""
    rules = {"f1": fitted_thresholds(scores_NC, tags_NC), "precision": fitted_thresholds(scores_NC, tags_NC, PRECISION)}
    return {
        rule: {tag: value for tag, value in zip(tags, found, strict=True) if value is not None}
        for rule, found in rules.items()
    }


def fitted_thresholds(scores_NC: Array, tags_NC: Array, precision: float | None = None) -> list[float | None]:
    """[N, C] scores of clips and {0, 1} tags -> a threshold per tag: the one with the highest F1, or the lowest one
    from which on at least `precision` of what passes is right. None where a tag has no positive, or none will do."""
    found: list[float | None] = []
    for scores_N, tags_N in zip(scores_NC.T, tags_NC.T, strict=True):
        order_N = np.argsort(-scores_N, kind="stable")
        score_N, right_N = scores_N[order_N], np.cumsum(tags_N[order_N])
        last_N = np.append(score_N[1:] != score_N[:-1], True)  # equal scores pass together
        count_N = np.arange(1, len(score_N) + 1)
        if not right_N[-1]:
            found.append(None)
            continue
        good_N = 2 * right_N / (count_N + right_N[-1]) if precision is None else right_N / count_N
        good_N = np.where(last_N, good_N, -1.0)
        if precision is None:
            found.append(float(score_N[int(good_N.argmax())]))
            continue
        passing = np.flatnonzero(good_N >= precision)
        found.append(float(score_N[passing[-1]]) if len(passing) else None)
    return found
