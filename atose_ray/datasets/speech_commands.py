"""Speech Commands: one spoken word per file. P. Warden, arXiv:1804.03209, 2018; and any folder laid out as it is.

Folders are labels; `validation_list.txt` and `testing_list.txt` name files as `label/file.wav`, all others are for
training. Folders whose name begins with `_` (`_background_noise_`) or `.` are ignored. The file name before `_nohash_`
is the speaker, recorded as `group`. The published lists keep the speakers of Speech Commands apart; other sets in this
layout (spoken digits) share them between the splits by design, so nothing is refused here.
"""

import os
from pathlib import Path
from typing import Literal

from atose_ray.datasets.base import AudioDatasetConfig, DatasetError, finish_listing
from atose_ray.types import ClipRef, Listing, Split

LISTS: dict[str, Split] = {"validation_list.txt": "valid", "testing_list.txt": "test"}


class SpeechCommandsConfig(AudioDatasetConfig):
    """`source` is the unpacked archive."""

    kind: Literal["speech_commands"] = "speech_commands"

    def list_clips(self) -> Listing:
        folder = self.folder()
        words = _words(folder)
        split_of, absent = _read_lists(folder, {name for names in words.values() for name in names})
        clips = []
        for label, names in words.items():
            for name in names:
                speaker = as_utf8(name).rsplit("/", 1)[-1].split("_nohash_", 1)[0].removesuffix(".wav")
                split = split_of.get(name, "train")
                clips.append(ClipRef(str(folder / name), as_utf8(name), (as_utf8(label),), split, speaker))
        tags = tuple(map(as_utf8, words))
        trained = {tag for clip in clips if clip.split == "train" for tag in clip.tags}
        untrained = [tag for tag in tags if tag not in trained]
        if untrained:
            raise DatasetError(
                f"every label must have a file for training, but the lists name all files of: {', '.join(untrained)}; "
                "shorten the lists or remove these folders"
            )
        return finish_listing(self, folder, clips, "the folders", exclusive=True, tags=tags, left_out=absent)


def as_utf8(name: str) -> str:
    """A name from the disk whose bytes are not all UTF-8, as text that can be stored: \\xff for the byte 255."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _words(folder: Path) -> dict[str, list[str]]:
    """Label -> its files as `label/file.wav`, both sorted."""
    labels = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name[0] not in "_.")
    words = {
        label: sorted(f"{label}/{path.name}" for path in (folder / label).iterdir() if path.suffix.lower() == ".wav")
        for label in labels
    }
    words = {label: names for label, names in words.items() if names}
    if not words:
        raise DatasetError(
            f"speech_commands needs one folder of .wav files per label, but {folder} has none; "
            "--source must be the unpacked archive itself"
        )
    return words


def _read_lists(folder: Path, on_disk: set[str]) -> tuple[dict[str, Split], dict[str, int]]:
    """File -> split, and per list how many of its files are not on disk."""
    split_of: dict[str, Split] = {}
    absent = {}
    for list_name, split in LISTS.items():
        if not (folder / list_name).is_file():
            raise DatasetError(
                f"speech_commands needs {' and '.join(LISTS)} beside the label folders, "
                f"but {folder} has no {list_name}; "
                "take it from the archive, or write one line label/file.wav per clip"
            )
        lines = (folder / list_name).read_text(encoding="utf-8-sig").splitlines()
        named = {line.strip().replace("\\", "/") for line in lines if line.strip()}
        twice = sorted(named & split_of.keys())
        if twice:
            raise DatasetError(f"a file must be in one list only, but {twice[0]} is in both {' and '.join(LISTS)}")
        split_of.update(dict.fromkeys(named, split))
        absent[f"named in {list_name} but not on disk"] = len(named - on_disk)
    return split_of, absent
