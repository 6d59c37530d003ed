"""What a search puts on record is what happened, whoever writes at the same time, and every trial ends as what it was."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from test_s3 import Bucket, bucket  # noqa: F401

from atose_ray.search.listeners import SESSIONS, earlier_seconds
from atose_ray.storage import Store
from atose_ray.training.record import LOG, RunFolder

# Two who append to one file


def append_from_two(place: str, name: str, lines: int) -> None:
    def add(who: str) -> None:
        for number in range(lines):
            Store(place).append_line(name, f"{who} {number}")

    writers = [threading.Thread(target=add, args=(who,)) for who in "ab"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()


@pytest.mark.parametrize("remote", [True, False])
def test_what_two_append_at_once_all_survives(remote: bool, bucket: Bucket, tmp_path: Path) -> None:  # noqa: F811
    store = Store(bucket.uri("lab") if remote else str(tmp_path))
    append_from_two(store.uri, LOG, 40)
    lines = store.read_lines(LOG)
    assert len(lines) == 80
    for who in "ab":
        assert [line for line in lines if line[0] == who] == [f"{who} {number}" for number in range(40)]
    assert len([name for name, *_ in store.files() if name.startswith(LOG)]) == (2 if remote else 1)


def test_a_log_of_the_old_form_is_read_and_goes_on(
    bucket: Bucket,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store(bucket.uri("lab"))
    old = {"event": "note", "cause": "x", "text": "written whole", "time": 1.0}
    store.write(LOG, (json.dumps(old) + "\n").encode())
    RunFolder(store).note("y", "by another clock")
    monkeypatch.setattr("time.time_ns", lambda: 5)  # the next writer's clock is decades behind
    thread = threading.Thread(target=RunFolder(store).end, args=("complete",))
    thread.start()
    thread.join()
    assert [event.get("text", event["event"]) for event in RunFolder(store).events()] == [
        "written whole",
        "by another clock",
        "end",
    ]
    for name, *_ in store.files():  # a copy on a disk goes on as a file of lines
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.read(name))
    copy = Store(str(tmp_path))
    copy.append_line(LOG, "{}")
    assert len((tmp_path / LOG).read_text().splitlines()) == 4 and copy.names() == [LOG]


def test_sessions_in_object_storage_add_up(bucket: Bucket) -> None:  # noqa: F811
    folder = Store(bucket.uri("lab"))
    folder.write(SESSIONS, b'{"event": "start", "time": 10.0}\n{"event": "end", "time": 15.0}\n')
    for event, at in (("start", 20.0), ("end", 27.0)):
        folder.append_line(SESSIONS, json.dumps({"event": event, "time": at}))
    assert earlier_seconds(folder, []) == 12.0
