"""Examines a prepared data set before anything is trained on it: what is wrong with its files, splits and tags.

A check is a function of the manifest and the table of clips that gives findings. An error means that training must not
start (it would be refused, or its scores would be worthless), a warning that someone should look, a note is for the
record.
"""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np

from atose_ray.data.doctor.facts import SILENT_LEVEL, Audio, Clip, alike, load_clips, read_audio
from atose_ray.data.doctor.findings import OWN_SPLITS, Finding, Flag, counted, first_few, kind_of, share
from atose_ray.data.doctor.splits import examine_splits
from atose_ray.data.shards import Manifest, SkippedClip, load_manifest
from atose_ray.storage import Store
from atose_ray.types import AudioInput

QUARANTINE = "quarantine.csv"
COLUMNS = ("path", "split", "problem", "detail")
CLIPPED_SHARE = 0.01
DC_LEVEL = 0.1  # of the peak
SHORT = 0.1  # of the median length
TOO_MANY_LOST = 0.25

# What a reason that prepare gave for skipping a clip says, and what it is called here; else it is "broken".
PROBLEM_OF_REASON = {
    "no such file": "missing",
    "is cut off": "truncated",
    "was asked for, but the file is": "truncated",
    "are NaN or infinite": "not finite",
    "is empty (0 bytes)": "empty",
    "holds no samples": "empty",
    "holds no frames": "empty",
}
HINT = {
    "missing": "fetch the files, or remove them from the annotations",
    "truncated": "fetch the files again",
    "not finite": "export the files again",
    "empty": "fetch the files again, or remove them from the annotations",
    "broken": "fetch the files again, or remove them from the annotations",
}
KNOWN_BROKEN = {
    "mtat": (
        "6/norine_braun-now_and_zen-08-gently-117-146.mp3",
        "8/jacob_heringman-*pater_noster-204-233.mp3",
        "9/american_baroque-*couperin-88-117.mp3",
    )
}
JOIN_THE_PARTS = (
    "the archive comes in parts that are one file: join them before unzipping "
    "(cat mp3.zip.00* > mp3.zip && unzip mp3.zip), then prepare again"
)

ReadAudio = Callable[[list[Clip]], dict[int, Audio]]


@dataclass(frozen=True)
class Examination:
    """What was found in a data set, errors first."""

    dataset: str
    manifest: Manifest
    clips: tuple[Clip, ...]
    findings: tuple[Finding, ...]

    @property
    def may_train(self) -> bool:
        """No error was found."""
        return not any(one.severity == "error" for one in self.findings)


def examine(store: Store, dataset: str) -> Examination:
    """Examine a prepared data set. Raises StoreError when it is not there or its shards cannot be read."""
    manifest = load_manifest(store, dataset)
    folder = manifest.folder(store)
    clips = load_clips(folder, manifest)
    n_tags = len(manifest.data_spec.tags)
    findings = [
        *examine_skipped(manifest, clips),
        *examine_content(manifest, clips),
        *examine_copies(manifest, clips, lambda some: read_audio(folder, some, n_tags)),
        *examine_splits(manifest, clips),
    ]
    rank = ("error", "warning", "note")
    return Examination(
        dataset, manifest, clips, tuple(sorted(findings, key=lambda finding: rank.index(finding.severity)))
    )


def examine_skipped(manifest: Manifest, clips: Iterable[Clip]) -> Iterator[Finding]:
    """Clips that could not be decoded, by what is wrong with them."""
    known = KNOWN_BROKEN.get(kind_of(manifest), ())
    problems: dict[str, list[SkippedClip]] = {}
    for clip in manifest.skipped:
        expected = any(fnmatchcase(clip.name, pattern) for pattern in known)
        problems.setdefault("known broken" if expected else problem_of(clip.reason), []).append(clip)
    for problem, skipped in problems.items():
        flags = tuple(Flag(clip.name, clip.split, _without_path(clip)) for clip in skipped)
        if problem == "known broken":
            what = f"{len(flags)} of the {len(known)} files that are broken in the published archive were left out"
            yield Finding("note", problem, what, "nothing: everyone leaves them out", flags)
        else:
            what = f"{counted(len(flags), 'file', 'are')} {problem} and left out"
            yield Finding("warning", problem, what, HINT[problem], flags)
    lost = sum(len(skipped) for problem, skipped in problems.items() if problem != "known broken")
    total = sum(manifest.data_spec.counts.values()) + len(manifest.skipped)
    if lost >= TOO_MANY_LOST * total:
        what = f"{share(lost, total)} clips could not be decoded"
        hint = f"check that the source of {kind_of(manifest)!r} is complete, and prepare again"
        yield Finding("error", "too many lost", what, hint)
    yield from _missing_folders(manifest, clips)


def _without_path(clip: SkippedClip) -> str:
    """The reason without the path before it, which ends in the clip's name wherever the source lies."""
    return clip.reason.partition(f"{clip.name}: ")[2] or clip.reason


def problem_of(reason: str) -> str:
    """A word for what prepare said about a clip that it skipped."""
    return next((problem for words, problem in PROBLEM_OF_REASON.items() if words in reason), "broken")


def _missing_folders(manifest: Manifest, clips: Iterable[Clip]) -> Iterator[Finding]:
    """MagnaTagATune with whole folders missing: the archive's parts were unzipped one by one."""
    if kind_of(manifest) != "mtat":
        return
    absent = {clip.name.split("/")[0] for clip in manifest.skipped if problem_of(clip.reason) == "missing"}
    here = {clip.name.split("/")[0] for clip in clips}
    annotated = here | {clip.name.split("/")[0] for clip in manifest.skipped}
    gone = sorted(absent - here)
    if len(gone) >= TOO_MANY_LOST * len(annotated):
        what = f"{len(gone)} of the {len(annotated)} folders have no file: {', '.join(gone)}"
        yield Finding("error", "folders missing", what, JOIN_THE_PARTS)


def examine_content(manifest: Manifest, clips: tuple[Clip, ...]) -> Iterator[Finding]:
    """Silent, clipped, off-centre and very short clips, and sources whose rate is wrong; of frames what there is."""
    about = manifest.data_spec.input
    if isinstance(about, AudioInput):
        yield from _levels(clips)
        yield from _rates(about.sample_rate_hz, clips)
    else:
        flags = tuple(_flag(clip, f"all values are {clip.facts.mean:g}") for clip in clips if clip.silent)
        yield from _some("warning", "silent", flags, "are one value throughout", "remove them, or compute them again")
    median = float(np.median([clip.facts.samples for clip in clips]))
    short = [clip for clip in clips if clip.facts.samples < SHORT * median]
    flags = tuple(_flag(clip, f"{clip.facts.samples / about.rate_hz:.3f} s") for clip in short)
    what = f"are shorter than a tenth of the median ({median / about.rate_hz:.2f} s)"
    yield from _some("note", "very short", flags, what, "check that they are what the annotations mean", False)


def _levels(clips: tuple[Clip, ...]) -> Iterator[Finding]:
    silent = tuple(_flag(clip, _silence(clip)) for clip in clips if clip.silent)
    yield from _some("warning", "silent", silent, "are silent (below -60 dB)", "remove them, or record them again")
    loud = sorted((clip for clip in clips if clip.facts.clipped >= CLIPPED_SHARE), key=lambda clip: -clip.facts.clipped)
    clipped = tuple(_flag(clip, f"{clip.facts.clipped:.1%} of its samples are clipped") for clip in loud)
    yield from _some("warning", "clipped", clipped, "are clipped", "listen to them; get them at a lower level")
    dc = [clip for clip in clips if not clip.silent and abs(clip.facts.mean) > DC_LEVEL * clip.facts.peak]
    flags = tuple(_flag(clip, f"mean {clip.facts.mean:+.3f} of full scale") for clip in dc)
    yield from _some("note", "off centre", flags, "have a constant offset", "remove it with a high-pass filter", False)


def _silence(clip: Clip) -> str:
    if clip.facts.peak < SILENT_LEVEL <= clip.loudness:
        return f"its {clip.facts.channels} channels cancel when they are mixed to mono"
    level = min(clip.loudness, clip.facts.peak)
    return "all samples are zero" if level == 0 else f"peak {20 * np.log10(level):.0f} dB"


def _rates(rate_hz: int, clips: tuple[Clip, ...]) -> Iterator[Finding]:
    counts = Counter(clip.facts.source_rate_hz for clip in clips)
    if None in counts:
        what = (
            f"the rate, channels and level of {counts.pop(None)} files are not recorded: an older version prepared them"
        )
        yield Finding("note", "sources not recorded", what, "prepare into another store to have them examined too")
    low = tuple(
        _flag(clip, f"{clip.facts.source_rate_hz} Hz where the shards have {rate_hz} Hz")
        for clip in clips
        if clip.facts.source_rate_hz is not None and clip.facts.source_rate_hz < rate_hz
    )
    what = f"have a lower sample rate than the shards ({rate_hz} Hz): their upper frequencies are empty"
    yield from _some("warning", "wrong rate", low, what, "get better files, or prepare with a lower sample_rate_hz")
    high = [clip for clip in clips if (clip.facts.source_rate_hz or 0) >= rate_hz]
    usual = counts.most_common(1)[0][0] if counts else None
    odd = tuple(_flag(clip, f"{clip.facts.source_rate_hz} Hz") for clip in high if clip.facts.source_rate_hz != usual)
    what = f"have another sample rate than most ({usual} Hz); they were resampled"
    yield from _some("note", "mixed rates", odd, what, "nothing, unless the rate tells the classes apart", False)


def examine_copies(manifest: Manifest, clips: tuple[Clip, ...], read: ReadAudio) -> Iterator[Finding]:
    """The same samples twice, and the same recording at another level or with other silence around it."""
    sounding = [clip for clip in clips if not clip.silent]
    same = _alike_by(sounding, lambda clip: clip.facts.fingerprint)
    single = {clip.facts.fingerprint: clip for clip in reversed(sounding)}
    nearly = []
    for group in _alike_by(list(single.values()), lambda clip: clip.facts.shape):
        audio = read(group)
        first = audio[group[0].facts.clip_id]
        found = [group[0], *(clip for clip in group[1:] if alike(first, audio[clip.facts.clip_id]))]
        nearly += [found] if len(found) > 1 else []
    worst: Literal["warning", "error"] = "error" if kind_of(manifest) in OWN_SPLITS else "warning"
    keep = "remove the copies in quarantine.csv from the annotations and prepare again"
    for groups, what in (
        (same, f"the same {manifest.data_spec.input.kind} as"),
        (nearly, "the same recording, at another level or trimmed, as"),
    ):
        word = "copy" if groups is same else "near copy"
        leaks = [group for group in groups if len({clip.split for clip in group}) > 1]
        flags = tuple(flag for group in leaks for flag in _copies(group, what, manifest))
        severity = worst if groups is same else "warning"
        yield from _some(severity, f"{word} in two splits", flags, f"are a {word} of one in another split", keep)
        flags = tuple(flag for group in groups if group not in leaks for flag in _copies(group, what, manifest))
        yield from _some("warning", word, flags, f"are a {word} of one in the same split", keep)


def _alike_by(clips: list[Clip], key: Callable[[Clip], str]) -> list[list[Clip]]:
    """Clips with the same key, two or more; the one to keep first: test before valid before train, as listed."""
    groups: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: (("test", "valid", "train").index(clip.split), clip.facts.clip_id)):
        if key(clip):
            groups.setdefault(key(clip), []).append(clip)
    return [group for group in groups.values() if len(group) > 1]


def _copies(group: list[Clip], what: str, manifest: Manifest) -> Iterator[Flag]:
    kept = group[0]
    for clip in group[1:]:
        ours, theirs = ("|".join(manifest.data_spec.tags[tag] for tag in one.tags) for one in (clip, kept))
        other = "" if ours == theirs else f"; tags {ours or 'none'} against {theirs or 'none'}"
        yield _flag(clip, f"{what} {kept.name} ({kept.split}){other}")


def _flag(clip: Clip, detail: str) -> Flag:
    return Flag(clip.name, clip.split, detail, clip.facts.clip_id)


def _some(
    severity: Literal["error", "warning", "note"],
    kind: str,
    flags: tuple[Flag, ...],
    what: str,
    hint: str,
    quarantine: bool = True,
) -> Iterator[Finding]:
    """One finding where there are flags, none where there are not. what: begins with `are` or `have`."""
    verb, rest = what.split(" ", 1)
    if flags:
        yield Finding(severity, kind, f"{counted(len(flags), 'clip', verb)} {rest}", hint, flags, quarantine)


def summary(found: Examination) -> str:
    """One paragraph: whether training may start, and what was found how often."""
    counts = Counter(one.severity for one in found.findings)
    total = ", ".join(counted(counts[word], word) for word in ("error", "warning", "note"))
    verdict = "training may start" if found.may_train else "training must not start"
    begin = f"doctor: {verdict}; {total} in {counted(len(found.clips), 'clip')} of {found.dataset}"
    worst = [one.what for one in found.findings if one.severity != "note"]
    return f"{begin}: {first_few(worst, 4, '; ')}" if worst else begin


def as_lines(found: Examination) -> list[str]:
    """A line per finding, with some of the clips and what to do."""
    lines = []
    for one in found.findings:
        some = f" ({first_few([flag.name for flag in one.flags], 3)})" if one.flags else ""
        lines.append(f"  {one.severity}: {one.what}{some}. To do: {one.hint}")
    return lines


def as_json(found: Examination) -> dict[str, Any]:
    """The examination as JSON types."""
    return {
        "dataset": found.dataset,
        "content_hash": found.manifest.content_hash,
        "may_train": found.may_train,
        "clips": dict(found.manifest.data_spec.counts),
        "findings": [one.as_json() for one in found.findings],
    }


def quarantine(found: Examination) -> bytes:
    """The files to look at as CSV: those that were skipped, and those that errors and warnings name."""
    text = io.StringIO()
    table = csv.writer(text)  # ends lines with CR LF, so that a name with either is quoted
    table.writerow(COLUMNS)
    for one in found.findings:
        for flag in one.flags if one.quarantine else ():
            table.writerow((flag.name, flag.split, one.kind, flag.detail))
    return text.getvalue().encode("utf-8", "backslashreplace")
