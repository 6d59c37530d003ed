# ruff: noqa: F811  (fixtures of other test files)
"""A search that is asked to stop does so in good order, and nobody works where another process is at work."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import PATIENCE_S, end, environment, wait_for
from test_kill_resume import EPOCHS, TRIALS, Search, epochs, search  # noqa: F401
from test_progress import trial
from test_ray import study

from atose_ray import stop
from atose_ray.config import ConfigError, RunConfig, SearchConfig
from atose_ray.data.shards import load_manifest
from atose_ray.search.events import Epoch
from atose_ray.search.listeners import Console
from atose_ray.search.record import load_study_record, study_store
from atose_ray.search.session import Session, ask_to_stop, wait_for_end
from atose_ray.storage import Store
from atose_ray.storage import lease as leases
from atose_ray.storage.lease import Lease, LeaseError, read_lease
from atose_ray.training.run import Job

HOLDER = """
import sys, time
from atose_ray.storage.lease import Lease
from atose_ray.storage import Store
lease = Lease(Store(sys.argv[1])).take()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "EVERY_S", 0.1)
    monkeypatch.setattr(leases, "OLD_S", 1.0)


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process of this machine that holds the folder."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    running = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert running.stdout is not None and running.stdout.readline() == "held\n"
    return running


def test_a_lease_of_a_living_process_is_respected_and_that_of_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    running = holder(tmp_path)
    try:
        with pytest.raises(LeaseError, match=rf"process {running.pid} on .* is at work on {tmp_path}"):
            Lease(Store(str(tmp_path))).take(give_up_s=0)
        running.kill()
        running.wait()
        ours = Lease(Store(str(tmp_path))).take()
        assert read_lease(Store(str(tmp_path)), leases.RUN_LEASE)["pid"] == os.getpid()
        ours.release()
        ours.release()
        assert not list(tmp_path.iterdir())
    finally:
        end(running.pid)


def test_a_lease_from_another_machine_is_taken_when_it_has_been_silent(tmp_path: Path, quick) -> None:
    store, said = Store(str(tmp_path)), []
    store.write_json(leases.RUN_LEASE, {"token": "theirs", "host": "gpu7:0:0", "pid": 4, "beat": 9, "time": 0.0})
    ours = Lease(store).take(say=said.append)
    assert said == [f"process 4 on gpu7 held {store.uri}; waiting until it has been silent for 1 s"]
    wait_for("a renewed lease", lambda: read_lease(store, leases.RUN_LEASE)["beat"] >= 3)

    def lost() -> bool:
        """Theirs is written again and again, as a living owner does: ours may be about to be renewed."""
        store.write_json(leases.RUN_LEASE, {"token": "theirs", "host": "gpu7:0:0", "pid": 4, "beat": 10, "time": 0.0})
        return ours.lost

    wait_for("the loss to be seen", lost)
    with pytest.raises(LeaseError, match="taken over"):
        ours.check()
    ours.release()
    assert read_lease(store, leases.RUN_LEASE)["token"] == "theirs"


def test_a_request_that_came_too_late_stops_no_other_session(tmp_path: Path, capsys) -> None:
    folder = Store(str(tmp_path)).child("studies", "s")
    folder.write_json("study.json", {})
    with pytest.raises(ValueError, match="no search of the study 's' is running"):
        stop.main(["s", "--store", str(tmp_path)])
    with pytest.raises(ValueError, match="there is no study 'other'"):
        stop.main(["other", "--store", str(tmp_path)])
    folder.write_json("stop.json", {"token": "of an earlier session", "now": False})
    session = Session(folder)
    assert session.request() == ""
    folder.write_json("driver.json", {**folder.read_json("driver.json"), "host": "elsewhere"})
    token = ask_to_stop(folder, "s", now=True)
    session.looked = 0.0
    assert session.request() == "now"
    session.end()
    assert not folder.exists("stop.json") and wait_for_end(folder, token) == "stopped"


def test_the_first_signal_asks_and_the_second_ends_at_once(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        session = Session(Store(str(tmp_path)))
        with session.listening():
            assert session.request() == ""
            os.kill(os.getpid(), number)
            assert session.request() == "stop"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
                time.sleep(1)
        session.end()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_nothing_of_a_study_is_touched_while_another_driver_is_at_work(
    tiny_store: Store, tmp_path: Path, quick, monkeypatch
) -> None:
    """Not its head, and no failed trial is made unfinished again: what the other one reads must stand."""
    from atose_ray.runtime import tune as runtime

    monkeypatch.setattr(runtime, "check_nodes", lambda *places: None)
    monkeypatch.setattr(leases, "OLD_S", 60.0)  # however slowly this machine lets the other driver beat
    (tmp_path / "data").symlink_to(tiny_store.local_path / "data")
    store, over = Store(str(tmp_path)), threading.Event()
    folder = study_store(store, "s")

    def drive() -> None:
        for beat in itertools.count():
            folder.write_json("driver.json", {"token": "theirs", "host": "gpu7:0:0", "pid": 4, "beat": beat})
            if over.wait(0.1):
                return

    driver = threading.Thread(target=drive)
    driver.start()
    wait_for("the other driver", lambda: folder.exists("driver.json"))
    try:
        with pytest.raises(ConfigError, match="this study is being searched: process 4 on gpu7"):
            runtime.run_study(study(), "s", store, None, load_manifest(store, "folder"), again=True)
    finally:
        over.set()
        driver.join()
    assert folder.names() == ["driver.json"]


def test_a_driver_that_was_silent_too_long_stops(tmp_path: Path, quick) -> None:
    session = Session(Store(str(tmp_path)))
    assert session.request() == ""

    def lost() -> bool:
        session.folder.write_json("driver.json", {"token": "theirs", "host": "gpu7:0:0", "pid": 4, "beat": 0})
        return session.lease.lost

    wait_for("the loss to be seen", lost)
    assert session.request() == "now"
    session.end()
    assert session.folder.read_json("driver.json")["token"] == "theirs"


def test_the_lead_of_an_earlier_session_stands(capsys) -> None:
    """A search that goes on must not call its first epochs the best so far."""
    earlier = [trial(0, "complete", 0.0, 3, 1.0, 0.6), trial(1, "pruned", 0.0, 2, 1.0, 0.2)]
    job, console = Job(RunConfig(), "", "", {"name": "002-harmonic_cnn"}), Console(SearchConfig(trials=4), earlier)
    best, record = earlier[0].value, earlier[0].epochs[0]
    assert console.done == 2
    console.on_event(Epoch(2, job, dataclasses.replace(record, objective=best - 0.1)))
    assert "lead" not in capsys.readouterr().out and console.leader == earlier[0].name
    console.on_event(Epoch(2, job, dataclasses.replace(record, objective=best + 0.1)))
    assert f"lead   002-harmonic_cnn  pr_auc_macro {best + 0.1:.4f}" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.skipif("ATOSE_CHAOS" not in os.environ, reason="takes a minute: run it with ATOSE_CHAOS=1")
def test_stopped_from_elsewhere_and_by_ctrl_c_then_finished(search: Search, capsys) -> None:
    folder = search.folder / "store" / "studies" / "again"
    running = search.start()
    search.wait_until_midway(ended=1)
    stop.main(["again", "--store", search.store.uri, "--wait"])
    said = capsys.readouterr().out
    assert "asked the search of again to stop" in said and said.endswith("stopped\n")
    code, text = running.wait(timeout=PATIENCE_S), search.output.read_text()
    assert code == 130 and "Traceback" not in text, text
    logs = {number: log.read_bytes() for number, log in search.logs().items()}
    unfinished = [number for number, content in logs.items() if b'"end"' not in content]
    if not unfinished:
        pytest.skip("the trial that ran had its last epoch when it was asked to stop")
    (cut,) = unfinished  # none pruned, none failed
    assert "trials that run finish their epoch" in text and f"paused {cut:03d}-" in text
    assert "stopped; the same command goes on from here" in text and "test scored" not in text
    begun = text[: text.index("stop   ")].count("] start  ")
    assert text.count("] start  ") == begun == len(logs) == cut + 1 < TRIALS  # none was launched
    log = search.logs()[cut]
    assert log.with_name("checkpoint.pt").exists() and 0 < len(epochs(log)) < EPOCHS
    assert (folder / "report.html").is_file() and not (folder / "best").exists()
    assert not (folder / "stop.json").exists() and not (folder / "driver.json").exists()

    running = search.start()
    with pytest.raises(ConfigError, match=r"this study is being searched: process \d+ .*atose_ray.stop again"):
        wait_for("the driver", lambda: (folder / "driver.json").exists(), every=0.02)
        Session(Store(str(folder)))
    wait_for("the cut trial to go on", lambda: log.read_bytes() != logs[cut], every=0.02)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all processes of the group
    code, text = running.wait(timeout=PATIENCE_S), search.output.read_text()
    assert code == 130 and "Traceback" not in text, text

    running = search.start()
    code, text = running.wait(timeout=PATIENCE_S), search.output.read_text()
    assert code == 0, text
    record = load_study_record(search.store, "again")
    assert [trial.state for trial in record.trials] == ["complete"] * TRIALS
    after = search.logs()
    assert all(after[number].read_bytes().startswith(content) for number, content in logs.items())
    assert all(epochs(log) == list(range(1, EPOCHS + 1)) for log in after.values())
    assert json.loads((folder / "study.json").read_text()) and record.best is not None
    assert not list(folder.glob("trials/*/lease.json"))


@pytest.mark.ray
@pytest.mark.slow
def test_a_sigterm_to_all_processes_ends_the_command_with_ray_and_keeps_the_epochs(search: Search) -> None:
    """As a batch system ends a job. Ray alone would have the driver wait a minute for what is gone."""
    running = search.start()
    search.wait_until_midway(ended=0)
    began = time.monotonic()
    os.killpg(running.pid, signal.SIGTERM)
    code, text = running.wait(timeout=PATIENCE_S), search.output.read_text()
    seconds = time.monotonic() - began
    assert code == 143 and "Ray was ended too" in text, (code, seconds, text)
    log = search.logs()[0]
    kept = epochs(log)
    assert kept == list(range(1, len(kept) + 1)) and 3 <= len(kept) < EPOCHS
    assert log.with_name("checkpoint.pt").exists() and not (log.parents[2] / "driver.json").exists()
    print(f"ended after {seconds:.1f} s with {len(kept)} epochs")
