"""Timelines as files. A format is one file with a `Writer`, one line in WRITERS, and one in tests/test_writers.py."""

from atose_ray.apps.writers import audacity, elan, jsonl, npz, page, raven, rttm, srt, table, textgrid, vtt
from atose_ray.apps.writers.base import Writer

WRITERS: dict[str, Writer] = {
    "srt": srt.WRITER,
    "vtt": vtt.WRITER,
    "audacity": audacity.WRITER,
    "raven": raven.WRITER,
    "csv": table.WRITER,
    "jsonl": jsonl.WRITER,
    "textgrid": textgrid.WRITER,
    "elan": elan.WRITER,
    "rttm": rttm.WRITER,
    "npz": npz.WRITER,
    "html": page.WRITER,
}
