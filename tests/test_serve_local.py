"""`python -m atose_ray.serve --local` as a process: what strangers send over the wire, and that it lives on."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile import BOUNDARY, form, hostile_uploads, sound_bytes

pytest.importorskip("fastapi", reason="needs the extra `serve`")
from serving import serving

GOOD = form([('form-data; name="file"; filename="a.wav"', sound_bytes())])
HEAD = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
LIMITS = ("max_mib=1", "max_seconds=20", "upload_s=2", "per_minute=100000", "max_open=4")


@pytest.fixture(scope="module")
def served(model_folder: str, tmp_path_factory) -> Iterator[tuple[int, Path]]:
    folder = tmp_path_factory.mktemp("served")
    sets = [word for limit in LIMITS for word in ("--set", limit)]
    (folder / "tmp").mkdir()
    with serving(folder, f"tones={model_folder}", "--local", *sets, TMPDIR=str(folder / "tmp")) as up:
        yield up.port, folder


def ask(port: int, body=GOOD, path: str = "/tag", **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, body, {**HEAD, **headers}, encode_chunked=not isinstance(body, bytes))
    response = connection.getresponse()
    return response.status, json.loads(response.read() or b"{}")


def raw(port: int, *parts: bytes) -> bytes:
    """What comes back for bytes as they are; nothing where the other side hangs up."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as line, contextlib.suppress(ConnectionError):
        for part in parts:
            line.sendall(part)
        while not is_whole(answer) and (more := line.recv(65536)):
            answer += more
    return answer


def is_whole(answer: bytes) -> bool:
    """Whether a response has come to the end of its body, which may be another packet's."""
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    return bool(end) and (length is None or len(body) >= int(length[1]))


def test_a_sound_over_the_wire(served: tuple[int, Path]) -> None:
    port, folder = served
    status, answer = ask(port)
    assert status == 200 and answer["model"] == "tones" and len(answer["scores"]) == 4
    log = next(folder.glob("*.log")).read_text()
    assert log == f"serving tones at http://127.0.0.1:{port}/ (Ctrl-C ends it)\n"


def test_an_endless_stream_is_cut(served: tuple[int, Path]) -> None:
    port, _ = served
    sent = [0]

    def endless() -> Iterator[bytes]:
        yield GOOD[:200]
        while sent[0] < 64 << 20:
            sent[0] += 65536
            yield bytes(65536)

    with contextlib.suppress(ConnectionError):  # it hangs up while we are sending
        assert ask(port, endless(), **{"transfer-encoding": "chunked"})[0] == 413
    assert sent[0] < 64 << 20, "it took all of it"
    assert ask(port)[0] == 200


def test_a_stalled_upload_is_given_up(served: tuple[int, Path]) -> None:
    port, _ = served
    head = "POST /tag HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
    head += f"Content-Type: {HEAD['content-type']}\r\n\r\n"
    answer = raw(port, head.encode() + GOOD[:100])
    assert answer.startswith(b"HTTP/1.1 408 ") and b"took longer than 2 s" in answer


def test_what_is_no_http_is_refused(served: tuple[int, Path]) -> None:
    port, _ = served
    start = b"POST /tag HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    for parts in (
        [start + b"X: " + b"a" * 200_000 + b"\r\n\r\n"],
        [start, *(f"X-{number}: {'y' * 100}\r\n".encode() for number in range(2000)), b"\r\n"],
        [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)],
        [b"POST /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"],
        [start + b"Content-Length: -5\r\n\r\n"],
        [start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcde"],
        [start + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n"],
    ):
        answer = raw(port, *parts)
        assert answer == b"" or answer.split()[1].startswith(b"4"), (parts[0][:60], answer[:80])
    for path in ("/../../etc/passwd", "/static/..%2f..%2fetc/passwd", "//etc/passwd", "/%00"):
        assert raw(port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()).split()[1] in (b"404", b"400")
    assert ask(port)[0] == 200


def test_more_than_may_be_open_come_again(served: tuple[int, Path]) -> None:
    port, _ = served
    head = f"POST /tag HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(GOOD)}\r\n"
    head += f"Content-Type: {HEAD['content-type']}\r\n\r\n"
    lines = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(4)]
    for line in lines:
        line.sendall(head.encode() + GOOD[:50])
    deadline = time.monotonic() + 60
    while (status := ask(port)[0]) == 200 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert status == 503
    for line in lines:
        line.sendall(GOOD[50:])
        assert line.recv(100).startswith((b"HTTP/1.1 200", b"HTTP/1.1 408"))
        line.close()
    assert ask(port)[0] == 200


@pytest.mark.parametrize("most", [pytest.param(40), pytest.param(200, marks=pytest.mark.slow)])
def test_hostile_uploads(served: tuple[int, Path], most: int) -> None:
    port, folder = served
    for what, headers, body in hostile_uploads(most):
        status, answer = ask(port, body, **headers)
        assert 400 <= status < 500 and answer["error"], (what, status, answer)
    assert ask(port)[0] == 200
    assert list((folder / "tmp").rglob("*")) == [] and [
        path.name for path in folder.iterdir() if path.suffix != ".log"
    ] == ["tmp"]
    assert "Traceback" not in next(folder.glob("*.log")).read_text()
