"""Sounds of an index ranked by words, by another sound, or by both.

A file's score for a word is the mean over its windows, as `tag` has it. Several words are weighed: the scores of each
are standardised over the files (mean 0, deviation 1), so that a word that is always likely does not drown the others,
and added up. A sound is near another by the cosine of their mean embeddings; it counts as one more term. Ranking is
exact: every file is compared."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import torch

from atose_ray.apps.embeddings import windows_of
from atose_ray.apps.index import NoIndexError, Rows, read_rows
from atose_ray.apps.predict import device_of
from atose_ray.storage import Store
from atose_ray.training.checkpoint import Model
from atose_ray.training.sources import tags_with_vectors
from atose_ray.types import Array, EmbeddedBatch, TagSet, untagged

BATCH = 1024  # windows scored at a time


@dataclasses.dataclass(frozen=True)
class Term:
    """A word or phrase, or LIKE; weight: below 0 for what is not wanted."""

    text: str
    weight: float = 1.0


LIKE = "like"


@dataclasses.dataclass(frozen=True)
class Found:
    """A file. score: what it was ranked by. terms: its score for each. start_s: of its window that fits best."""

    path: str
    score: float
    terms: dict[str, float]
    start_s: float


def parse(query: str) -> list[Term]:
    """Terms, separated by commas: `slow cello, piano:0.5, -drums`. Raises ValueError for what is none."""
    terms = []
    for part in query.split(","):
        text, _, weight = part.strip().rpartition(":")
        if not text:
            text, weight = part.strip(), ""
        sign = -1.0 if text.startswith("-") else 1.0
        text = text.removeprefix("-").strip()
        try:
            size = float(weight) if weight else 1.0
        except ValueError:
            raise ValueError(
                f"the weight of {text!r} must be a number, but got {weight!r}; example: piano:0.5"
            ) from None
        if not text or not np.isfinite(size):
            raise ValueError(
                f"expected words separated by commas, as in 'slow cello, piano:0.5, -drums', but got {query!r}"
            )
        terms.append(Term(text, sign * size))
    return terms


def find(store: Store, model: Model, terms: list[Term], like: str | None = None, top: int = 10) -> list[Found]:
    """The best `top` files, best first. like: a file to be near to. Raises ValueError for a word that the model cannot
    score, NoIndexError for an empty index, AudioError for a `like` that is no sound."""
    tags = tags_of(model, terms)
    wanted_E = mean_direction(np.stack([window.embed_E for window in windows_of(model, like)])) if like else None
    found = ranked(read_rows(store), model, terms, tags, wanted_E, top)
    if not found:
        raise NoIndexError(
            f"{store.uri} holds no file yet; go on with: python -m atose_ray.find index MODEL FOLDER INDEX"
        )
    return found


def tags_of(model: Model, terms: list[Term]) -> TagSet | None:
    """The words as tags. Raises ValueError for one that the model cannot score."""
    return tags_with_vectors(model, tuple(term.text for term in terms)) if terms else None


def ranked(
    parts: Iterable[Rows], model: Model, terms: list[Term], tags: TagSet | None, wanted_E: Array | None, top: int
) -> list[Found]:
    """The best `top` files of some parts of an index, best first. tags: of the terms. wanted_E: to be near to, at
    length 1."""
    paths, starts, scores = list[str](), list[float](), list[list[float]]()
    weight_Q = np.array([*(term.weight for term in terms), *([] if wanted_E is None else [1.0])])
    for rows in parts:
        values_RQ = window_scores(model, tags, wanted_E, rows.embed_RE)
        fits_R = values_RQ @ weight_Q
        for first, last in files_in(rows.paths):
            paths.append(rows.paths[first])
            starts.append(float(rows.start_s_R[first + int(np.argmax(fits_R[first:last]))]))
            means = values_RQ[first:last].mean(axis=0).tolist()
            if wanted_E is not None:
                means[-1] = float(mean_direction(rows.embed_RE[first:last]) @ wanted_E)
            scores.append(means)
    if not paths:
        return []
    values_NQ = np.array(scores)
    total_N = weighed(values_NQ, weight_Q)
    names = [*(term.text for term in terms), *([] if wanted_E is None else [LIKE])]
    return [
        Found(paths[n], float(total_N[n]), dict(zip(names, values_NQ[n].tolist(), strict=True)), starts[n])
        for n in np.argsort(-total_N, kind="stable")[:top].tolist()
    ]


def weighed(values_NQ: Array, weight_Q: Array) -> Array:
    """[N, Q] -> [N]: one term as it is, several standardised and added up."""
    if len(weight_Q) > 1:
        spread_Q = values_NQ.std(axis=0)
        values_NQ = (values_NQ - values_NQ.mean(axis=0)) / np.where(spread_Q > 0, spread_Q, 1)
    total_N: Array = values_NQ @ weight_Q
    return total_N


def files_in(paths: list[str]) -> list[tuple[int, int]]:
    """First row and end of each file of a part; its windows stand together."""
    changes = [n for n in range(1, len(paths)) if paths[n] != paths[n - 1]]
    return [pair for pair in zip([0, *changes], [*changes, len(paths)], strict=True) if pair[0] < pair[1]]


@torch.no_grad()
def window_scores(model: Model, tags: TagSet | None, wanted_E: Array | None, embed_RE: Array) -> Array:
    """[R, E] -> [R, Q]: a column per word, and the cosine with the wanted sound last."""
    columns: list[Array] = []
    if tags is not None:
        parts = []
        for some_BE in torch.split(torch.tensor(embed_RE), BATCH):
            batch = untagged(EmbeddedBatch, some_BE, len(model.spec.tags)).to(device_of(model))
            parts.append(model.method.score(batch, tags, model.stage).double().cpu().numpy())
        columns.append(np.concatenate(parts))
    if wanted_E is not None:
        length_R = np.linalg.norm(embed_RE, axis=1)
        columns.append((embed_RE @ wanted_E / np.where(length_R > 0, length_R, 1))[:, None].astype(np.float64))
    return np.concatenate(columns, axis=1)


def mean_direction(embed_RE: Array) -> Array:
    """[R, E] -> [E]: the mean embedding at length 1; zero stays zero."""
    mean_E = embed_RE.astype(np.float64).mean(axis=0)
    length = float(np.linalg.norm(mean_E))
    return np.asarray(mean_E / length if length > 0 else mean_E)
