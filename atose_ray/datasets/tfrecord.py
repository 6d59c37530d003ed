"""TFRecord files of tf.SequenceExample, read without TensorFlow: what AudioSet publishes of its features.

A record is its length (8 bytes), a checksum of that, the message, a checksum of the message. Checksums are CRC-32C with
TensorFlow's mask and are not verified: a record that is cut off or no message is found by its structure. A message is
protobuf on the wire: tag, then a varint, 4 or 8 bytes, or a length and so many bytes."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from atose_ray.datasets.base import SourceError

HEAD, TAIL = 12, 4  # bytes around a message
MAX_RECORD_BYTES = 1 << 26
CONTEXT, LISTS = 1, 2  # fields of a SequenceExample
BYTES, FLOATS, INTS = 1, 2, 3  # fields of a Feature
EMBEDDING = "audio_embedding"

Feature = list[bytes | float | int]


def records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Where each record begins, and its message. Raises SourceError for a file that is cut off or none."""
    with path.open("rb") as file:
        while True:
            offset = file.tell()
            message = _record(file, str(path))
            if message is None:
                return
            yield offset, message


def frames_at(file: BinaryIO, offset: int) -> npt.NDArray[np.uint8]:
    """uint8 [F, M]: the features of the record that begins there. Raises SourceError for one that has none."""
    file.seek(offset)
    message = _record(file, "the file")
    rows = [] if message is None else embedding(message)
    if not rows or len({len(row) for row in rows}) > 1:
        raise SourceError(f"has no {EMBEDDING} in the record at byte {offset}; fetch it again")
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


def _record(file: BinaryIO, name: str) -> bytes | None:
    head = file.read(HEAD)
    if not head:
        return None
    size = struct.unpack("<Q", head[:8])[0] if len(head) == HEAD else MAX_RECORD_BYTES + 1
    body = file.read(size + TAIL) if size <= MAX_RECORD_BYTES else b""
    if len(body) != size + TAIL:
        raise SourceError(f"{name}: is cut off, or no TFRecord file; fetch it again")
    return body[:size]


def context(message: bytes) -> dict[str, Feature]:
    """The context of a SequenceExample: video_id, labels and the like. Raises SourceError for another message."""
    found: dict[str, Feature] = {}
    for field, value in fields(message):
        if field == CONTEXT:
            for _, entry in fields(_block(value)):
                key, feature = _entry(entry)
                found[key] = values(feature)
    return found


def embedding(message: bytes) -> list[bytes]:
    """The rows of the list `audio_embedding`, a byte string each."""
    rows: list[bytes] = []
    for field, lists in fields(message):
        for _, entry in fields(_block(lists)) if field == LISTS else ():
            key, features = _entry(entry)
            if key == EMBEDDING:
                found = (row for _, feature in fields(features) for row in values(_block(feature)))
                rows += [row for row in found if isinstance(row, bytes)]
    return rows


def values(feature: bytes) -> Feature:
    """A tf.train.Feature: its one list. Numbers stand packed or one by one."""
    for kind, block in fields(feature):
        items: Feature = []
        for _, value in fields(_block(block)):
            if kind == INTS and isinstance(value, bytes):
                items += varints(value)
            elif kind == FLOATS and isinstance(value, bytes):
                items += np.frombuffer(value, "<f4").tolist()
            else:
                items.append(value)
        return items
    return []


def varints(packed: bytes) -> list[int]:
    """Integers of a packed field; negative ones have 64 bits."""
    found, at = [], 0
    while at < len(packed):
        value, at = _varint(packed, at)
        found.append(value - (1 << 64) if value >> 63 else value)
    return found


def fields(message: bytes) -> Iterator[tuple[int, bytes | int | float]]:
    """Number and value of every field: bytes, or a number. Raises SourceError where the message breaks off."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, wire = tag >> 3, tag & 7
        value: bytes | int | float
        if wire == 0:
            value, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
            [value] = struct.unpack("<d" if wire == 1 else "<f", _cut(message, at, size))
            at += size
        elif wire == 2:
            size, at = _varint(message, at)
            value, at = _cut(message, at, size), at + size
        else:
            raise SourceError("is no tf.SequenceExample; take the file from the data set's download page")
        yield field, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise SourceError("is no tf.SequenceExample, or damaged; fetch it again")


def _cut(message: bytes, at: int, size: int) -> bytes:
    if at + size > len(message):
        raise SourceError("holds a record that breaks off; fetch it again")
    return message[at : at + size]


def _entry(entry: bytes | int | float) -> tuple[str, bytes]:
    """Key and value of an entry of a map."""
    pair = dict(fields(_block(entry)))
    return _block(pair.get(1, b"")).decode("utf-8", "replace"), _block(pair.get(2, b""))


def _block(value: bytes | int | float) -> bytes:
    if not isinstance(value, bytes):
        raise SourceError("is no tf.SequenceExample; take the file from the data set's download page")
    return value
