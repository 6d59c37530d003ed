"""ESC-50: 2,000 environmental recordings of 5 s in 50 classes. K. J. Piczak, "ESC: Dataset for environmental sound
classification", ACM Multimedia 2015.

Read as published: `meta/esc50.csv` (`filename,fold,target,category,esc10,src_file,take`) and the files in `audio/`. The
five folds keep all cuts of one Freesound recording together, so they are never shuffled; the recording (`src_file`) is
the clip's group. The published figure is the mean over the five test folds: `python -m atose_ray.crossvalidate`.
Without a test set apart, papers often select on the test fold itself; here another fold is for validation.
"""

from typing import ClassVar, Literal

from pydantic import Field

from atose_ray.datasets.base import DatasetError, FoldedConfig, finish_listing, read_rows
from atose_ray.types import ClipRef, Listing

COLUMNS = ("filename", "fold", "category", "esc10", "src_file")


class Esc50Config(FoldedConfig):
    """`source` is the unpacked archive, with `meta/` and `audio/` in it."""

    folds: ClassVar[int] = 5
    kind: Literal["esc50"] = "esc50"
    esc10: bool = Field(default=False, description="Only the 400 clips of the ten classes of ESC-10.")

    def list_clips(self) -> Listing:
        table = self.table("meta/esc50.csv", "ESC-50-master/meta/esc50.csv")
        audio = table.parent.parent / "audio"
        clips, others = [], 0
        for where, row in read_rows(table, COLUMNS):
            if row["esc10"] not in ("True", "False"):
                raise DatasetError(f"{where}: esc10 must be True or False, but got {row['esc10']!r}")
            fold, split = self.fold_of(row["fold"], where)
            if self.esc10 and row["esc10"] == "False":
                others += 1
                continue
            source = str(audio / row["filename"])
            clips.append(ClipRef(source, row["filename"], (row["category"],), split, row["src_file"], fold=fold))
        left_out = {"not in the ESC-10 subset": others}
        return finish_listing(self, self.folder(), clips, table.name, exclusive=True, left_out=left_out)
