"""DCASE 2017 task 4: 10-second YouTube clips of 17 sounds of traffic and warning, weak labels. A. Mesaros et al.,
"DCASE 2017 challenge setup", DCASE 2017 workshop.

The ground truth is read as published: `groundtruth_weak_label_{training,testing,evaluation}_set.csv`, tab-separated,
without header, `file start_s end_s label`, one line per clip and label. A clip may have several labels. The audio of
`ID_start_end.wav` is stored as `YID_start_end.wav`, in one folder per set. As in ATOSE / JETATAG (Appl. Sci. 2023,
13(15), 9002): training and testing clips are for training, 10 % per class of them for validation, evaluation is the
test split. Traps:

- The validation clips are drawn class by class, so a clip with several labels has several chances, and slightly more
  than 10 % are drawn. The draw is numpy's legacy generator with seed 123 for every class, over the lines of the class
  in file order: what pandas' `sample(frac=0.1, random_state=123)` does. It equals the published split where the ground
  truth files are the published ones, line by line; their clips that YouTube has lost still take part in the draw.
- A clip shorter than a crop is padded and keeps its labels; the published code replaces it by unlabelled silence.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from atose_ray.datasets.base import AudioDatasetConfig, DatasetError, find_file, finish_listing, read_cells
from atose_ray.types import ClipRef, Listing, Split, package_yaml

TABLE = "groundtruth_weak_label_{}_set.csv"
TABLE_FOLDERS = ("", "groundtruth_release/", "metadata/")
_TABLES = package_yaml(__package__, "dcase2017.yaml")
CLASSES: tuple[str, ...] = tuple(_TABLES["classes"])
AUDIO_FOLDERS: dict[str, list[str]] = _TABLES["audio_folders"]


class Line(NamedTuple):
    """A line of a ground truth file: a clip has the label."""

    file: str
    label: str


class Dcase2017Config(AudioDatasetConfig):
    """`source` holds the three ground truth files (or their folder as published) and the three audio folders."""

    kind: Literal["dcase2017"] = "dcase2017"
    valid_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of a class's lines drawn for validation.")
    seed: int = Field(default=123, ge=0, lt=2**32, description="Seed of that draw.")

    def list_clips(self) -> Listing:
        folder = self.folder()
        hint = "take it from the folder groundtruth_release of the challenge's repository"
        places = {part: [place + TABLE.format(part) for place in TABLE_FOLDERS] for part in AUDIO_FOLDERS}
        lines = {part: read_lines(find_file(self.kind, folder, of, hint)) for part, of in places.items()}
        return list_dcase(self, folder, lines, self.valid_fraction, self.seed)


def read_lines(path: Path) -> tuple[Line, ...]:
    """The lines of a ground truth file. Raises `DatasetError` with the line that is wrong."""
    lines = []
    for where, cells in read_cells(path, delimiter="\t", quoted=False):
        if len(cells) != 4 or not cells[0]:
            raise DatasetError(
                f"{where} must be file, start, end, label with tabs between, but is {' '.join(cells)[:80]!r}"
            )
        if cells[3] not in CLASSES:
            raise DatasetError(
                f"{where}: a label must be one of the 17 of the task, but got {cells[3]!r}; "
                "for other labels use the data set 'folder'"
            )
        lines.append(Line(cells[0], cells[3]))
    return tuple(lines)


def validation_files(lines: tuple[Line, ...], fraction: float, seed: int) -> frozenset[str]:
    """Files for validation: of the lines of every class round(fraction * lines), drawn without replacement."""
    drawn: set[str] = set()
    for label in CLASSES:
        files = [line.file for line in lines if line.label == label]
        if files:
            chosen = np.random.RandomState(seed).choice(len(files), round(fraction * len(files)), replace=False)
            drawn.update(files[index] for index in chosen.tolist())
    return frozenset(drawn)


def youtube_id(file: str) -> str:
    """`-5QrBL6MzLg_60.000_70.000.wav` -> `-5QrBL6MzLg`: what stands before the two times."""
    return file.rsplit("_", 2)[0]


def list_dcase(
    config: AudioDatasetConfig, folder: Path, lines: dict[str, tuple[Line, ...]], valid_fraction: float, seed: int
) -> Listing:
    """Clips in the order of the files; a clip of the evaluation set is never for training."""
    held_out = {line.file for line in lines["evaluation"]}
    development = tuple(line for part in ("training", "testing") for line in lines[part])
    valid = validation_files(development, valid_fraction, seed)
    labels: dict[str, set[str]] = {}
    part_of: dict[str, str] = {}
    for part in AUDIO_FOLDERS:
        for line in lines[part]:
            if part == "evaluation" or line.file not in held_out:
                labels.setdefault(line.file, set()).add(line.label)
                part_of.setdefault(line.file, part)
    audio = {part: find_audio(folder, part) for part in AUDIO_FOLDERS}
    clips = []
    for file, part in part_of.items():
        split: Split = "test" if part == "evaluation" else "valid" if file in valid else "train"
        source = audio[part].get(file) or audio[part].get(f"Y{file}") or folder / AUDIO_FOLDERS[part][0] / f"Y{file}"
        tags = tuple(label for label in CLASSES if label in labels[file])
        clips.append(ClipRef(str(source), name=file, tags=tags, split=split, group=youtube_id(file)))
    left_out = {"in a training file and in the evaluation set": len({line.file for line in development} & held_out)}
    listing = finish_listing(config, folder, clips, "the ground truth", exclusive=False, left_out=left_out)
    return replace(listing, tags=CLASSES)


def find_audio(folder: Path, part: str) -> dict[str, Path]:
    """File name -> path of everything in the audio folders of a set; a missing folder is empty."""
    folders = [folder / name for name in AUDIO_FOLDERS[part] if (folder / name).is_dir()]
    return {path.name: path for place in reversed(folders) for path in place.iterdir()}
