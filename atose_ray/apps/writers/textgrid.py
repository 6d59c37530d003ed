"""Praat TextGrid (long form): an interval tier per tag that sounds, filled with empty intervals."""

from collections.abc import Iterator

from atose_ray.apps.timeline import Event, Timeline
from atose_ray.apps.writers.base import Writer, lines


def write(timeline: Timeline) -> bytes:
    """Tags without an event have no tier; without any event there is one empty tier, as Praat wants one."""
    names = sorted({event.tag for event in timeline.events}) or ["no event"]
    seconds = repr(float(timeline.seconds))
    rows = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {seconds}"]
    rows += ["tiers? <exists>", f"size = {len(names)}", "item []:"]
    for number, name in enumerate(names, start=1):
        parts = list(intervals([event for event in timeline.events if event.tag == name], timeline.seconds))
        rows += [f"    item [{number}]:", '        class = "IntervalTier"', f"        name = {quoted(name)}"]
        rows += ["        xmin = 0", f"        xmax = {seconds}", f"        intervals: size = {len(parts)}"]
        for place, (start, end, text) in enumerate(parts, start=1):
            rows += [f"        intervals [{place}]:", f"            xmin = {start!r}", f"            xmax = {end!r}"]
            rows.append(f"            text = {quoted(text)}")
    return lines(*rows)


def intervals(events: list[Event], seconds: float) -> Iterator[tuple[float, float, str]]:
    """Events of one tag with what lies between them; events that follow at once stay apart."""
    at = 0.0
    for event in events:
        if event.start_s > at:
            yield at, float(event.start_s), ""
        yield float(event.start_s), float(event.end_s), event.tag
        at = float(event.end_s)
    if seconds > at:
        yield at, float(seconds), ""


def quoted(text: str) -> str:
    """Praat doubles a quotation mark."""
    return '"' + text.replace('"', '""') + '"'


WRITER = Writer(".TextGrid", write)
