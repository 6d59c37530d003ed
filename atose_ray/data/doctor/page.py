"""What the doctor found as one page: `render_page(examination, audio)` gives HTML that opens offline, without scripts.

The look is the report's; plots are SVG, and the worst clips can be played. Text from the data is escaped here.
"""

import base64
import html
import itertools
from collections import Counter
from importlib import resources

import numpy as np

from atose_ray.audio.io import wav_of
from atose_ray.data.doctor.checks import QUARANTINE, Examination, quarantine, summary
from atose_ray.data.doctor.facts import Audio, Clip, read_audio
from atose_ray.data.doctor.findings import Finding, counted
from atose_ray.data.doctor.plots import bar_chart, heat_map, histogram
from atose_ray.data.doctor.splits import tag_matrix
from atose_ray.data.shards import data_store
from atose_ray.data.tag_statistics import tag_correlation, tag_order
from atose_ray.storage import Store
from atose_ray.types import SPLITS, AudioInput

PAGE = "data.html"
MAX_PLAYERS, EXTREMES, EXCERPT_S = 20, 6, 5
MAX_FLAGS = 200  # of one finding; all are in the CSV
MAX_MAP_TAGS = 60
STYLE = """
audio { width: 100%; min-width: 13rem; height: 2.2rem; display: block; }
.severity { display: inline-block; padding: 0 0.5rem; border: 1px solid currentColor; border-radius: 4px;
  font-size: 0.82rem; font-weight: 620; white-space: nowrap; overflow-wrap: normal; }
.severity.error { color: var(--panel); background: var(--failed); border-color: var(--failed); }
.severity.warning { color: var(--warn-ink); background: var(--warn); }
.severity.note { color: var(--soft); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 1.5rem 2rem; }
.plots h3, .plots figure { margin: 0; }
.map svg { max-width: 46rem; }
.valid { fill: var(--running); }
.test { fill: var(--diverged); }
"""
CSP = "default-src 'none'; style-src 'unsafe-inline'; media-src data:"


def write_examination(store: Store, found: Examination) -> None:
    """Write data.html and quarantine.csv into the data set's folder. Raises StoreError where it is not writable."""
    folder = data_store(store, found.dataset)
    spec = found.manifest.data_spec
    playable = [clip for clip, _ in played(found)] if spec.input.kind == "audio" else []
    audio = read_audio(folder, playable, len(spec.tags))
    folder.write(QUARANTINE, quarantine(found))
    folder.write(PAGE, render_page(found, audio).encode())


def render_page(found: Examination, audio: dict[int, Audio]) -> str:
    """The whole page. audio: of the clips of `played`, by clip id."""
    style = resources.files("atose_ray").joinpath("assets", "page.css").read_text(encoding="utf-8") + STYLE
    title = f"{_text(found.dataset)}: data"
    sections = [
        _section("findings", "Findings", _ABOUT_FINDINGS, _findings(found)),
        *([_section("listen", "Files to listen to", _ABOUT_PLAYERS, _players(found, audio))] if audio else []),
        _section("clips", "Clips", "Over all clips that could be decoded.", _histograms(found)),
        _section("tags", "Classes", "How many clips of each split carry each tag.", _classes(found)),
        _section("map", "Tags that occur together", _ABOUT_MAP, _map(found)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CSP}">\n<title>{title}</title>\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n{_header(found)}\n<main>\n{''.join(sections)}</main>\n"
        f"<footer>content hash of the shards: {_text(found.manifest.content_hash)}</footer>\n</body>\n</html>\n"
    )


_ABOUT_FINDINGS = (
    "An error means that training must not start, a warning that someone should look, a note is for the record. "
    f"The files of errors and warnings, and all that could not be decoded, are in {QUARANTINE}."
)
_ABOUT_PLAYERS = (
    f"Up to {EXCERPT_S} seconds around the loudest moment, as a training gets them. Where little is wrong, "
    "the quietest and the shortest clips follow: they are where to look next."
)
_ABOUT_MAP = (
    "Phi, the Pearson correlation of two binary columns, over the clips of all splits; similar tags stand side by "
    "side. A cell near 1 is a pair that one name would do for."
)


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


def _section(name: str, title: str, caption: str, body: str) -> str:
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{title}</h2>\n'
        f'<p class="caption">{caption}</p>\n{body}\n</section>\n'
    )


def _header(found: Examination) -> str:
    spec = found.manifest.data_spec
    about, seconds = spec.input, sum(clip.facts.samples for clip in found.clips) / spec.input.rate_hz
    unit = f"{about.bins} bins, {about.dtype}, {about.rate_hz:g} a second"
    if isinstance(about, AudioInput):
        unit = f"{about.sample_rate_hz} Hz, mono"
    counts = Counter(one.severity for one in found.findings)
    tiles = [
        ("training", "may start" if found.may_train else "must not start", ""),
        (
            "findings",
            counted(counts["error"], "error"),
            f"{counted(counts['warning'], 'warning')}, {counted(counts['note'], 'note')}",
        ),
        ("clips", f"{len(found.clips):,}", ", ".join(f"{spec.counts.get(split, 0):,} {split}" for split in SPLITS)),
        ("not decoded", f"{len(found.manifest.skipped):,}", f"all in {QUARANTINE}"),
        (about.kind, _hours(seconds), unit),
        ("tags", str(len(spec.tags)), "one per clip" if spec.exclusive else "any number per clip"),
    ]
    cells = "".join(
        f"<div><dt>{dt}</dt><dd{' class=words' if len(dd) > 12 else ''}>{dd}<small>{small}</small></dd></div>"
        for dt, dd, small in tiles
    )
    return (
        f'<header id="summary"><p class="eyebrow">Data examination</p>\n<h1>{_text(found.dataset)}</h1>\n'
        f'<p class="lead">{_text(summary(found))}.</p>\n<dl class="tiles">{cells}</dl></header>'
    )


def _hours(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"


def _findings(found: Examination) -> str:
    if not found.findings:
        return "<p>Nothing was found.</p>"
    rows = "".join(
        f'<tr><td><span class="severity {one.severity}">{one.severity}</span></td>'
        f"<td>{_text(one.kind)}</td><td>{_text(one.what)}{_flags(one)}</td><td>{_text(one.hint)}</td></tr>\n"
        for one in found.findings
    )
    return _table(("", "what", "found", "to do"), rows)


def _flags(finding: Finding) -> str:
    if not finding.flags:
        return ""
    items = "".join(
        f"<li><code>{_text(flag.name)}</code> <span class='soft'>{flag.split}</span> {_text(flag.detail)}</li>"
        for flag in finding.flags[:MAX_FLAGS]
    )
    left = len(finding.flags) - MAX_FLAGS
    more = f"<p>and {left} more</p>" if left > 0 else ""
    return f"<details><summary>which</summary><ul>{items}</ul>{more}</details>"


def _players(found: Examination, audio: dict[int, Audio]) -> str:
    rate_hz = found.manifest.data_spec.audio.sample_rate_hz
    rows = ""
    for clip, why in played(found):
        data = base64.b64encode(excerpt(audio[clip.facts.clip_id], rate_hz)).decode()
        tags = ", ".join(found.manifest.data_spec.tags[tag] for tag in clip.tags)
        rows += (
            f"<tr><td><audio controls preload='none' src='data:audio/wav;base64,{data}'></audio></td>"
            f"<td><code>{_text(clip.name)}</code><br><span class='soft'>{clip.split}; {_text(tags)}</span></td>"
            f"<td>{_text(why)}</td><td class='num'>{clip.facts.samples / rate_hz:.2f} s</td></tr>\n"
        )
    return _table(("excerpt", "file and tags", "why", "length"), rows)


def excerpt(audio: Audio, rate_hz: int) -> bytes:
    """A WAV of the seconds around the loudest sample, at the level that a training gets."""
    pcm_T, size = audio.pcm_T, EXCERPT_S * rate_hz
    loudest = int(np.abs(pcm_T).argmax()) if len(pcm_T) else 0
    first = max(0, min(loudest - size // 2, len(pcm_T) - size))
    part_T = np.rint(pcm_T[first : first + size] * (audio.scale * 32767)).clip(-32767, 32767)
    return wav_of(part_T.astype("<i2"), rate_hz)


def _histograms(found: Examination) -> str:
    length = [clip.facts.samples / found.manifest.data_spec.input.rate_hz for clip in found.clips]
    about_content = _levels if found.manifest.data_spec.input.kind == "audio" else _values
    plots = [
        ("Length", histogram(length, "seconds")),
        ("Tags per clip", bar_chart(Counter(len(clip.tags) for clip in found.clips), "tags")),
        *about_content(found),
    ]
    figures = (f"<figure class='plot'><h3>{title}</h3>{svg}</figure>" for title, svg in plots)
    return f"<div class='plots'>{''.join(figures)}</div>"


def _values(found: Examination) -> list[tuple[str, str]]:
    mean, spread = ([getattr(clip.facts, name) for clip in found.clips] for name in ("mean", "rms"))
    return [("Mean of a clip", histogram(mean, "value")), ("Standard deviation of a clip", histogram(spread, "value"))]


def _levels(found: Examination) -> list[tuple[str, str]]:
    clips = [clip for clip in found.clips if not clip.silent] or list(found.clips)
    level = [20 * np.log10(max(clip.facts.rms, 1e-5)) for clip in clips]
    peak = [20 * np.log10(max(clip.facts.source_peak or 0, 1e-5)) for clip in clips if clip.facts.channels]
    plots = [
        ("Level of the stored clips", histogram(level, "dB of full scale (RMS), without silent clips")),
        ("Clipped samples", histogram([100 * clip.facts.clipped for clip in found.clips], "% of a clip's samples")),
    ]
    rates = Counter(clip.facts.source_rate_hz for clip in found.clips if clip.facts.source_rate_hz)
    channels = Counter(clip.facts.channels for clip in found.clips if clip.facts.channels)
    plots += [("Peak of the files", histogram(peak, "dB of full scale, without silent clips"))] if peak else []
    plots += [("Sample rate of the files", bar_chart(rates, "Hz"))] if rates else []
    return plots + ([("Channels of the files", bar_chart(channels, "channels"))] if channels else [])


def _classes(found: Examination) -> str:
    counts = found.manifest.tag_counts
    clips = found.manifest.data_spec.counts
    order = sorted(counts, key=lambda tag: -counts[tag].get("train", 0))
    most = max((count for of in counts.values() for count in of.values()), default=0) or 1
    rows = ""
    for tag in order:
        cells = ""
        for split in SPLITS:
            count, total = counts[tag].get(split, 0), clips.get(split, 0)
            width = 120 * count / most
            bar = f"<rect class='bar {split}' width='{width:.1f}' height='9' rx='2'></rect>"
            part = f"{count / total:.1%}" if total else "no clips"
            cells += f"<td class='num'>{count:,}</td><td class='num soft'>{part}</td>"
            cells += f"<td><svg width='120' height='9' aria-hidden='true'>{bar}</svg></td>"
        rows += f"<tr><th scope='row'>{_text(tag)}</th>{cells}</tr>\n"
    heads = [text for split in SPLITS for text in (split, "share", "")]
    return f"<div class='tall' tabindex='0'>{_table(('tag', *heads), rows)}</div>"


def _map(found: Examination) -> str:
    tags_NC = tag_matrix(found.manifest, found.clips)
    kept = sorted(np.argsort(-tags_NC.sum(axis=0), kind="stable")[:MAX_MAP_TAGS].tolist())
    if len(kept) < 2:
        return "<p class='note'>There is one tag only.</p>"
    phi_CC = tag_correlation(tags_NC[:, kept])
    order = tag_order(phi_CC)
    names = [found.manifest.data_spec.tags[kept[i]] for i in order]
    note = f"<p class='note'>The {len(kept)} most frequent tags of {tags_NC.shape[1]}.</p>"
    ordered = [[phi_CC[i][j] for j in order] for i in order]
    return (note if len(kept) < tags_NC.shape[1] else "") + f"<div class='plot map'>{heat_map(names, ordered)}</div>"


def _table(headings: tuple[str, ...], rows: str) -> str:
    head = "".join(f"<th scope='col'>{heading}</th>" for heading in headings)
    return (
        f"<div class='scroll'><table class='wide'><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>"
    )


def _text(text: str) -> str:
    """Escaped; bytes of a name that are no UTF-8 shown as \\udcff."""
    return html.escape(text.encode("utf-8", "backslashreplace").decode("utf-8"))
