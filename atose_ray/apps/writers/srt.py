"""SubRip subtitles: numbered cues, as players and editors read them."""

from atose_ray.apps.timeline import Timeline
from atose_ray.apps.writers.base import Writer, clock, cues, lines, one_line


def write(timeline: Timeline) -> bytes:
    """A cue for every stretch of time with the same tags."""
    rows: list[str] = []
    for number, cue in enumerate(cues(timeline), start=1):
        names = ", ".join(one_line(event.tag) for event in cue.events)
        rows += [str(number), f"{clock(cue.start_ms, ',')} --> {clock(cue.end_ms, ',')}", names, ""]
    return lines(*rows)


WRITER = Writer(".srt", write)
