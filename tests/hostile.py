"""What strangers send to a service: bodies that are no sound, no form, or meant to do harm."""

from __future__ import annotations

import gzip
import io
import itertools
import struct
import wave
import zipfile
from collections.abc import Iterator

import numpy as np

BOUNDARY = "limit"
RATE = 4000
Upload = tuple[str, dict[str, str], bytes]


def sound_bytes(seconds: float = 2.0) -> bytes:
    """A WAV file of a tone in noise."""
    time_T = np.arange(int(seconds * RATE)) / RATE
    audio_T = 0.4 * np.sin(2 * np.pi * 300 * time_T) + 0.05 * np.random.default_rng(3).standard_normal(len(time_T))
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((audio_T * 32767).astype("<i2").tobytes())
    return content.getvalue()


def form(parts: list[tuple[str, bytes]], boundary: str = BOUNDARY, end: bool = True) -> bytes:
    """Content-Disposition and content of each part."""
    rows = [f"--{boundary}\r\nContent-Disposition: {head}\r\n\r\n".encode() + body + b"\r\n" for head, body in parts]
    return b"".join(rows) + (f"--{boundary}--\r\n".encode() if end else b"")


def hostile_uploads(most: int) -> list[Upload]:
    """(what it is, headers, body), every kind first, then the same with other bytes."""
    plain = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    rng = np.random.default_rng(5)
    found: list[Upload] = []
    for round_ in itertools.count():
        for what, body in bad_sounds(rng):
            named = ("../../../etc/passwd", "a.wav", "..\\..\\a.wav", "/dev/zero", "a\x7f.wav", "%2e%2e%2f")[round_ % 6]
            found.append((what, plain, form([(f'form-data; name="file"; filename="{named}"', body)])))
        found += [(what, {**plain, **headers}, body) for what, headers, body in bad_forms(rng)]
        if len(found) >= most:
            return found[:most]


def bad_sounds(rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Files that are no sound, or that declare more than they hold."""
    good = sound_bytes()
    yield "empty", b""
    yield "noise", rng.bytes(5000)
    yield "text", b"#!/bin/sh\nrm -rf /\n"
    yield "a page", b"<html><script>alert(1)</script></html>"
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.wav", bytes(50 << 20))
    yield "zip bomb", bomb.getvalue()
    yield "gzip bomb", gzip.compress(bytes(50 << 20))
    yield "half of a sound", (long := sound_bytes(10.0))[: len(long) // 2]
    yield "only a header", good[:44]
    yield "a rate of 4 GHz", good[:24] + struct.pack("<I", 0xFFFFFFFF) + good[28:]
    yield "65535 channels", good[:22] + struct.pack("<H", 0xFFFF) + good[24:]
    yield "a size of 1 GiB", good[:40] + struct.pack("<I", 1 << 30) + good[44:60]
    yield "a playlist", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"
    yield "a stream list", b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    yield "a concat list", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "a pickle", b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    yield "an image", b"\x89PNG\r\n\x1a\n" + rng.bytes(500)
    yield "NaN", not_finite()
    yield "too large", bytes((1 << 20) + 1)
    yield "too long", sound_bytes(30.0)
    yield "nothing but NUL", bytes(4000)


def not_finite() -> bytes:
    """A float WAV of NaN."""
    data = np.full(4000, np.nan, "<f4").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, RATE, 4 * RATE, 4, 32)
    return head + struct.pack("<4sI", b"data", len(data)) + data


def bad_forms(rng: np.random.Generator) -> Iterator[tuple[str, dict[str, str], bytes]]:
    """Bodies that are no form with one file."""
    good, file = sound_bytes(), 'form-data; name="file"; filename="a.wav"'
    yield "no content type", {"content-type": ""}, good
    yield "JSON", {"content-type": "application/json"}, b'{"file": "/etc/passwd"}'
    yield "a form of fields", {"content-type": "application/x-www-form-urlencoded"}, b"file=/etc/passwd"
    yield "a sound as the body", {"content-type": "audio/wav"}, good
    yield "no boundary", {"content-type": "multipart/form-data"}, form([(file, good)])
    yield "another boundary", {"content-type": "multipart/form-data; boundary=other"}, form([(file, good)])
    yield "a long boundary", {"content-type": f"multipart/form-data; boundary={'b' * 3000}"}, form([(file, good)])
    yield "no end", {}, form([(file, good)], end=False)
    yield "no body", {}, b""
    yield "noise as the form", {}, rng.bytes(3000)
    yield "another field", {}, form([('form-data; name="sound"; filename="a.wav"', good)])
    yield "two files", {}, form([(file, good), (file, good)])
    yield "a thousand parts", {}, form([('form-data; name="x"', b"1")] * 1000)
    yield "a part with huge headers", {}, form([(f'form-data; name="file"; filename="{"a" * 100_000}"', good)])
    yield "a part with many headers", {}, form([(file + "\r\n" + "\r\n".join(f"X-{n}: y" for n in range(5000)), good)])
    yield "headers without an end", {}, f"--{BOUNDARY}\r\n".encode() + b"X: " + b"y" * 50_000
    yield "a header that is none", {}, f"--{BOUNDARY}\r\n\x00\x01: x\r\n\r\n".encode() + good
    yield "a field as the file", {}, form([('form-data; name="file"', b"/etc/passwd")])
    yield "gzip as its coding", {"content-encoding": "gzip"}, gzip.compress(form([(file, good)]))
    yield "mixed parts", {"content-type": f"multipart/mixed; boundary={BOUNDARY}"}, form([(file, good)])
