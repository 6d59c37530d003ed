"""What a run sees of a prepared set: clips x tags of every split. Folds, tag splits, track splits and shares are views
of one set, never copies; each is a pure function of the manifest (and of the tags of its clips).

Laws (tested): the splits of a view share no clip; of all folds every clip is in the test split once; seen and unseen
tags are all tags; tracks A, B and C are all clips; the same config gives the same view.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from atose_ray.data.shards import Manifest, ShardFile, SkippedClip, read_tags
from atose_ray.storage import Store
from atose_ray.types import SPLITS, Config, Split

Array = npt.NDArray[Any]
Tracks = Literal["all", "A", "B"]


class ViewError(ValueError):
    """A view that the prepared set does not have; the message says which there are."""


class TagSplit(Config):
    """Which tags a training sees; the others are unseen, and for zero-shot tests.

    seen_share: of all tags, drawn by `seed`: int(share * tags) are seen (Choi et al. 2019: 0.8). unseen: the list of
    them, instead of a draw."""

    seen_share: float | None = Field(default=None, gt=0, lt=1)
    seed: int = Field(default=0, ge=0)
    unseen: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_way(self) -> "TagSplit":
        if (self.seen_share is None) == (not self.unseen):
            raise ValueError("a tag split is drawn (seen_share, seed) or listed (unseen): give one of the two")
        return self

    def split(self, tags: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Seen and unseen tags, each in the order of `tags`. Raises ViewError for a list that names no tag."""
        if self.seen_share is not None:
            order = np.random.default_rng(self.seed).permutation(len(tags)).tolist()
            unseen = {tags[i] for i in order[int(self.seen_share * len(tags)) :]}
        else:
            unseen = set(self.unseen)
            unknown = sorted(unseen - set(tags))
            if unknown:
                raise ViewError(f"data.tag_split.unseen names {', '.join(unknown)}, but the tags are {', '.join(tags)}")
        seen = tuple(tag for tag in tags if tag not in unseen)
        if not seen or not unseen:
            raise ViewError(f"data.tag_split leaves {len(seen)} tags seen and {len(unseen)} unseen; both need one")
        return seen, tuple(tag for tag in tags if tag in unseen)


class ViewConfig(Config):
    """fold: which fold of the set is the test split; the next one (cyclic) is the validation split, the others train.
        None is the first, or nothing where the set has no folds. `all` trains one model per fold, side by side: the
        scores are means over the folds (training/folds.py).
    tag_split: train and score on the seen tags only.
    tracks: with a tag split, which clips of train and valid: A carries no unseen tag (strict zero-shot), B one at
        least, beside a seen one; `all` are these and those without a seen tag (source: Choi et al. 2019, section 3).
    train_share: share of the train split's clips, drawn by the seed, that is trained on: one point of a learning curve.
        A smaller share's clips are all in a larger one; valid and test stay whole."""

    fold: Annotated[int, Field(ge=0)] | Literal["all"] | None = None
    tag_split: TagSplit | None = None
    tracks: Tracks = "all"
    train_share: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _tracks_need_tags(self) -> "ViewConfig":
        if self.tracks != "all" and self.tag_split is None:
            raise ValueError(f"data.tracks={self.tracks} needs a tag split: set data.tag_split.seen_share or .unseen")
        return self


@dataclass(frozen=True)
class View:
    """manifest: its shards under the splits of this view, its counts and tags those of it. stored: how many tags the
    shards have; columns: those of them that are seen, None is all. rows: of every clip of a split's row groups, in
    order, whether the view has it, bool [N]; a split that is not there is whole."""

    manifest: Manifest
    stored: int
    columns: tuple[int, ...] | None = None
    rows: Mapping[Split, Array] = field(default_factory=dict)

    def tags(self, store: Store, split: Split) -> Array:
        """Tags of every clip of a split, {0, 1} [N, C]. Raises StoreError when a shard cannot be read."""
        tags_NC = read_tags(self.manifest.folder(store), self.manifest, split, self.stored)
        tags_NC = tags_NC if self.columns is None else tags_NC[:, self.columns]
        return tags_NC[self.rows[split]] if split in self.rows else tags_NC

    def without_test(self) -> "View":
        """What a training may know of it."""
        rows: dict[Split, Array] = {split: rows_N for split, rows_N in self.rows.items() if split != "test"}
        return replace(self, manifest=self.manifest.without_test(), rows=rows)


def view_of(manifest: Manifest, config: ViewConfig, store: Store) -> View:
    """The view that a config asks for. Reads the tags of all clips where tags are split, nothing else. Raises ViewError
    where the set does not have it, StoreError when a shard cannot be read."""
    view = View(of_fold(manifest, config.fold), len(manifest.data_spec.tags))
    if config.tag_split is None:
        return view
    folder = manifest.folder(store)
    return of_tags(view.manifest, config.tag_split, config.tracks, lambda of, split: read_tags(folder, of, split))


def fold_numbers(manifest: Manifest) -> tuple[int, ...]:
    """The folds of a set, in order; none of one that has none."""
    return tuple(fold.number for fold in manifest.folds)


def of_fold(manifest: Manifest, number: int | Literal["all"] | None) -> Manifest:
    """The set with this fold as its test split and the next one as validation; of `all` the first stands for the
    others, whose tags and kinds of clips are the same. Raises ViewError where it has none."""
    numbers = fold_numbers(manifest)
    if number == "all" and numbers:
        return of_fold(manifest, numbers[0])
    if number is None or not numbers:
        if number is not None:
            raise ViewError(
                f"data.fold={number}, but {manifest.name!r} has no folds; leave it out, or prepare a set that has some "
                "(of `folder`: a column `fold` in the table)"
            )
        return manifest
    if number not in numbers:
        raise ViewError(f"data.fold is one of {', '.join(map(str, numbers))}, but got {number}")
    valid = numbers[(numbers.index(number) + 1) % len(numbers)]
    split_of: dict[int | None, Split] = {**dict.fromkeys(numbers, "train"), number: "test", valid: "valid"}

    def moved(one: ShardFile | SkippedClip) -> dict[str, Any]:
        return {**one.model_dump(), "split": split_of[one.fold]}

    counts: Counter[Split] = Counter()
    tag_counts: dict[str, dict[Split, int]] = {tag: dict.fromkeys(SPLITS, 0) for tag in manifest.data_spec.tags}
    for fold in manifest.folds:
        counts[split_of[fold.number]] += fold.clips
        for tag, count in fold.tag_counts.items():
            tag_counts[tag][split_of[fold.number]] += count
    return manifest.model_copy(
        update={
            "data_spec": manifest.data_spec.model_copy(update={"counts": {split: counts[split] for split in SPLITS}}),
            "shards": tuple(ShardFile.model_validate(moved(shard)) for shard in manifest.shards),
            "skipped": tuple(SkippedClip.model_validate(moved(clip)) for clip in manifest.skipped),
            "tag_counts": tag_counts,
        }
    )


def split_tracks(tags_NC: Array, seen_C: Array) -> dict[str, Array]:
    """{0, 1} [N, C] and bool [C] -> bool [N] each: A has a seen tag and no unseen one, B has both, C has no seen tag
    (and maybe none at all). Departure from Choi et al. 2019, whose A and B leave out clips that carry every seen tag:
    here every clip is in one of the three."""
    has_seen_N, has_unseen_N = (np.any(tags_NC[:, some_C], axis=1) for some_C in (seen_C, ~seen_C))
    return {"A": has_seen_N & ~has_unseen_N, "B": has_seen_N & has_unseen_N, "C": ~has_seen_N}


def of_tags(manifest: Manifest, split: TagSplit, tracks: Tracks, tags_of: Callable[[Manifest, Split], Array]) -> View:
    """The set with its seen tags only. tags_of: the stored tags of a split's clips, {0, 1} [N, C]. Of a set with
    exclusive tags, clips without a seen tag are in no split: they have no class to be told from others."""
    spec = manifest.data_spec
    seen, _ = split.split(spec.tags)
    seen_C = np.array([tag in seen for tag in spec.tags])
    rows: dict[Split, Array] = {}
    counts: dict[Split, int] = {}
    tag_counts: dict[str, dict[Split, int]] = {tag: {} for tag in seen}
    for name in SPLITS:
        tags_NC = tags_of(manifest, name).astype(bool)
        groups = split_tracks(tags_NC, seen_C)
        kept_N = groups[tracks] if tracks != "all" and name != "test" else np.ones(len(tags_NC), bool)
        if spec.exclusive:
            kept_N = kept_N & ~groups["C"]
        rows[name], counts[name] = kept_N, int(kept_N.sum())
        for tag, count in zip(seen, tags_NC[kept_N][:, seen_C].sum(axis=0).tolist(), strict=True):
            tag_counts[tag][name] = count
    update = {"data_spec": spec.model_copy(update={"tags": seen, "counts": counts}), "tag_counts": tag_counts}
    return View(manifest.model_copy(update=update), len(spec.tags), tuple(np.flatnonzero(seen_C).tolist()), rows)
