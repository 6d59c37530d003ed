"""The published training data of COALA (Zenodo record 3887261): two HDF5 files of scaled log-mel patches with tags.

    spec_tags_top_1000, spec_tags_top_1000_val   with or without .hdf5: a group `dataset` of
        id (N, 1)            Freesound id
        data (N, 96, 96)     patches, bands by frames, which become frames by bands here
        label (N, C)         {0, 1}
    id2token_top_1000.json                       column of `label` -> word; it lies in the folder json of the repository

The other vocabulary of the repository, in its folder tags, has another order: 40 of 1000 words agree. Rows that the
published script jumped over are zero throughout, id included; they are left out and counted, as are rows without a tag.
There is no test split: a share of the published validation rows, drawn by id, becomes one. Train with
`encoder: {kind: coala_cnn, scaler: none}`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from atose_ray.datasets.base import DatasetConfig, DatasetError, find_file
from atose_ray.types import ClipRef, FrameInput, Input, Listing, Split

ROWS = 4096  # of labels in memory at a time
RATE_HZ, HOP_SAMPLES, SIDE = 22_000, 512, 96


class CoalaHdf5Config(DatasetConfig):
    """train, valid: the files of `source`; their names may end in .hdf5 or .h5. words: the vocabulary."""

    content: ClassVar[str] = "matrices"
    kind: Literal["coala_hdf5"] = "coala_hdf5"
    train: str = "spec_tags_top_1000"
    valid: str = "spec_tags_top_1000_val"
    words: str = "id2token_top_1000.json"
    test_share: float = Field(default=0.5, gt=0, lt=1, description="Of the validation rows, for a test split.")

    def list_clips(self) -> Listing:
        """Raises DatasetError for a file that is missing, or holds something else."""
        folder, left_out = self.folder(), Counter[str]()
        vocabulary = read_words(find_file(self.kind, folder, (self.words, f"json/{self.words}"), HINT))
        clips = [*self._clips(folder, self.train, "train", vocabulary, left_out)]
        clips += self._clips(folder, self.valid, "valid", vocabulary, left_out)
        used = {tag for clip in clips for tag in clip.tags}
        tags = tuple(word for word in vocabulary if word in used)
        return Listing(self.kind, tuple(clips), tags, exclusive=False, left_out=tuple(sorted(left_out.items())))

    def _clips(
        self, folder: Path, name: str, split: Split, words: Sequence[str], left_out: Counter[str]
    ) -> Iterator[ClipRef]:
        path = find_file(self.kind, folder, (name, f"{name}.hdf5", f"{name}.h5"), HINT)
        row = 0
        for id_n, label_nC in read_labels(path, len(words)):
            for sound, label_C in zip(id_n.tolist(), label_nC, strict=True):
                tags = tuple(words[column] for column in np.flatnonzero(label_C).tolist())
                if sound == 0 or not tags:
                    left_out["rows that were never written" if sound == 0 else "rows without a tag"] += 1
                else:
                    into: Split = "test" if split == "valid" and drawn(sound) < self.test_share else split
                    yield ClipRef(str(path), f"{path.stem}.h5#dataset/data/{row}.T", tags, into, str(sound))
                row += 1

    def longest_clip(self, clips: Sequence[ClipRef]) -> Input:
        return FrameInput(frames=SIDE, bins=SIDE, frame_hop_seconds=HOP_SAMPLES / RATE_HZ)


HINT = "--source must be a local folder with both HDF5 files and the vocabulary of the repository beside them"


def read_words(path: Path) -> list[str]:
    """The words by column. Raises DatasetError where a column has none, or two have the same."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        words = [str(tree[str(column)]) for column in range(len(tree))]
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} must be an object of column -> word, but {error!r}; fetch it again") from error
    if len(set(words)) != len(words):
        raise DatasetError(f"{path}: {len(words)} columns have {len(set(words))} words; fetch it again")
    return words


def read_labels(path: Path, tags: int) -> Iterator[tuple[Any, Any]]:
    """Freesound ids [n] and labels [n, C] of a file, some rows at a time. Raises DatasetError for another file."""
    try:
        import h5py
    except ImportError as error:
        raise DatasetError('HDF5 files need h5py: pip install "atose_ray[hdf5]"') from error
    try:
        with h5py.File(path, "r", locking=False) as file:
            group = file["dataset"]
            shapes = {key: group[key].shape for key in ("id", "data", "label")}
            rows = shapes["id"][0]
            if shapes["data"] != (rows, SIDE, SIDE) or shapes["label"] != (rows, tags):
                raise DatasetError(
                    f"{path}: expected data [{rows}, {SIDE}, {SIDE}] and label [{rows}, {tags}] (as many words as the "
                    f"vocabulary has), but got {list(shapes['data'])} and {list(shapes['label'])}"
                )
            for first in range(0, rows, ROWS):
                part = slice(first, first + ROWS)
                yield group["id"][part].reshape(-1), group["label"][part]
    except (OSError, KeyError) as error:
        raise DatasetError(
            f"{path} is not the published HDF5 ({error}); fetch it again, and into a local folder: its labels are read "
            "before its patches"
        ) from error


def drawn(sound: int) -> float:
    """A number in [0, 1) that belongs to an id."""
    return int.from_bytes(sha256(str(sound).encode()).digest()[:8], "big") / 2**64
