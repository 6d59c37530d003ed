"""MagnaTagATune: 25,863 clips of 29 s, 188 tags. E. Law et al., "Evaluation of algorithms using games", ISMIR 2009.

The annotations are read as published (`annotations_final.csv`: tab-separated, quoted; `clip_id`, the tags, `mp3_path`).
The usual protocol is followed: the 50 most frequent tags of the whole file, and a split by the folder's hexadecimal
digit, 0-b / c / d-f. Traps:

- Clips without a top-50 tag are dropped and counted, as in most papers; figures on all clips are another protocol.
- 56 of the 230 artists have clips in more than one part of the published split. That is the published design: the
  artist is recorded as the clip's `group` and nothing is moved.
- Three MP3s of the archive are broken; `prepare` reports them.
- The archive comes in three parts that must be concatenated before they are unpacked.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from atose_ray.datasets.base import AudioDatasetConfig, DatasetError, find_file, finish_listing, read_cells
from atose_ray.types import ClipRef, Listing, Split

FOLDERS: dict[Split, str] = {"train": "0123456789ab", "valid": "c", "test": "def"}
SPLIT_OF_FOLDER = {folder: split for split, folders in FOLDERS.items() for folder in folders}


class Annotations(NamedTuple):
    """`rows`: path of the audio file and the indices of its tags, in the order of the file."""

    tags: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]


class MtatConfig(AudioDatasetConfig):
    """`annotations` may be any file in the published format, relative to `source` or absolute."""

    kind: Literal["mtat"] = "mtat"
    annotations: str = "annotations_final.csv"
    top_tags: int = Field(default=50, ge=1, description="How many tags are kept, by their count over the whole file.")

    def list_clips(self) -> Listing:
        folder = self.folder()
        hint = "put it into the source folder, or name another file with the option `annotations`"
        path = find_file(self.kind, folder, (os.path.expanduser(self.annotations),), hint)
        return list_mtat(self, folder, read_annotations(path), self.top_tags)


def split_of(mp3_path: str) -> Split:
    """The published split of a path like `c/artist-album-01-title-0-29.mp3`. Raises `DatasetError`."""
    split = SPLIT_OF_FOLDER.get(mp3_path.split("/", 1)[0]) if "/" in mp3_path else None
    if split is None:
        raise DatasetError(
            f"an mp3_path must begin with the folder 0 to 9 or a to f, which decides the split, but got {mp3_path!r}; "
            "for audio in other folders use the data set 'folder'"
        )
    return split


def artist_of(mp3_path: str) -> str:
    """What stands before the first `-` of the file name, which is artist-album-track-title-start-end."""
    return mp3_path.rsplit("/", 1)[-1].split("-", 1)[0]


def read_annotations(path: Path) -> Annotations:
    """Reads a file in the format of `annotations_final.csv`. Raises `DatasetError` with the line that is wrong."""
    lines = read_cells(path, delimiter="\t")
    _, header = next(lines, ("", [""]))
    if len(header) < 3 or header[0] != "clip_id" or header[-1] != "mp3_path":
        raise DatasetError(
            f"{path.name} must be tab-separated with the header clip_id, the tags, mp3_path, "
            f"but its first line is {chr(9).join(header)[:80]!r}; for other tables use the data set 'folder'"
        )
    rows = []
    for where, cells in lines:
        flags, mp3_path = cells[1:-1], cells[-1]
        if len(cells) != len(header) or not set(flags) <= {"0", "1"}:
            raise DatasetError(
                f"{where} must have {len(header)} cells and 0 or 1 for every tag, "
                f"but has {len(cells)} cells; is the file complete?"
            )
        rows.append((mp3_path, tuple(index for index, flag in enumerate(flags) if flag == "1")))
    return Annotations(tuple(header[1:-1]), tuple(rows))


def list_mtat(config: AudioDatasetConfig, folder: Path, annotations: Annotations, top_tags: int) -> Listing:
    """Clips with at least one of the most frequent tags, in the order of the file. Of equally frequent tags the first
    in the header are taken; never a tag that no row has."""
    counts = Counter(index for _, indices in annotations.rows for index in indices)
    kept = sorted(counts, key=lambda index: (-counts[index], index))[:top_tags]
    clips = []
    for mp3_path, indices in annotations.rows:
        split = split_of(mp3_path)
        tags = tuple(annotations.tags[index] for index in kept if index in indices)
        if tags:
            clips.append(ClipRef(str(folder / mp3_path), mp3_path, tags, split, artist_of(mp3_path)))
    left_out = {f"none of the {top_tags} most frequent tags": len(annotations.rows) - len(clips)}
    tags = tuple(annotations.tags[index] for index in kept)
    return finish_listing(
        config, folder, clips, "the annotations", exclusive=False, tags=tags, left_out=left_out, peak_normalize=True
    )
