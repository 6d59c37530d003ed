"""The study as one page: `render_report(study)` returns HTML that opens offline and asks no network for anything.

Python decides what is shown and does the arithmetic (this file, `report_trials.py`, `importance.py`); the page gets it
as one JSON object and draws it with the small scripts in `assets/`. Text from the data reaches the page only through
JSON and `textContent`, so no tag, file name or error message can become markup.
"""

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from atose_ray.data.pages import offline_page, well_formed
from atose_ray.data.tag_statistics import tag_order
from atose_ray.evaluation.metrics import COUNTS
from atose_ray.evaluation.protocols import CLIP
from atose_ray.search.importance import MIN_TRIALS, Importance, parameter_importances
from atose_ray.search.progress import last_sign, measure
from atose_ray.search.record import BestRecord, StudyRecord, TrialRecord
from atose_ray.search.report_trials import NAME_CHARACTERS, devices_data, groups_data, shortened, trials_data
from atose_ray.training.record import test_scorings
from atose_ray.types import SPLITS

DIGITS = 5  # significant digits of every float in the page
TEXT_CHARACTERS = 5000  # of one text in the page
SCRIPTS = (
    *("core.js", "marks.js", "overview.js", "curves.js", "parallel.js", "pareto.js", "tags.js", "tables.js"),
    *("promotion.js", "folds.js", "sound.js", "examples.js", "confusion.js", "trial.js", "compare.js", "live.js"),
    "main.js",
)
CLASS_FIGURES = ("precision", "recall", "f1")
Matrix = list[list[float]]


def render_report(
    study: StudyRecord, live_s: int | None = None, importances: tuple[Importance, ...] | None = None
) -> str:
    """The whole report as one self-contained HTML page.

    live_s: seconds until it is written again, if it will be. importances: where they are known; None computes them,
    which takes most of the time.
    """
    data = report_data(study, live_s, importances)
    return offline_page("atose_ray.search", "page.html", shortened(study.name, NAME_CHARACTERS), SCRIPTS, data)


def report_data(
    study: StudyRecord, live_s: int | None = None, importances: tuple[Importance, ...] | None = None
) -> dict[str, Any]:
    """The JSON object that the page draws: only JSON types, floats rounded, what is not finite is null."""
    order = sorted(study.trials, key=lambda trial: (trial.started, trial.number))
    data = {
        "study": _study_facts(study),
        "data": _data_facts(study),
        "ranges": _ranges(order),
        **trials_data(study, order),
        "devices": devices_data(order),
        "best": _best(study.best),
        "importances": [asdict(one) for one in (parameter_importances(order) if importances is None else importances)],
        "tag_maps": _tag_maps(study),
        "examples": {
            str(number): {**one, "clips": {key: {**clip, "wav": None} for key, clip in one["clips"].items()}}
            for number, one in study.examples.items()
        },
        "promotion": study.promotion,
        "crossvalidation": study.crossvalidation,
        "groups": groups_data(order),
        "classes": _classes(study),
        "live": None if live_s is None else _live(study, live_s),
        "protocol": CLIP.name,
        "versions": study.versions,
    }
    # clip id -> WAV in base64, of the chosen model's mistakes: those of other trials would be too much for a page
    clips = study.examples[study.best.number]["clips"] if study.best and study.best.number in study.examples else {}
    sound = {key: clip["wav"] for key, clip in clips.items() if clip["wav"]}
    return {**{name: _compact(part) for name, part in data.items()}, "sound": sound}


def _live(study: StudyRecord, live_s: int) -> dict[str, Any]:
    """Seconds until the page is written again, trials an hour, and the forecast of the seconds that are left."""
    wanted = study.config.get("search", {}).get("trials", len(study.trials))
    found = measure(study.trials, wanted, time.time())
    return {"seconds": live_s, "rate": found.trials_per_hour, "left": found.seconds_left}


def triangle_correlation(a_CC: Matrix, b_CC: Matrix) -> float | None:
    """Pearson correlation of two symmetric matrices over their pairs above the diagonal; None where it is undefined."""
    upper = np.triu_indices(len(a_CC), k=1)
    a, b = np.array(a_CC, dtype=float)[upper], np.array(b_CC, dtype=float)[upper]
    known = np.isfinite(a) & np.isfinite(b)
    if known.sum() < 3 or np.ptp(a[known]) == 0 or np.ptp(b[known]) == 0:
        return None
    return float(np.corrcoef(a[known], b[known])[0, 1])


def _study_facts(study: StudyRecord) -> dict[str, Any]:
    starts = [trial.started for trial in study.trials]
    ends = [last_sign(trial) for trial in study.trials]
    return {
        "name": study.name,
        "metric": study.metric,
        "config": study.config,
        "rerun": study.rerun_command,
        "arguments": study.arguments,
        "started": min(starts) if starts else None,
        "wall_seconds": max(ends) - min(starts) if starts else None,
        "ended": sum(trial.state != "running" for trial in study.trials),
        "min_trials_for_importance": MIN_TRIALS,
    }


def _data_facts(study: StudyRecord) -> dict[str, Any]:
    spec = study.data_spec
    return {
        "input": str(spec.input),
        "clip_seconds": spec.input.length / spec.input.rate_hz,
        "exclusive": spec.exclusive,
        "tags": list(spec.tags),
        "clips": {split: spec.counts[split] for split in SPLITS if split in spec.counts},
        "tag_counts": _counts_by_split(study.tag_counts, spec.tags),
        "skipped": [list(pair) for pair in study.skipped],
    }


def _counts_by_split(counts: dict[str, dict[str, int]], tags: Sequence[str]) -> dict[str, list[int]]:
    """split -> clips of every tag, from split -> tag -> clips or from tag -> split -> clips."""
    if not all(name in SPLITS for name in counts):
        counts = {split: {tag: of[split] for tag, of in counts.items() if split in of} for split in SPLITS}
    return {split: [of.get(tag, 0) for tag in tags] for split, of in counts.items() if of}


def _ranges(trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Path -> Optuna's range of a parameter, as the last trial that has it was given it, where that can be read."""
    found = {}
    for trial in trials:
        for path in trial.params:
            with contextlib.suppress(KeyError, ValueError):
                found[path] = json.loads(trial.distributions[path])
    return found


def _best(best: BestRecord | None) -> dict[str, Any] | None:
    if best is None:
        return None
    metrics = {name: value for name, value in best.metrics.items() if name != "tag_embedding_cosine_CC"}
    for split in ("valid", "test"):
        metrics[split] = {name: one for name, one in (metrics.get(split) or {}).items() if name not in COUNTS}
    counts = {name: int(one) for name, one in (best.metrics.get("test") or {}).items() if name in COUNTS}
    scorings = test_scorings(best.metrics)
    return {"number": best.number, "config": best.config, "metrics": metrics, "counts": counts, "scorings": scorings}


def _classes(study: StudyRecord) -> dict[str, Any] | None:
    """Precision, recall, F1 and clips of each exclusive tag: of test, or, where 0.1.0 scored it, of validation."""
    if not (study.best and study.data_spec.exclusive):
        return None
    known = {
        "test": study.best.metrics.get("per_tag"),
        "valid": study.examples.get(study.best.number, {}).get("per_tag"),
    }
    for split, rows in known.items():
        if rows and "recall" in rows[0]:
            return {"split": split, "rows": rows, "macro": {name: _mean(rows, name) for name in CLASS_FIGURES}}
    return None


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Over the classes that a clip carries; a precision that is not defined counts as zero, as a recall would."""
    values = [row[name] or 0.0 for row in rows if row["positives"]]
    return sum(values) / len(values) if values else None


def _tag_maps(study: StudyRecord) -> dict[str, Any]:
    """Of exclusive tags the learned one only: they never occur together, so their correlation says nothing."""
    correlation = study.tag_correlation_CC
    learned = study.tag_embeddings
    cosine = learned.cosine_CC if learned and len(learned.cosine_CC) == len(correlation) else None
    if study.data_spec.exclusive:
        correlation = []
    return {
        "order": tag_order(correlation or cosine or []),
        "correlation": [[round(value, 3) for value in row] for row in correlation],
        "cosine": cosine and [[round(value, 3) for value in row] for row in cosine],
        "agreement": triangle_correlation(correlation, cosine) if cosine and correlation else None,
        "collapsed": learned.collapsed if learned else None,
        "trial": f"{learned.number}: {learned.name}" if learned else None,
    }


def _compact(value: Any) -> Any:
    """JSON types only: floats with DIGITS significant digits (times, which are large, keep hundredths), no NaN."""
    if isinstance(value, dict):
        return {well_formed(shortened(str(key), TEXT_CHARACTERS)): _compact(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_compact(one) for one in value]
    if isinstance(value, str):
        return well_formed(shortened(value, TEXT_CHARACTERS))
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if not math.isfinite(number):
            return None
        return round(number, 2) if abs(number) >= 10**DIGITS else float(f"{number:.{DIGITS}g}")
    return value.item() if isinstance(value, np.generic) else str(value)
