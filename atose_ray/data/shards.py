"""Parquet shards: a row is a whole clip as raw bytes, and a manifest says what is there.

They stand in a plain `binary` column: half the size and about 18 times the read speed of list or tensor columns.

    clip_id int64 | name string | group string | tags list<int32> | n_samples int32 | scale float32 | pcm binary

A clip is a sequence of units. Of audio a unit is a sample: `pcm` is little-endian int16, mono, at the manifest's rate;
audio = pcm * scale, in [-1, 1]. Of frames it is a frame: `n_samples` counts frames, `pcm` is the matrix [F, M], row by
row, uint8 or little-endian float32, and `scale` is 1. `tags` are indices into the manifest's `data_spec.tags`.

    data/NAME/current.json       which content is meant by NAME
    data/NAME/<hash>/            a prepared set: shards, facts.jsonl, manifest.json (written last); never changed
    data/NAME/manifest.json      a set prepared by 0.1.0, which had one folder per name: read as it is
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from atose_ray.data.sampling import RowGroup
from atose_ray.storage import Store, StoreError
from atose_ray.types import AudioInput, Config, DataSpec, Input, Split

T = TypeVar("T")
Array = npt.NDArray[Any]

MANIFEST, CURRENT = "manifest.json", "current.json"
LENGTH_BYTES = 4  # stand before every value of a PLAIN byte array
Unit = np.dtype[Any]  # of one unit of a clip: np.zeros(n, unit) are n of them, whatever its shape
PCM: Unit = np.dtype("<i2")
SCHEMA = pa.schema(
    [
        ("clip_id", pa.int64()),
        ("name", pa.string()),
        ("group", pa.string()),
        ("tags", pa.list_(pa.int32())),
        ("n_samples", pa.int32()),
        ("scale", pa.float32()),
        ("pcm", pa.binary()),
    ]
)


class ShardFile(Config):
    """One file of a split; `row_groups` holds the clips of each row group, `pcm_offsets` where the samples of its first
    clip begin in the file, in bytes: those of the next ones follow, behind 4 bytes each (PLAIN, one page). fold: that
    of all its clips, where the set has folds."""

    name: str
    split: Split
    fold: int | None = None
    row_groups: tuple[int, ...]
    pcm_offsets: tuple[int, ...]
    bytes: int
    sha256: str

    def places(self) -> list[RowGroup]:
        """Its row groups."""
        rows = zip(self.row_groups, self.pcm_offsets, strict=True)
        return [RowGroup(self.name, index, clips, offset) for index, (clips, offset) in enumerate(rows)]


class SkippedClip(Config):
    """A clip that the annotations name and the shards do not hold, and why."""

    name: str
    split: Split
    reason: str
    fold: int | None = None


class Fold(Config):
    """What one fold holds. number: as published. tag_counts: tag -> positive clips."""

    number: int
    clips: int
    tag_counts: dict[str, int]


class Manifest(Config):
    """What `prepare` made, from what. name: of its folder in the store.

    tag_counts: tag -> split -> positive clips. folds: of a set that has some; the splits are then those of the first.
    inputs_hash: of the annotations, file sizes and times and settings, so that a second prepare knows there is nothing
    to do. content_hash: of the shards and the facts they are read by. version: 3 stands in a folder of that hash."""

    version: int = 3
    name: str
    dataset: dict[str, Any]
    data_spec: DataSpec
    shards: tuple[ShardFile, ...]
    tag_counts: dict[str, dict[Split, int]]
    skipped: tuple[SkippedClip, ...] = ()
    folds: tuple[Fold, ...] = ()
    left_out: dict[str, int] = Field(default_factory=dict)
    inputs_hash: str
    content_hash: str

    def folder(self, store: Store) -> Store:
        """Where its shards are."""
        place = store.child("data", self.name)
        return place.child(folder_name(self.content_hash)) if self.version > 2 else place

    def without_test(self) -> "Manifest":
        """What a training may know: no file, label count or file name of the test split."""
        counts = {tag: {split: n for split, n in of.items() if split != "test"} for tag, of in self.tag_counts.items()}
        shards = tuple(shard for shard in self.shards if shard.split != "test")
        skipped = tuple(clip for clip in self.skipped if clip.split != "test")
        return self.model_copy(update={"shards": shards, "tag_counts": counts, "skipped": skipped, "folds": ()})

    def row_groups(self, split: Split) -> list[RowGroup]:
        """All row groups of a split, in the order they were written."""
        return [group for shard in self.shards if shard.split == split for group in shard.places()]


def folder_name(content_hash: str) -> str:
    """Of the folder of a content."""
    return content_hash[:16]


def data_store(store: Store, dataset: str, content_hash: str | None = None) -> Store:
    """The folder of a prepared set: of the content that its name means now, or of the one with this hash."""
    place = store.child("data", dataset)
    if content_hash is not None:
        named = place.child(folder_name(content_hash))
        return named if named.exists(MANIFEST) else place
    return place.child(place.read_json(CURRENT)["folder"]) if place.exists(CURRENT) else place


def load_manifest(store: Store, dataset: str, content_hash: str | None = None) -> Manifest:
    """The manifest of a prepared set: of what its name means now, or of the content that a run was resolved with.
    Raises StoreError, naming what is there, where the set or that content is not."""
    folder = data_store(store, dataset, content_hash)
    if not folder.exists(MANIFEST):
        data = store.child("data")
        there = [name for name in data.names() if data_store(store, name).exists(MANIFEST)]
        if content_hash is not None and dataset in there:
            raise _other_content(store, dataset, content_hash)
        raise StoreError(
            f"no prepared data set {dataset!r} in the store {store.uri} (it holds: {', '.join(there) or 'none'}); "
            f"make it with: python -m atose_ray.prepare {dataset} --store {store.uri}"
        )
    try:
        manifest = Manifest.model_validate(folder.read_json(MANIFEST))
    except ValidationError as error:
        raise StoreError(
            f"{folder.uri}/{MANIFEST} was written by another version: {error}. Prepare it again"
        ) from error
    if content_hash not in (None, manifest.content_hash):
        raise _other_content(store, dataset, str(content_hash))
    return manifest


def _other_content(store: Store, dataset: str, content_hash: str) -> StoreError:
    return StoreError(
        f"the data set {dataset!r} in {store.uri} does not hold the content {folder_name(content_hash)}, which this "
        "was resolved with; give the store it was trained from, prepare the files and options of then, or begin anew"
    )


def unit_of(about: Input) -> Unit:
    """How one unit of a clip is stored: int16 of shape (), or of frames uint8 or float32 of shape (M,)."""
    if isinstance(about, AudioInput):
        return PCM
    return np.dtype(({"uint8": "u1", "float32": "<f4"}[about.dtype], (about.bins,)))


@dataclass(frozen=True)
class ClipIndex:
    """The rows of a row group without their content. n_samples_N counts units; tags_NC uint8 {0, 1}."""

    clip_id_N: Array
    scale_N: Array
    n_samples_N: Array
    tags_NC: Array


@dataclass(frozen=True)
class Clips(ClipIndex):
    """The rows of a row group. stored_N: a view of the Parquet buffers for each, int16 [T] or frames [F, M]."""

    stored_N: list[Array]


def read_index(folder: Store, group: RowGroup, n_tags: int) -> ClipIndex:
    """The clips of one row group, without content. Raises StoreError when the file is not what the manifest says."""
    return ClipIndex(*_index_of(_read_columns(folder, [group], ["clip_id", "tags", "n_samples", "scale"]), n_tags))


def read_row_group(folder: Store, group: RowGroup, n_tags: int, unit: Unit = PCM) -> Clips:
    """The clips of one row group; unit: of `unit_of`. Raises StoreError when the file is missing or is not what the
    manifest says."""
    table = _read_columns(folder, [group], None)
    return Clips(*_index_of(table, n_tags), _binary_views(table["pcm"].combine_chunks(), unit))


def read_lengths(folder: Store, groups: list[RowGroup]) -> npt.NDArray[np.int32]:
    """Units of every clip of some row groups, in order, int32 [N]; reads no content. Raises as `read_row_group`."""
    files = [list(of_file) for _, of_file in itertools.groupby(groups, key=lambda group: group.file)]
    lengths = [_read_columns(folder, of_file, ["n_samples"])["n_samples"].to_numpy() for of_file in files]
    return np.concatenate([np.empty(0, np.int32), *lengths])


def read_tags(
    folder: Store, manifest: Manifest, split: Split, stored: int | None = None, dtype: npt.DTypeLike = np.float64
) -> npt.NDArray[Any]:
    """Tags of every clip of a split, {0, 1} [N, C]; reads no content. stored: how many tags the shards have, where the
    manifest is a view with fewer. Raises as `read_row_group`."""
    n_tags = stored or len(manifest.data_spec.tags)
    shards = [shard.places() for shard in manifest.shards if shard.split == split]
    tags = [_tags_of(_read_columns(folder, places, ["tags"]), n_tags) for places in shards]
    return np.concatenate([np.empty((0, n_tags), np.uint8), *tags], dtype=dtype)


def _read_columns(folder: Store, groups: list[RowGroup], columns: list[str] | None) -> pa.Table:
    """Some row groups of one file."""
    name, indices, clips = groups[0].file, [group.index for group in groups], sum(group.clips for group in groups)
    which = f"row group {', '.join(map(str, indices))}"

    def read(file: pa.NativeFile) -> pa.Table:
        return pq.ParquetFile(file).read_row_groups(indices, columns, use_threads=False).combine_chunks()

    try:
        table = from_file(folder, name, read)
    except (OSError, pa.ArrowException, IndexError) as error:
        raise StoreError(f"cannot read {which} of {folder.uri}/{name}: {error}") from error
    if table.num_rows != clips:
        raise StoreError(
            f"{folder.uri}/{name} has {table.num_rows} clips in {which} where the manifest says {clips}: the shards "
            "were changed after prepare; prepare again"
        )
    return table


def _index_of(table: pa.Table, n_tags: int) -> tuple[Array, Array, Array, Array]:
    numbers = (table[name].to_numpy() for name in ("clip_id", "scale", "n_samples"))
    return (*numbers, _tags_of(table, n_tags))


def _tags_of(table: pa.Table, n_tags: int) -> Array:
    """{0, 1} uint8 [N, C]."""
    tags_NC = np.zeros((table.num_rows, n_tags), dtype=np.uint8)
    tags = table["tags"].combine_chunks()
    lengths = np.diff(tags.offsets.to_numpy())
    tags_NC[np.repeat(np.arange(len(lengths)), lengths), tags.flatten().to_numpy()] = 1
    return tags_NC


def crop_bounds(n_samples: int, start: int, length: int) -> tuple[int, int, int]:
    """Of a crop of `length` units that begins at `start` (negative: zeros first): its first unit in the clip, the
    first one's place in the crop, and how many there are."""
    source, target = max(start, 0), max(-start, 0)
    return source, target, min(n_samples - source, length - target)


def read_crops_into(
    path: Path, group: RowGroup, n_samples_N: Array, rows: list[int], starts: list[int], out: list[Array]
) -> None:
    """Copy crops out of a shard on a local disk, and read nothing else of it.

    rows, starts: the clip in the row group and the first unit of each crop; out: of each [T] or [F, M] as stored, zero.
    Raises StoreError when the file is not what the manifest says."""
    unit_bytes = out[0][0].nbytes
    n_bytes_N = n_samples_N.astype(np.int64) * unit_bytes
    byte_N = group.pcm_offset + np.cumsum(n_bytes_N + LENGTH_BYTES) - n_bytes_N - LENGTH_BYTES
    n_samples, first_byte = n_samples_N.tolist(), byte_N.tolist()
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(group.pcm_offset - LENGTH_BYTES)
            intact = int.from_bytes(file.read(LENGTH_BYTES), "little") == n_bytes_N[0]
            for row, start, crop_T in zip(rows, starts, out, strict=True):
                source, target, count = crop_bounds(n_samples[row], start, len(crop_T))
                file.seek(first_byte[row] + unit_bytes * source)
                into: Any = crop_T[target : target + count]
                intact &= file.readinto(into) == into.nbytes
    except OSError as error:
        raise StoreError(f"cannot read row group {group.index} of {path}: {error}") from error
    if not intact:
        raise StoreError(f"{path} is not what the manifest says: the shards were changed after prepare; prepare again")


def _binary_views(column: pa.BinaryArray, unit: Unit) -> list[Array]:
    """The rows of a binary column as views of its buffer, without a copy."""
    _, offset_buffer, data_buffer = column.buffers()
    if data_buffer is None:
        return [np.empty(0, unit) for _ in range(len(column))]
    ends = np.frombuffer(offset_buffer, np.int32)[column.offset : column.offset + len(column) + 1].tolist()
    data = np.frombuffer(data_buffer, np.uint8)
    return [data[start:end].view(unit.base).reshape(-1, *unit.shape) for start, end in itertools.pairwise(ends)]


def from_file(folder: Store, name: str, read: Callable[[pa.NativeFile], T]) -> T:
    """What `read` finds in an open file of a folder; tried anew where the store cannot just now (Store.again)."""

    def once() -> T:
        with folder.fs.open_input_file(folder.path(name)) as file:
            return read(file)

    return folder.again(once)
