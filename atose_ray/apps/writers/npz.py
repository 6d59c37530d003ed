"""The scores themselves, as numpy reads them without pickles."""

import io
import json

import numpy as np

from atose_ray.apps.timeline import Timeline
from atose_ray.apps.writers.base import Writer


def write(timeline: Timeline) -> bytes:
    """scores_SC float32, start_s_S, tags, seconds, hop_s, settings (JSON)."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        scores_SC=timeline.scores_SC.astype(np.float32),
        start_s_S=np.arange(len(timeline.scores_SC)) * timeline.hop_s,
        tags=np.array(timeline.tags, np.str_),
        seconds=timeline.seconds,
        hop_s=timeline.hop_s,
        settings=json.dumps(timeline.settings),
    )
    return buffer.getvalue()


WRITER = Writer(".npz", write)
