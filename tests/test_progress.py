"""How far a search is: counts, hours, the forecast, and trials that have not been heard of."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from atose_ray import status
from atose_ray.config import StudyConfig
from atose_ray.search.progress import bound, measure, read_study
from atose_ray.search.record import TrialRecord, load_trials, study_store, trial_store
from atose_ray.storage import Store
from atose_ray.storage.lease import STUDY_LEASE, Lease
from atose_ray.training.record import EpochRecord, RunFolder

START = 1_000_000.0


def epochs(count: int, began: float, seconds: float, value: float = 0.5) -> tuple[EpochRecord, ...]:
    return tuple(
        EpochRecord(n + 1, "classify", seconds, 0.1, 0.01, {"pr_auc_macro": value}, value, began + (n + 1) * seconds)
        for n in range(count)
    )


def trial(number: int, state: str, began: float, count: int, seconds: float, value: float = 0.5) -> TrialRecord:
    done = epochs(count, began, seconds, value)
    return TrialRecord(
        number=number,
        name=f"{number:03d}-sample_cnn",
        signature=f"s{number}",
        params={},
        distributions={},
        config={},
        state=state,
        reason=None,
        started=began,
        finished=None if state == "running" else began + count * seconds,
        device="CPU, 1 thread",
        parameters=10,
        epochs=done,
        resources={"cpus": 2.0, "gpus": 0.5, "workers": 0},
    )


def test_two_at_a_time_are_forecast_as_two_at_a_time() -> None:
    trials = [trial(n, "complete", START + 100 * (n // 2), 10, 10.0, 0.1 * n) for n in range(4)]
    trials += [trial(4, "running", START + 200, 5, 10.0), trial(5, "running", START + 200, 5, 10.0)]
    found = measure(trials, 10, START + 250)
    assert found.counts == {"complete": 4, "running": 2} and found.ended == 4
    assert found.best is not None and found.best.number == 4
    assert found.busy_s == 500 and found.gpu_hours == pytest.approx(250 / 3600)
    assert found.cpu_hours == pytest.approx(1000 / 3600)
    assert found.trials_per_hour == pytest.approx(72)
    assert found.seconds_left == pytest.approx((4 + 1) * 100 / 2)


def test_a_bound_after_the_first_epoch() -> None:
    config = {"method": {"stages": [{"name": "embed", "epochs": 4}, {"name": "classify", "epochs": 6}]}}
    begun = [replace(trial(n, "running", START, n, 10.0), config=config) for n in range(2)]
    found = measure(begun, 6, START + 10)
    assert found.seconds_left is None and found.at_most_s == pytest.approx((100 + 90 + 4 * 100) / 2)
    assert bound(found.at_most_s) == "at most about 4 min 55 s (if no trial were pruned)"
    assert measure(begun[:1], 6, START).at_most_s is None, "not before an epoch"
    ended = [replace(trial(n, "complete", START, 10, 10.0), config=config) for n in range(6)]
    assert measure(ended, 6, START).at_most_s == 0 and measure([], 6, START).at_most_s is None
    assert measure([replace(begun[1], config={})], 6, START).at_most_s is None, "a record that does not say"


def test_a_night_between_two_sessions_is_no_work() -> None:
    trials = [trial(n, "complete", START + 100 * n + (36000 if n > 1 else 0), 10, 10.0) for n in range(4)]
    assert measure(trials, 4, START + 40000).trials_per_hour == pytest.approx(36)
    assert measure(trials, 4, START + 40000).seconds_left == 0


def test_no_forecast_before_three_trials_ended() -> None:
    trials = [trial(n, "complete", START + 100 * n, 10, 10.0) for n in range(2)]
    found = measure(trials, 10, START)
    assert found.trials_per_hour is None and found.seconds_left is None
    assert measure([], 10, START).best is None


def test_a_trial_that_is_silent_for_longer_than_its_pace_is_named() -> None:
    slow, quick = trial(0, "running", START, 2, 1000.0), trial(1, "running", START + 1990, 1, 10.0)
    assert measure([slow, quick], 4, START + 2500).silent == ()
    assert measure([slow, quick], 4, START + 2700).silent == (quick,)
    assert measure([slow, quick], 4, START + 5100).silent == (slow, quick)


@pytest.fixture
def study(tmp_path) -> Store:
    store = Store(str(tmp_path))
    folder = study_store(store, "mine")
    folder.write_json("study.json", {"config": StudyConfig().model_dump(mode="json"), "versions": {}})
    for one in [trial(n, "complete", START + 100 * n, 10, 10.0, 0.1 + 0.1 * n) for n in range(3)]:
        run = RunFolder(trial_store(folder, one))
        run.store.write_json("config.json", {})
        about = {key: getattr(one, key) for key in ("number", "name", "params", "distributions", "started", "device")}
        run.store.write_json("about.json", {**about, "parameters": 1, "resources": one.resources})
        for record in one.epochs:
            run.add_epoch(record)
        if one.number < 2:
            run.end("complete")
    return store


def test_status_of_a_store_and_of_a_study(study: Store, capsys) -> None:
    status.main(["--store", study.uri])
    assert capsys.readouterr().out.split() == ["mine", "2/50", "trials,", "1", "stopped", "pr_auc_macro", "0.3000"]
    status.main(["mine", "--store", study.uri])
    shown = capsys.readouterr().out
    assert "(1 stopped, 2 complete)" in shown and "running" not in shown and "NO SIGN" not in shown
    assert "stopped (1), they go on where they were with the same command" in shown
    Lease(study_store(study, "mine"), STUDY_LEASE).take()  # a driver is at work
    status.main(["mine", "--store", study.uri])
    shown = capsys.readouterr().out
    assert "2 of 50 trials ended (1 running, 2 complete)" in shown and "best   002-sample_cnn" in shown
    assert "0.3000 [clip] after 10 epochs" in shown and "no forecast before three trials ended" in shown
    assert "NO SIGN for" in shown and "0.17 CPU hours" in shown
    status.main(["mine", "--json", "--store", study.uri])
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"complete": 2, "running": 1} and found["best"]["pr_auc_macro"] == pytest.approx(0.3)


def test_a_study_that_is_not_there_is_named_with_those_that_are(study: Store) -> None:
    with pytest.raises(ValueError, match=r"no study 'yours'.*it holds: mine"):
        read_study(study, "yours")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (3725, "1 h 2 min"), (200000, "2 d 7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert status.duration(seconds) == text


READS_LIGHTLY = """
import sys
from atose_ray import status
status.main(["mine", "--store", sys.argv[1]])
loaded = {"torch", "ray", "optuna", "pandas", "sklearn", "scipy"} & set(sys.modules)
assert not loaded, loaded
"""


def test_status_reads_records_without_what_trains(study: Store) -> None:
    shown = subprocess.run([sys.executable, "-c", READS_LIGHTLY, study.uri], check=True, capture_output=True, text=True)
    assert "2 of 50 trials ended" in shown.stdout


def test_trials_are_read_several_at_a_time_and_come_by_number(monkeypatch, tmp_path) -> None:
    """Object storage takes its time for each."""
    study, four = Store(str(tmp_path)), threading.Barrier(4, timeout=30)
    for number in range(4):
        study.child("trials", f"{number:03d}-a").write("about.json", b"{}")

    def load_trial(folder: Store) -> TrialRecord:
        four.wait()
        return trial(3 - int(folder.uri[-3]), "complete", 0, 1, 1)

    monkeypatch.setattr("atose_ray.search.record.load_trial", load_trial)
    assert [one.number for one in load_trials(study)] == [0, 1, 2, 3]
    known = {f"{number:03d}-a": trial(number, "pruned", 0, 1, 1) for number in range(4)}
    assert {one.state for one in load_trials(study, known)} == {"pruned"}
