"""One stream of trial events, three listeners, no Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import optuna
import pytest
from test_progress import trial

from atose_ray.config import RunConfig, SearchConfig
from atose_ray.search.events import Asked, Ended, EndState, Epoch, Started
from atose_ray.search.listeners import Console, Listeners, OptunaListener, TrialLog
from atose_ray.search.progress import duration
from atose_ray.search.study_storage import StudyStorage
from atose_ray.storage import Store
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job

WITHOUT_RAY = """
import sys
sys.modules["ray"] = None
import atose_ray.search.events, atose_ray.search.listeners
import atose_ray.search.costs, atose_ray.search.promotion, atose_ray.search.study, atose_ray.search.trials
"""


def test_what_listens_needs_no_ray() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_RAY], check=True)


def test_the_console_says_where_a_trial_goes_on_and_when_all_is_over_at_the_latest(tmp_path: Path, capsys) -> None:
    run, earlier = RunConfig(), trial(0, "running", 0.0, 4, 60.0)
    console = Console(SearchConfig(trials=3), [earlier])
    jobs = [Job(run, "", str(tmp_path), {"name": f"00{n}-x", "params": {"optim.lr": 0.1}}) for n in range(2)]
    for number, job in enumerate(jobs):
        console.on_event(Started(number, job))
    [fifth] = trial(0, "running", 0.0, 5, 60.0).epochs[4:]
    for _ in range(2):
        console.on_event(Epoch(0, jobs[0], fifth))
    console.on_event(Ended(0, jobs[0], "paused"))
    out, whole = capsys.readouterr().out, run.method.epochs
    assert "start  000-x  goes on after epoch 4  lr=0.1" in out and "start  001-x  lr=0.1" in out
    minutes = max((3 * whole - 5) / 2, whole)
    assert out.count(f"left   at most about {duration(60 * minutes)} (if no trial were pruned)") == 1
    assert "paused 000-x  after 5 epochs" in out


@pytest.mark.parametrize("state", ["complete", "pruned", "failed", "diverged", "paused"])
def test_each_listener_keeps_its_own_part(state: EndState, tmp_path: Path, capsys) -> None:
    folder, seen = Store(str(tmp_path)), []
    study = optuna.create_study(direction="maximize")
    asker = OptunaListener(study, StudyStorage(study._storage, folder))
    log, console = (
        TrialLog(folder, 2, None, (), [lambda name, record: seen.append((name, record.epoch))]),
        Console(SearchConfig(trials=2), ()),
    )

    def configure(asked: optuna.Trial, number: int) -> Job:
        asked.suggest_float("optim.lr", 0, 1)
        about = {"name": "000-x", "number": number, "params": asked.params, "distributions": {}, "resources": {}}
        job = Job(RunConfig(), "", folder.child("trials", "s0").uri, about)
        Store(job.folder_uri).write_json("about.json", {**about, "started": 1.0, "device": "", "parameters": 7})
        Store(job.folder_uri).write_json("config.json", {})
        return job

    job, listeners = asker.ask(configure, log.next_number), Listeners(log, asker, console)
    epochs = trial(0, "complete", 0.0, 2, 1.0, 0.6).epochs
    bug = ("bug", "Traceback: KeyError") if state == "failed" else (None, "")
    reported = (Epoch(0, job, one) for one in (*epochs, epochs[-1]))
    for event in (Asked(0, job), Started(0, job), *reported, Ended(0, job, state, "why", *bug)):
        for listener in listeners:
            listener.on_event(event)

    told, ending, out = study.trials[0], RunFolder(Store(job.folder_uri)).ending(), capsys.readouterr().out
    expected = {"failed": "FAIL", "paused": "RUNNING"}.get(state, "COMPLETE")
    assert told.state.name == expected and told.values == ([epochs[-1].objective] if expected == "COMPLETE" else None)
    assert told.intermediate_values == {one.epoch: one.objective for one in epochs}
    assert (ending and ending["state"]) == (None if state == "paused" else state)
    assert log.trials[0].state == ("running" if state == "paused" else state)
    assert [one.epoch for one in log.trials[0].epochs] == [1, 2], "what a restart reports again counts once"
    assert seen == [("000-x", 1), ("000-x", 2), ("000-x", 2)]
    assert "start  000-x  lr=" in out and f"{state:<6} 000-x" in out and out.count("lead ") == 1
    assert out.count("Traceback") == (state == "failed")
