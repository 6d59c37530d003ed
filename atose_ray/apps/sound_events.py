"""Models on annotated recordings: what a training on clip labels is worth on events with times.

Annotations are a text file per recording, `onset<TAB>offset<TAB>label` in seconds (DCASE), or one table of all with the
header `filename,onset,offset,event_label` (commas or tabs). A recording without an event has an empty file, or a row
with its name alone; one that is not annotated is an error."""

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atose_ray.apps.recordings import Listening, sounds_below, timeline_of
from atose_ray.apps.timeline import Timeline
from atose_ray.evaluation.sound_events import Marked, Tally, count_events, count_segments, frame_metrics, roll
from atose_ray.training.checkpoint import Model

COLUMNS = ("filename", "onset", "offset", "event_label")
SUFFIXES = (".txt", ".tsv", ".ann")


def annotated(places: list[str], annotations: str | None) -> dict[str, list[Marked]]:
    """Recordings, and folders of them -> what sounds when in each.

    annotations: a table, or a folder of text files; None: the files lie beside the recordings. Raises ValueError for a
    recording that is not annotated, and for a line that is no event."""
    found = sounds_below(places)
    if annotations is not None and Path(annotations).is_file():
        table = read_table(Path(annotations))
        stems = [Path(name).stem for _, name in found]
        if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
            raise ValueError(f"a table names recordings without their folder, but {twice[0]} is there twice")
        if missing := [file for (file, _), stem in zip(found, stems, strict=True) if stem not in table]:
            raise ValueError(
                f"{annotations} says nothing of {missing[0]} and {len(missing) - 1} other recordings; of one without "
                "an event, give a row with its name alone"
            )
        return {file: table[stem] for (file, _), stem in zip(found, stems, strict=True)}
    truth = {}
    for file, name in found:
        bases = [Path(file)] if annotations is None else [Path(annotations) / name, Path(annotations) / Path(name).name]
        places_of = [base.with_suffix(suffix) for base in bases for suffix in SUFFIXES]
        place = next((place for place in places_of if place.is_file()), None)
        if place is None:
            raise ValueError(
                f"{file} is not annotated: expected {places_of[0]} with lines onset<TAB>offset<TAB>label; say where "
                "the annotations are with --annotations, a folder of such files or one table "
                f"({','.join(COLUMNS)}). A recording without an event has an empty file"
            )
        truth[file] = read_lines(place)
    return truth


def read_lines(place: Path) -> list[Marked]:
    """A text file of one recording. Raises ValueError for a line that is no event."""
    rows = list(csv.reader(place.read_text(encoding="utf-8-sig").splitlines(), delimiter="\t"))
    filled = [(number, row) for number, row in enumerate(rows, 1) if any(cell.strip() for cell in row)]
    if filled and filled[0][1][0].strip().lower() == "onset":
        filled = filled[1:]
    return [event(row, f"{place.name} line {number}") for number, row in filled]


def read_table(place: Path) -> dict[str, list[Marked]]:
    """A table of many recordings -> the events of each, by its name without folder and ending. Raises ValueError."""
    lines = place.read_text(encoding="utf-8-sig").splitlines()
    head = lines[0] if lines else ""
    rows = csv.reader(lines, delimiter="\t" if "\t" in head else ",")
    names = [name.strip().lower() for name in next(rows, [])]
    if lacking := [name for name in COLUMNS if name not in names]:
        raise ValueError(
            f"{place.name} must begin with the header {','.join(COLUMNS)}, but {', '.join(lacking)} is not in "
            f"{head[:80]!r}"
        )
    at = [names.index(name) for name in COLUMNS]
    table: dict[str, list[Marked]] = {}
    for number, row in enumerate(rows, 2):
        name, *cells = (row[column].strip() if column < len(row) else "" for column in at)
        if name:
            events = table.setdefault(Path(name).stem, [])
            if any(cells):
                events.append(event(cells, f"{place.name} line {number}"))
    return table


def event(cells: list[str], where: str) -> Marked:
    """Onset, offset and label as text. Raises ValueError for what is no event."""
    try:
        start, end, label = cells
        start_s, end_s, tag = float(start), float(end), label.strip()
    except ValueError:
        start_s = end_s = math.nan
    if not 0 <= start_s < end_s < math.inf or not tag:
        text = "\t".join(cells)
        raise ValueError(f"{where} must be onset, offset (in seconds, the later one) and label, but is {text!r}")
    return Marked(start_s, end_s, tag)


def timelines_of(
    model: Model, uri: str, truth: dict[str, list[Marked]], listening: Listening
) -> Iterator[tuple[Timeline, list[Marked]]]:
    """The timeline of every recording beside its annotation. Raises ValueError for annotated tags that the model does
    not score, AudioError for what is no sound."""
    labels = {one.tag for events in truth.values() for one in events}
    if unknown := sorted(labels - set(model.spec.tags)):
        raise ValueError(
            f"the annotations name {', '.join(unknown)}, but the model scores {', '.join(model.spec.tags)}; a label "
            "and the tag that is meant must have one name"
        )
    for file, events in truth.items():
        yield timeline_of(model, file, listening, uri), events


def scored(timelines: list[tuple[Timeline, list[Marked]]], protocol: str) -> dict[str, Any]:
    """`metrics` of a protocol (segment, event, frame) over all recordings, and `tags`, a row each."""
    tags = timelines[0][0].tags
    if protocol == "frame":
        rolls = [roll(events, tags, line.hop_s, len(line.scores_SC)) for line, events in timelines]
        metrics, rows = frame_metrics(
            np.concatenate([line.scores_SC for line, _ in timelines]), np.concatenate(rolls), tags
        )
        return {"metrics": metrics, "tags": rows}
    tally = Tally(tags)
    for line, events in timelines:
        found = [Marked(one.start_s, one.end_s, one.tag) for one in line.events]
        if protocol == "segment":
            count_segments(tally, events, found, line.seconds)
        else:
            count_events(tally, events, found)
    return {"metrics": tally.metrics(), "tags": tally.table()}
