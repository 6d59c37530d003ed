"""One setting says where everything lives: a path, `file://`, `s3://bucket/prefix`, `gs://...`, `fsspec+<protocol>://...`.

    <store>/data/<name>/<hash>/   shards, manifest.json, facts.jsonl, data.html, quarantine.csv   (prepare, doctor)
    <store>/runs/<signature>/     one run folder                 (train)
    <store>/studies/<name>/       one study folder               (tune)

A `Store` is a folder in that place. It is rebuilt from its URI wherever it is needed, so that no credential is ever
pickled: keys come from the environment or the machine's role only; an endpoint may stand in the URI's query
(`s3://bucket/prefix?endpoint_override=http%3A%2F%2Fhost%3Aport`), in AWS_ENDPOINT_URL_S3 or in AWS_ENDPOINT_URL.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import pyarrow as pa
import pyarrow.fs as pafs

from atose_ray.storage.file_systems import open_file_system

T = TypeVar("T")
PAUSES_S = (0.2, 1.0, 4.0)
URI_MARKS = "%/:?#[]@!$&'()*+,;=~"  # stand in a URI as they are; what else is no ASCII letter or digit is encoded
SPOOL_BYTES, BLOCK_BYTES = 32 << 20, 1 << 20
PASSING = re.compile(r"INTERNAL_FAILURE|response stream|SLOW_DOWN|SERVICE_UNAVAILABLE")


class FileStamp(NamedTuple):
    """A file below a folder: its name from there, its bytes, and when it was written."""

    name: str
    size: int
    mtime_ns: int


class StoreError(ValueError):
    """The store cannot be read or written; the message says what was tried."""


def is_uri(place: str) -> bool:
    """Whether a place is written as a URI, and not as a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", place) is not None


def folder_of(uri: str) -> tuple[str, str]:
    """The URI of a file -> that of its folder, and its name there."""
    base, mark, query = uri.partition("?")
    folder, _, name = base.rpartition("/")
    return folder + mark + query, urllib.parse.unquote(name)


def read_uri(uri: str) -> bytes:
    """The content of a file by path or URI. Raises FileNotFoundError, or StoreError where the storage is away."""
    if not is_uri(uri):
        return Path(uri).read_bytes()
    folder, name = folder_of(uri)
    return Store(folder).read(name)


def default_store_uri() -> str:
    """ATOSE_STORE, else `atose_store` in the current folder."""
    return os.environ.get("ATOSE_STORE", "atose_store")


WRITERS = threading.local()


def writer() -> str:
    """The name under which this thread of this process appends: no other one ever has it."""
    if getattr(WRITERS, "pid", None) != os.getpid():  # a new thread, or a process that was forked
        WRITERS.pid, WRITERS.name = os.getpid(), uuid.uuid4().hex[:16]
    return str(WRITERS.name)


class Store:
    """A folder on a local disk or in object storage.

    Raises StoreError when the URI cannot be resolved.
    """

    def __init__(self, uri: str) -> None:
        user = urllib.parse.urlsplit(uri).username if is_uri(uri) else None
        if user and user != "anonymous":
            raise StoreError(
                "keys do not belong into a store's URI, which is written into logs and reports: set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or GOOGLE_APPLICATION_CREDENTIALS) in the environment"
            )
        self.uri = urllib.parse.quote(uri, URI_MARKS) if is_uri(uri) else str(Path(os.path.expanduser(uri)).absolute())
        try:
            self.fs, root = open_file_system(self.uri)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise StoreError(
                f"the store {uri!r} cannot be opened: {error}. Expected a path, file://, s3://, gs:// or "
                "fsspec+<protocol>://"
            ) from error
        self.root = root.rstrip("/")

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.uri,)

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @property
    def local_path(self) -> Path | None:
        """The folder on this machine, or None for object storage."""
        return Path(self.root) if isinstance(self.fs, pafs.LocalFileSystem) else None

    def child(self, *names: str) -> Store:
        """The store of a folder below this one (the query of a URI stays behind the path)."""
        return Store(self.uri_of(*names))

    def uri_of(self, *names: str) -> str:
        """The path or URI of what lies below this folder."""
        if not is_uri(self.uri):
            return "/".join([self.uri.rstrip("/"), *names])
        base, mark, query = self.uri.partition("?")
        return "/".join([base.rstrip("/"), *(urllib.parse.quote(name) for name in names)]) + mark + query

    def path(self, name: str) -> str:
        """The path of `name` as `self.fs` wants it."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether a file or folder of this name is there."""
        with self._reading():
            return bool(self.fs.get_file_info(self.path(name)).type != pafs.FileType.NotFound)

    def names(self, prefix: str = "") -> list[str]:
        """Names of the entries directly in this folder that start with `prefix`, sorted."""
        selector = pafs.FileSelector(self.root, allow_not_found=True)
        with self._reading():
            found = [info.base_name for info in self.fs.get_file_info(selector)]
        return sorted(name for name in found if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError when it is absent."""

        def whole() -> bytes:
            with self.fs.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())

        with self._reading():
            return self.again(whole)

    def again(self, call: Callable[[], T]) -> T:
        """What `call` gives, tried anew where object storage said that it cannot just now.

        Reads need it: the SDK tries again by itself, but not where an error's text does not fit into the buffer of a
        small read. Raises what the last try raised.
        """
        for pause in PAUSES_S:
            try:
                return call()
            except FileNotFoundError:
                raise
            except OSError as error:
                if not PASSING.search(str(error)):
                    raise
                time.sleep(pause)
        return call()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """An fsspec client raises what its own library raises (a missing key, say): that is an OSError here."""
        try:
            yield
        except (OSError, pa.ArrowException):
            raise
        except Exception as error:
            if not isinstance(self.fs, pafs.PyFileSystem):
                raise
            raise OSError(f"{type(error).__name__}: {error}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """A place that does not answer, or refuses, is the person's to set right: StoreError."""
        try:
            with self._asking():
                yield
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"cannot read the store {self.uri}: {error}. Check the address, the network and the credentials"
            ) from error

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """An empty file, for writing and reading, that becomes `name` when the block ends without an error; a reader
        sees the old content or the new, never a half. What is for object storage waits on this machine's disk.

        Raises StoreError when the place is not writable.
        """
        target = self.path(name)
        try:
            if self.local_path is None:
                with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
                    yield cast(BinaryIO, spool)
                    self.again(lambda: self._upload(cast(BinaryIO, spool), target))
                return
            partial = Path(f"{target}.{uuid.uuid4().hex[:8]}.partial")
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("w+b") as file:
                yield file
            partial.replace(target)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(
                f"cannot write {name!r} in the store {self.uri}: {error}. Choose a writable place with --store "
                "or ATOSE_STORE"
            ) from error

    def _upload(self, file: BinaryIO, target: str) -> None:
        file.seek(0)
        with self._asking(), self.fs.open_output_stream(target) as stream:
            shutil.copyfileobj(file, stream, BLOCK_BYTES)

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file; a reader sees the old content or the new, never a half.

        Raises StoreError when the place is not writable.
        """
        with self.writing(name) as file:
            file.write(content)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        """A copy of a file on this machine, in memory where it is small, on the disk where not; seekable.

        Raises FileNotFoundError when it is absent, StoreError when it cannot be read.
        """
        with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES) as spool:
            with self._reading():
                self.again(lambda: self._download(name, cast(BinaryIO, spool)))
            spool.seek(0)
            yield cast(BinaryIO, spool)

    def _download(self, name: str, file: BinaryIO) -> None:
        file.seek(0)
        file.truncate()
        with self.fs.open_input_stream(self.path(name)) as stream:
            shutil.copyfileobj(stream, file, BLOCK_BYTES)

    def files(self) -> Iterator[FileStamp]:
        """Every file below this folder, a folder at a time. Links to folders are not followed."""
        folders = [""]
        while folders:
            here = folders.pop()
            selector = pafs.FileSelector(f"{self.root}/{here}".rstrip("/"), allow_not_found=True)
            with self._reading():
                found = self.again(lambda: self.fs.get_file_info(selector))  # noqa: B023
            for info in found:
                name = f"{here}/{info.base_name}".lstrip("/")
                if info.type == pafs.FileType.Directory:
                    folders.append(name)
                elif info.type == pafs.FileType.File:
                    yield FileStamp(name, info.size, info.mtime_ns or 0)

    def append_line(self, name: str, line: str) -> None:
        """Add one line to a text file, beside whoever else adds to it; `read_lines` gives all of them.

        Object storage has no append, and what two write is lost where they write one object. So there every writer (a
        thread of a process) has an object of its own below `<name>.d/`, whose lines begin with a stamp: the time, or
        more where a line that can be seen by now has a later one, as clocks differ."""
        if self.local_path is None:
            own, parts = f"{writer()}.txt", self._parts(name)
            last = max((stamp for part in parts.values() for stamp, _ in part), default=0)
            kept = [*parts.get(own, []), (max(time.time_ns(), last + 1), line)]
            self.write(f"{name}.d/{own}", "".join(f"{stamp} {text}\n" for stamp, text in kept).encode())
            return
        if self.exists(f"{name}.d"):  # a copy of what was in object storage
            self.write_lines(name, self.read_lines(name))
        try:
            path = self.local_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab+") as stream:
                end = stream.tell()
                stream.seek(max(0, end - 1))
                torn = end > 0 and stream.read(1) != b"\n"  # a crash cut the last line short
                stream.write(b"\n" * torn + line.encode() + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise StoreError(
                f"cannot write {name!r} in the store {self.uri}: {error}. Free some space, or choose another place "
                "with --store or ATOSE_STORE"
            ) from error

    def read_lines(self, name: str) -> list[str]:
        """The lines of a file that was appended to, in order; none of one that is absent.

        Raises StoreError when it cannot be read."""
        try:
            whole = self.read(name).decode().splitlines()
        except FileNotFoundError:
            whole = []
        merged = sorted((line for part in self._parts(name).values() for line in part), key=lambda line: line[0])
        return [*whole, *(text for _, text in merged)]

    def write_lines(self, name: str, lines: Iterable[str]) -> None:
        """Write a file that is appended to anew, where nobody appends meanwhile."""
        self.write(name, "".join(f"{line}\n" for line in lines).encode())
        self.delete(f"{name}.d")

    def _parts(self, name: str) -> dict[str, list[tuple[int, str]]]:
        """Of every writer's object below `<name>.d/`: its stamped lines."""
        selector = pafs.FileSelector(self.path(f"{name}.d"), allow_not_found=True)
        with self._reading():
            found = self.again(lambda: self.fs.get_file_info(selector))
        parts = {}
        for own in sorted(info.base_name for info in found if info.base_name.endswith(".txt")):
            lines = self.read(f"{name}.d/{own}").decode().splitlines()
            parts[own] = [(int(stamp), text) for stamp, _, text in (line.partition(" ") for line in lines)]
        return parts

    def read_json(self, name: str) -> Any:
        """The value in a JSON file."""
        return json.loads(self.read(name))

    def write_json(self, name: str, value: Any) -> None:
        """Write a value as indented JSON with sorted keys; NaN is refused."""
        self.write(name, (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode())

    def delete(self, name: str) -> None:
        """Delete a file or a whole folder; absent is fine."""
        with self._asking():
            kind = self.fs.get_file_info(self.path(name)).type
            if kind == pafs.FileType.Directory:
                self.fs.delete_dir(self.path(name))
            elif kind == pafs.FileType.File:
                self.fs.delete_file(self.path(name))

    def move(self, name: str, target: Store) -> None:
        """Move a file into another folder of the same storage, where nobody reads it yet; absent is fine. Raises
        StoreError when the place is not writable."""
        source, goal = self.path(name), target.path(name)
        try:
            with self._asking():
                if self.local_path is not None:
                    Path(goal).parent.mkdir(parents=True, exist_ok=True)
                    self.fs.move(source, goal)
                else:  # object storage copies by itself: nothing travels through this machine
                    self.again(lambda: self.fs.copy_file(source, goal))
                    self.again(lambda: self.fs.delete_file(source))
        except FileNotFoundError:
            return
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"cannot move {name!r} from {self.uri} to {target.uri}: {error}") from error

    def check_writable(self) -> None:
        """Put, get and delete one small object, so that a wrong store is known before work starts."""
        name, token = f".check-{uuid.uuid4().hex[:8]}", os.urandom(16)
        try:
            self.write(name, token)
            if self.read(name) != token:
                raise StoreError(f"the store {self.uri} does not give back what was written to it")
            self.delete(name)
        except OSError as error:
            raise StoreError(f"the store {self.uri} cannot be used: {error}") from error
