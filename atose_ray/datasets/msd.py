"""Million Song Dataset, for those who hold its audio: 240,000 previews of 30 s with tags of Last.fm listeners.
T. Bertin-Mahieux et al., "The Million Song Dataset", ISMIR 2011; the split and its 50 tags by K. Choi et al.,
"Automatic Tagging using Deep Convolutional Neural Networks", ISMIR 2016.

The lists are read as published (the repository MSD_split_for_tagging): `PART_x_msd_id.txt`, `PART_x_7d_id.txt`,
`PART_x_filename.txt` (one value a line, `3/6/36122424.npy` for the preview 36122424) and `PART_y.npy` (tracks by 50,
{0, 1}), PART being train, valid and test. Another table of tags (the 1,126 of Choi et al. 2019, say) takes their place
where `tags` names one. Traps:

- The audio cannot be had any more. It is looked for under the listed name, as .mp3 or .clip.mp3, and under the id of
  the track, `A/B/C/TRABC....mp3`.
- Previews of another length and broken files are listed in `*_7d_bad_duration_id.txt` and `*_7d_invalid_audio_id.txt`;
  they are left out and counted. Tracks without a tag are, too.
- The split does not keep artists apart.
- Of audio in object storage the lists must lie on a disk: `--option lists=DIR`.
"""

import io
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from atose_ray.datasets.base import AudioDatasetConfig, DatasetError, find_file, finish_listing, first_file, read_rows
from atose_ray.types import SPLITS, Array, ClipRef, Listing

TAGS = (
    "rock", "pop", "alternative", "indie", "electronic", "female vocalists", "dance", "00s", "alternative rock", "jazz",
    "beautiful", "metal", "chillout", "male vocalists", "classic rock", "soul", "indie rock", "Mellow", "electronica",
    "80s", "folk", "90s", "chill", "instrumental", "punk", "oldies", "blues", "hard rock", "ambient", "acoustic",
    "experimental", "female vocalist", "guitar", "Hip-Hop", "70s", "party", "country", "easy listening", "sexy",
    "catchy", "funk", "electro", "heavy metal", "Progressive rock", "60s", "rnb", "indie pop", "sad", "House", "happy",
)  # fmt: skip
FAULTS = {"7d_bad_duration_id": "another duration than 30 s", "7d_invalid_audio_id": "listed as broken"}


class MsdConfig(AudioDatasetConfig):
    """`source` holds the audio; `lists`, the published lists, and `tags` are relative to it, or absolute."""

    kind: Literal["msd"] = "msd"
    lists: str = Field(
        default="MSD_split_for_tagging", description="The folder with train_x_msd_id.txt and the others."
    )
    tags: str | None = Field(
        default=None, description="CSV of track_id (TR...) and tags (joined by |), instead of PART_y.npy."
    )

    def list_clips(self) -> Listing:
        folder = self.folder()
        lists = Path(os.path.expanduser(self.lists))
        tags_of = None if self.tags is None else self._table(folder, self.tags)
        clips: list[ClipRef] = []
        left_out: Counter[str] = Counter()
        for split in SPLITS:
            ids, numbers, names = (
                find_file(self.kind, folder, (str(lists / f"{split}_x_{what}.txt"),), HINT).read_text().split()
                for what in ("msd_id", "7d_id", "filename")
            )
            if not len(ids) == len(numbers) == len(names):
                raise DatasetError(
                    f"the three lists of {split} must be of one length, but have {len(ids)}, {len(numbers)} and "
                    f"{len(names)} lines; take them from the repository as they are"
                )
            faulty = faults(folder / lists, split)
            named = self._labels(folder, lists / f"{split}_y.npy", ids) if tags_of is None else tags_of
            for track, number, name in zip(ids, numbers, names, strict=True):
                own = named.get(track, ())
                if reason := faulty.get(number) or (None if own else "no tags"):
                    left_out[reason] += 1
                else:
                    clips.append(ClipRef(str(audio_of(folder, track, name)), track, own, split, None))
        order = TAGS if self.tags is None else None
        return finish_listing(self, folder, clips, str(lists), exclusive=False, tags=order, left_out=left_out)

    def _labels(self, folder: Path, file: Path, ids: list[str]) -> dict[str, tuple[str, ...]]:
        path = find_file(self.kind, folder, (str(file),), HINT)
        try:
            labels: Array = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DatasetError(f"{file} is no array of numbers: {error}; take it from the repository") from error
        if labels.shape != (len(ids), len(TAGS)):
            raise DatasetError(
                f"{file} must be [{len(ids)}, {len(TAGS)}], as the list beside it, but is {labels.shape}"
            )
        rows = (tuple(TAGS[i] for i in np.flatnonzero(row)) for row in labels)
        return dict(zip(ids, rows, strict=True))

    def _table(self, folder: Path, tags: str) -> dict[str, tuple[str, ...]]:
        path = find_file(self.kind, folder, (os.path.expanduser(tags),), "say where it is: --option tags=FILE")
        rows = (row for _, row in read_rows(path, ("track_id", "tags")))
        return {
            row["track_id"]: tuple(dict.fromkeys(filter(None, map(str.strip, row["tags"].split("|"))))) for row in rows
        }


HINT = "take the lists from the repository MSD_split_for_tagging, or say where they are: --option lists=DIR"


def faults(folder: Path, split: str) -> Mapping[str, str]:
    """7digital ids that are listed as faulty, and why."""
    files = ((folder / f"{split}_x_{name}.txt", reason) for name, reason in FAULTS.items())
    return {number: reason for file, reason in files if file.is_file() for number in file.read_text().split()}


def audio_of(folder: Path, track: str, name: str) -> Path:
    """Where a track's audio is, or would be expected."""
    stem = name.removesuffix(".npy")
    by_id = "/".join((*track[2:5], track))
    places = [f"{one}{suffix}" for one in (stem, by_id, track) for suffix in (".mp3", ".clip.mp3", ".wav")]
    return first_file([folder / place for place in places])
