"""The trials as the report's page gets them: small enough for thousands of them, whole enough for a page of each.

Curves are thinned and packed (16 bits a value, between the curve's own ends); a config is listed by what it does not
share with the other trials.
"""

import base64
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atose_ray.config import ConfigError, StudyConfig
from atose_ray.evaluation.metrics import COUNTS
from atose_ray.search.progress import last_sign
from atose_ray.search.record import StudyRecord, TrialRecord, best_trial
from atose_ray.search.space import compose
from atose_ray.training.record import EpochRecord

CURVE_POINTS, FEWEST_POINTS = 60, 12  # of one curve
CURVE_NUMBERS = 1_000_000  # of all curves together: 2.7 bytes each
REASON_CHARACTERS, LEAST_REASON, LONGEST_REASON = 600_000, 300, 4000  # of all reasons together, and of one
STEPS = 65_534  # a packed value is one of them, from the curve's lowest to its highest; the next number is a gap
PAUSE = 0.5  # of an epoch's seconds: a longer break between two epochs is shown as one
NAME_CHARACTERS = 300
AS_THEY_ARE = (
    *("number", "signature", "state", "parameters", "params", "value", "resources", "threads", "precision"),
    *("residency", "latency_ms", "gpu_memory", "folds"),
)


@dataclass(frozen=True)
class Leaf:
    """One value of a config, as JSON, by its dotted path."""

    path: str
    value: str


def leaves(tree: Any, path: str = "") -> Iterator[Leaf]:
    """Every value of a nested config; a list is a branch where it holds branches, else a value."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list) and any(isinstance(one, (Mapping, list)) for one in tree):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}.{index}")
    else:
        yield Leaf(path, json.dumps(tree, default=str))


def trials_data(study: StudyRecord, order: Sequence[TrialRecord]) -> dict[str, Any]:
    """{"metrics": names, "configs": the leaves of all configs, "trials": one object each, in the order given}."""
    metrics = sorted({name for trial in order for epoch in trial.epochs for name in epoch.valid} - set(COUNTS))
    points = CURVE_NUMBERS // max(1, len(order) * (len(metrics) + 1))
    points = min(CURVE_POINTS, max(FEWEST_POINTS, points))
    reasons = sum(trial.reason is not None for trial in order)
    reason = min(LONGEST_REASON, max(LEAST_REASON, REASON_CHARACTERS // max(1, reasons)))
    configs, own = shared_configs(study, order)
    rows = [
        {**_facts(trial, reason), **_course(trial, metrics), **config, "curves": _curves(trial, metrics, points)}
        for trial, config in zip(order, own, strict=True)
    ]
    return {"metrics": metrics, "configs": configs, "curve_points": points, "trials": rows}


def shared_configs(
    study: StudyRecord, order: Sequence[TrialRecord]
) -> tuple[dict[str, Any], list[dict[str, list[int]]]]:
    """All leaves of all configs, and of every trial the indices of those that it does not share with most others.

    "shared": the most frequent leaf of every path that more than half of the trials have. "base": the leaves of the
    study's base with all defaults, or None where it cannot be composed any more (another version wrote it).
    """
    found = [list(leaves(trial.config)) for trial in order]
    counts = Counter(leaf for of_trial in found for leaf in of_trial)
    shared = {leaf.path: leaf for leaf, count in counts.items() if count > len(order) / 2}
    base = _base(study)
    index = {leaf: i for i, leaf in enumerate(dict.fromkeys([*counts, *(base or [])]))}
    own = []
    for of_trial in found:
        differs = [index[leaf] for leaf in of_trial if shared.get(leaf.path) != leaf]
        paths = {leaf.path for leaf in of_trial}
        own.append({"config": differs, "lacks": [index[leaf] for path, leaf in shared.items() if path not in paths]})
    table = {
        "leaves": [[leaf.path, json.loads(leaf.value)] for leaf in index],
        "shared": [index[leaf] for leaf in shared.values()],
        # null: left to the data, as the crop's length and the hash of the shards are
        "base": None
        if base is None
        else [index[shared.get(one.path, one) if one.value == "null" else one] for one in base],
    }
    return table, own


def _base(study: StudyRecord) -> list[Leaf] | None:
    try:
        config = StudyConfig.model_validate(study.config)
        return list(leaves(compose(config, {}).model_dump(mode="json")))
    except (ConfigError, ValueError):
        return None


def _facts(trial: TrialRecord, reason: int) -> dict[str, Any]:
    return {
        **{name: getattr(trial, name) for name in AS_THEY_ARE},
        "name": shortened(trial.name, NAME_CHARACTERS),
        "device": shortened(trial.device, NAME_CHARACTERS),
        "reason": None if trial.reason is None else shortened(trial.reason, reason),
        "started": round(trial.started, 2),
        "ended": round(last_sign(trial), 2),
        "opened": None if trial.opened is None else round(trial.opened - trial.started, 2),
        "notes": [[round(one.time, 2), one.cause, shortened(one.text, LEAST_REASON)] for one in trial.notes[:50]],
    }


def shortened(text: str, limit: int) -> str:
    """At most about `limit` characters: the head and, longer, the tail (where a traceback says what it was)."""
    if len(text) <= limit:
        return text
    head = limit // 3
    return f"{text[:head]} … ({len(text) - limit:,} characters left out) … {text[head - limit :]}"


def _course(trial: TrialRecord, metrics: Sequence[str]) -> dict[str, Any]:
    """What became of a trial, epoch by epoch: its pace, its stages, its bars on the clock, its scores when best."""
    epochs = trial.epochs
    seconds = [epoch.seconds for epoch in epochs]
    best = next((epoch for epoch in epochs if epoch.objective == epochs[-1].objective), None)
    stages = list(dict.fromkeys(epoch.stage for epoch in epochs))
    begins = [epoch for i, epoch in enumerate(epochs) if i == 0 or epoch.stage != epochs[i - 1].stage]
    return {
        "epochs": len(epochs),
        "pace": pace(seconds),
        "stages": stages,
        "bounds": [[epoch.epoch, stages.index(epoch.stage)] for epoch in begins],
        "bars": [[stages.index(stage), *span] for stage, *span in bars(trial)],
        "best_epoch": best.epoch if best else None,
        "scores": [best.valid.get(name) for name in metrics] if best else [],
    }


def pace(seconds: Sequence[float]) -> dict[str, float | int] | None:
    """Median, least, most and sum of the seconds of epochs, and how many they are."""
    if not seconds:
        return None
    ends = {"least": min(seconds), "most": max(seconds)}
    return {**ends, "median": statistics.median(seconds), "total": sum(seconds), "count": len(seconds)}


def bars(trial: TrialRecord) -> list[tuple[str, float, float]]:
    """(stage, from, to) in seconds since the trial started: epochs of one stage without a break are one bar."""
    found: list[tuple[str, float, float]] = []
    for epoch in trial.epochs if trial.same_as is None else ():  # else it took what another one had done
        first, last = epoch.time - epoch.seconds - trial.started, epoch.time - trial.started
        if found and found[-1][0] == epoch.stage and first - found[-1][2] <= max(1.0, PAUSE * epoch.seconds):
            first = found.pop()[1]
        found.append((epoch.stage, round(first, 2), round(last, 2)))
    return found


def _curves(trial: TrialRecord, metrics: Sequence[str], points: int) -> dict[str, Any]:
    kept = [trial.epochs[i] for i in thin(trial.epochs, points)]
    numbers = [epoch.epoch for epoch in kept]
    return {
        "epoch": len(numbers) if numbers == list(range(1, len(numbers) + 1)) else numbers,
        "loss": pack([epoch.train_loss for epoch in kept]),
        "valid": [pack([epoch.valid.get(name) for epoch in kept]) for name in metrics],
    }


def thin(epochs: Sequence[EpochRecord], points: int) -> list[int]:
    """Indices of at most `points` epochs, or a few more: evenly spread, with the first and the last, the best one, and
    both sides of every stage's beginning."""
    if len(epochs) <= points:
        return list(range(len(epochs)))
    even = {round(i * (len(epochs) - 1) / (points - 1)) for i in range(points)}
    changes = {i for i in range(1, len(epochs)) if epochs[i].stage != epochs[i - 1].stage}
    if len(changes) <= points // 4:
        even |= changes | {i - 1 for i in changes}
    best = next(i for i, epoch in enumerate(epochs) if epoch.objective == epochs[-1].objective)
    return sorted(even | {best})


def pack(values: Sequence[float | None]) -> list[Any] | None:
    """[lowest, highest, base64 of little-endian uint16]; a value that is missing or not finite is STEPS + 1. None where
    no value is finite. The error is at most a 131,068th of the range."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
    share = (numbers - low) / ((high - low) or 1.0)
    steps = np.where(np.isfinite(numbers), np.rint(np.nan_to_num(share, posinf=0, neginf=0) * STEPS), STEPS + 1)
    return [low, high, base64.b64encode(steps.astype("<u2").tobytes()).decode()]


def devices_data(trials: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """What each kind of device did: trials, their time, and the pace over all their epochs."""
    found = []
    for device in dict.fromkeys(trial.device for trial in trials if trial.device):
        here = [trial for trial in trials if trial.device == device]
        seconds = [epoch.seconds for trial in here for epoch in trial.epochs]
        busy = sum(last_sign(trial) - trial.started for trial in here)
        name = shortened(device, NAME_CHARACTERS)
        found.append({"device": name, "trials": len(here), "busy": busy, "pace": pace(seconds)})
    return found


def groups_data(trials: Sequence[TrialRecord]) -> dict[str, list[dict[str, Any]]]:
    """What each method and each encoder got: "method" and "encoder" -> a row per kind, the best score first. epochs:
    median and most that its trials were trained for, of those that finished one."""
    found = {}
    for part in ("method", "encoder"):
        kinds: dict[str, list[TrialRecord]] = {}
        for trial in trials:
            kinds.setdefault(_kind(trial, part), []).append(trial)
        rows = [_group(kind, of) for kind, of in kinds.items()]
        found[part] = sorted(rows, key=lambda row: -math.inf if row["value"] is None else row["value"], reverse=True)
    return found


def _kind(trial: TrialRecord, part: str) -> str:
    of = trial.config.get(part)
    kind = of.get("kind") if isinstance(of, Mapping) else trial.params.get(f"{part}.kind")
    return shortened(str(kind or "not recorded"), NAME_CHARACTERS)


def _group(kind: str, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    epochs = [len(trial.epochs) for trial in trials if trial.epochs]
    best = best_trial(trials)
    return {
        "kind": kind,
        "value": best.value if best else None,
        "number": best.number if best else None,
        "trials": len(trials),
        "epochs": {"median": statistics.median(epochs), "most": max(epochs)} if epochs else None,
        "pruned": sum(trial.state == "pruned" for trial in trials),
    }
