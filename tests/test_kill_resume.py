"""A search that dies or is stopped goes on with the same command: no work twice, no trial lost, a score a winner."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from processes import PATIENCE_S, alive, end, environment, wait_for
from test_ray import study

from atose_ray.search.record import load_study_record
from atose_ray.storage import Store

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through /proc"),
]

TRIALS, EPOCHS = 3, 40


class Search:
    """The command of one search, run again and again; its processes are ended with the test."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        arm = {"supervised": {"head": {"kind": "mlp", "hidden": 8}, "stages": [{"name": "classify", "epochs": EPOCHS}]}}
        config = study(arm, trials=TRIALS, concurrency=1, pruner={"kind": "none"})
        file = folder / "again.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        self.command = [sys.executable, "-m", "atose_ray.tune", str(file), "--cpus", "2"]
        self.folder, self.scratch, self.store = folder, scratch, Store(str(folder / "store"))
        self.sessions: list[int] = []

    def start(self) -> subprocess.Popen[str]:
        (self.scratch / str(len(self.sessions))).mkdir()
        variables = environment(
            RAY_TMPDIR=str(self.scratch / str(len(self.sessions))), RAY_AUTH_MODE="disabled", ATOSE_STORE=self.store.uri
        )
        with self.output.open("w") as output:
            running = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=variables,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self.sessions.append(running.pid)
        return running

    @property
    def output(self) -> Path:
        return self.folder / "output.txt"

    def logs(self) -> dict[int, Path]:
        """Log file of every trial that has one, by trial number."""
        found = (self.folder / "store" / "studies" / "again" / "trials").glob("*/log.jsonl")
        return {json.loads(log.with_name("about.json").read_text())["number"]: log for log in found}

    def wait_until_midway(self, ended: int) -> None:
        """Until `ended` trials have an end and one more has begun."""

        def midway() -> bool:
            assert alive(self.sessions[-1]), self.output.read_text()
            logs = self.logs()
            ends = sum('"end"' in log.read_text() for log in logs.values())
            open_epochs = [len(epochs(log)) for log in logs.values() if '"end"' not in log.read_text()]
            return ends >= ended and any(3 <= count <= EPOCHS // 2 for count in open_epochs)

        wait_for(f"{ended} ended trials and one midway", midway, every=0.02)


def epochs(log: Path) -> list[int]:
    """The epochs of all whole lines of a log, in the order they were written."""
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
    return [line["epoch"] for line in lines if line["event"] == "epoch"]


@pytest.fixture
def search(tiny_store: Store, tmp_path: Path) -> Iterator[Search]:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "store" / "data")
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:  # sockets: a short path
        result = Search(tmp_path, Path(scratch))
        yield result
        assert not [pid for session in result.sessions for pid in end(session)]


def test_killed_then_finished(search: Search) -> None:
    folder = search.folder / "store" / "studies" / "again"
    running = search.start()
    search.wait_until_midway(ended=1)
    assert not end(running.pid)  # SIGKILL to the driver and all that it started
    running.wait()
    before = {number: log.read_bytes() for number, log in search.logs().items()}
    finished = {number for number, content in before.items() if b'"end"' in content}
    (cut,) = set(before) - finished
    done_epochs = len(epochs(search.logs()[cut]))
    assert finished == set(range(cut)) and 0 < done_epochs < EPOCHS

    running = search.start()
    code = running.wait(timeout=PATIENCE_S)
    text = search.output.read_text()
    assert code == 0 and "Traceback" not in text, text
    record = load_study_record(search.store, "again")
    assert [trial.number for trial in record.trials] == list(range(TRIALS))
    assert {trial.state for trial in record.trials} == {"complete"}
    logs = search.logs()
    assert all(logs[number].read_bytes() == before[number] for number in finished)  # finished work is not touched
    assert logs[cut].read_bytes().startswith(before[cut])  # and interrupted work is only added to
    assert all(epochs(log) == list(range(1, EPOCHS + 1)) for log in logs.values())
    assert re.search(rf"^\[ +{cut}/{TRIALS} ", text, flags=re.MULTILINE) and text.count("test scored, with") == 1
    assert record.best is not None and (folder / "report.html").is_file()
    assert not (folder / "ray").exists() and not list(folder.glob("trials/*/checkpoint.pt"))
