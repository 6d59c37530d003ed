"""A study as a pandas frame: a row per trial, for notebooks."""

import pandas as pd

from atose_ray.search.record import TrialRecord, load_study_record
from atose_ray.storage import Store, default_store_uri

COLUMNS = ("name", "state", "value", "epochs", "seconds", "parameters", "latency_ms", "gpu_memory", "device", "reason")


def read_study(name: str, store: str | None = None) -> pd.DataFrame:
    """The trials of a study, by number: state, value (its best score on validation), epochs, cost, and a column for
    every parameter that the search chose, under its path in the configuration. `attrs` has the study's name, metric
    and folder, the number of the best trial, and its test scores.

    store: a path, s3:// or gs:// (default: ATOSE_STORE, else ./atose_store). Works while the search runs. Raises
    ValueError, naming the studies that are there, when there is none of that name.

    >>> frame = atose_ray.read_study("tiny")
    >>> frame.sort_values("value", ascending=False)[["state", "optim.lr"]].head(1).to_dict("records")
    [{'state': 'complete', 'optim.lr': 0.003}]
    >>> frame.attrs["metric"]
    'pr_auc_macro'
    """
    place = Store(store or default_store_uri())
    record = load_study_record(place, name)
    paths = dict.fromkeys(path for trial in record.trials for path in trial.params)
    rows = [row_of(trial) for trial in record.trials]
    index = pd.Index([trial.number for trial in record.trials], name="number")
    frame = pd.DataFrame(rows, index=index, columns=[*COLUMNS, *paths])
    best = record.best
    about = {"study": name, "metric": record.metric, "folder": place.child("studies", name).uri}
    frame.attrs = {
        **about,
        "best": None if best is None else best.number,
        "test": {} if best is None else dict(best.metrics.get("test") or {}),
    }
    return frame


def row_of(trial: TrialRecord) -> dict[str, object]:
    """COLUMNS of a trial, and its parameters."""
    about = {key: getattr(trial, key) for key in ("name", "state", "value", "parameters", "latency_ms", "gpu_memory")}
    seconds = sum(epoch.seconds for epoch in trial.epochs)
    about |= {"epochs": len(trial.epochs), "seconds": seconds, "device": trial.device, "reason": trial.reason}
    return {**about, **trial.params}
