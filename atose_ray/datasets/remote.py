"""Sources in object storage: their clips, listed by the adapter that lists those of a folder, and their files.

An adapter reads tables and the names of files, never audio. So the bucket is listed once, its tables are copied, and
every audio file stands as an empty one of its name, in a folder that is gone when the clips are known. A clip's source
is then the URI of its object. Empty files cost no space; with 500,000 of them listing took 49 s (two cores, 2026-11).
"""

import contextlib
import dataclasses
import errno
import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from atose_ray.datasets.base import AUDIO_SUFFIXES, MATRIX_SUFFIXES, DatasetConfig, DatasetError, SourceError
from atose_ray.storage import FileStamp, Store, folder_of, is_uri
from atose_ray.types import ClipRef, Listing

TABLE_SUFFIXES = frozenset((".csv", ".tsv", ".txt", ".json"))


def list_source(config: DatasetConfig) -> Listing:
    """`config.list_clips()`, wherever the source lies. Raises DatasetError, or StoreError where it cannot be read."""
    if config.source is None or not is_uri(config.source) or config.renders:
        return config.list_clips()
    source = Store(config.source)
    place = source.uri.partition("?")[0]
    with tempfile.TemporaryDirectory(prefix="atose-listing-") as scratch:
        for stamp in source.files():
            stand_in(source, stamp, Path(scratch))
        try:
            listing = config.model_copy(update={"source": scratch}).list_clips()
        except DatasetError as error:
            raise DatasetError(str(error).replace(scratch, place)) from error
        clips = tuple(dataclasses.replace(clip, source=_uri(clip, source, scratch)) for clip in listing.clips)
    return dataclasses.replace(listing, clips=clips)


def stand_in(source: Store, stamp: FileStamp, scratch: Path) -> None:
    """A table is copied, an audio file becomes an empty one; other files, and names that no file can have, are left."""
    suffix, parts = Path(stamp.name).suffix.lower(), stamp.name.split("/")
    known = suffix in TABLE_SUFFIXES | AUDIO_SUFFIXES | MATRIX_SUFFIXES
    if not known or {"", ".", ".."} & set(parts) or "\0" in stamp.name:
        return
    path = scratch.joinpath(*parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as copy:
            if suffix in TABLE_SUFFIXES:
                with source.reading(stamp.name) as table:
                    shutil.copyfileobj(table, copy)
    except (FileExistsError, NotADirectoryError, IsADirectoryError, UnicodeEncodeError):
        return  # an object may be called as a folder of others is
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise


def _uri(clip: ClipRef, source: Store, scratch: str) -> str | bytes:
    """Where the object of a clip lies."""
    if isinstance(clip.source, bytes) or not clip.source.startswith(f"{scratch}/"):
        return clip.source
    return source.uri_of(*clip.source.removeprefix(f"{scratch}/").split("/"))


@contextlib.contextmanager
def open_source(source: str | bytes) -> Iterator[tuple[str | bytes | BinaryIO, int]]:
    """What a decoder reads, from wherever it stands, and its bytes; a file in object storage is fetched first, with the
    store's patience. Raises SourceError where there is none, StoreError where the storage does not answer."""
    if isinstance(source, bytes):
        yield source, len(source)
    elif is_uri(source):
        folder_uri, name = folder_of(source)
        try:
            with source_store(folder_uri).reading(name) as file:
                yield file, file.seek(0, os.SEEK_END)
        except FileNotFoundError as error:
            raise SourceError(f"{source}: no such file; check the path, or upload the file") from error
    else:
        yield source, os.path.getsize(source) if os.path.exists(source) else 0


source_store = functools.lru_cache(maxsize=64)(Store)  # a file system of its own for every file would be slow
