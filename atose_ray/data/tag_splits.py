"""Which tags a training sees, and which clips it may then have: seen, held-out and unseen tags, tracks A, B and C.

Source: Choi, Lee, Park, Nam, "Zero-shot Learning for Audio-based Music Classification and Tagging", ISMIR 2019, section
3, and its published code. A split is a seed or a file: what was drawn can be written (`write_split`, `TagSplit.write`)
and read again, here or elsewhere."""

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from atose_ray.storage import read_uri
from atose_ray.types import SPLITS, Config, Split

Array = npt.NDArray[Any]
Group = Literal["A", "B", "C"]
TRAIN_SHARE = 0.9  # of the published track split


class ViewError(ValueError):
    """A view that the prepared set does not have; the message says which there are."""


class TagSplit(Config):
    """Which tags a training sees; the others are unseen, and for zero-shot tests.

    seen_share: of all tags, drawn by `seed`: int(share * tags) are seen (Choi et al. 2019: 0.8). unseen: the list of
    them, instead of a draw. draw: `published` shuffles as the published code does, with Python's generator.
    valid_share: of the seen tags, so many are held out: validation scores them, the training never sees them, and so
    the best epoch can be chosen by tags that the model does not know. held_out: the list of these, instead.
    file: a JSON file with the lists `unseen` and `held_out`, as `write` writes it, in the place of both."""

    LATER: ClassVar[tuple[str, ...]] = ("draw", "valid_share", "held_out")

    seen_share: float | None = Field(default=None, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    unseen: tuple[str, ...] = ()
    draw: Literal["numpy", "published"] = "numpy"
    valid_share: float = Field(default=0.0, ge=0, lt=1)
    held_out: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_a_file(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or "file" not in tree:
            return tree
        lists = read_lists(str(tree["file"]), ("unseen", "held_out"))
        return {**{key: value for key, value in tree.items() if key != "file"}, **lists}

    @model_validator(mode="after")
    def _one_way(self) -> "TagSplit":
        if (self.seen_share is None) == (not self.unseen):
            raise ValueError("a tag split is drawn (seen_share, seed) or listed (unseen): give one of the two")
        if self.valid_share and self.held_out:
            raise ValueError("held-out tags are drawn (valid_share) or listed (held_out): give one of the two")
        return self

    @property
    def holds_out(self) -> bool:
        """Whether validation has tags of its own."""
        return bool(self.valid_share or self.held_out)

    def split(self, tags: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Seen (held-out ones among them) and unseen tags, each in the order of `tags`. Raises ViewError for a list
        that names no tag."""
        if self.seen_share is not None:
            order = self._order(len(tags))
            unseen = {tags[i] for i in order[int(self.seen_share * len(tags)) :]}
        else:
            unseen = _known(self.unseen, tags, "unseen")
        seen = tuple(tag for tag in tags if tag not in unseen)
        if not seen or not unseen:
            raise ViewError(f"data.tag_split leaves {len(seen)} tags seen and {len(unseen)} unseen; both need one")
        return seen, tuple(tag for tag in tags if tag in unseen)

    def held_out_of(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """Of the seen tags those that the training does not see either. Raises ViewError where none would be left."""
        seen, _ = self.split(tags)
        order = [tags[i] for i in self._order(len(tags)) if tags[i] in set(seen)]
        drawn = {*order[len(order) - int(self.valid_share * len(order)) :]} if self.valid_share else set()
        held_out = _known(self.held_out, seen, "held_out") if self.held_out else drawn
        if self.holds_out and not 0 < len(held_out) < len(seen):
            raise ViewError(
                f"data.tag_split holds out {len(held_out)} of {len(seen)} seen tags for validation; it must be one at "
                "least, and not all: set another valid_share or held_out"
            )
        return tuple(tag for tag in seen if tag in held_out)

    def _order(self, count: int) -> list[int]:
        if self.draw == "numpy":
            return [int(i) for i in np.random.default_rng(self.seed).permutation(count)]
        order = list(range(count))
        random.Random(self.seed).shuffle(order)
        return order

    def write(self, tags: tuple[str, ...], file: str | Path) -> None:
        """The tags of this split as JSON, for `file`."""
        unseen, held_out = self.split(tags)[1], self.held_out_of(tags)
        Path(file).write_text(json.dumps({"unseen": unseen, "held_out": held_out}, ensure_ascii=False, indent=1))


class TrackSplit(Config):
    """Clips dealt anew, whatever splits they were prepared in: by the published rule, or as a file lists them.

    The published rule, with the tracks that `data.tracks` names (A, B or AB): 90 % of them train, 10 % validate, drawn
    by `seed`; tracks with every seen tag are in no split. test: groups that are scored at the end, training tracks
    among them (published: B and C, or all). file: JSON with clip names under train, valid and test."""

    seed: int = Field(default=0, ge=0)
    test: tuple[Group, ...] = ("B", "C")
    file: str | None = None
    sha256: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _hash_of_the_file(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or not tree.get("file") or tree.get("sha256"):
            return tree
        return {**tree, "sha256": hashlib.sha256(_content(str(tree["file"]))).hexdigest()[:16]}

    @model_validator(mode="after")
    def _tests_something(self) -> "TrackSplit":
        if not self.test:
            raise ValueError("track_split.test names the groups that are scored at the end, of A, B, C, but got none")
        return self

    def listed(self) -> dict[Split, set[str]]:
        """The clip names of the file. Raises ViewError where it is not the file that the run was resolved with."""
        assert self.file is not None
        found = hashlib.sha256(_content(self.file)).hexdigest()[:16]
        if found != self.sha256:
            raise ViewError(f"data.track_split.file {self.file} was changed since ({found}, not {self.sha256})")
        return {split: set(names) for split, names in zip(SPLITS, read_lists(self.file, SPLITS).values(), strict=True)}


def _known(names: Sequence[str], tags: Sequence[str], what: str) -> set[str]:
    unknown = sorted(set(names) - set(tags))
    if unknown:
        raise ViewError(f"data.tag_split.{what} names {', '.join(unknown)}, but the tags are {', '.join(tags)}")
    return set(names)


def _content(file: str) -> bytes:
    try:
        return read_uri(file)
    except OSError as error:
        raise ValueError(f"cannot read the split file {file}: {error}") from error


def read_lists(file: str, keys: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """These lists of names of a JSON file. Raises ValueError where it is not one of them."""
    try:
        tree = json.loads(_content(file))
        return {key: tuple(str(name) for name in tree.get(key, ())) for key in keys}
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{file} must be JSON with the lists {', '.join(keys)}, but: {error}") from error


def split_tracks(tags_NC: Array, seen_C: Array) -> dict[str, Array]:
    """{0, 1} [N, C] and bool [C] -> bool [N] each: A has a seen tag and no unseen one, B has both, C has no seen tag
    (and maybe none at all). Departure from Choi et al. 2019, whose A and B leave out clips that carry every seen tag:
    here every clip is in one of the three."""
    has_seen_N, has_unseen_N = (np.any(tags_NC[:, some_C], axis=1) for some_C in (seen_C, ~seen_C))
    return {"A": has_seen_N & ~has_unseen_N, "B": has_seen_N & has_unseen_N, "C": ~has_seen_N}


def published_tracks(tags_NC: Array, seen_C: Array, seed: int) -> dict[str, list[int]]:
    """{0, 1} [N, C] and bool [C] -> rows of AB, B, A (each as `X train`, `X valid`), C and `none`, as the published
    code deals them: AB, then B, then A are shuffled, the latter two from the order of the first, and each is cut at
    90 % by itself. So a clip can be in `AB train` and `B valid`; one with every seen tag is in `none`."""
    groups, generator = split_tracks(tags_NC, seen_C), random.Random(seed)
    exceptional_N = np.all(tags_NC[:, seen_C], axis=1)
    dealt = {"C": np.flatnonzero(groups["C"]).tolist(), "none": np.flatnonzero(exceptional_N).tolist()}
    both = np.flatnonzero(~groups["C"] & ~exceptional_N).tolist()
    generator.shuffle(both)
    for name, rows in (
        ("AB", both),
        ("B", [i for i in both if groups["B"][i]]),
        ("A", [i for i in both if groups["A"][i]]),
    ):
        if name != "AB":
            generator.shuffle(rows)
        cut = int(TRAIN_SHARE * len(rows))
        dealt |= {f"{name} train": rows[:cut], f"{name} valid": rows[cut:]}
    return dealt
