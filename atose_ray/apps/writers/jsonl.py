"""JSON lines: first the recording with the settings, then an event a line."""

import dataclasses
import json

from atose_ray.apps.timeline import Timeline
from atose_ray.apps.writers.base import Writer, lines


def write(timeline: Timeline) -> bytes:
    """`{"recording": ...}`, then `{"event": ...}` each."""
    head = {"file": timeline.file, "seconds": timeline.seconds, "tags": timeline.tags, "settings": timeline.settings}
    events = ({"event": dataclasses.asdict(event)} for event in timeline.events)
    return lines(*(json.dumps(row, ensure_ascii=False) for row in ({"recording": head}, *events)))


WRITER = Writer(".jsonl", write)
