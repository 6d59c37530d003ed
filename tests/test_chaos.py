# ruff: noqa: F811  (fixtures of other test files)
"""A search in a bad world: processes killed at any moment, a node gone, a disk that is full.

After each: no finished trial lost or repeated, no epoch computed twice into a log, the best never worse than before,
nothing stuck. They take minutes, so they run only where ATOSE_CHAOS=N says so: the driver is then killed N times.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import tiny_tree
from processes import PATIENCE_S, alive, end, environment, members, wait_for
from test_kill_resume import EPOCHS, TRIALS, Search, epochs, search  # noqa: F401
from test_ray import run, store, study  # noqa: F401

from atose_ray.config import SearchConfig, run_config
from atose_ray.data.shards import load_manifest
from atose_ray.search.record import best_trial, load_study_record, load_trials, study_store
from atose_ray.storage import Store
from atose_ray.training.run import Job, resolve

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found through /proc"),
    pytest.mark.skipif("ATOSE_CHAOS" not in os.environ, reason="takes minutes: run it with ATOSE_CHAOS=5"),
]

KILLS = int(os.environ.get("ATOSE_CHAOS", "1"))


def total_epochs(search: Search) -> int:
    return sum(len(epochs(log)) for log in search.logs().values())


def holder_of(search: Search) -> int | None:
    """The process that trains the trial that runs now."""
    for log in search.logs().values():
        lease = log.with_name("lease.json")
        if lease.exists() and '"end"' not in log.read_text():
            pid = int(json.loads(lease.read_text())["pid"])
            if alive(pid):
                return pid
    return None


def raylet_of(session: int) -> int:
    """The node manager that a session started."""
    for pid in members(session):
        if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet"):
            return pid
    raise AssertionError("the session has no raylet")


def test_drivers_a_trial_and_the_node_are_killed_and_the_search_ends_as_if_nothing_had_been(search: Search) -> None:
    """The driver alone is killed: its actors outlive it for seconds, while the next driver is at work already."""
    draw, victims = random.Random(EPOCHS), ["trial", *["driver"] * KILLS, "raylet"]
    running, best, finished = search.start(), float("-inf"), {}
    at, figures = 2, []
    while victims:
        at = max(at, total_epochs(search)) + draw.randint(1, EPOCHS * TRIALS // (len(victims) + 8))

        def there(now: subprocess.Popen[str] = running, wanted: int = at) -> bool:
            return total_epochs(search) >= wanted or now.poll() is not None

        wait_for(f"{at} epochs", there, every=0.02)
        assert running.poll() is None, search.output.read_text()
        pid = holder_of(search)
        if pid is None:
            continue  # between two trials
        victim, before, began = victims.pop(0), total_epochs(search), time.monotonic()
        os.kill({"trial": pid, "driver": running.pid, "raylet": raylet_of(running.pid)}[victim], signal.SIGKILL)
        if victim != "trial":
            running.wait(timeout=PATIENCE_S)
            running = search.start()
        wait_for("work that goes on", lambda b=before: total_epochs(search) > b + 1, every=0.02)
        figures.append((victim, before, round(time.monotonic() - began, 1)))
        trials = load_trials(study_store(search.store, "again"))
        value = best_trial(trials).value
        assert value >= best
        best = value
        print(f"killed the {victim} after {before} epochs: two more were done {figures[-1][2]} s later", flush=True)
        ended = [trial.number for trial in trials if trial.state != "running"]
        logs = {number: search.logs()[number].read_bytes() for number in ended}
        assert all(finished.setdefault(number, content) == content for number, content in logs.items())
    code = running.wait(timeout=PATIENCE_S)
    assert code == 0, search.output.read_text()
    record = load_study_record(search.store, "again")
    assert [trial.state for trial in record.trials] == ["complete"] * TRIALS
    logs = search.logs()
    assert all(epochs(log) == list(range(1, EPOCHS + 1)) for log in logs.values())
    assert all(logs[number].read_bytes() == content for number, content in finished.items())
    assert record.best is not None and best_trial(record.trials).value >= best
    assert [victim for victim, _, _ in figures] == ["trial", *["driver"] * KILLS, "raylet"]


def test_a_worker_of_a_group_is_killed_in_each_of_the_two_stages(ray_cluster, store, tmp_path: Path) -> None:
    from atose_ray.runtime.train import train_on_ray

    stages = [{"name": "embed", "epochs": 8}, {"name": "classify", "epochs": 8}]
    arm = {"kind": "joint_embedding", "head": {"kind": "mlp", "hidden": 8}, "stages": stages}
    manifest = load_manifest(store, "folder")
    whole = run_config({**tiny_tree("joint_embedding", execution={"threads": 1}), "method": arm})
    job = Job(resolve(whole, store, manifest), store.uri, str(tmp_path / "run"), {"name": "x"})
    log, killed = tmp_path / "run" / "log.jsonl", []

    def kill() -> None:
        for first in (2, 10):
            wait_for(f"epoch {first}", lambda f=first: log.exists() and len(epochs(log)) >= f, every=0.01)
            pid = int(json.loads(log.with_name("lease.json").read_text())["pid"])
            killed.append((len(epochs(log)), pid))
            os.kill(pid, signal.SIGKILL)

    helper = threading.Thread(target=kill)
    helper.start()
    train_on_ray(
        job, SearchConfig(workers_per_trial=2, cpus_per_worker=1, max_failures=2), 0.0, "x", str(tmp_path / "r")
    )
    helper.join()
    assert len({pid for _, pid in killed}) == 2 and killed[0][0] < 8 <= killed[1][0] < 16
    assert epochs(log) == list(range(1, 17))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["state"] for line in lines if line["event"] == "end"] == ["complete"]
    assert {line["stage"] for line in lines if line["event"] == "epoch"} == {"embed", "classify"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[list[str]]:
    """A command prefix that runs in a mount namespace where tmp_path/store is a disk of 24 MB."""
    place = tmp_path / "store"
    place.mkdir()
    if os.geteuid() != 0 or not shutil.which("nsenter") or not shutil.which("unshare"):
        pytest.skip("needs root, unshare and nsenter, for a small disk of its own")
    mount = f"mount -t tmpfs -o size=24m tmpfs {place} && echo ready && exec sleep 900"
    keeper = subprocess.Popen(["unshare", "-m", "sh", "-c", mount], stdout=subprocess.PIPE, text=True)
    try:
        if keeper.stdout is None or keeper.stdout.readline() != "ready\n":
            pytest.skip("this machine lets nobody mount a small disk in a namespace of its own")
        yield ["nsenter", "-t", str(keeper.pid), "-m"]
    finally:
        keeper.kill()
        keeper.wait()


def test_a_full_disk_ends_the_search_with_a_message_and_nothing_is_lost(
    small_disk: list[str], tiny_store: Store, tmp_path: Path
) -> None:
    place = tmp_path / "store"

    def inside(*command: str, check: bool = True) -> str:
        return subprocess.run(
            [*small_disk, *command], check=check, capture_output=True, text=True, timeout=PATIENCE_S
        ).stdout

    inside("cp", "-r", f"{tiny_store.root}/data", f"{place}/data")
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        search = Search(tmp_path, Path(scratch))
        search.command = [*small_disk, *search.command]
        try:
            running = search.start()
            logs = f"cat {place}/studies/again/trials/*/log.jsonl"

            def ended() -> bool:
                assert running.poll() is None, search.output.read_text()
                return inside("sh", "-c", logs, check=False).count('"end"') >= 1

            wait_for("a trial that has ended", ended, every=0.3)
            inside("sh", "-c", f"head -c 64m /dev/zero > {place}/filler", check=False)
            before = inside("sh", "-c", logs, check=False)
            code = running.wait(timeout=PATIENCE_S)
            text = search.output.read_text()
            assert code not in (0, -9) and "No space left on device" in text, text
            inside("rm", f"{place}/filler")
            running = search.start()
            code, text = running.wait(timeout=PATIENCE_S), search.output.read_text()
            assert code == 0, text
            after = [json.loads(line) for line in inside("sh", "-c", logs).splitlines() if line.endswith("}")]
            assert all(line in inside("sh", "-c", logs) for line in before.splitlines() if line.endswith("}"))
            ends = [line for line in after if line["event"] == "end"]
            assert len(ends) == TRIALS and {line["state"] for line in ends} <= {"complete", "failed"}
        finally:
            assert not [pid for session in search.sessions for pid in end(session)]


def test_the_command_line_of_these_tests_is_the_one_that_people_use() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "atose_ray.stop", "--help"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    ).stdout
    assert "--wait" in help_text and "--now" in help_text and "exit code 130" in help_text
