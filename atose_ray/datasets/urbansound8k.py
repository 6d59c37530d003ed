"""UrbanSound8K: 8,732 cuts of up to 4 s in 10 classes of urban sound. J. Salamon, C. Jacoby, J. P. Bello, "A dataset
and taxonomy for urban sound research", ACM Multimedia 2014.

Read as published: `metadata/UrbanSound8K.csv` (`slice_file_name,fsID,start,end,salience,fold,classID,class`) and the
files in `audio/fold1` to `audio/fold10`. Traps:

- The ten folds keep all cuts of one Freesound recording together. Shuffled, the same recording is in training and test,
  and accuracy rises by ten points and more: so they are never shuffled here. The recording (`fsID`) is the group.
- The published figure is the mean over the ten test folds: `python -m atose_ray.crossvalidate`.
- `start` and `end` are places in the recording, not in the file: a file is the whole clip.
"""

from typing import ClassVar, Literal

from atose_ray.datasets.base import FoldedConfig, finish_listing, read_rows
from atose_ray.types import ClipRef, Listing

COLUMNS = ("slice_file_name", "fsID", "fold", "class")


class UrbanSound8kConfig(FoldedConfig):
    """`source` is the unpacked archive, with `metadata/` and `audio/` in it."""

    folds: ClassVar[int] = 10
    kind: Literal["urbansound8k"] = "urbansound8k"

    def list_clips(self) -> Listing:
        table = self.table("metadata/UrbanSound8K.csv", "UrbanSound8K/metadata/UrbanSound8K.csv")
        audio = table.parent.parent / "audio"
        clips = []
        for where, row in read_rows(table, COLUMNS):
            name = f"fold{row['fold']}/{row['slice_file_name']}"
            fold, split = self.fold_of(row["fold"], where)
            clips.append(ClipRef(str(audio / name), name, (row["class"],), split, row["fsID"], fold=fold))
        return finish_listing(self, self.folder(), clips, table.name, exclusive=True)
