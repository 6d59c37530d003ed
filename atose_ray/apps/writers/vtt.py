"""WebVTT: the subtitles of browsers (W3C)."""

import html

from atose_ray.apps.timeline import Timeline
from atose_ray.apps.writers.base import Writer, clock, cues, lines, one_line


def write(timeline: Timeline) -> bytes:
    """A cue for every stretch of time with the same tags."""
    rows = ["WEBVTT", ""]
    for cue in cues(timeline):
        names = ", ".join(html.escape(one_line(event.tag), quote=False) for event in cue.events)
        rows += [f"{clock(cue.start_ms, '.')} --> {clock(cue.end_ms, '.')}", names, ""]
    return lines(*rows)


WRITER = Writer(".vtt", write)
