"""What a run sees of a prepared set: clips x tags of every split. Folds, tag splits, track splits and shares are views
of one set, never copies; each is a pure function of the manifest (and of the tags of its clips).

Laws (tested): the splits of a view share no clip; of all folds every clip is in the test split once; seen and unseen
tags are all tags; tracks A, B and C are all clips; the same config gives the same view.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from pydantic import Field, model_validator

from atose_ray.data.shards import Manifest, ShardFile, SkippedClip, from_file, read_tags
from atose_ray.data.tag_splits import TagSplit, TrackSplit, ViewError, published_tracks, split_tracks
from atose_ray.storage import Store
from atose_ray.types import SPLITS, Config, Split

__all__ = [
    "TagSplit",
    "TrackSplit",
    "View",
    "ViewConfig",
    "ViewError",
    "of_all_tags",
    "of_fold",
    "of_tags",
    "split_tracks",
    "view_of",
]

Array = npt.NDArray[Any]
Tracks = Literal["all", "A", "B", "AB"]


class ViewConfig(Config):
    """fold: which fold of the set is the test split; the next one (cyclic) is the validation split, the others train.
        None is the first, or nothing where the set has no folds. `all` trains one model per fold, side by side: the
        scores are means over the folds (training/folds.py).
    tag_split: train and score on the seen tags only. Where it holds out tags, validation scores them as well.
    tracks: with a tag split, which clips of train and valid: A carries no unseen tag (strict zero-shot), B one at
        least, beside a seen one; AB are both, `all` also those without a seen tag (source: Choi et al. 2019, section
        3). A tag that is held out counts as unseen; validation then keeps every clip, or none would carry it.
    track_split: with a tag split, deal the clips anew by the published rule, or as a file lists them.
    train_share: share of the train split's clips, drawn by the seed, that is trained on: one point of a learning curve.
        A smaller share's clips are all in a larger one; valid and test stay whole."""

    fold: Annotated[int, Field(ge=0)] | Literal["all"] | None = None
    tag_split: TagSplit | None = None
    tracks: Tracks = "all"
    track_split: TrackSplit | None = None
    train_share: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _tracks_need_tags(self) -> "ViewConfig":
        if self.tracks != "all" and self.tag_split is None:
            raise ValueError(f"data.tracks={self.tracks} needs a tag split: set data.tag_split.seen_share or .unseen")
        if self.track_split and self.tag_split is None:
            raise ValueError("data.track_split needs a tag split: set data.tag_split.seen_share or .unseen")
        if self.track_split and (self.tracks == "all") != (self.track_split.file is not None):
            raise ValueError(
                f"data.track_split deals the tracks A, B or AB, or those of a file, but data.tracks is {self.tracks}; "
                "set data.tracks to one of the three, or leave it out beside a file"
            )
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
    folder, whole = manifest.folder(store), view.manifest
    if config.track_split is not None:
        view = dealt_anew(whole, config, store)
    else:
        view = of_tags(whole, config.tag_split, config.tracks, lambda of, split: read_tags(folder, of, split))
    check_carried(view.manifest, whole, config)
    return view


def check_carried(view: Manifest, whole: Manifest, config: ViewConfig) -> None:
    """Raises ViewError where the choice of clips leaves a seen tag without one to be trained on."""
    deal, tracks, held_out = config.track_split, config.tracks, view.data_spec.held_out
    there = {tag for tag, of in whole.tag_counts.items() if of.get("train") or (deal and any(of.values()))}
    lost = [tag for tag, of in view.tag_counts.items() if not of["train"] and tag in there and tag not in held_out]
    if not lost:
        return
    names = ", ".join(lost)
    if deal is not None and deal.file is not None:
        raise ViewError(f"data.track_split.file lists no clip of {names} under train; give it one of each")
    why = {"A": ", as all of them carry an unseen tag too", "B": ", as none of them carries an unseen tag too"}
    because, drawn = (why.get(tracks, ""), "tag_split") if deal is None else ("", "track_split")
    wider = "data.tracks=AB, or " if tracks in why else ""
    raise ViewError(
        f"data.tracks={tracks} leaves no clip of {names} to train on{because}; take {wider}another data.{drawn}.seed, "
        f"or count {names} among data.tag_split.unseen"
    )


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


def of_tags(manifest: Manifest, split: TagSplit, tracks: Tracks, tags_of: Callable[[Manifest, Split], Array]) -> View:
    """The set with its seen tags only. tags_of: the stored tags of a split's clips, {0, 1} [N, C]. Of a set with
    exclusive tags, clips without a tag that is trained or validated are in no split: they have no class to be told
    from others."""
    spec = manifest.data_spec
    seen, held_out = split.split(spec.tags)[0], split.held_out_of(spec.tags)
    seen_C, trained_C = (np.array([tag in some for tag in spec.tags]) for some in (seen, set(seen) - set(held_out)))
    rows: dict[Split, Array] = {}
    tags: dict[Split, Array] = {}
    for name in SPLITS:
        tags[name] = tags_NC = tags_of(manifest, name).astype(bool)
        groups = split_tracks(tags_NC, trained_C)
        whole = tracks == "all" or name == "test" or (name == "valid" and bool(held_out))
        wanted_N = groups[tracks] if tracks in groups else ~groups["C"]
        rows[name] = np.ones(len(tags_NC), bool) if whole else wanted_N
        if spec.exclusive:
            rows[name] = rows[name] & (tags_NC[:, trained_C if name == "train" else seen_C].any(axis=1))
    return _with_rows(manifest, seen, held_out, rows, tags)


def dealt_anew(manifest: Manifest, config: ViewConfig, store: Store) -> View:
    """The set with its seen tags only and its clips in other splits (TrackSplit). Every shard stands in every split,
    with the rows that the split has of it. Raises ViewError where a file names clips that the set has not."""
    assert config.tag_split is not None and config.track_split is not None
    deal, spec, folder = config.track_split, manifest.data_spec, manifest.folder(store)
    shards = [shard for split in SPLITS for shard in manifest.shards if shard.split == split]
    every = manifest.model_copy(
        update={"shards": tuple(one.model_copy(update={"split": split}) for split in SPLITS for one in shards)}
    )
    tags_NC = read_tags(folder, every, "train").astype(bool)
    seen, held_out = config.tag_split.split(spec.tags)[0], config.tag_split.held_out_of(spec.tags)
    seen_C = np.array([tag in seen for tag in spec.tags])
    if deal.file is not None:
        names = np.array(clip_names(folder, every, "train"))
        listed = deal.listed()
        unknown = sorted(set().union(*listed.values()) - set(names.tolist()))
        if unknown:
            raise ViewError(
                f"data.track_split.file names {len(unknown)} clips that the set has not, such as {unknown[0]}"
            )
        rows: dict[Split, Array] = {split: np.isin(names, list(listed[split])) for split in SPLITS}
    else:
        dealt, groups = published_tracks(tags_NC, seen_C, deal.seed), split_tracks(tags_NC, seen_C)
        test_N = np.any([groups[name] for name in deal.test], axis=0)
        test_N[dealt["none"]] = False
        own = [np.isin(np.arange(len(tags_NC)), dealt[f"{config.tracks} {part}"]) for part in ("train", "valid")]
        rows = {"train": own[0], "valid": own[1], "test": test_N}
    return _with_rows(every, seen, held_out, rows, dict.fromkeys(SPLITS, tags_NC))


def of_all_tags(manifest: Manifest, config: ViewConfig, store: Store) -> tuple[View, tuple[str, ...]]:
    """What a model with a tag split is tested on: the tags it trained on and the unseen ones, of all clips of a split
    (or of those dealt to it), but not the tags that chose its best epoch; and the unseen ones. Raises ViewError without
    a tag split."""
    split = config.tag_split
    if split is None:
        raise ViewError("unseen tags are scored of a model that was trained with a tag split: set data.tag_split")
    whole = of_fold(manifest, config.fold)
    spec = whole.data_spec
    unseen, held_out = split.split(spec.tags)[1], split.held_out_of(spec.tags)
    kept = tuple(tag for tag in spec.tags if tag not in held_out)
    columns = tuple(index for index, tag in enumerate(spec.tags) if tag in kept)
    rows: Mapping[Split, Array] = {}
    if config.track_split is not None:
        dealt = dealt_anew(whole, config, store)
        whole, rows = dealt.manifest, dealt.rows
    about = spec.model_copy(update={"tags": kept, "held_out": unseen})
    counts = {tag: manifest.tag_counts[tag] for tag in kept}
    return View(
        whole.model_copy(update={"data_spec": about, "tag_counts": counts}), len(spec.tags), columns, rows
    ), unseen


def _with_rows(
    manifest: Manifest,
    seen: tuple[str, ...],
    held_out: tuple[str, ...],
    rows: dict[Split, Array],
    tags: dict[Split, Array],
) -> View:
    """The view of these rows and the seen tags. tags: those that are stored, bool [N, C] of every split."""
    spec = manifest.data_spec
    seen_C = np.array([tag in seen for tag in spec.tags])
    counts = {split: int(rows[split].sum()) for split in SPLITS}
    sums = {split: tags[split][rows[split]][:, seen_C].sum(axis=0).tolist() for split in SPLITS}
    tag_counts = {tag: {split: sums[split][at] for split in SPLITS} for at, tag in enumerate(seen)}
    about = spec.model_copy(update={"tags": seen, "counts": counts, "held_out": held_out})
    viewed = manifest.model_copy(update={"data_spec": about, "tag_counts": tag_counts})
    return View(viewed, len(spec.tags), tuple(np.flatnonzero(seen_C).tolist()), dict(rows))


def clip_names(folder: Store, manifest: Manifest, split: Split) -> list[str]:
    """The names of a split's clips, in order. Raises StoreError when a shard cannot be read."""
    names: list[str] = []
    for shard in manifest.shards:
        if shard.split == split:
            table = from_file(folder, shard.name, lambda file: pq.read_table(file, columns=["name"]))
            names += table["name"].to_pylist()
    return names


def write_split(view: View, store: Store, file: str | Path) -> None:
    """The clips of every split of a view by name, as JSON for `data.track_split.file`."""
    folder, found = view.manifest.folder(store), {}
    for split in SPLITS:
        names = np.array(clip_names(folder, view.manifest, split), dtype=object)
        found[split] = names[view.rows[split]].tolist() if split in view.rows else names.tolist()
    Path(file).write_text(json.dumps(found, ensure_ascii=False, indent=1))
