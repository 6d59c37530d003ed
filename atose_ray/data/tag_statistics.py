"""Which tags occur together: their correlation over clips, and an order that puts similar ones side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def tag_correlation(tags_NC: npt.NDArray[Any]) -> list[list[float]]:
    """[N, C] -> Pearson (phi) correlation [C, C] of the tags; 0 where a tag is constant."""
    return correlation_of_counts(tags_NC.T @ tags_NC, len(tags_NC))


def correlation_of_counts(both_CC: npt.NDArray[Any], clips: int) -> list[list[float]]:
    """How many of so many clips carry both of two tags, [C, C] -> `tag_correlation`."""
    count_C = np.diag(both_CC)
    product = clips * both_CC - np.outer(count_C, count_C)  # whole numbers: a constant tag is 0 exactly
    spread = np.sqrt(np.diag(product))
    scale = np.outer(spread, spread)
    return [[float(v) for v in row] for row in np.divide(product, scale, out=np.zeros_like(product), where=scale > 0)]


def tag_order(similarity_CC: Sequence[Sequence[float]]) -> list[int]:
    """[C, C], at most 1 -> an order of the tags that puts similar ones side by side: the leaves of average-linkage
    clustering in the order that makes neighbours most alike. What is not finite counts as no similarity."""
    from scipy.cluster.hierarchy import leaves_list, linkage  # here: it would be a part of the start of every trial
    from scipy.spatial.distance import squareform

    if len(similarity_CC) < 2:
        return list(range(len(similarity_CC)))
    alike_CC = np.nan_to_num(np.array(similarity_CC, dtype=float), nan=0.0, posinf=0.0, neginf=0.0)
    distance_CC = np.maximum(1 - alike_CC, 0)
    distance_CC = (distance_CC + distance_CC.T) / 2
    np.fill_diagonal(distance_CC, 0)
    tree = linkage(squareform(distance_CC, checks=False), "average", optimal_ordering=True)
    return [int(tag) for tag in leaves_list(tree)]
