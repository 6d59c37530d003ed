"""NSynth: 305,979 notes of 4 s at 16 kHz from 1,006 instruments. J. Engel et al., "Neural audio synthesis of musical
notes with WaveNet autoencoders", ICML 2017.

Read as published: the folders `nsynth-train`, `nsynth-valid` and `nsynth-test`, each with `examples.json` (note name ->
its fields) and `audio/NAME.wav`. Traps:

- The published split keeps the instruments of training apart from those of the other two, but not validation and test
  from each other. The instrument is recorded as the clip's `group`, and nothing is moved.
- Ten qualities are annotated, and a note may have none: with `tags: qualities` such notes are left out and counted.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from atose_ray.datasets.base import AudioDatasetConfig, DatasetError, find_file, finish_listing
from atose_ray.types import SPLITS, ClipRef, Listing

TagKind = Literal["family", "source", "qualities", "pitch"]


class NsynthConfig(AudioDatasetConfig):
    """`source` holds the three unpacked folders (the json/wav archives)."""

    kind: Literal["nsynth"] = "nsynth"
    tags: TagKind = Field(
        default="family",
        description="Instrument family, source of its sound or MIDI pitch: one per note. Qualities: any number.",
    )

    def list_clips(self) -> Listing:
        folder = self.folder()
        clips, untagged = [], 0
        for split in SPLITS:
            place = f"nsynth-{split}"
            hint = f"unpack {place}.jsonwav.tar.gz into the source folder"
            table = find_file(self.kind, folder, (f"{place}/examples.json",), hint)
            for name, note in sorted(read_notes(table).items()):
                tags, instrument = note_tags(note, self.tags, name, table)
                if tags:
                    source = str(folder / place / "audio" / f"{name}.wav")
                    clips.append(ClipRef(source, name, tags, split, instrument))
                untagged += not tags
        exclusive, left_out = self.tags != "qualities", {"no quality": untagged}
        return finish_listing(self, folder, clips, "examples.json", exclusive=exclusive, left_out=left_out)


def read_notes(table: Path) -> dict[str, Mapping[str, Any]]:
    """Note name -> its fields. Raises `DatasetError` for another file than the published one."""
    try:
        notes = json.loads(table.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DatasetError(f"{table} must be JSON, but cannot be read: {error}; unpack the archive again") from error
    if not isinstance(notes, dict) or not all(isinstance(note, dict) for note in notes.values()):
        raise DatasetError(f"{table} must map each note's name to its fields; take the file from the archive as it is")
    return notes


def note_tags(note: Mapping[str, Any], kind: TagKind, name: str, table: Path) -> tuple[tuple[str, ...], str]:
    """A note's tags of the kind asked for, and its instrument. Raises `DatasetError` for a missing field."""
    field = {"qualities": "qualities_str", "pitch": "pitch"}.get(kind, f"instrument_{kind}_str")
    for wanted, form in ((field, {"qualities": list, "pitch": int}.get(kind, str)), ("instrument_str", str)):
        if not isinstance(note.get(wanted), form):
            raise DatasetError(
                f"{table}: the note {name} must have the field {wanted} ({form.__name__}), but it is "
                f"{note.get(wanted)!r}; take the file from the archive as it is"
            )
    value = note[field]
    if kind == "pitch":
        return (f"pitch {value:03d}",), note["instrument_str"]
    return tuple(value) if kind == "qualities" else (value,), note["instrument_str"]
