"""FMA, the Free Music Archive data set: 8,000, 25,000 or 106,574 excerpts of 30 s. M. Defferrard et al., "FMA: A
dataset for music analysis", ISMIR 2017, release of 2017-05.

Read as published: `fma_metadata/tracks.csv` (two header lines, then a line `track_id`), `fma_metadata/genres.csv`, and
the audio `fma_SIZE/012/012345.mp3`. Sizes nest: a smaller one is found in the folder of a larger one too. The published
split keeps artists apart; the artist is the clip's group. Traps:

- The 21 tracks below are empty or cut short, because their length was wrong in the archive's records (the issue and
  the list of known faults in the project's repository). They are left out and counted. Some other files do not decode
  either: `prepare` reports those.
- `genre_top` is one of 8 (small) or 16 top genres; in the large set more than half of the tracks have none, and are
  left out with it. `genres_all` is every genre of a track and their parents, up to 161: several per track.
- `fma_full` holds whole tracks, not excerpts, and is another task; it is not read.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from atose_ray.datasets import base
from atose_ray.datasets.base import AudioDatasetConfig, DatasetError, finish_listing, read_cells
from atose_ray.types import ClipRef, Listing, Split

SIZES = ("small", "medium", "large")
SPLIT_OF: dict[str, Split] = {"training": "train", "validation": "valid", "test": "test"}
FAULTY = frozenset((
    1486, 5574, 65753, 80391, 98558, 98559, 98560, 98565, 98566, 98567, 98568, 98569, 98571, 99134,
    105247, 108924, 108925, 126981, 127336, 133297, 143992,
))  # fmt: skip
COLUMNS = (("artist", "id"), ("set", "split"), ("set", "subset"), ("track", "genre_top"), ("track", "genres_all"))


class Track(NamedTuple):
    """A line of `tracks.csv`, and where it stands."""

    where: str
    track_id: int
    artist: str
    split: Split
    size: str
    genre_top: str
    genres_all: str


class FmaConfig(AudioDatasetConfig):
    """`source` holds `fma_metadata/` and `fma_SIZE/`, as the archives unpack."""

    kind: Literal["fma"] = "fma"
    size: Literal["small", "medium", "large"] = "small"
    tags: Literal["genre_top", "genres_all"] = Field(
        default="genre_top", description="The top genre, one per track; or all genres and their parents."
    )

    def list_clips(self) -> Listing:
        folder = self.folder()
        names, hint = ("tracks.csv", "genres.csv"), "unpack fma_metadata.zip into the source folder"
        places = ([f"fma_metadata/{name}", name] for name in names)
        tracks, genres = (base.find_file(self.kind, folder, of_name, hint) for of_name in places)
        titles = read_titles(genres)
        audio = find_audio(folder, self.size)
        clips: list[ClipRef] = []
        left_out: Counter[str] = Counter()
        for track in read_tracks(tracks):
            if SIZES.index(track.size) > SIZES.index(self.size):
                continue
            tags = (track.genre_top,) if self.tags == "genre_top" else genres_of(track, titles)
            if track.track_id in FAULTY:
                left_out["known fault: empty or cut short"] += 1
            elif not any(tags):
                left_out[f"no {self.tags}"] += 1
            else:
                name = f"{track.track_id:06d}"
                name = f"{name[:3]}/{name}.mp3"
                clips.append(ClipRef(str(audio / name), name, tags, track.split, track.artist))
        return finish_listing(self, audio, clips, "tracks.csv", exclusive=self.tags == "genre_top", left_out=left_out)


def find_audio(folder: Path, size: str) -> Path:
    """The audio folder of a size, or the smallest larger one. Raises `DatasetError` where there is none."""
    names = [f"fma_{name}" for name in SIZES[SIZES.index(size) :]]
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    raise DatasetError(
        f"fma needs the audio of size {size} in {' or '.join(names)}, but {folder} has no such folder; "
        f"unpack {names[0]}.zip there, or ask for the size that is there: --option size=SIZE"
    )


def read_titles(table: Path) -> dict[int, str]:
    """Genre id -> title; a title that a second genre has too gets its id."""
    rows = base.read_rows(table, ("genre_id", "title"))
    return base.told_apart((_whole(row["genre_id"], where, "genre_id"), row["title"]) for where, row in rows)


def read_tracks(table: Path) -> Iterator[Track]:
    """The lines of `tracks.csv`. Raises `DatasetError` with the line that is wrong."""
    lines = read_cells(table)
    groups, names, index_name = (next(lines, ("", []))[1] for _ in range(3))
    at = {pair: place for place, pair in enumerate(zip(groups, names, strict=False))}
    missing = ["/".join(pair) for pair in COLUMNS if pair not in at]
    if missing or index_name[:1] != ["track_id"]:
        raise DatasetError(
            f"{table} must begin with two header lines that name {', '.join('/'.join(pair) for pair in COLUMNS)} and a "
            f"line track_id, but lacks {', '.join(missing) or 'the line track_id'}; unpack fma_metadata.zip again"
        )
    for where, cells in lines:
        base.require_cells(where, cells, names)
        artist, split, size, genre_top, genres_all = (cells[at[pair]] for pair in COLUMNS)
        if split not in SPLIT_OF or size not in SIZES:
            raise DatasetError(
                f"{where}: split must be {', '.join(SPLIT_OF)} and subset {', '.join(SIZES)}, "
                f"but got {split!r} and {size!r}"
            )
        track_id = _whole(cells[0], where, "track_id")
        yield Track(where, track_id, artist, SPLIT_OF[split], size, genre_top, genres_all)


def genres_of(track: Track, titles: Mapping[int, str]) -> tuple[str, ...]:
    """`[21, 10]` -> the titles. Raises `DatasetError` for something else or an unknown genre."""
    try:
        genres = json.loads(track.genres_all or "[]")
        return tuple(dict.fromkeys(titles[genre] for genre in genres))
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"{track.where}: genres_all must be a list of ids of genres.csv, but got {track.genres_all!r}"
        ) from error


def _whole(text: str, where: str, column: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise DatasetError(f"{where}: {column} must be a whole number, but got {text!r}")
    return int(text)
