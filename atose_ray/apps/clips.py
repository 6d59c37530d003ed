"""Events -> sound files to listen to and a table to judge them in, so that a model learns from its own mistakes.

    python -m atose_ray.tag MODEL night.wav --timeline csv --clips review
    (listen; write yes or no into the column `accept` of review/review.csv)
    python -m atose_ray.prepare folder --source review --option csv=review.csv --name reviewed

A row is a clip (datasets/review.py). The table is written whole, behind the clips of a recording, so every row has its
file; what was filled in meanwhile is kept. `heard.json` names the recordings that are done: those without events have
no row. A clip is mono 16-bit WAV at the rate of the model, and a recording is read a minute at a time."""

import csv
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import soundfile

from atose_ray.apps.timeline import Event, Timeline
from atose_ray.apps.windows import PIECE_S
from atose_ray.audio.io import decode_parts
from atose_ray.datasets.review import COLUMNS
from atose_ray.storage import Store, is_uri
from atose_ray.types import Array

TABLE, HEARD = "review.csv", "heard.json"
MOST_CHARS = 40  # of a tag in a file's name
Row = dict[str, str]


class Review:
    """A folder of clips with its table. Raises ValueError for a table of other columns."""

    def __init__(self, folder: str) -> None:
        if is_uri(folder):
            raise ValueError(f"--clips takes a folder of this machine, but got {folder}")
        self.folder, self.store = Path(folder), Store(folder)
        self.rows()

    def rows(self) -> list[Row]:
        """The table as it is now, with what was filled in."""
        if not self.store.exists(TABLE):
            return []
        read = csv.DictReader(io.StringIO(self.store.read(TABLE).decode("utf-8-sig")))
        if list(read.fieldnames or ()) != list(COLUMNS):
            raise ValueError(
                f"{self.folder / TABLE} must have the columns {','.join(COLUMNS)}, but begins with "
                f"{','.join(read.fieldnames or ())}; mend its first line, or give --clips another folder"
            )
        return list(read)

    def heard(self) -> set[str]:
        """The recordings whose clips are there."""
        return set(self.store.read_json(HEARD)) if self.store.exists(HEARD) else set()

    def to_cut(self, files: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """(file, name) without those that are clips of this folder. Raises ValueError where two have one name."""
        here = self.folder.resolve()
        files = [one for one in files if not Path(one[0]).resolve().is_relative_to(here)]
        twice = [name for name, count in Counter(name for _, name in files).items() if count > 1]
        if twice:
            raise ValueError(f"--clips tells recordings apart by name, but {twice[0]} is there twice; tag them apart")
        return files

    def next_step(self) -> str:
        """What to do with the clips."""
        place = self.folder / TABLE
        if not self.store.exists(TABLE):
            return f"{place}: no events"
        waiting = sum(not row["accept"].strip() for row in self.rows())
        then = f"python -m atose_ray.prepare folder --source {self.folder} --option csv={TABLE} --name reviewed"
        return f"{place}: {waiting} clips to accept (yes) or reject (no); then: {then}"

    def add(self, timeline: Timeline, name: str, source: str | BinaryIO, rate_hz: int) -> int:
        """Cut out the events of a recording and put them into the table, in place of what it had of this recording;
        answers to the same event stay. name: of the recording, below which its clips lie. Returns how many clips.

        Raises AudioError for what is no sound, StoreError where nothing can be written."""
        if not isinstance(source, str):
            source.seek(0)
        clips = [f"{name}/{clip_name(number, event)}" for number, event in enumerate(timeline.events, start=1)]
        cut_out(source, rate_hz, timeline.events, [self.folder / clip for clip in clips], name=timeline.file)
        before = self.rows()
        old = [row for row in before if row["file"] == name]
        answers = {key_of(row): row["accept"] for row in old}
        fresh = [row_of(name, clip, event) for clip, event in zip(clips, timeline.events, strict=True)]
        rows = [row for row in before if row["file"] != name]
        if before or fresh:
            self._write([*rows, *({**row, "accept": answers.get(key_of(row), "")} for row in fresh)])
        for gone in {row["clip"] for row in old} - set(clips):
            (self.folder / gone).unlink(missing_ok=True)
        self.store.write_json(HEARD, sorted(self.heard() | {name}))
        return len(clips)

    def _write(self, rows: Iterable[Row]) -> None:
        text = io.StringIO()
        table = csv.DictWriter(text, COLUMNS, lineterminator="\r\n")
        table.writeheader()
        table.writerows(rows)
        self.store.write(TABLE, text.getvalue().encode("utf-8"))


def row_of(name: str, clip: str, event: Event) -> Row:
    """An event as a row that nobody has answered yet."""
    start, end, score = f"{event.start_s:.3f}", f"{event.end_s:.3f}", f"{event.score:.4f}"
    return dict(zip(COLUMNS, (name, clip, start, end, event.tag, score, ""), strict=True))


def key_of(row: Row) -> tuple[str, str, str]:
    """What tells the events of a recording apart."""
    return row["start"], row["end"], row["tag"]


def clip_name(number: int, event: Event) -> str:
    """00012_dog-bark_0.83_00h12m03.50s.wav: what it is the how manieth of, tag, score, start."""
    tag = re.sub(r"[^\w]+", "-", event.tag).strip("-")[:MOST_CHARS]
    hundredths = round(100 * event.start_s)
    minutes, rest = divmod(hundredths, 6000)
    clock = f"{minutes // 60:02d}h{minutes % 60:02d}m{rest / 100:05.2f}s"
    return f"{number:05d}_{tag}_{event.score:.2f}_{clock}.wav"


def cut_out(
    source: str | BinaryIO, rate_hz: int, events: Sequence[Event], places: Sequence[Path], *, name: str
) -> None:
    """Write the sound of every event to its place. events: by start. In memory is a piece of the recording, and a file
    is open only while a piece is put to it, so that neither hours nor hundreds of tags at a time need more. A file has
    its name when it is whole."""
    if not events:
        return
    for folder in {place.parent for place in places}:
        folder.mkdir(parents=True, exist_ok=True)
    bounds = [(round(event.start_s * rate_hz), round(event.end_s * rate_hz)) for event in events]
    going, begin, following = list[int](), 0, 0  # numbers of the events that go on, and of the first that is to come
    for piece in decode_parts(source, sample_rate_hz=rate_hz, max_seconds=PIECE_S, name=name):
        end = begin + len(piece.audio_T)
        while following < len(events) and bounds[following][0] < end:
            unfinished(places[following]).unlink(missing_ok=True)
            going.append(following)
            following += 1
        for number in going:
            first, last = bounds[number]
            append(unfinished(places[number]), piece.audio_T[max(first - begin, 0) : last - begin], rate_hz)
            if last <= end:
                os.replace(unfinished(places[number]), places[number])
        going, begin = [number for number in going if bounds[number][1] > end], end
    for number in going:  # the last hop of a recording may end a rounding behind it
        os.replace(unfinished(places[number]), places[number])


def unfinished(place: Path) -> Path:
    """Where a clip stands until it is whole."""
    return place.with_name(f".{place.name}.part")


def append(path: Path, audio_T: Array, rate_hz: int) -> None:
    """Put sound to the end of a WAV file, which is made where it is not there."""
    known = {} if path.exists() else {"samplerate": rate_hz, "channels": 1, "format": "WAV", "subtype": "PCM_16"}
    with soundfile.SoundFile(path, "w" if known else "r+", **known) as file:
        file.seek(0, soundfile.SEEK_END)
        file.write(audio_T)
