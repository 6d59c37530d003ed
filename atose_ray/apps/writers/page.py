"""An HTML page that opens offline: the sound with a moving cursor, its level, a heat map of tags over time, events to
click and thresholds to drag (assets/timeline.js). Its events follow from the smoothed scores; of exclusive tags and of
`max_tags` it knows nothing."""

import base64
import mimetypes
from pathlib import Path
from typing import Any

import numpy as np

from atose_ray.apps.timeline import Timeline, TimelineConfig, smoothed
from atose_ray.apps.writers.base import Writer
from atose_ray.data.pages import offline_page
from atose_ray.types import Array

MOST_TAGS = 60  # rows of the map: the tags with the highest scores; the page says how many are left out
EMBED_BYTES = 4 << 20  # a sound of at most so many bytes is in the page; of a longer one the page knows the place
STEPS = 255


def write(timeline: Timeline) -> bytes:
    """One file without links."""
    data = view_of(timeline) | {"sound": sound_of(timeline.file)}
    data["video"] = (mimetypes.guess_type(timeline.file)[0] or "").startswith("video/")
    scripts = ["timeline.js", "timeline_page.js"]
    return offline_page("atose_ray.apps", "timeline.html", data["file"], scripts, data, ["timeline.css"]).encode()


def view_of(timeline: Timeline) -> dict[str, Any]:
    """What assets/timeline.js draws: scores in 255 steps between the lowest and the highest."""
    peak_C = timeline.scores_SC.max(axis=0) if len(timeline.scores_SC) else np.zeros(len(timeline.tags))
    shown = np.argsort(-peak_C, kind="stable")[:MOST_TAGS]
    settings = TimelineConfig.model_validate(timeline.settings.get("timeline", {}))
    width = round(settings.smoothing_s / timeline.hop_s)
    scores_SC = smoothed(timeline.scores_SC[:, shown], width, settings.smoothing)
    low, high = (float(scores_SC.min()), float(scores_SC.max())) if scores_SC.size else (0.0, 1.0)
    step_SC = np.round((scores_SC - low) / max(high - low, 1e-9) * STEPS)
    level_S = np.round(np.clip(timeline.level_S, 0, 1) * STEPS)
    return {
        "file": Path(timeline.file).name,
        "seconds": timeline.seconds,
        "hop": timeline.hop_s,
        "tags": [timeline.tags[column] for column in shown],
        "left_out": len(timeline.tags) - len(shown),
        "low": low,
        "high": high,
        "scores": packed(step_SC.T),
        "level": packed(level_S),
        "thresholds": [settings.thresholds.get(timeline.tags[column], settings.threshold) for column in shown],
        "rules": settings.model_dump(include={"hysteresis", "min_duration_s", "join_gap_s"}),
        "settings": timeline.settings,
    }


def packed(values: Array) -> str:
    """Whole numbers 0..255 as base64, row after row."""
    return base64.b64encode(np.ascontiguousarray(values, np.uint8).tobytes()).decode("ascii")


def sound_of(file: str) -> str | None:
    """A data URI of a small sound, the place of a large one, None of one that no browser can reach."""
    path = Path(file)
    if "://" in file or not path.is_file():
        return None
    if path.stat().st_size > EMBED_BYTES:
        return path.absolute().as_uri()
    kind = mimetypes.guess_type(file)[0] or "audio/wav"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


WRITER = Writer(".html", write)
