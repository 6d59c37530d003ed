"""MTG-Jamendo: 55,000 whole tracks with 195 tags of genre, instrument and mood or theme. D. Bogdanov et al., "The
MTG-Jamendo dataset for automatic music tagging", Machine Learning for Music Discovery Workshop, ICML 2019.

Read as published: `data/splits/split-N/autotagging_SUBSET-{train,validation,test}.tsv` of the data set's repository
(`TRACK_ID ARTIST_ID ALBUM_ID PATH DURATION TAGS...`, tab-separated, one cell per tag, such as `genre---rock`), and the
audio `34/786434.mp3`, or `34/786434.low.mp3` in the low-quality edition. Where a track has both, the full one is read.
Traps:

- The five splits keep artists apart; the artist is the clip's group. Papers mostly report split 0.
- Whole tracks are long: all of them are more than 3,500 hours. `excerpt_seconds` keeps the middle of each.
- 990 files are bit-exact copies of one another, in 465 sets (reported in the repository); nothing is left out for it.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from atose_ray.datasets.base import AudioDatasetConfig, DatasetError, find_file, finish_listing, first_file, read_cells
from atose_ray.types import ClipRef, Listing, Split

HEADER = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
PARTS: dict[str, Split] = {"train": "train", "validation": "valid", "test": "test"}
AUDIO_FOLDERS = (".", *(f"{of}audio{low}" for of in ("", "raw_30s/", "autotagging_moodtheme/") for low in ("", "-low")))


class Track(NamedTuple):
    """A line of a split file."""

    artist: str
    path: str
    duration_s: float
    tags: tuple[str, ...]


class MtgJamendoConfig(AudioDatasetConfig):
    """`source` holds the audio folders `00` to `99`; `splits` is relative to it, or absolute."""

    kind: Literal["mtg_jamendo"] = "mtg_jamendo"
    splits: str = Field(default="data/splits", description="The folder with split-0 to split-4 in it.")
    split: int = Field(default=0, ge=0, le=4, description="Which of the five published splits.")
    subset: Literal["all", "top50tags", "genre", "instrument", "moodtheme"] = "all"
    excerpt_seconds: float | None = Field(default=None, gt=0, description="Only the middle of each track; none: all.")

    def list_clips(self) -> Listing:
        folder = self.folder()
        stem = "autotagging" if self.subset == "all" else f"autotagging_{self.subset}"
        tables = Path(os.path.expanduser(self.splits)) / f"split-{self.split}"
        places = [folder / place for place in AUDIO_FOLDERS if (folder / place).is_dir()]
        hint = "take data/splits from the data set's repository, or say where it is: --option splits=DIR"
        clips = []
        for part, split in PARTS.items():
            table = find_file(self.kind, folder, (str(tables / f"{stem}-{part}.tsv"),), hint)
            for track in read_tracks(table):
                start_s, end_s = middle(track.duration_s, self.excerpt_seconds)
                names = (track.path, f"{track.path.removesuffix('.mp3')}.low.mp3")
                source = str(first_file([place / name for name in names for place in places]))
                clips.append(ClipRef(source, track.path, track.tags, split, track.artist, start_s, end_s))
        return finish_listing(self, folder, clips, f"split-{self.split}", exclusive=False)


def read_tracks(table: Path) -> Iterator[Track]:
    """The lines of a split file. Raises `DatasetError` with the line that is wrong."""
    lines = read_cells(table, delimiter="\t", quoted=False)
    _, header = next(lines, ("", [""]))
    if header != HEADER:
        raise DatasetError(
            f"{table.name} must begin with {', '.join(HEADER)}, tabs between, but its first line is "
            f"{' '.join(header)[:80]!r}; take the file from the data set's repository"
        )
    for where, cells in lines:
        tags = tuple(dict.fromkeys(filter(None, cells[5:])))
        try:
            duration_s = float(cells[4])
        except (IndexError, ValueError):
            duration_s = 0.0
        if duration_s <= 0 or not tags:
            raise DatasetError(
                f"{where} must be {', '.join(HEADER)}, tabs between, with a duration in seconds and at least one tag, "
                f"but is {' '.join(cells)[:80]!r}; is the file complete?"
            )
        yield Track(cells[1], cells[3], duration_s, tags)


def middle(duration_s: float, excerpt_s: float | None) -> tuple[float, float | None]:
    """Start and end of the middle of a track, to a hundredth of a second; all of it where it is not longer."""
    if excerpt_s is None or duration_s <= excerpt_s:
        return 0.0, None
    start_s = round((duration_s - excerpt_s) / 2, 2)
    return start_s, start_s + excerpt_s
