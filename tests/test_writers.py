"""Every timeline format, read back by a reader that others wrote, where there is one."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pympi
import pytest
import srt
import webvtt
from praatio import textgrid

from atose_ray.apps.timeline import Timeline, TimelineConfig, events_of
from atose_ray.apps.writers import WRITERS
from atose_ray.apps.writers.base import clock, cues

TAGS = ('dog "bark"', "rain & <wind>", "horn, far")
SETTINGS = {
    "model": "best",
    "sample_rate_hz": 16000,
    "hop_s": 0.5,
    "timeline": TimelineConfig().model_dump(mode="json"),
}


def timeline(empty: bool = False) -> Timeline:
    scores_SC = np.zeros((20, 3), np.float32)
    if not empty:
        scores_SC[2:6, 0] = 0.9
        scores_SC[4:10, 1] = 0.7
        scores_SC[10:12, 1] = 0.1
        scores_SC[19:, 2] = 0.6
    events = events_of(scores_SC, TAGS, 0.5, 9.8, TimelineConfig())
    return Timeline("some/dir/night.wav", 9.8, 0.5, TAGS, scores_SC, np.full(20, 0.25), events, SETTINGS)


EVENTS = [(1.0, 3.0, TAGS[0], 0.9), (2.0, 5.0, TAGS[1], 0.7), (9.5, 9.8, TAGS[2], 0.6)]
CUES = [(1.0, 2.0, [0]), (2.0, 3.0, [0, 1]), (3.0, 5.0, [1]), (9.5, 9.8, [2])]


def read_srt(content: bytes) -> list:
    return [
        (cue.start.total_seconds(), cue.end.total_seconds(), cue.content) for cue in srt.parse(content.decode(), False)
    ]


def read_vtt(content: bytes) -> list:
    found = webvtt.from_string(content.decode())
    return [(cue.start_in_seconds, cue.end_in_seconds, cue.text) for cue in found]


def test_srt_shows_what_sounds_at_a_time() -> None:
    expected = [(start, end, ", ".join(TAGS[n] for n in names)) for start, end, names in CUES]
    assert read_srt(WRITERS["srt"].write(timeline())) == expected
    assert read_srt(WRITERS["srt"].write(timeline(empty=True))) == []


def test_vtt_shows_the_same_with_markup_escaped() -> None:
    content = WRITERS["vtt"].write(timeline())
    assert b"rain &amp; &lt;wind&gt;" in content and content.startswith(b"WEBVTT\n\n")
    times = re.findall(r"(\d\d):(\d\d):(\d\d\.\d\d\d) --> (\d\d):(\d\d):(\d\d\.\d\d\d)", content.decode())
    assert [(float(line[2]), float(line[5])) for line in times] == [(start, end) for start, end, _ in CUES]
    assert len(read_vtt(content)) == len(CUES) and read_vtt(WRITERS["vtt"].write(timeline(empty=True))) == []


def rows_of(name: str, empty: bool = False) -> list[list[str]]:
    return list(csv.reader(io.StringIO(WRITERS[name].write(timeline(empty)).decode()), delimiter="\t", quoting=3))


def test_audacity_labels_are_three_columns() -> None:
    rows = [(float(start), float(end), text) for start, end, text in rows_of("audacity")]
    assert rows == [event[:3] for event in EVENTS]
    assert rows_of("audacity")[0][0] == "1.000000" and rows_of("audacity", empty=True) == []


def test_raven_tables_have_the_columns_of_its_selections() -> None:
    head, *rows = rows_of("raven")
    table = [dict(zip(head, row, strict=True)) for row in rows]
    assert [
        (float(row["Begin Time (s)"]), float(row["End Time (s)"]), row["Class"], float(row["Confidence"]))
        for row in table
    ] == EVENTS
    assert [row["Selection"] for row in table] == ["1", "2", "3"] and table[0]["High Freq (Hz)"] == "8000"
    assert rows_of("raven", empty=True) == [head]


def test_csv_carries_the_settings() -> None:
    def read(empty: bool) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(WRITERS["csv"].write(timeline(empty)).decode(), newline="")))

    rows = read(False)
    assert [(float(row["start_s"]), float(row["end_s"]), row["tag"]) for row in rows] == [event[:3] for event in EVENTS]
    assert rows[0]["model"] == "best" and json.loads(rows[0]["timeline"])["threshold"] == 0.5
    assert rows[0]["file"] == "some/dir/night.wav" and read(True) == []


def test_json_lines_begin_with_the_recording() -> None:
    head, *events = [json.loads(line) for line in WRITERS["jsonl"].write(timeline()).decode().splitlines()]
    assert head["recording"]["seconds"] == 9.8 and head["recording"]["settings"] == SETTINGS
    assert [(one["event"]["start_s"], one["event"]["end_s"], one["event"]["tag"]) for one in events] == [
        event[:3] for event in EVENTS
    ]
    assert len(WRITERS["jsonl"].write(timeline(empty=True)).splitlines()) == 1


@pytest.mark.parametrize("empty", [False, True])
def test_praat_reads_the_textgrid(empty: bool, tmp_path: Path) -> None:
    path = tmp_path / "night.TextGrid"
    path.write_bytes(WRITERS["textgrid"].write(timeline(empty)))
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
    assert grid.maxTimestamp == 9.8
    found = sorted(
        (float(entry.start), float(entry.end), entry.label) for name in grid.tierNames for entry in grid.getTier(name)
    )
    assert found == ([] if empty else [event[:3] for event in EVENTS])
    assert grid.tierNames == (("no event",) if empty else tuple(sorted(TAGS)))


@pytest.mark.parametrize("empty", [False, True])
def test_elan_reads_the_tiers(empty: bool, tmp_path: Path) -> None:
    path = tmp_path / "night.eaf"
    path.write_bytes(WRITERS["elan"].write(timeline(empty)))
    document = pympi.Elan.Eaf(str(path))
    found = sorted(
        (start / 1000, end / 1000, tier, float(score))
        for tier in document.get_tier_names()
        for start, end, score in document.get_annotation_data_for_tier(tier)
    )
    assert found == ([] if empty else EVENTS)
    assert document.media_descriptors[0]["MIME_TYPE"] == "audio/x-wav"


def test_rttm_fields_have_no_spaces() -> None:
    rows = [line.split(" ") for line in WRITERS["rttm"].write(timeline()).decode().splitlines()]
    assert {len(row) for row in rows} == {10} and {row[0] for row in rows} == {"SPEAKER"} and rows[0][1] == "night"
    assert [round(float(row[3]) + float(row[4]), 6) for row in rows] == [end for _, end, *_ in EVENTS]
    assert [float(row[3]) for row in rows] == [start for start, *_ in EVENTS]
    assert rows[1][7] == "rain_&_<wind>" and WRITERS["rttm"].write(timeline(empty=True)) == b""


def test_npz_holds_the_scores_without_pickles() -> None:
    with np.load(io.BytesIO(WRITERS["npz"].write(timeline())), allow_pickle=False) as read:
        assert np.array_equal(read["scores_SC"], timeline().scores_SC) and tuple(read["tags"]) == TAGS
        assert read["start_s_S"][3] == 1.5 and json.loads(str(read["settings"])) == SETTINGS


@pytest.mark.parametrize("empty", [False, True])
def test_the_page_asks_for_nothing_and_holds_names_as_data(empty: bool) -> None:
    page = WRITERS["html"].write(timeline(empty)).decode()
    assert "http://www.w3.org/2000/svg" in page and not re.search(r"(?:src|href)=[\"']?http", page)
    assert "<wind>" not in page and "\\u003cwind\\u003e" in page
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert data["seconds"] == 9.8 and len(data["tags"]) == 3 and data["sound"] is None


def test_cues_of_many_events_and_long_times() -> None:
    assert clock(3_600_000 * 25 + 61_001, ",") == "25:01:01,001"
    assert [(cue.start_ms, cue.end_ms) for cue in cues(timeline())] == [(1000 * a, 1000 * b) for a, b, _ in CUES]


def test_every_format_has_a_suffix_of_its_own() -> None:
    assert len({writer.suffix for writer in WRITERS.values()}) == len(WRITERS) == 11


@pytest.mark.browser
def test_the_page_makes_the_events_that_python_makes(tmp_path: Path) -> None:
    """Gaps, short ones, and a last hop that the recording's end cuts: at 0.1 s a hop, and of a single cut hop."""
    from test_report import drawn_page

    scores_SC = np.array([[1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1]], np.float32).T
    for rows_SC, hop_s, seconds in ((scores_SC, 0.1, 1.85), (np.ones((1, 1), np.float32), 1.0, 0.1)):
        events = events_of(rows_SC, ("rain",), hop_s, seconds, TimelineConfig())
        found = Timeline("a.wav", seconds, hop_s, ("rain",), rows_SC, rows_SC[:, 0], events, SETTINGS)
        drawn = drawn_page(WRITERS["html"].write(found).decode(), tmp_path)
        assert len(events) == 1 + (seconds > 1) and re.search(rf"\b{len(events)} events? at these", drawn)
