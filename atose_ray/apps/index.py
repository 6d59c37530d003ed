"""An index of sounds: the embedding of every window of every file of a folder, in Parquet, with the model beside it.

    <index>/index.json               the folder it is of, and how its windows were cut
    <index>/model/                   the model folder, so that the index stands alone
    <index>/parts/00000.parquet      a row per window: path, size, mtime_ns, start_s, embedding [E] float32
    <index>/skipped.jsonl            files that are no sound, with the reason

A part holds whole files, PART_FILES of them or PART_WINDOWS windows; so memory stays bounded however many there are,
and what was cut goes on after the last part. A changed file is embedded again, and its old rows are ignored."""

import dataclasses
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from atose_ray.apps.predict import crops_of, device_of
from atose_ray.audio.io import AudioError, decode_parts
from atose_ray.data.sampling import eval_starts
from atose_ray.datasets.base import AUDIO_SUFFIXES
from atose_ray.storage import Store
from atose_ray.storage.store import FileStamp
from atose_ray.training.checkpoint import Model, load_model
from atose_ray.types import Array, Batch, untagged

VERSION, INDEX, MODEL, PARTS, SKIPPED = 1, "index.json", "model", "parts", "skipped.jsonl"
PART_FILES, PART_WINDOWS = 256, 8192
PIECE_S = 600.0  # of a long file that are in memory at a time


class NoIndexError(ValueError):
    """A folder that is no index, or one of another model; the message says what to do."""


class Window(NamedTuple):
    """start_s: seconds into the file; embed_E float32."""

    start_s: float
    embed_E: Array


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


@torch.no_grad()
def windows_of(model: Model, source: Any, hop_s: float | None = None, name: str | None = None) -> Iterator[Window]:
    """The embeddings of a file's windows, in the order of time. source: path or open file. hop_s: distance of windows;
    None is their length, but no fewer windows than validation used. Raises AudioError for what is no sound."""
    rate, length = model.spec.audio.sample_rate_hz, model.spec.input.length
    step = length if hop_s is None else max(1, round(hop_s * rate))
    before = 0
    for piece in decode_parts(source, sample_rate_hz=rate, max_seconds=PIECE_S, name=name):
        samples = len(piece.audio_T)
        least = 1 if before else model.run.data.eval_crops
        crops = max(least, -(-samples // step))
        audio_BT = torch.from_numpy(crops_of(model, piece.audio_T, crops))
        starts = eval_starts(samples, length, crops)
        rows = [embedded(model, part) for part in torch.split(audio_BT, model.run.execution.eval_batch_size)]
        for start, embed_E in zip(starts, np.concatenate(rows), strict=True):
            yield Window((before + max(start, 0)) / rate, embed_E)
        before += samples


def embedded(model: Model, audio_BT: torch.Tensor) -> Array:
    """[B, T] -> [B, E] float32."""
    batch = untagged(Batch, audio_BT, len(model.spec.tags)).to(device_of(model))
    embed_BE: Array = model.method.embed(batch).embed_BE.float().cpu().numpy()
    return embed_BE


def fill_index(store: Store, model: Model, folder: Store, hop_s: float | None) -> Iterator[tuple[int, int, str]]:
    """Embed what is not in the index yet -> after each file: how many are done, of how many, and why it was left out
    ("" where it was not). Raises NoIndexError for a folder without sound."""
    stamps = sounds_in(folder)
    known = indexed(store) | {tuple(json.loads(line)["file"]) for line in store.read_lines(SKIPPED)}
    todo = [stamp for stamp in stamps if tuple(stamp) not in known]
    writer, done = PartWriter(store), len(stamps) - len(todo)
    for stamp in todo:
        why = ""
        try:
            writer.add(stamp, list(windows_in(model, folder, stamp, hop_s)))
        except AudioError as error:
            why = str(error)
            store.append_line(SKIPPED, json.dumps({"file": list(stamp), "reason": why}))
        done += 1
        yield done, len(stamps), why
    writer.flush()


def windows_in(model: Model, folder: Store, stamp: FileStamp, hop_s: float | None) -> Iterator[Window]:
    """`windows_of` a file of a folder, wherever that is."""
    if folder.local_path is not None:
        yield from windows_of(model, str(folder.local_path / stamp.name), hop_s)
        return
    with folder.reading(stamp.name) as file:
        yield from windows_of(model, file, hop_s, stamp.name)


class PartWriter:
    """Collects files, and writes a part when there are enough."""

    def __init__(self, store: Store) -> None:
        self.store, self.number = store, len(part_names(store))
        self.files: list[tuple[FileStamp, list[Window]]] = []

    def add(self, stamp: FileStamp, windows: list[Window]) -> None:
        """One file, whole."""
        self.files.append((stamp, windows))
        if len(self.files) >= PART_FILES or sum(len(of_file) for _, of_file in self.files) >= PART_WINDOWS:
            self.flush()

    def flush(self) -> None:
        """Write what is there as the next part."""
        if not self.files:
            return
        rows = [(stamp, window) for stamp, windows in self.files for window in windows]
        embed_RE = np.stack([window.embed_E for _, window in rows])
        table = pa.table(
            {
                "path": [stamp.name for stamp, _ in rows],
                "size": [stamp.size for stamp, _ in rows],
                "mtime_ns": [stamp.mtime_ns for stamp, _ in rows],
                "start_s": [window.start_s for _, window in rows],
                "embedding": pa.FixedSizeListArray.from_arrays(pa.array(embed_RE.ravel()), embed_RE.shape[1]),
            }
        )
        with self.store.writing(f"{PARTS}/{self.number:05d}.parquet") as file:
            pq.write_table(table, file)
        self.number, self.files = self.number + 1, []


def part_names(store: Store) -> list[str]:
    """The parts of an index, in order."""
    return sorted(name for name in store.child(PARTS).names() if name.endswith(".parquet"))


def indexed(store: Store) -> set[tuple[str, int, int]]:
    """(path, size, mtime_ns) of every file that has its rows; no embedding is read."""
    found = set[tuple[str, int, int]]()
    for name in part_names(store):
        with store.child(PARTS).reading(name) as file:
            columns = pq.read_table(file, columns=["path", "size", "mtime_ns"]).to_pydict()
        found |= set(zip(columns["path"], columns["size"], columns["mtime_ns"], strict=True))
    return found


class Rows(NamedTuple):
    """Some windows: paths R, start_s_R, embed_RE."""

    paths: list[str]
    start_s_R: Array
    embed_RE: Array


def read_rows(store: Store) -> Iterator[Rows]:
    """The windows of an index, part by part from the last one on, of every file those of its last version: a file
    stands in a part once, so what a later part has is newer."""
    newer = set[str]()
    for name in reversed(part_names(store)):
        with store.child(PARTS).reading(name) as file:
            table = pq.read_table(file)
        paths = table["path"].to_pylist()
        table = table.filter(pa.array([path not in newer for path in paths], pa.bool_()))
        newer.update(paths)
        if len(table):
            lists = table["embedding"].combine_chunks()
            embed_RE = lists.flatten().to_numpy(zero_copy_only=False).reshape(len(table), -1)
            yield Rows(table["path"].to_pylist(), table["start_s"].to_numpy(), embed_RE)
