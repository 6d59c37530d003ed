"""A folder of matrices that were computed before: features [frames, bins] with the table of tags that `folder` reads.

    path,split,tags,group
    one.npy,train,guitar|slow,Ada
    all.npz#two,valid,guitar|piano,Ben
    all.h5#features/12,test,slow,Cem

A path is a `.npy` file, an array of an `.npz`, or a data set of an HDF5 file (`.h5`, `.hdf5`; it needs h5py), named
behind `#` where the file holds several. Of a packed array [N, frames, bins] the last part of the name is the row. A
matrix [bins, frames] is turned by a `.T` at the end: `one.npy#.T`, `all.h5#features/12.T`. Of a `.tfrecord` file
(datasets/tfrecord.py) it is the byte where a record begins.
Shards hold uint8 as it is (the encoder knows what its numbers mean), everything else as float32. Not stored in any of
these files is the time from one frame to the next: say it, `--option frame_hop_seconds=0.96`.
"""

import functools
import io
import os
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from atose_ray.datasets.base import MATRIX_SUFFIXES, DatasetError, SourceError
from atose_ray.datasets.folder import Row, TableConfig
from atose_ray.datasets.remote import open_source
from atose_ray.datasets.tfrecord import frames_at
from atose_ray.types import ClipRef, FrameInput, Input

Matrix = npt.NDArray[Any]


class FramesConfig(TableConfig):
    """`source` holds the matrices; all have the same number of bins."""

    suffixes: ClassVar[Collection[str]] = MATRIX_SUFFIXES
    content: ClassVar[str] = "matrices"
    kind: Literal["frames"] = "frames"
    frame_hop_seconds: float = Field(gt=0, description="From one frame to the next.")
    dtype: Literal["auto", "uint8", "float32"] = Field(
        default="auto", description="Of the shards. auto: uint8 if the first matrix is, else float32."
    )

    def find(self, folder: Path, row: Row) -> str:
        """The file of a row, without what stands behind `#`."""
        file, written = (split_path(path)[0] for path in (row.path, row.written))
        return super().find(folder, row._replace(path=file, written=written))

    def longest_clip(self, clips: Sequence[ClipRef]) -> Input:
        """As many bins as the first matrix has that can be read, whose kind of number decides where `dtype` is auto."""
        reason = "there is none"
        for clip in clips:
            try:
                with open_source(clip.source) as (source, _):
                    matrix = read_matrix(source, clip)
            except (SourceError, OSError) as error:
                reason = str(error)
                continue
            dtype = self.dtype if self.dtype != "auto" else "uint8" if matrix.dtype == np.uint8 else "float32"
            frames = max(1, round(self.max_clip_seconds / self.frame_hop_seconds))
            hop_s = self.frame_hop_seconds
            return FrameInput(frames=frames, bins=matrix.shape[1], frame_hop_seconds=hop_s, dtype=dtype)
        raise DatasetError(f"none of the {len(clips)} matrices can be read; of the last one: {reason}")


def split_path(path: str) -> tuple[str, str]:
    """`folder/all.h5#features/12` -> `folder/all.h5` and `features/12`, which is empty where a file is one matrix."""
    file, mark, key = path.rpartition("#")
    return (file, key) if mark and Path(file).suffix.lower() in MATRIX_SUFFIXES else (path, "")


def read_matrix(source: str | bytes | BinaryIO, clip: ClipRef) -> Matrix:
    """A clip's matrix [F, M] as it is in its file: numbers, one row or more. source: the file, as it lies or open.

    Raises SourceError that names the file for one that is missing, damaged, or no such matrix; DatasetError for HDF5
    without h5py."""
    path, key = split_path(clip.name)
    file = clip.name if isinstance(clip.source, bytes) else f"{clip.source}#{key}" if key else clip.source
    if isinstance(source, str) and not Path(source).is_file():
        raise SourceError(f"{file}: no such file; check the path, or fetch the file")
    opened = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        if not isinstance(opened, str):
            opened.seek(0)
        matrix = _read(opened, Path(path).suffix.lower(), key)
    except DatasetError:
        raise
    except SourceError as error:
        raise SourceError(f"{file}: {error}") from error
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise SourceError(f"{file}: cannot be read ({error}): damaged, or another format; export it again") from error
    if matrix.ndim != 2 or matrix.dtype.kind not in "buif" or not matrix.shape[1]:
        raise SourceError(
            f"{file}: must be a matrix [frames, bins] of numbers, but it is {list(matrix.shape)} of {matrix.dtype}; "
            "export it so, or name the row of a packed array: FILE#NAME/ROW"
        )
    if not len(matrix):
        raise SourceError(f"{file}: holds no frames; export it again, or leave it out")
    return matrix


def _read(source: str | BinaryIO, suffix: str, key: str) -> Matrix:
    if suffix in (".h5", ".hdf5"):
        try:
            import h5py
        except ImportError as error:
            raise DatasetError('HDF5 files need h5py: pip install "atose_ray[hdf5]"') from error
        if isinstance(source, str):
            kept = _opened(source, os.stat(source).st_mtime_ns)
            return _pick(kept, key, lambda: _arrays_of(kept))
        with h5py.File(source, "r", locking=False) as file:
            return _pick(file, key, lambda: _arrays_of(file))
    if suffix == ".tfrecord":
        with open(source, "rb") if isinstance(source, str) else nullcontext(source) as records:
            return frames_at(records, int(key or 0))
    loaded = np.load(source, mmap_mode="r" if isinstance(source, str) else None, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        return _pick({"": loaded}, key, lambda: [""])
    with loaded:
        return _pick(loaded, key, lambda: list(loaded))


@functools.lru_cache(maxsize=1)
def _opened(path: str, mtime_ns: int) -> Any:
    """A local HDF5 file, kept open for its next row, as opening takes longer than reading one; not locked."""
    import h5py

    return h5py.File(path, "r", locking=False)


def _arrays_of(file: Any) -> list[str]:
    """The names of the data sets of an open HDF5 file, in whatever group."""
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
    return names


def _pick(arrays: Mapping[str, Any], key: str, names: Callable[[], list[str]]) -> Matrix:
    """The array called `key`, or a row of one: `NAME/ROW`; the only one where no name is given. Turned after `.T`."""
    name, row = key.strip("/"), ""
    if name.endswith(".T") and not hasattr(arrays.get(name), "shape"):
        return _pick(arrays, name.removesuffix(".T"), names).T
    if not name and len(there := names()) == 1:
        name = there[0]
    array: Any = arrays.get(name)
    if not hasattr(array, "shape"):
        name, _, row = name.rpartition("/")
        array = arrays.get(name)
    if not hasattr(array, "shape"):
        there = names()
        some = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
        raise SourceError(f"has no array {key!r}, but {some or 'none'}; write FILE#NAME, or FILE#NAME/ROW")
    if not row:
        return np.asarray(array[...])
    if not row.isdigit() or int(row) >= len(array):
        raise SourceError(f"{name} has the rows 0 to {len(array) - 1}, but {row!r} was asked for; correct the table")
    return np.asarray(array[int(row)])


def matrix_pieces(matrix: Matrix, about: FrameInput, clip: ClipRef) -> Iterator[tuple[float, Matrix]]:
    """The clip's part of a matrix as it is stored, in pieces of at most `about.frames`, and where each begins, seconds.

    Raises SourceError, maybe after some, for another number of bins, numbers that do not fit, and what is not finite.
    """
    hop_s = about.frame_hop_seconds
    matrix = matrix[round(clip.start_s / hop_s) : None if clip.end_s is None else round(clip.end_s / hop_s)]
    if matrix.shape[1] != about.bins:
        raise SourceError(
            f"{clip.name}: has {matrix.shape[1]} bins where the first matrix of the set has {about.bins}; "
            "compute all of them alike"
        )
    if about.dtype == "uint8" and matrix.dtype != np.uint8:
        raise SourceError(
            f"{clip.name}: is {matrix.dtype}, but the set is stored as uint8; export it as uint8, or prepare with "
            "--option dtype=float32"
        )
    if not len(matrix):
        raise SourceError(f"{clip.name}: holds no frames from {clip.start_s:g} s on; correct the annotation")
    for at in range(0, len(matrix), about.frames):
        with np.errstate(over="ignore"):
            piece = np.ascontiguousarray(matrix[at : at + about.frames], {"uint8": "u1", "float32": "<f4"}[about.dtype])
        broken = int((~np.isfinite(piece)).sum())
        if broken:
            raise SourceError(f"{clip.name}: {broken} values are NaN or infinite; compute it again")
        yield clip.start_s + at * hop_s, piece
