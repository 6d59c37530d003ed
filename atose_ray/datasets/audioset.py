"""AudioSet: segments of 10 s of YouTube videos with 527 labels. J. F. Gemmeke et al., "Audio Set: An ontology and
human-labeled dataset for audio events", ICASSP 2017.

Read as published: `balanced_train_segments.csv`, `unbalanced_train_segments.csv`, `eval_segments.csv` (three lines of
comment, then `YTID, start_seconds, end_seconds, "mid,mid"`) and the labels' names in `class_labels_indices.csv`, or in
`ontology.json` of the ontology's repository. Labels are as annotated: a parent is not added to its children.

Audio is not published; it is found anywhere below `source` by its file name, as the common download scripts write it:
`YTID`, `YYTID` (with a Y before), `YTID_start`, `YTID_start_end` or `YTID_start-end`, times in seconds or milliseconds,
any audio suffix. Traps:

- Videos vanish, so every copy is another subset: segments without a file are left out and counted, and figures of two
  copies are not comparable to the last digit.
- A name with a time is a cut segment. A name without one is too, by default; with `files: videos` it is the whole
  video, and the segment is cut out of it. A file that is cut at another time is another segment, and not taken.
- There is no validation part. It is drawn from the training segments by a hash of the video's id: another copy of
  the audio keeps the same segments in it.
"""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from atose_ray.datasets import base
from atose_ray.datasets.base import AudioDatasetConfig, DatasetError, finish_listing, read_cells
from atose_ray.types import ClipRef, Listing, Split

TRAIN_TABLES = {"balanced": ("balanced",), "unbalanced": ("unbalanced",), "both": ("balanced", "unbalanced")}
TABLE_FOLDERS = ("", "metadata/", "csv/")
FILE_NAME = re.compile(r"Y?([\w-]{11})(?:[_-](\d+(?:\.\d+)?))?(?:[_-]\d+(?:\.\d+)?)?", re.ASCII)
SAME_TIME_S = 0.05
DOWNLOAD = "take it from the data set's download page"


class Segment(NamedTuple):
    """A line of a segments file."""

    ytid: str
    start_s: float
    end_s: float
    tags: tuple[str, ...]


class Audio(NamedTuple):
    """A file of a video; `start_s` is the number in its name, which may mean milliseconds."""

    path: str
    start_s: float | None


class AudioSetConfig(AudioDatasetConfig):
    """`source` holds the tables (itself or in `metadata/` or `csv/`) and, anywhere below it, the audio."""

    kind: Literal["audioset"] = "audioset"
    train: Literal["balanced", "unbalanced", "both"] = "balanced"
    files: Literal["segments", "videos"] = Field(
        default="segments", description="What a file is whose name holds no time: the cut segment, or the whole video."
    )
    valid_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of the training videos for validation.")
    seed: int = Field(default=0, ge=0, description="Another seed draws other videos for validation.")

    def list_clips(self) -> Listing:
        folder = self.folder()
        labels = read_labels(folder)
        parts = (self._segments(folder, f"{part}_train", labels) for part in TRAIN_TABLES[self.train])
        training, evaluation = list(itertools.chain(*parts)), list(self._segments(folder, "eval", labels))
        held_out = {segment.ytid for segment in evaluation}
        audio = find_audio(folder, {segment.ytid for segment in training} | held_out)
        clips: list[ClipRef] = []
        left_out: Counter[str] = Counter()
        for split, segments in (("train", training), ("test", evaluation)):
            for segment in segments:
                clip = self._clip(segment, audio.get(segment.ytid, ()), split == "test")
                if split == "train" and segment.ytid in held_out:
                    left_out["in a training file and in the evaluation set"] += 1
                elif clip is None:
                    left_out["no audio file of the segment"] += 1
                else:
                    clips.append(clip)
        if not clips:
            raise DatasetError(
                f"none of the {len(training) + len(evaluation)} segments has an audio file below {folder}; name it by "
                "the video's id and, if you like, the times: ID.wav, YID.wav, ID_30.wav, ID_30000_40000.flac"
            )
        return finish_listing(
            self, folder, clips, "the segments", exclusive=False, tags=labels.values(), left_out=left_out
        )

    def _segments(self, folder: Path, part: str, labels: Mapping[str, str]) -> Iterator[Segment]:
        places = [f"{place}{part}_segments.csv" for place in TABLE_FOLDERS]
        return read_segments(base.find_file(self.kind, folder, places, DOWNLOAD), labels)

    def _clip(self, segment: Segment, files: Collection[Audio], test: bool) -> ClipRef | None:
        """The clip of a segment; None where no file of its video is it. A file cut at the right time comes first."""
        timed = [file for file in files if file.start_s is not None and is_start(file.start_s, segment.start_s)]
        plain = [file for file in files if file.start_s is None]
        if not timed and not plain:
            return None
        drawn = int.from_bytes(sha256(f"{self.seed}:{segment.ytid}".encode()).digest()[:8], "big")
        split: Split = "test" if test else "valid" if drawn < self.valid_fraction * 2**64 else "train"
        whole = not timed and self.files == "videos"
        start_s, end_s = (segment.start_s, segment.end_s) if whole else (0.0, None)
        return ClipRef((timed or plain)[0].path, segment.ytid, segment.tags, split, segment.ytid, start_s, end_s)


def is_start(number: float, start_s: float) -> bool:
    """Whether a number in a file name is this start, in seconds or in milliseconds."""
    return min(abs(number - start_s), abs(number / 1000 - start_s)) < SAME_TIME_S


def read_labels(folder: Path) -> dict[str, str]:
    """mid -> name, in the order of the file; a name that a second label has too gets its mid."""
    places = [place + name for name in ("class_labels_indices.csv", "ontology.json") for place in TABLE_FOLDERS]
    table = base.find_file("audioset", folder, places, DOWNLOAD)
    if table.suffix != ".json":
        rows = base.read_rows(table, ("mid", "display_name"))
        return base.told_apart((row["mid"], row["display_name"]) for _, row in rows)
    try:
        entries = json.loads(table.read_text(encoding="utf-8-sig"))
        return base.told_apart([(entry["id"], entry["name"]) for entry in entries])
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{table} must be a JSON list of labels with id and name; fetch it again") from error


def read_segments(table: Path, labels: Mapping[str, str]) -> Iterator[Segment]:
    """The lines of a segments file. Raises `DatasetError` with the line that is wrong."""
    rank = {mid: place for place, mid in enumerate(labels)}
    for where, cells in read_cells(table):
        if cells[0].startswith("#"):
            continue
        try:
            ytid, start, end, mids = cells
            start_s, end_s = float(start), float(end)
        except ValueError as error:
            raise DatasetError(
                f'{where} must be YTID, start_seconds, end_seconds, "mid,mid", but is {", ".join(cells)[:80]!r}; '
                "take the file from the data set's download page"
            ) from error
        own = set(filter(None, (mid.strip() for mid in mids.split(","))))
        if not own or not all(mid in rank for mid in own):
            raise DatasetError(
                f"{where}: positive_labels must be ids of the list of labels, but got {mids!r}; "
                "are the tables of one release?"
            )
        yield Segment(ytid, start_s, end_s, tuple(labels[mid] for mid in sorted(own, key=rank.__getitem__)))


def find_audio(folder: Path, ytids: Collection[str]) -> dict[str, list[Audio]]:
    """YTID -> the audio files below `folder` that are named by it, in the order of their paths. Links to folders are
    followed, but no folder is read twice: links in a circle would have no end."""
    found: dict[str, list[Audio]] = {}
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(names):
            stem, suffix = os.path.splitext(name)
            match = FILE_NAME.fullmatch(stem)
            if match and suffix.lower() in base.AUDIO_SUFFIXES and match[1] in ytids:
                start_s = float(match[2]) if match[2] else None
                found.setdefault(match[1], []).append(Audio(os.path.join(place, name), start_s))
    return found
