"""The body of a request -> a sound in memory. Nothing of it is written to the disk, and its names open nothing."""

import logging
from typing import Any, NamedTuple

import anyio
from python_multipart.exceptions import ParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from atose_ray.apps.service.config import Wrong

MOST_PARTS, HEADER_BYTES, ROUND = 8, 8192, 64 << 10  # parts of a form, bytes of a part's headers, the form's own bytes
FILE = "file"  # the part that holds the sound
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a stranger's form is told to the stranger


class Upload(NamedTuple):
    """name: for answers, without a path."""

    name: str
    content: bytes


async def read_upload(request: Request, most_bytes: int, seconds: float) -> Upload:
    """The part `file` of a multipart/form-data body. Raises Wrong for anything else: 400, 408, 413, 415."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise Wrong(415, "send the sound as multipart/form-data with a part `file`: curl -F file=@song.wav")
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise Wrong(400, "multipart/form-data needs a boundary of 1 to 70 bytes")
    form = Form(boundary, most_bytes)
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > most_bytes + ROUND:
        raise form.too_large()
    try:
        with anyio.fail_after(seconds):
            async for chunk in request.stream():
                form.write(chunk)
    except TimeoutError:
        raise Wrong(408, f"the upload took longer than {seconds:g} s") from None
    except ParseError as error:
        raise Wrong(400, f"the body is no multipart/form-data: {error}") from None
    except ClientDisconnect:
        raise Wrong(400, "the client left in the middle of its upload") from None
    return form.upload()


class Form:
    """A parser that keeps one part and counts the rest."""

    def __init__(self, boundary: bytes, most_bytes: int) -> None:
        self.most, self.received, self.parts, self.header_bytes = most_bytes, 0, 0, 0
        self.field, self.value, self.headers = b"", b"", dict[bytes, bytes]()
        self.found: str | None = None
        self.wanted = self.complete = False
        self.content = bytearray()
        events = ("part_begin", "part_data", "header_field", "header_value", "header_end", "headers_finished", "end")
        calls: Any = {f"on_{event}": getattr(self, f"on_{event}") for event in events}
        self.parser = MultipartParser(boundary, calls)

    def write(self, chunk: bytes) -> None:
        """Raises Wrong for a body that is too large, ParseError for one that is no form."""
        self.received += len(chunk)
        if self.received > self.most + ROUND:
            raise self.too_large()
        self.parser.write(chunk)

    def too_large(self) -> Wrong:
        """The refusal."""
        return Wrong(413, f"the upload is larger than {self.most / (1 << 20):g} MiB, the most that this service takes")

    def upload(self) -> Upload:
        """What was found. Raises Wrong where it is not whole."""
        if not self.complete:
            raise Wrong(400, "the body ends in the middle of its multipart/form-data")
        if self.found is None:
            raise Wrong(400, "the form has no part `file` with the sound: curl -F file=@song.wav")
        return Upload(self.found, bytes(self.content))

    def on_part_begin(self) -> None:
        self.parts, self.header_bytes, self.headers = self.parts + 1, 0, {}
        self.wanted = False
        if self.parts > MOST_PARTS:
            raise Wrong(400, f"the form has more than {MOST_PARTS} parts; send `file` alone")

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.field += self._header(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += self._header(data[start:end])

    def _header(self, piece: bytes) -> bytes:
        self.header_bytes += len(piece)
        if self.header_bytes > HEADER_BYTES:
            raise Wrong(400, f"a part has headers of more than {HEADER_BYTES} bytes")
        return piece

    def on_header_end(self) -> None:
        self.headers[self.field.lower()] = self.value
        self.field = self.value = b""

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self.headers.get(b"content-disposition", b""))
        self.wanted = options.get(b"name") == FILE.encode()
        if self.wanted:
            if self.found is not None:
                raise Wrong(400, "the form has two parts `file`; send one sound a request")
            self.found = plain_name(options.get(b"filename", b"").decode("utf-8", "replace"))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self.wanted:
            self.content += data[start:end]
            if len(self.content) > self.most:
                raise self.too_large()

    def on_end(self) -> None:
        self.complete = True


def plain_name(name: str) -> str:
    """A client's file name without folders and what does not print; `sound` where nothing is left."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[-100:].strip(" .") or "sound"
