"""Any folder of audio with a table of tags: the way in for one's own data.

    path,split,tags,group
    songs/one.flac,train,guitar|slow,Ada
    songs/two.flac,valid,guitar|piano,Ben

`path` is relative to the source folder, `tags` are joined by `|`, `split` and `group` are optional columns. Instead of
`split` a column `fold` (whole numbers, three folds or more) makes a set for cross-validation. With neither, clips are
split at random from `seed`, such that a group is never divided and every tag stays in train. Rows without tags are left
out and counted. A name may be written with its accents composed where the disk has them decomposed (files copied from a
Mac), or the other way round. The source may lie in object storage: `s3://bucket/folder`.

The table may also be the review that `tag --clips` began and a listener filled in (datasets/review.py):
`--option csv=review.csv`.
"""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from atose_ray.datasets import base
from atose_ray.datasets.base import AudioDatasetConfig, DatasetConfig, DatasetError, finish_listing, read_cells
from atose_ray.datasets.review import read_review
from atose_ray.types import SPLITS, ClipRef, Listing, Split

HEADER = "path,split,tags,group"
COLUMNS = [*HEADER.split(","), "fold"]
SPLIT_NAMES: dict[str, Split] = {**{name: name for name in SPLITS}, "val": "valid", "validation": "valid"}


class Row(NamedTuple):
    """One line of the table; `split` and `fold` are None in every row if the table has no such column. path: without
    the spaces around it, which `written` still has."""

    path: str
    split: Split | None
    tags: tuple[str, ...]
    group: str
    written: str
    fold: int | None = None


class TableConfig(DatasetConfig):
    """A folder of files that one table names. `csv` is relative to `source`, or absolute; without a `source` the folder
    of an absolute `csv` is meant."""

    suffixes: ClassVar[Collection[str]]

    csv: str = "tags.csv"
    exclusive: bool = Field(default=False, description="Every clip has exactly one tag, a label.")
    valid_fraction: float = Field(default=0.15, gt=0, lt=1, description="Of a table without a split column.")
    test_fraction: float = Field(default=0.15, gt=0, lt=1, description="Of a table without a split column.")
    seed: int = Field(default=0, ge=0, description="Of a table without a split column.")

    @model_validator(mode="after")
    def _something_is_left_for_training(self) -> "TableConfig":
        if self.valid_fraction + self.test_fraction >= 1:
            raise ValueError(
                "valid_fraction + test_fraction must be below 1, because the rest is for training, "
                f"but got {self.valid_fraction} + {self.test_fraction}"
            )
        return self

    def list_clips(self) -> Listing:
        table = Path(os.path.expanduser(self.csv))
        folder = table.parent if self.source is None and table.is_absolute() else self.folder()
        table = folder / table
        if not table.is_file():
            raise DatasetError(self._no_table(table, folder))
        rows, left_out = read_labels(table)
        several = next((row for row in rows if self.exclusive and len(row.tags) != 1), None)
        if several:
            raise DatasetError(
                f"with exclusive labels a clip has one tag, but {several.path} has {'|'.join(several.tags)}; give it "
                "one, or prepare with --option exclusive=false"
            )
        if rows and rows[0].fold is not None:
            rows = split_by_folds(rows, table.name)
        elif rows and rows[0].split is None:
            rows = split_at_random(rows, self.valid_fraction, self.test_fraction, self.seed)
        clips = [
            ClipRef(self.find(folder, r), r.path, r.tags, r.split or "train", r.group or None, 0.0, None, r.fold)
            for r in rows
        ]
        listing = finish_listing(self, folder, clips, table.name, exclusive=self.exclusive, left_out=left_out)
        untrained = set(listing.tags) - {tag for clip in clips if clip.split == "train" for tag in clip.tags}
        if untrained:
            raise DatasetError(
                f"every tag must have a clip in train, but {table.name} has none there for {_some(sorted(untrained))}; "
                "move a clip to train, or remove these tags"
            )
        return listing

    def find(self, folder: Path, row: Row) -> str:
        """The file of a row; where none is there, the one to expect, for `prepare` to report."""
        composed = (unicodedata.normalize(form, row.path) for form in ("NFC", "NFD"))
        return str(base.first_file([folder / form for form in (row.path, row.written, *composed)]))

    def _no_table(self, table: Path, folder: Path) -> str:
        found = next((path for path in base.walk(folder) if path.suffix.lower() in self.suffixes), None)
        if found is None:
            return (
                f"{table} does not exist, and {folder} holds no {self.content}; give the folder of your {self.content} "
                "and its tags CSV"
            )
        name = found.relative_to(folder).as_posix()
        return (
            f"the tags table {table} does not exist; write it with one line per file, such as:\n"
            f"    {HEADER}\n    {name},train,{found.parent.name}|another tag,\n"
            "(split and group may be left out; another name: the option `csv`)"
        )


class FolderConfig(TableConfig, AudioDatasetConfig):
    """A folder of audio."""

    suffixes: ClassVar[Collection[str]] = base.AUDIO_SUFFIXES
    kind: Literal["folder"] = "folder"


def read_labels(table: Path) -> tuple[list[Row], Counter[str]]:
    """The rows to list, and how many are left out, by reason. Of a review also clips that turned out to have no tag."""
    if {"clip", "accept"} <= {cell.strip() for cell in next(read_cells(table), ("", [""]))[1]}:
        judged, left_out = read_review(table)
        return [Row(clip.path, None, clip.tags, clip.group, clip.path) for clip in judged], left_out
    every = read_table(table)
    rows = [row for row in every if row.tags]
    return rows, Counter({"no tags": len(every) - len(rows)})


def read_table(table: Path) -> list[Row]:
    """The lines of a tags CSV. Raises `DatasetError` with the line that is wrong."""
    lines = read_cells(table, strip=False)
    header = [cell.strip().lower() for cell in next(lines, ("", [""]))[1]]
    _check_header(header, table.name)
    rows: dict[str, Row] = {}
    place: dict[str, str] = {}
    for where, cells in lines:
        row = _row(header, cells, where)
        if row.path in rows:
            first = place[row.path].removeprefix(f"{table.name} ")
            raise DatasetError(f"{where} names {row.path} again (first on {first}); keep one row per file")
        rows[row.path], place[row.path] = row, where
    return list(rows.values())


def split_by_folds(rows: list[Row], table: str) -> list[Row]:
    """Sets the split of every row to that of its fold where the first is for testing. Raises `DatasetError` where the
    table has fewer than three folds, or a group in two of them."""
    folds = sorted({row.fold for row in rows if row.fold is not None})
    if len(folds) < 3:
        raise DatasetError(
            f"cross-validation needs three folds or more (train, validation, test), but {table} has {len(folds)}: "
            f"{', '.join(map(str, folds))}; give more, or a column split instead"
        )
    fold_of: dict[str, int | None] = {}
    for row in rows:
        if row.group and fold_of.setdefault(row.group, row.fold) != row.fold:
            raise DatasetError(
                f"{table} has the group {row.group!r} in folds {fold_of[row.group]} and {row.fold}, so that what is "
                "tested would be known from training; keep a group in one fold"
            )
    return [row._replace(split=base.default_split(row.fold, folds)) for row in rows if row.fold is not None]


def split_at_random(rows: list[Row], valid_fraction: float, test_fraction: float, seed: int) -> list[Row]:
    """Sets the split of every row: groups stay whole, every tag keeps a clip in train, sizes as near as that allows.

    Groups are visited in the order of a hash of (seed, group), so that a new clip does not reshuffle the others. Each
    goes to test, then to valid, while it fits there and train can spare it. Raises `DatasetError` if one stays empty.
    """
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(_group_of(row), []).append(row)
    order = sorted(members, key=lambda group: sha256(f"{seed}:{group}".encode()).digest())
    spare = _tag_counts(rows)
    split_of: dict[str, Split] = {}
    for split, fraction in (("test", test_fraction), ("valid", valid_fraction)):
        room = max(1, round(fraction * len(rows)))
        taken = 0
        # Second, if every group is larger than the room: the smallest that train can spare.
        for candidates in (order, sorted(order, key=lambda group: len(members[group]))):
            for group in candidates:
                size = len(members[group])
                counts = _tag_counts(members[group])
                fits = taken + size <= room or (taken == 0 and candidates is not order)
                if group not in split_of and fits and all(spare[tag] > count for tag, count in counts.items()):
                    split_of[group] = "valid" if split == "valid" else "test"
                    taken += size
                    spare = Counter({tag: count - counts[tag] for tag, count in spare.items()})
        if taken == 0:
            last = {tag for tag, count in spare.items() for of in members.values() if _tag_counts(of)[tag] == count}
            raise DatasetError(
                f"the {len(members)} groups cannot be split so that every tag stays in train: nothing is left for "
                f"{split}, because every other group holds the last clips of a tag ({_some(sorted(last))}); "
                "add clips of other groups, drop these tags, or give a split column"
            )
    return [row._replace(split=split_of.get(_group_of(row), "train")) for row in rows]


def _group_of(row: Row) -> str:
    return row.group or f"\0{row.path}"  # a clip without a group is a group of its own


def _tag_counts(rows: list[Row]) -> Counter[str]:
    return Counter(tag for row in rows for tag in row.tags)


def _check_header(header: list[str], table: str) -> None:
    if {"split", "fold"} <= set(header):
        raise DatasetError(f"{table} has both a column split and a column fold; keep the one that is meant")
    if not {"path", "tags"} <= set(header):
        raise DatasetError(
            f"{table} must begin with the header {HEADER} (split and group may be left out), separated by commas, "
            f"but its first line is {','.join(header)[:80]!r}; add that line"
        )
    for name in header:
        close = get_close_matches(name, COLUMNS, n=1, cutoff=0.75)
        if header.count(name) > 1:
            raise DatasetError(f"{table} has the column {name!r} {header.count(name)} times; keep one")
        if close and name not in COLUMNS:
            raise DatasetError(f"{table} has a column {name!r}; did you mean {close[0]!r}? Rename or remove it")


def _row(header: list[str], cells: list[str], where: str) -> Row:
    if len(cells) != len(header):
        raise DatasetError(
            f"{where} must have {len(header)} cells as the header has, but has {len(cells)}; "
            "quote cells that contain a comma, and join tags by |"
        )
    if "\0" in "".join(cells):
        raise DatasetError(f"{where} holds NUL characters: the table is damaged, or not UTF-8; save it as CSV UTF-8")
    cell = {name: text.strip() for name, text in zip(header, cells, strict=True)}
    if not cell["path"]:
        raise DatasetError(
            f"{where} has no path; give the audio file relative to the source folder, or remove the line"
        )
    split = None
    if "split" in cell:
        split = SPLIT_NAMES.get(cell["split"].lower())
        if split is None:
            close = get_close_matches(cell["split"].lower(), SPLIT_NAMES, n=1)
            hint = f"; did you mean {close[0]}?" if close else "; without the column, clips are split at random"
            raise DatasetError(f"{where}: split must be {', '.join(SPLITS)}, but got {cell['split']!r}{hint}")
    fold = cell.get("fold")
    if fold is not None and not fold.isdecimal():
        raise DatasetError(f"{where}: fold must be a whole number, but got {fold!r}")
    tags = dict.fromkeys(tag.strip() for tag in cell["tags"].split("|"))
    written = cells[header.index("path")]
    number = None if fold is None else int(fold)
    return Row(cell["path"], split, tuple(tag for tag in tags if tag), cell.get("group", ""), written, number)


def _some(tags: list[str]) -> str:
    return ", ".join(tags[:5]) + (f" and {len(tags) - 5} more" if len(tags) > 5 else "")
