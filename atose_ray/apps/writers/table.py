"""CSV: an event per row, with the settings that made it, so that a table of many files stays true."""

import csv
import io
import json

from atose_ray.apps.timeline import Timeline
from atose_ray.apps.writers.base import Writer

COLUMNS = ("file", "start_s", "end_s", "tag", "score", "peak")


def write(timeline: Timeline) -> bytes:
    """RFC 4180; lists and tables among the settings are JSON."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\r\n")
    out.writerow([*COLUMNS, *timeline.settings])
    plain = [value if isinstance(value, str) else json.dumps(value) for value in timeline.settings.values()]
    for event in timeline.events:
        times = (f"{event.start_s:.3f}", f"{event.end_s:.3f}")
        out.writerow([timeline.file, *times, event.tag, f"{event.score:.6f}", f"{event.peak:.6f}", *plain])
    return text.getvalue().encode("utf-8")


WRITER = Writer(".csv", write)
