"""Rich Transcription Time Marked (NIST RT-09): a line per event; fields have no spaces."""

from pathlib import Path

from atose_ray.apps.timeline import Timeline
from atose_ray.apps.writers.base import Writer, lines


def write(timeline: Timeline) -> bytes:
    """SPEAKER lines, the tag in the place of the speaker, its score as the confidence."""
    name = joined(Path(timeline.file).stem)
    return lines(
        *(
            f"SPEAKER {name} 1 {event.start_s:.3f} {event.end_s - event.start_s:.3f} <NA> <NA> {joined(event.tag)} "
            f"{event.score:.4f} <NA>"
            for event in timeline.events
        )
    )


def joined(text: str) -> str:
    """A name as one field."""
    return "_".join(text.split()) or "_"


WRITER = Writer(".rttm", write)
