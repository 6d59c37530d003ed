"""An index of sounds: the embedding of every window of every file of a folder, in Parquet, with the model beside it.

    <index>/index.json               the folder it is of, and how its windows were cut
    <index>/model/                   the model folder, so that the index stands alone
    <index>/parts/00000.parquet      a row per window (apps/embedding_parts.py)
    <index>/skipped.jsonl            files that are no sound, with the reason

A changed file is embedded again, and its old rows are ignored."""

import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from atose_ray.apps.embedding_parts import Parts
from atose_ray.apps.embeddings import Window, windows_of
from atose_ray.datasets.base import AUDIO_SUFFIXES
from atose_ray.storage import FileStamp, Store
from atose_ray.training.checkpoint import Model, load_model
from atose_ray.types import Array

VERSION, INDEX, MODEL, PARTS = 1, "index.json", "model", "parts"


class NoIndexError(ValueError):
    """A folder that is no index, or one of another model; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """folder: what was indexed, path or URI. hop_s: distance of windows; None is a window after the other."""

    folder: str
    hop_s: float | None
    version: int = VERSION


def open_index(uri: str) -> tuple[Store, IndexInfo, Model]:
    """An index with its model, in eval mode. Raises NoIndexError where there is none."""
    store = Store(uri)
    if not store.exists(INDEX):
        raise NoIndexError(
            f"{store.uri} is not an index: it lacks {INDEX}. Make one: "
            f"python -m atose_ray.find index MODEL FOLDER {uri}"
        )
    info = IndexInfo(**store.read_json(INDEX))
    return store, info, load_model(store.child(MODEL))


def begin_index(store: Store, model: Store, info: IndexInfo) -> Model:
    """Make an index, or go on with one of the same folder and model. Raises NoIndexError where it is of others."""
    loaded = load_model(model)
    if not store.exists(INDEX):
        store.check_writable()
        for name in model.names():
            store.write(f"{MODEL}/{name}", model.read(name))
        store.write_json(INDEX, dataclasses.asdict(info))
        return loaded
    there = IndexInfo(**store.read_json(INDEX))
    same = store.read(f"{MODEL}/model.safetensors") == model.read("model.safetensors")
    if there != info or not same:
        what = "model" if same is False else "folder or --hop"
        raise NoIndexError(
            f"{store.uri} is an index of {there.folder} with hop {there.hop_s}, made with another {what}; name another "
            "folder for this one, or delete that"
        )
    return loaded


def sounds_in(folder: Store) -> list[FileStamp]:
    """The audio files below a folder, by name. Raises NoIndexError where there is none."""
    found = [stamp for stamp in folder.files() if os.path.splitext(stamp.name)[1].lower() in AUDIO_SUFFIXES]
    if not found:
        raise NoIndexError(
            f"{folder.uri} holds no audio file; expected names that end in {', '.join(sorted(AUDIO_SUFFIXES))}"
        )
    return sorted(found)


def fill_index(store: Store, model: Model, folder: Store, hop_s: float | None) -> Iterator[tuple[int, int, str]]:
    """Embed what is not in the index yet -> after each file: how many are done, of how many, and why it was left out
    ("" where it was not). Raises NoIndexError for a folder without sound."""
    stamps, parts = sounds_in(folder), parts_of(store)
    missing = parts.missing(stamps)
    filling = parts.fill(missing, lambda stamp: windows_in(model, folder, stamp, hop_s))
    for done, (_, why) in enumerate(filling, start=len(stamps) - len(missing) + 1):
        yield done, len(stamps), why


def windows_in(model: Model, folder: Store, stamp: FileStamp, hop_s: float | None) -> Iterator[Window]:
    """`windows_of` a file of a folder, wherever that is."""
    if folder.local_path is not None:
        yield from windows_of(model, str(folder.local_path / stamp.name), hop_s)
        return
    with folder.reading(stamp.name) as file:
        yield from windows_of(model, file, hop_s, stamp.name)


def parts_of(store: Store) -> Parts:
    """The windows of an index."""
    return Parts(store.child(PARTS), store)


class Rows(NamedTuple):
    """Some windows: paths R, start_s_R, embed_RE."""

    paths: list[str]
    start_s_R: Array
    embed_RE: Array


def read_rows(store: Store) -> Iterator[Rows]:
    """The windows of an index, part by part from the last one on, of every file those of its last version: a file
    stands in a part once, so what a later part has is newer."""
    newer, parts = set[str](), parts_of(store)
    for name in reversed(parts.names()):
        with parts.folder.reading(name) as file:
            table = pq.read_table(file, columns=["path", "start_s", "embedding"])
        paths = table["path"].to_pylist()
        table = table.filter(pa.array([path not in newer for path in paths], pa.bool_()))
        newer.update(paths)
        if len(table):
            lists = table["embedding"].combine_chunks()
            embed_RE = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
            yield Rows(table["path"].to_pylist(), table["start_s"].to_numpy(), embed_RE)
