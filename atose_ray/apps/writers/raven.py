"""Raven selection table (Cornell Lab of Ornithology), the columns that BirdNET-Analyzer writes too."""

from pathlib import Path

from atose_ray.apps.timeline import Timeline
from atose_ray.apps.writers.base import Writer, lines, one_line

PLACE = ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)")
COLUMNS = (*PLACE, "Class", "Confidence", "Begin File")


def write(timeline: Timeline) -> bytes:
    """A selection per event, over all frequencies that the model hears."""
    top, name = timeline.settings.get("sample_rate_hz", 0) // 2, Path(timeline.file).name
    rows = []
    for number, event in enumerate(timeline.events, start=1):
        place = (str(number), "Spectrogram 1", "1", f"{event.start_s:.3f}", f"{event.end_s:.3f}", "0", str(top))
        rows.append("\t".join((*place, one_line(event.tag), f"{event.score:.4f}", one_line(name))))
    return lines("\t".join(COLUMNS), *rows)


WRITER = Writer(".selections.txt", write)
