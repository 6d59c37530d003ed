"""What stands between a file and the libraries that decode it: reads that are counted, errors that get through, a
silent stderr. A file is a stranger's: its header may declare anything, and must cost no more than its bytes are worth.
"""

import contextlib
import io
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

READS_PER_BYTE, FREE_READS = 16, 1 << 26  # bytes that a decoder may read: seeking and probing read some of them again
CALL_BYTES = 256  # what a read or a seek costs at least, so that a loop of empty ones ends too
SAMPLES_PER_BYTE, FREE_SAMPLES = 1024, 1 << 22  # per channel; an hour of digital silence in FLAC is 350 a byte


class AudioError(ValueError):
    """A file that cannot become audio; the message names the file, what came, and what to do."""


class GuardedFile:
    """A seekable binary file for libraries that cannot be stopped: after too many reads it has come to its end.

    An exception of the file below it would be lost in a C library, so it is kept, the read gives nothing, and `check`
    raises it. Has no `name`, which FFmpeg and soundfile would believe more than the content."""

    def __init__(self, file: BinaryIO, name: str, size: int) -> None:
        self.label, self.size = name, size
        self._file = file
        self._left = READS_PER_BYTE * size + FREE_READS
        self._failure: Exception | None = None

    def read(self, count: int = -1) -> bytes:
        """Up to `count` bytes, fewer only at the end of the file, of the allowance, or after a failure."""
        count = self.size if count < 0 else count
        parts = []
        try:
            while count > 0 and self._pay(0) and (part := self._file.read(count)):
                self._pay(len(part))
                parts.append(part)
                count -= len(part)
        except Exception as error:  # whatever storage raises: `check` raises it again
            self._failure = error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        """Fill a writable buffer; returns how many bytes were put into it."""
        part = self.read(len(buffer))
        buffer[: len(part)] = part
        return len(part)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """New position; -1, and the old one kept, for a position that cannot be."""
        try:
            to = offset + (0, self._file.tell(), self.size)[whence]
            return self._file.seek(to) if 0 <= to < 1 << 62 and self._pay(0) else -1
        except Exception as error:  # as in `read`
            self._failure = error
            return -1

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def check(self, samples: int = 0) -> None:
        """Raises what reading raised, and AudioError once the allowance is spent. samples: per channel, decoded so far;
        more than the file's bytes can be worth raise AudioError too."""
        if self._failure is not None:
            raise self._failure
        if self._left < 0:
            raise AudioError(
                f"{self.label}: decoding it read {READS_PER_BYTE} times its {self.size} bytes without an end: damaged; "
                "fetch it again"
            )
        if samples > SAMPLES_PER_BYTE * self.size + FREE_SAMPLES:
            raise AudioError(
                f"{self.label}: {self.size} bytes decode to more than {SAMPLES_PER_BYTE} samples a byte: damaged, or "
                "made to exhaust a decoder; if it is meant so, convert it to WAV"
            )

    def _pay(self, count: int) -> bool:
        """Take a call of `count` bytes off the allowance; False when there is none left, or after a failure."""
        self._left -= max(count, CALL_BYTES)
        return self._left >= 0 and self._failure is None


@contextlib.contextmanager
def open_source(source: str | bytes | BinaryIO, name: str | None) -> Iterator[GuardedFile]:
    """Path, encoded bytes or open file -> a guarded file at its start; an open file stays open. name: for messages; the
    path, or the size, where there is none. Raises AudioError when there is nothing to read."""
    with contextlib.ExitStack() as stack:
        if isinstance(source, str):
            name = name or source
            if not Path(source).is_file():
                why = "is a directory, not a file" if Path(source).is_dir() else "no such file"
                raise AudioError(f"{name}: {why}; check the path, or fetch the file")
            file: BinaryIO = stack.enter_context(open(source, "rb"))
        else:
            file = io.BytesIO(source) if isinstance(source, bytes) else source
        size = file.seek(0, io.SEEK_END)
        name = name or f"<{size} bytes>"
        if size == 0:
            raise AudioError(f"{name}: is empty (0 bytes): the download probably failed; fetch it again")
        file.seek(0)
        yield GuardedFile(file, name, size)


_stderr = threading.Lock()


@contextlib.contextmanager
def silent_stderr() -> Iterator[None]:
    """File descriptor 2 leads nowhere meanwhile, for one thread at a time: libmpg123 prints its warnings there, past
    Python."""
    with _stderr, contextlib.ExitStack() as undo:
        with contextlib.suppress(OSError):  # it is closed already
            kept = os.dup(2)
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, 2)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        yield
