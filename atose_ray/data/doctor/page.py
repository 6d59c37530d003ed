"""What the doctor found as one page: `render_page(examination, audio)` gives HTML that opens offline.

Python decides what is shown (`page_data`); `assets/data.js` draws it. The look is the report's.
"""

import base64
import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from atose_ray.audio.io import wav_of
from atose_ray.data.doctor.checks import QUARANTINE, Examination, quarantine, summary
from atose_ray.data.doctor.facts import Audio, Clip, read_audio
from atose_ray.data.doctor.splits import clips_with_both
from atose_ray.data.pages import offline_page, well_formed
from atose_ray.data.tag_statistics import correlation_of_counts, tag_order
from atose_ray.storage import Store
from atose_ray.types import SPLITS

PAGE = "data.html"
MAX_PLAYERS, EXTREMES, EXCERPT_S = 20, 6, 5
MAX_FLAGS = 200  # of one finding; all are in the CSV
MAX_MAP_TAGS = 60
BINS = 30


def write_examination(store: Store, found: Examination) -> None:
    """Write data.html and quarantine.csv into the data set's folder. Raises StoreError where it is not writable."""
    folder = found.manifest.folder(store)
    spec = found.manifest.data_spec
    playable = [clip for clip, _ in played(found)] if spec.input.kind == "audio" else []
    audio = read_audio(folder, playable, len(spec.tags))
    folder.write(QUARANTINE, quarantine(found))
    folder.write(PAGE, render_page(found, audio).encode())


def render_page(found: Examination, audio: dict[int, Audio]) -> str:
    """The whole page. audio: of the clips of `played`, by clip id."""
    return offline_page("atose_ray.data.doctor", "data.html", found.dataset, ["data.js"], page_data(found, audio))


def page_data(found: Examination, audio: dict[int, Audio]) -> dict[str, Any]:
    """What the page shows, as JSON types."""
    counts, tag_counts = found.manifest.data_spec.counts, found.manifest.tag_counts
    findings = []
    for one in (finding.as_json() for finding in found.findings):
        clips = [{key: well_formed(text) for key, text in clip.items()} for clip in one["clips"][:MAX_FLAGS]]
        findings.append({**one, "clips": clips, "more": max(0, len(one["clips"]) - MAX_FLAGS)})
    players = [_player(found, clip, why, audio[clip.facts.clip_id]) for clip, why in played(found)] if audio else []
    return {
        "sentence": summary(found),
        "content_hash": found.manifest.content_hash,
        "facts": _facts(found),
        "findings": findings,
        "players": players,
        "plots": _plots(found),
        "classes": {"splits": SPLITS, "clips": counts, "tags": list(tag_counts.items())},
        "map": _map(found),
    }


def played(found: Examination) -> list[tuple[Clip, str]]:
    """The clips with a player, worst first, and why: the findings take turns, so that each kind can be played."""
    by_id = {clip.facts.clip_id: clip for clip in found.clips}
    turns = itertools.zip_longest(*(one.flags for one in found.findings))
    kinds = [one.kind for one in found.findings]
    chosen: dict[int, tuple[Clip, str]] = {}
    for turn in turns:
        for kind, flag in zip(kinds, turn, strict=True):
            if flag is not None and flag.clip_id is not None and len(chosen) < MAX_PLAYERS:
                chosen.setdefault(flag.clip_id, (by_id[flag.clip_id], f"{kind}: {flag.detail}"))
    sounding = [clip for clip in found.clips if not clip.silent]
    quiet = sorted(sounding, key=lambda clip: clip.facts.rms)[: EXTREMES // 2]
    short = sorted(sounding, key=lambda clip: clip.facts.samples)[: EXTREMES // 2]
    for why, clip in [("among the quietest", one) for one in quiet] + [("among the shortest", one) for one in short]:
        if len(chosen) < EXTREMES:
            chosen.setdefault(clip.facts.clip_id, (clip, why))
    return list(chosen.values())


def _facts(found: Examination) -> dict[str, Any]:
    spec = found.manifest.data_spec
    return {
        "may_train": found.may_train,
        "found": Counter(one.severity for one in found.findings),
        "skipped": len(found.manifest.skipped),
        "seconds": sum(clip.facts.samples for clip in found.clips) / spec.input.rate_hz,
        "input": {**spec.input.model_dump(), "rate_hz": spec.input.rate_hz},
        "tags": len(spec.tags),
        "exclusive": spec.exclusive,
    }


def _player(found: Examination, clip: Clip, why: str, audio: Audio) -> dict[str, Any]:
    rate_hz = found.manifest.data_spec.audio.sample_rate_hz
    return {
        "wav": base64.b64encode(excerpt(audio, rate_hz)).decode(),
        "name": well_formed(clip.name),
        "split": clip.split,
        "tags": [found.manifest.data_spec.tags[tag] for tag in clip.tags],
        "why": why,
        "seconds": clip.facts.samples / rate_hz,
    }


def excerpt(audio: Audio, rate_hz: int) -> bytes:
    """A WAV of the seconds around the loudest sample, at the level that a training gets."""
    pcm_T, size = audio.pcm_T, EXCERPT_S * rate_hz
    loudest = int(np.abs(pcm_T).argmax()) if len(pcm_T) else 0
    first = max(0, min(loudest - size // 2, len(pcm_T) - size))
    part_T = np.rint(pcm_T[first : first + size] * (audio.scale * 32767)).clip(-32767, 32767)
    return wav_of(part_T.astype("<i2"), rate_hz)


def _plots(found: Examination) -> list[dict[str, Any]]:
    about, facts = found.manifest.data_spec.input, [clip.facts for clip in found.clips]
    plots = [
        _histogram("Length", [one.samples / about.rate_hz for one in facts], "seconds"),
        _bars("Tags per clip", [len(clip.tags) for clip in found.clips], "tags"),
    ]
    if about.kind == "frames":
        plots.append(_histogram("Mean of a clip", [one.mean for one in facts], "value"))
        return [*plots, _histogram("Standard deviation of a clip", [one.rms for one in facts], "value")]
    sounding = [clip.facts for clip in found.clips if not clip.silent] or facts
    level = [20 * np.log10(max(one.rms, 1e-5)) for one in sounding]
    peak = [20 * np.log10(max(one.source_peak or 0, 1e-5)) for one in sounding if one.channels]
    plots += [
        _histogram("Level of the stored clips", level, "dB of full scale (RMS), without silent clips"),
        _histogram("Clipped samples", [100 * one.clipped for one in facts], "% of a clip's samples"),
        _histogram("Peak of the files", peak, "dB of full scale, without silent clips"),
        _bars("Sample rate of the files", [one.source_rate_hz for one in facts], "Hz"),
        _bars("Channels of the files", [one.channels for one in facts], "channels"),
    ]
    return [plot for plot in plots if sum(plot["counts"])]


def _histogram(title: str, values: Sequence[float], unit: str) -> dict[str, Any]:
    """How many values lie where: equal bins from the least to the greatest."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, bins=BINS, range=(low, high))
    return {"title": title, "unit": unit, "edges": edges.tolist(), "counts": counts.tolist()}


def _bars(title: str, values: Sequence[int | None], unit: str) -> dict[str, Any]:
    """How often every value occurs; what is not recorded does not count."""
    counts = sorted(Counter(value for value in values if value is not None).items())
    return {"title": title, "unit": unit, "values": [of for of, _ in counts], "counts": [count for _, count in counts]}


def _map(found: Examination) -> dict[str, Any] | None:
    """The most frequent tags in the map's order, their correlations, and how many tags there are. None of exclusive
    tags: they never occur together."""
    if found.manifest.data_spec.exclusive:
        return None
    both_CC = clips_with_both(found.manifest, found.clips)
    kept = sorted(np.argsort(-np.diag(both_CC), kind="stable")[:MAX_MAP_TAGS].tolist())
    phi_CC = correlation_of_counts(both_CC[np.ix_(kept, kept)], len(found.clips))
    order = tag_order(phi_CC)
    names = [found.manifest.data_spec.tags[kept[i]] for i in order]
    ordered = [[round(phi_CC[i][j], 3) for j in order] for i in order]
    return {"names": names, "phi": ordered, "of": len(both_CC)}
