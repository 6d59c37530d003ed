"""Trials that end as they are asked for, with a run folder like the others: a configuration that cannot be built, and
one that this study has trained already."""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from atose_ray.search.events import Settled
from atose_ray.search.record import TrialRecord
from atose_ray.storage import Store
from atose_ray.training.record import BEST_WEIGHTS, FROZEN, LOG, RunFolder

TAKEN_OVER = ("device", "parameters", "residency", "precision", "threads", "latency_ms")


def signature_of(tree: Mapping[str, Any]) -> str:
    """Of a configuration that cannot be: 12 digits, as those of a RunConfig."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=str).encode()).hexdigest()[:12]


def record_infeasible(folder: Store, tree: Mapping[str, Any], about: Mapping[str, Any], error: ValueError) -> Settled:
    """Put a configuration that cannot be built on record, with the reason, as a trial that has ended."""
    reason = " ".join(str(error).split())
    folder.write_json("config.json", tree)
    RunFolder(folder).end("infeasible", reason)
    _head(folder, {"device": "none", "parameters": 0, **about})
    return Settled(about["number"], about["name"], folder.uri, "infeasible", reason)


def equal_trial(trials: Iterable[TrialRecord], signature: str) -> TrialRecord | None:
    """The trial of this identity that was trained to its end."""
    return next(
        (one for one in trials if one.identity == signature and one.state == "complete" and one.same_as is None), None
    )


def record_repeat(folder: Store, equal: TrialRecord, source: Store, about: Mapping[str, Any]) -> Settled:
    """Put a trial on record that takes the result of an equal one: epochs, weights (of a run of all folds those of each
    fold, with its folder), what is known of its run."""
    for name in (file.name for file in source.files()):
        if name in ("config.json", "data_spec.json", BEST_WEIGHTS) or name.startswith((FROZEN, "folds/")):
            folder.write(name, source.read(name))
    epochs = ({"event": "epoch", **epoch.as_json()} for epoch in equal.epochs)
    folder.write_lines(LOG, [json.dumps(epoch, allow_nan=False) for epoch in epochs])
    reason = f"same as trial {equal.number}"
    RunFolder(folder).end("complete", reason)
    known = RunFolder(source).about()
    _head(folder, {**{key: known[key] for key in TAKEN_OVER if key in known}, **about, "same_as": equal.number})
    return Settled(about["number"], about["name"], folder.uri, "complete", reason)


def _head(folder: Store, about: Mapping[str, Any]) -> None:
    """Written last: a run folder without it is no trial, so what a crash cut short is no unfinished one."""
    before = RunFolder(folder).about()
    folder.write_json("about.json", {**about, "started": before.get("started", time.time())})
