"""A search that is over says so at once; one that is refused leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from test_promote import store as store  # a study of two trials that were trained

from atose_ray import tune
from atose_ray.search.finished import FINISHED, is_done, nothing_left_if_refused
from atose_ray.search.progress import read_study
from atose_ray.search.record import existing_study, load_study_record, load_trials, study_store, trial_store
from atose_ray.search.report import render_report
from atose_ray.storage import Store
from atose_ray.storage.lease import STUDY_LEASE, Lease
from atose_ray.training.examples import write_examples
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, finish_run

FILE = """
base: {data: {dataset: folder}}
search: {trials: 2}
"""
AGAIN = """
import sys
from atose_ray import tune
tune.main(sys.argv[1:])
loaded = {"torch", "ray", "optuna", "sklearn"} & set(sys.modules)
assert not loaded, loaded
"""


@pytest.fixture
def finished(store: Store, tmp_path: Path) -> list[str]:
    """The command of a search that is over."""
    folder = study_store(store, "mine")
    best = max(load_trials(folder), key=lambda one: (one.value or 0.0, -one.number))
    run, _ = RunFolder(trial_store(folder, best)).config()
    finish_run(Job(run, store.uri, trial_store(folder, best).uri), folder.child("best"))
    write_examples(folder.child("best"), store)
    folder.write("report.html", render_report(load_study_record(store, "mine")).encode())
    (tmp_path / "mine.yaml").write_text(FILE)
    return [str(tmp_path / "mine.yaml"), "--store", store.uri]


def test_a_search_that_is_over_says_so_without_ray_and_then_without_torch(
    finished: list[str], store: Store, capsys, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "atose_ray.runtime.tune", None)  # an import of it is an error
    folder = study_store(store, "mine")
    assert not folder.exists(FINISHED)
    tune.main(finished)
    first = capsys.readouterr().out
    assert "study mine: all trials have ended, nothing is left to do" in first and "report: " in first
    assert "2 trials: 2 complete" in first and "best: trial" in first
    again = subprocess.run([sys.executable, "-c", AGAIN, *finished], check=True, capture_output=True, text=True)
    assert again.stdout == first
    with pytest.raises(ImportError):  # more is asked for: there is something to do
        tune.main([*finished, "--trials", "3"])
    with pytest.raises(ValueError, match="another base, space or search"):
        tune.main([*finished, "--epochs", "2"])
    with pytest.raises(ValueError, match="has no folds"):  # asked for, not taken for the search that is over
        tune.main([*finished, "--folds", "all"])
    folder.delete("report.html")
    assert not is_done(folder, load_trials(folder), 2)


def test_a_refused_search_leaves_no_folder(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    folder = study_store(store, "new")
    with pytest.raises(ValueError, match="too small"), nothing_left_if_refused(folder):
        folder.check_writable()
        folder.write_json("study.json", {})
        raise ValueError("the cluster is too small")
    assert store.child("studies").names() == []
    with pytest.raises(ValueError), nothing_left_if_refused(folder):
        folder.write_json("trials/s0/about.json", {})
        raise ValueError("a trial was begun")
    assert folder.exists("trials/s0/about.json")
    with pytest.raises(ValueError), nothing_left_if_refused(folder):
        raise ValueError("it was there before")
    assert folder.names()
    other, lease = study_store(store, "other"), None
    with pytest.raises(ValueError), nothing_left_if_refused(other):
        lease = Lease(other, STUDY_LEASE).take()
        raise ValueError("another driver holds it")
    assert lease is not None and other.exists(STUDY_LEASE)
    lease.release()
    with pytest.raises(ValueError, match="it holds: none"):
        existing_study(store, "mine")
    with pytest.raises(ValueError, match="it holds: none"):
        read_study(store, "new")
