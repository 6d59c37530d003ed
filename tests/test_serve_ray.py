"""The same service on Ray Serve: the same answers, and no request lost with a replica."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import tempfile
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hostile import BOUNDARY, form, hostile_uploads, sound_bytes
from processes import members

from atose_ray import find
from atose_ray.apps.model import load_model

pytest.importorskip("fastapi", reason="needs the extra `serve`")
from serving import serving

TOKEN = "only for this test"
SOUND = sound_bytes()
GOOD = form([('form-data; name="file"; filename="a.wav"', SOUND)])
HEADERS = {"content-type": f"multipart/form-data; boundary={BOUNDARY}", "authorization": f"Bearer {TOKEN}"}


def ask(port: int, body: bytes = GOOD, path: str = "/tag", **headers: str) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=150)
    connection.request("POST", path, body, {**HEADERS, **headers})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def replicas(session: int) -> list[int]:
    """Pids of the processes with models."""
    found = []
    for pid in members(session):
        with contextlib.suppress(OSError):
            if b"ServeReplica:atose_ray:models" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.mark.ray
def test_on_ray_with_a_replica_killed(model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "one.wav").write_bytes(SOUND)
    find.main(["index", model_folder, str(tmp_path / "sounds"), str(tmp_path / "sounds.index")])
    limits = ("replicas=2", "cpus=0.5", "max_mib=1", "max_seconds=20", "index=sounds.index")
    sets = [word for one in limits for word in ("--set", one)]
    wanted = dict(load_model(model_folder).tag(SOUND).scores)
    with contextlib.ExitStack() as stack:
        short = stack.enter_context(tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True))
        variables = {"ATOSE_SERVE_TOKEN": TOKEN, "RAY_TMPDIR": short, "RAY_AUTH_MODE": "disabled"}
        up = stack.enter_context(serving(tmp_path, f"tones={model_folder}", "--cpus", "2", *sets, **variables))
        port = up.port
        status, answer = ask(port)
        assert status == 200 and answer["scores"] == pytest.approx(wanted, abs=1e-5)
        assert ask(port, authorization="Bearer wrong")[0] == 401
        status, answer = ask(port, path="/find?words=low")  # and by the sound
        [found] = answer["found"]
        assert status == 200 and found["path"] == "one.wav"
        assert found["terms"] == pytest.approx({"low": wanted["low"], "like": 1.0}, abs=1e-5)
        metrics = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=HEADERS)
        assert b'atose_batch_clips_count{model="tones"} ' in urllib.request.urlopen(metrics, timeout=60).read()
        for what, headers, body in hostile_uploads(40):
            status, refused = ask(port, body, **headers)
            assert 400 <= status < 500 and refused["error"], (what, status)
        done = []

        def one(number: int) -> int:
            if number == 60:
                os.kill(replicas(up.pid)[0], signal.SIGKILL)
            done.append(ask(port)[0])
            return done[-1]

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(one, range(200))) == [200] * 200
