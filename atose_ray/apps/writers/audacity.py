"""Audacity label track: start, end and text, with tabs between, in seconds with six decimals."""

from atose_ray.apps.timeline import Timeline
from atose_ray.apps.writers.base import Writer, lines, one_line


def write(timeline: Timeline) -> bytes:
    """A label per event."""
    return lines(*(f"{event.start_s:.6f}\t{event.end_s:.6f}\t{one_line(event.tag)}" for event in timeline.events))


WRITER = Writer(".labels.txt", write)
