"""Clips that `tag --clips` cut out and a listener judged, as rows of `folder`: labels for the next training.

    file,clip,start,end,tag,score,accept
    night.wav,night.wav/00001_owl_0.83_00h12m03.5s.wav,723.500,726.000,owl,0.83,yes

`accept` is yes, no, or empty for a clip that nobody has listened to yet, which is left out. A label says yes or no of
every tag, so a clip has the tag it was cut for where that was accepted, and the accepted tags of the same recording
whose events cover half of it or more; of any other tag it is a clip without. A rejected clip is kept, without its tag:
it is a negative of that one, and of those that nobody asked about too. A tag of which no clip was accepted is none.

A recording is one group, so that it never stands in two splits. Fewer than MIN_RECORDINGS are grouped by minutes
instead, events that overlap staying together: neighbours then share a background, and scores are kinder than on a
recording that was never heard."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from atose_ray.datasets.base import DatasetError, read_rows

COLUMNS = ("file", "clip", "start", "end", "tag", "score", "accept")
ANSWERS = {"yes": True, "y": True, "1": True, "true": True, "accept": True, "accepted": True} | {
    "no": False, "n": False, "0": False, "false": False, "reject": False, "rejected": False,
}  # fmt: skip
MIN_RECORDINGS = 10
MINUTE_S = 60.0
NOT_YET = "not listened to yet (an empty cell accept)"


class Judged(NamedTuple):
    """A clip with its answer. path: of its file; recording, start_s, end_s: where it was cut out; group: see above."""

    path: str
    recording: str
    start_s: float
    end_s: float
    tag: str
    accepted: bool
    tags: tuple[str, ...] = ()
    group: str = ""


def read_review(table: Path) -> tuple[list[Judged], Counter[str]]:
    """The judged clips with their tags and groups, and how many are left out, by reason. Raises DatasetError."""
    judged, left_out, seen = list[Judged](), Counter[str](), set[str]()
    for where, cell in read_rows(table, COLUMNS):
        answer = cell["accept"].lower()
        if not answer:
            left_out[NOT_YET] += 1
            continue
        if answer not in ANSWERS:
            raise DatasetError(f"{where}: accept is yes, no or empty, but got {cell['accept']!r}")
        if not cell["clip"] or not cell["tag"] or cell["clip"] in seen:
            raise DatasetError(f"{where}: every row has a clip of its own and a tag, but got {','.join(cell.values())}")
        try:
            start_s, end_s = float(cell["start"]), float(cell["end"])
        except ValueError as error:
            raise DatasetError(f"{where}: start and end are seconds, but got {cell['start']!r}, {cell['end']!r}") from (
                error
            )
        seen.add(cell["clip"])
        judged.append(Judged(cell["clip"], cell["file"], start_s, end_s, cell["tag"], ANSWERS[answer]))
    if not judged:
        raise DatasetError(
            f"nobody has said yes or no to a clip of {table} yet; fill in the column accept, and save it"
        )
    by_recording: dict[str, list[Judged]] = {}
    for clip in judged:
        by_recording.setdefault(clip.recording, []).append(clip)
    minutes = len(by_recording) < MIN_RECORDINGS
    return [clip for clips in by_recording.values() for clip in with_labels(clips, minutes)], left_out


def with_labels(clips: list[Judged], minutes: bool) -> list[Judged]:
    """The clips of one recording with their tags and groups, by start. minutes: groups are minutes, else it is one."""
    out, order, group, heard_until = list[Judged](), sorted(clips, key=lambda clip: clip.start_s), "", float("-inf")
    sounding: list[Judged] = []  # accepted ones that may reach into the next
    ahead = 0
    for clip in order:
        while ahead < len(order) and order[ahead].start_s < clip.end_s:
            sounding += [order[ahead]] if order[ahead].accepted else []
            ahead += 1
        sounding = [one for one in sounding if one.end_s > clip.start_s]
        own = [clip.tag] * clip.accepted
        denied = () if clip.accepted else (clip.tag,)
        tags = [one.tag for one in sounding if covers(one, clip) and one.tag not in denied]
        if not minutes:
            group = clip.recording
        elif clip.start_s >= heard_until:
            group = f"{clip.recording}, minute {int(clip.start_s // MINUTE_S)}"
        heard_until = max(heard_until, clip.end_s)
        out.append(clip._replace(tags=tuple(dict.fromkeys([*own, *tags])), group=group))
    return out


def covers(event: Judged, clip: Judged) -> bool:
    """Whether an event sounds through half of a clip or more."""
    return min(event.end_s, clip.end_s) - max(event.start_s, clip.start_s) >= (clip.end_s - clip.start_s) / 2
