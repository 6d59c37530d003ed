"""AudioSet's stored features: 128 bytes a second of VGGish behind its PCA, 10 s a clip, 527 labels.

Gemmeke et al., ICASSP 2017. Two forms of the same numbers, either of them in `source`:

    bal_train.h5, unbal_train.h5, eval.h5      packed (Kong et al., ICASSP 2018): x uint8 [N, 10, 128], y bool [N, 527],
                                               video_id_list
    bal_train/, unbal_train/, eval/            as AudioSet released them: *.tfrecord of tf.SequenceExample

and `class_labels_indices.csv` with the labels' names. Bytes stay bytes; encoder `frames` knows what they mean.

AudioTagger and its relatives train on both training parts and stop early, and choose a checkpoint, on the evaluation
part. Here a validation part is drawn from the training clips by a hash of the video's id; what is in the evaluation
part under the same id is left out. Memory: a clip takes some 300 bytes while the set is listed, its features none."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from atose_ray.datasets.audioset import DOWNLOAD, TRAIN_TABLES, read_labels
from atose_ray.datasets.base import DatasetConfig, DatasetError, SourceError
from atose_ray.datasets.tfrecord import context, records
from atose_ray.types import ClipRef, FrameInput, Input, Listing, Split

ROWS = 4096  # of labels in memory at a time
FRAMES, BINS = 10, 128
PARTS = {"balanced": "bal_train", "unbalanced": "unbal_train", "eval": "eval"}
VALID_CLIPS, MAX_VALID_SHARE = 20_000, 0.1


class Row(NamedTuple):
    """A clip as its file has it. name: of the file and the place in it. labels: columns, ascending."""

    path: str
    name: str
    video: str
    labels: tuple[int, ...]


class AudioSetFramesConfig(DatasetConfig):
    """train: which training parts. valid_share: None is a tenth of the training clips, but about 20,000 at most."""

    content: ClassVar[str] = "matrices"
    kind: Literal["audioset_frames"] = "audioset_frames"
    train: Literal["balanced", "unbalanced", "both"] = "both"
    valid_share: float | None = Field(default=None, ge=0, lt=1, description="Of the training clips, for validation.")
    seed: int = Field(default=0, ge=0, description="Another seed draws other clips for validation.")

    def list_clips(self) -> Listing:
        """Raises DatasetError for a part that is missing or damaged."""
        folder = self.folder()
        names = tuple(read_labels(folder).values())
        evaluation = list(self._rows(folder, "eval", len(names)))
        held_out = {row.video for row in evaluation}
        parts = [self._rows(folder, part, len(names)) for part in TRAIN_TABLES[self.train]]
        training, left_out = list[Row](), Counter[str]()
        for row in itertools.chain(*parts):
            if row.video in held_out:
                left_out["in a training file and in the evaluation set"] += 1
            else:
                training.append(row)
        usual = min(MAX_VALID_SHARE, VALID_CLIPS / max(len(training), 1))
        share = usual if self.valid_share is None else self.valid_share
        tags_of: dict[tuple[int, ...], tuple[str, ...]] = {}
        clips: list[ClipRef] = []
        for row in itertools.chain(training, evaluation):
            tags = tags_of.setdefault(row.labels, tuple(names[label] for label in row.labels))
            split: Split = "test" if row.video in held_out else "valid" if self._drawn(row.video) < share else "train"
            clips.append(ClipRef(row.path, row.name, tags, split, row.video))
        used = {label for labels in tags_of for label in labels}
        tags = tuple(name for label, name in enumerate(names) if label in used)
        return Listing(self.kind, tuple(clips), tags, exclusive=False, left_out=tuple(left_out.items()))

    def _drawn(self, video: str) -> float:
        return int.from_bytes(sha256(f"{self.seed}:{video}".encode()).digest()[:8], "big") / 2**64

    def _rows(self, folder: Path, part: str, labels: int) -> Iterator[Row]:
        """The clips of a part, in the order of its file, or of its files by name."""
        name = PARTS[part]
        packed = [path for path in (folder / f"{name}.h5", folder / f"{name}.hdf5") if path.is_file()]
        found = [] if packed else sorted((folder / name).glob("*.tfrecord"))
        if not packed and not found:
            raise DatasetError(f"{folder} has neither {name}.h5 nor {name}/*.tfrecord; {DOWNLOAD}")
        one_path: dict[str, str] = {}
        for row in packed_rows(packed[0], labels) if packed else released_rows(found, folder, labels):
            yield row._replace(path=one_path.setdefault(row.path, row.path))

    def longest_clip(self, clips: Sequence[ClipRef]) -> Input:
        return FrameInput(frames=FRAMES, bins=BINS, frame_hop_seconds=1.0, dtype="uint8")


def packed_rows(path: Path, labels: int) -> Iterator[Row]:
    """The rows of a packed HDF5 file. Raises DatasetError for another file."""
    try:
        import h5py
    except ImportError as error:
        raise DatasetError('HDF5 files need h5py: pip install "atose_ray[hdf5]"') from error
    try:
        with h5py.File(path, "r", locking=False) as file:
            x, y, ids = file["x"], file["y"], file["video_id_list"]
            if x.shape[1:] != (FRAMES, BINS) or y.shape != (len(x), labels) or len(ids) != len(x):
                raise DatasetError(
                    f"{path}: expected x [N, {FRAMES}, {BINS}], y [N, {labels}] (as many labels as "
                    f"class_labels_indices.csv has) and N video ids, but got {list(x.shape)}, {list(y.shape)} and "
                    f"{len(ids)}"
                )
            for first in range(0, len(x), ROWS):
                videos, y_nC = ids[first : first + ROWS], np.asarray(y[first : first + ROWS])
                row_n, label_n = np.nonzero(y_nC)
                per_row = np.split(label_n, np.searchsorted(row_n, np.arange(1, len(y_nC))))
                for at, (video, own) in enumerate(zip(videos, per_row, strict=True), start=first):
                    yield Row(str(path), f"{path.name}#x/{at}", _text(video), tuple(own.tolist()))
    except (OSError, KeyError) as error:
        raise DatasetError(
            f"{path} is not the packed HDF5 of x, y and video_id_list ({error}); fetch it again, into a local folder: "
            "its labels are read before its features"
        ) from error


def released_rows(paths: Sequence[Path], folder: Path, labels: int) -> Iterator[Row]:
    """The records of released TFRecord files. Raises DatasetError for one that is damaged or has other labels."""
    for path in paths:
        name = path.relative_to(folder).as_posix()
        try:
            for offset, message in records(path):
                about = context(message)
                own = tuple(sorted({int(label) for label in about.get("labels", ())}))
                if own and not 0 <= own[0] <= own[-1] < labels:
                    raise DatasetError(
                        f"{path}: labels are 0 to {labels - 1}, but a record has {list(own)}; {DOWNLOAD}"
                    )
                video = next(iter(about.get("video_id", ())), name.encode() + b"#%d" % offset)
                yield Row(str(path), f"{name}#{offset}", _text(video), own)
        except SourceError as error:
            raise DatasetError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def _text(video: Any) -> str:
    return video.decode("utf-8", "replace") if isinstance(video, bytes) else str(video)
