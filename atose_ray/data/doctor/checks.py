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
from typing import Any

import numpy as np

from atose_ray.data.doctor.facts import SILENT_LEVEL, Audio, Clip, alike, load_clips, read_audio
from atose_ray.data.doctor.findings import OWN_SPLITS, TABLES, Finding, Flag, finding, flagged, kind_of
from atose_ray.data.doctor.splits import examine_splits
from atose_ray.data.doctor.words import counted, first_few, share
from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.storage import Store
from atose_ray.types import AudioInput

QUARANTINE = "quarantine.csv"
COLUMNS = ("path", "split", "problem", "detail")
CLIPPED_SHARE = 0.01
DC_LEVEL = 0.1  # of the peak
SHORT = 0.1  # of the median length
TOO_MANY_LOST = 0.25

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
    worst_first = sorted(findings, key=lambda one: ("error", "warning", "note").index(one.severity))
    return Examination(dataset, manifest, clips, tuple(worst_first))


def examine_skipped(manifest: Manifest, clips: Iterable[Clip]) -> Iterator[Finding]:
    """Clips that could not be decoded, by what is wrong with them."""
    known = TABLES["known_broken"].get(kind_of(manifest), ())
    problems: dict[str, list[Flag]] = {}
    for clip in manifest.skipped:
        expected = any(fnmatchcase(clip.name, pattern) for pattern in known)
        problem = "known broken" if expected else problem_of(clip.reason)
        reason = clip.reason.partition(f"{clip.name}: ")[2] or clip.reason  # without the path, wherever the source lies
        problems.setdefault(problem, []).append(Flag(clip.name, clip.split, reason))
    for problem, flags in problems.items():
        yield finding(problem, flags, known=len(known))
    lost = len(manifest.skipped) - len(problems.get("known broken", ()))
    total = sum(manifest.data_spec.counts.values()) + len(manifest.skipped)
    if lost >= TOO_MANY_LOST * total:
        yield finding("too many lost", lost=share(lost, total), source=kind_of(manifest))
    yield from _missing_folders(manifest, clips)


def problem_of(reason: str) -> str:
    """A word for what prepare said about a clip that it skipped."""
    return next((problem for words, problem in TABLES["problems"].items() if words in reason), "broken")


def _missing_folders(manifest: Manifest, clips: Iterable[Clip]) -> Iterator[Finding]:
    """MagnaTagATune with whole folders missing: the archive's parts were unzipped one by one."""
    if kind_of(manifest) != "mtat":
        return
    absent = {clip.name.split("/")[0] for clip in manifest.skipped if problem_of(clip.reason) == "missing"}
    here = {clip.name.split("/")[0] for clip in clips}
    annotated = here | {clip.name.split("/")[0] for clip in manifest.skipped}
    gone = sorted(absent - here)
    if len(gone) >= TOO_MANY_LOST * len(annotated):
        yield finding("folders missing", gone=len(gone), annotated=len(annotated), names=", ".join(gone))


def examine_content(manifest: Manifest, clips: tuple[Clip, ...]) -> Iterator[Finding]:
    """Silent, clipped, off-centre and very short clips, and sources whose rate is wrong; of frames what there is."""
    about = manifest.data_spec.input
    if isinstance(about, AudioInput):
        yield from _levels(clips)
        yield from _rates(about.sample_rate_hz, clips)
    else:
        constant = [(clip, f"all values are {clip.facts.mean:g}") for clip in clips if clip.silent]
        yield from flagged("one value", constant)
    median = float(np.median([clip.facts.samples for clip in clips]))
    short = [clip for clip in clips if clip.facts.samples < SHORT * median]
    lengths = [(clip, f"{clip.facts.samples / about.rate_hz:.3f} s") for clip in short]
    yield from flagged("very short", lengths, median_s=median / about.rate_hz)


def _levels(clips: tuple[Clip, ...]) -> Iterator[Finding]:
    yield from flagged("silent", [(clip, _silence(clip)) for clip in clips if clip.silent])
    loud = sorted((clip for clip in clips if clip.facts.clipped >= CLIPPED_SHARE), key=lambda clip: -clip.facts.clipped)
    yield from flagged("clipped", [(clip, f"{clip.facts.clipped:.1%} of its samples are clipped") for clip in loud])
    dc = [clip for clip in clips if not clip.silent and abs(clip.facts.mean) > DC_LEVEL * clip.facts.peak]
    yield from flagged("off centre", [(clip, f"mean {clip.facts.mean:+.3f} of full scale") for clip in dc])


def _silence(clip: Clip) -> str:
    if clip.facts.peak < SILENT_LEVEL <= clip.loudness:
        return f"its {clip.facts.channels} channels cancel when they are mixed to mono"
    level = min(clip.loudness, clip.facts.peak)
    return "all samples are zero" if level == 0 else f"peak {20 * np.log10(level):.0f} dB"


def _rates(rate_hz: int, clips: tuple[Clip, ...]) -> Iterator[Finding]:
    rates = [(clip, clip.facts.source_rate_hz) for clip in clips if clip.facts.source_rate_hz is not None]
    if len(rates) < len(clips):
        yield finding("sources not recorded", files=len(clips) - len(rates))
    low = [(clip, f"{hz} Hz where the shards have {rate_hz} Hz") for clip, hz in rates if hz < rate_hz]
    yield from flagged("wrong rate", low, rate_hz=rate_hz)
    usual_hz = Counter(hz for _, hz in rates).most_common(1)[0][0] if rates else None
    odd = [(clip, f"{hz} Hz") for clip, hz in rates if hz >= rate_hz and hz != usual_hz]
    yield from flagged("mixed rates", odd, usual_hz=usual_hz)


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
    leaked = "copy in two splits" if kind_of(manifest) in OWN_SPLITS else "copy in two published splits"
    for groups, what, names in (
        (same, f"the same {manifest.data_spec.input.kind} as", (leaked, "copy")),
        (nearly, "the same recording, at another level or trimmed, as", ("near copy in two splits", "near copy")),
    ):
        for name, leaks in zip(names, (True, False), strict=True):
            chosen = [group for group in groups if (len({clip.split for clip in group}) > 1) == leaks]
            yield from flagged(name, [pair for group in chosen for pair in _copies(group, what, manifest)])


def _alike_by(clips: list[Clip], key: Callable[[Clip], str]) -> list[list[Clip]]:
    """Clips with the same key, two or more; the one to keep first: test before valid before train, as listed."""
    groups: dict[str, list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: (("test", "valid", "train").index(clip.split), clip.facts.clip_id)):
        if key(clip):
            groups.setdefault(key(clip), []).append(clip)
    return [group for group in groups.values() if len(group) > 1]


def _copies(group: list[Clip], what: str, manifest: Manifest) -> Iterator[tuple[Clip, str]]:
    kept = group[0]
    for clip in group[1:]:
        ours, theirs = ("|".join(manifest.data_spec.tags[tag] for tag in one.tags) for one in (clip, kept))
        other = "" if ours == theirs else f"; tags {ours or 'none'} against {theirs or 'none'}"
        yield clip, f"{what} {kept.name} ({kept.split}){other}"


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
