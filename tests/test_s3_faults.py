"""Object storage that fails or stalls: nothing is lost, and what cannot go on says so within the time-out."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import RATE
from test_prepare_resume import content
from test_s3 import Bucket, bucket  # noqa: F401  (a fixture)

from atose_ray.data.prepare import prepare
from atose_ray.data.shards import data_store
from atose_ray.datasets import dataset_config
from atose_ray.storage import Store, StoreError, file_systems

pytestmark = pytest.mark.slow
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class Faulty(ThreadingHTTPServer):
    """Passes requests on to `target`; every `every`-th gets 503 instead, and all of them nothing while `stalled`."""

    daemon_threads = True

    def __init__(self, target: str, every: int) -> None:
        super().__init__(("127.0.0.1", 0), Relay)
        self.target, self.every, self.stalled = target, every, threading.Event()
        self.numbers, self.failed = itertools.count(1), 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def relay(self) -> None:
        while self.server.stalled.is_set():
            time.sleep(0.05)
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = self.read_chunks()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if next(self.server.numbers) % self.server.every == 0:
            self.server.failed += 1
            self.answer(503, [("Content-Type", "application/xml")], SLOW_DOWN)
            return
        connection = http.client.HTTPConnection(self.server.target, timeout=30)
        dropped = ("expect", "transfer-encoding", "content-length")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        kept = [
            (k, v)
            for k, v in answer.getheaders()
            if k.lower() not in ("transfer-encoding", "connection", "date", "server")
        ]
        self.answer(answer.status, kept, answer.read())
        connection.close()

    def read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = relay

    def log_message(self, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def faulty(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:  # noqa: F811
    server = Faulty(bucket.endpoint.removeprefix("http://"), every=20)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield server
    server.stalled.clear()
    server.shutdown()
    server.server_close()


def config(source: Path):
    return dataset_config("folder", source=str(source), sample_rate_hz=RATE)


def test_nothing_is_lost_where_five_of_a_hundred_requests_fail(faulty, bucket, tiny_source, tmp_path) -> None:  # noqa: F811
    store = Store(bucket.uri("lab"))
    manifest, _ = prepare(config(tiny_source), store)
    for number in range(40):
        store.append_line("log.jsonl", str(number))
    assert store.read_lines("log.jsonl") == [str(number) for number in range(40)]
    assert faulty.failed >= 5
    prepare(config(tiny_source), Store(str(tmp_path)))
    here, there = content(tmp_path / "data" / "folder"), store.child("data", "folder")
    assert sorted(file.name for file in there.files()) == sorted(here)
    assert {name: there.read(name) for name in here} == here and not manifest.skipped


def test_a_stall_is_an_error_in_time_and_the_work_goes_on_after(faulty, bucket, tiny_source, monkeypatch) -> None:  # noqa: F811
    for name, value in {"S3_ATTEMPTS": 2, "S3_CONNECT_S": 1.0, "S3_REQUEST_S": 1.0}.items():
        monkeypatch.setattr(file_systems, name, value)
    store = Store(bucket.uri("lab"))
    store.check_writable()
    faulty.stalled.set()
    with pytest.raises(StoreError, match=r"cannot write .* in the store s3://.*[Tt]ime"):
        store.write("a.txt", b"a")
    with pytest.raises(StoreError, match=r"cannot read the store s3://"):
        store.exists("a.txt")
    faulty.stalled.clear()
    prepare(config(tiny_source), store)
    assert data_store(store, "folder").exists("manifest.json")
