"""The doctor: every defect is found under its name, with its clips, and nothing else is; clean data is left alone."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import RATE, render_tiny
from processes import verb
from test_datasets import write_mtat
from test_report import drawn_page
from test_s3 import Bucket, bucket  # noqa: F401

from atose_ray import doctor as doctor_verb
from atose_ray import prepare as prepare_verb
from atose_ray.audio.io import clipped_share, decode, to_pcm16
from atose_ray.data.doctor import splits
from atose_ray.data.doctor.checks import COLUMNS, Examination, as_json, examine, problem_of, quarantine, summary
from atose_ray.data.doctor.facts import FACTS, alike, load_clips, measure, read_audio, shape_of, trim
from atose_ray.data.doctor.page import EXTREMES, MAX_PLAYERS, excerpt, played, render_page
from atose_ray.data.doctor.splits import folded
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import Manifest, data_store, load_manifest
from atose_ray.data.tag_statistics import correlation_of_counts
from atose_ray.datasets import dataset_config
from atose_ray.storage import Store, StoreError
from atose_ray.types import SPLITS

Rows = dict[str, list[str]]  # path -> split, tags, group


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return render_tiny(tmp_path / "raw")


def change_rows(source: Path, change: Callable[[Rows], object]) -> None:
    table = source / "tags.csv"
    rows = {row["path"]: [row["split"], row["tags"], ""] for row in csv.DictReader(table.open())}
    change(rows)
    with table.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("path", "split", "tags", "group"), *((path, *row) for path, row in rows.items())]
        )


def prepared(source: Path, rate_hz: int = RATE, **options: object) -> Store:
    store = Store(str(source.parent / "store"))
    prepare(dataset_config("folder", source=str(source), sample_rate_hz=rate_hz, **options), store)
    return store


def found_in(found: Examination) -> dict[tuple[str, str], set[str]]:
    return {(one.severity, one.kind): {flag.name for flag in one.flags} for one in found.findings}


def noise(seconds: float, rate_hz: int = RATE, seed: int = 0) -> np.ndarray:
    return (0.2 * np.random.default_rng(seed).standard_normal(int(seconds * rate_hz))).clip(-0.9, 0.9)


def wav(audio: np.ndarray, rate_hz: int = RATE, kind: str = "WAV") -> bytes:
    content = io.BytesIO()
    soundfile.write(content, audio, rate_hz, format=kind, subtype="FLOAT" if kind == "WAV" else None)
    return content.getvalue()


# ---------------------------------------------------------------- files


def test_clean_data_is_left_in_peace(tiny_store: Store) -> None:
    found = examine(tiny_store, "folder")
    assert found.findings == () and found.may_train and len(found.clips) == 60
    assert summary(found) == "doctor: training may start; 0 errors, 0 warnings, 0 notes in 60 clips of folder"
    assert quarantine(found).decode().splitlines() == ["path,split,problem,detail"]


def not_finite() -> np.ndarray:
    audio = noise(1)
    audio[7] = np.nan
    return audio


FILES = {
    "truncated wav": (wav(noise(4))[: 4 * RATE], "warning", "truncated", "its header declares 4.00 s"),
    "truncated mp3": (wav(noise(9, 16000), 16000, "MP3")[:9000], "warning", "truncated", "its header declares 9.0"),
    "nan": (wav(not_finite()), "warning", "not finite", "1 of 4000 samples are NaN"),
    "empty": (b"", "warning", "empty", "is empty"),
    "no samples": (wav(noise(0)), "warning", "empty", "holds no samples"),
    "html": (b"<html>404</html>", "warning", "broken", "HTML page"),
    "missing": (None, "warning", "missing", "no such file"),
    "zeros": (wav(np.zeros(4000)), "warning", "silent", "all samples are zero"),
    "quiet": (wav(noise(1) * 5e-4), "warning", "silent", "peak -"),
    "cancelling": (wav(np.stack([noise(1), -noise(1)], 1)), "warning", "silent", "2 channels cancel"),
    "clipped": (wav((9 * noise(1)).clip(-1, 1)), "warning", "clipped", "% of its samples are clipped"),
    "low rate": (wav(noise(1, 2000), 2000), "warning", "wrong rate", "2000 Hz where the shards have 4000 Hz"),
    "other rate": (wav(noise(1, 8000), 8000), "note", "mixed rates", "8000 Hz"),
    "offset": (wav(0.3 + 0.5 * noise(1)), "note", "off centre", "mean +0.29"),
    "short": (wav(noise(0.05)), "note", "very short", "0.050 s"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_found_and_nothing_else(case: str, source: Path) -> None:
    content, severity, kind, detail = FILES[case]
    (source / "clip_006.wav").unlink() if content is None else (source / "clip_006.wav").write_bytes(content)
    found = examine(prepared(source), "folder")
    assert found_in(found) == {(severity, kind): {"clip_006.wav"}} and found.may_train
    assert detail in found.findings[0].flags[0].detail and str(source) not in found.findings[0].flags[0].detail
    rows = list(csv.DictReader(io.StringIO(quarantine(found).decode())))
    listed = [(row["path"], row["split"], row["problem"], row["detail"]) for row in rows]
    assert listed == (
        [] if severity == "note" else [("clip_006.wav", "train", kind, found.findings[0].flags[0].detail)]
    )


def test_a_source_that_lost_a_quarter_may_not_be_trained_on(source: Path) -> None:
    for index in range(0, 60, 4):
        (source / f"clip_{index:03d}.wav").write_bytes(b"")
    found = examine(prepared(source), "folder")
    assert set(found_in(found)) >= {("error", "too many lost"), ("warning", "empty")} and not found.may_train
    assert found.findings[0].severity == "error" and "15 of 60 (25%)" in found.findings[0].what
    (source / "clip_000.wav").write_bytes(wav(noise(1)))
    found = examine(prepared(source), "folder")
    assert found.may_train and ("warning", "empty") in found_in(found)


def test_clipped_is_what_comes_in_runs() -> None:
    def of(*samples: float) -> float:
        return clipped_share(np.array(samples, np.float32)[:, None])

    assert of(0, 1, 1, 1, 0, 0, 0, 0, 0, 0) == 0.3 and of(0, 1, -1, 1, 1, 0, 0, 0, 0, 0) == 0.4
    assert of(1, 1, 0, 1, 1, 0) == 0 and of(0.99, 0.99, 0.99, 0.99) == 0 and of(1, 1) == 0
    stereo = np.array([[1, 0], [1, 1], [1, 0], [0, 1]], np.float32)
    assert clipped_share(stereo) == 3 / 8


def test_decoding_gives_facts_of_the_file_itself() -> None:
    loud = np.stack([0.25 * noise(1, 8000), np.where(np.arange(8000) < 4000, 1.0, 0.1)], 1)
    decoded = decode(wav(loud, 8000), sample_rate_hz=RATE)
    assert (decoded.source_rate_hz, decoded.channels, decoded.source_peak) == (8000, 2, 1.0)
    assert decoded.clipped == 0.25
    facts = measure(3, *to_pcm16(decoded.audio_T, peak_normalize=False), decoded)
    assert (facts.clip_id, facts.samples, facts.channels, facts.source_rate_hz) == (3, 4000, 2, 8000)
    assert facts.clipped == 0.25 and measure(3, *to_pcm16(decoded.audio_T, peak_normalize=False)).clipped == 0
    assert facts.peak == pytest.approx(float(np.abs(decoded.audio_T).max()), rel=1e-4) and facts.source_peak == 1.0
    assert facts.rms == pytest.approx(float(np.sqrt((decoded.audio_T.astype(float) ** 2).mean())), rel=1e-3)
    assert facts.mean == pytest.approx(float(decoded.audio_T.mean()), rel=1e-3)


# ---------------------------------------------------------------- copies


COPIES = {
    "same split": ("clip_006.wav", "clip_010.wav", "warning", "copy"),
    "two splits": ("clip_006.wav", "clip_042.wav", "error", "copy in two splits"),
}


@pytest.mark.parametrize("case", COPIES)
def test_the_same_audio_twice(case: str, source: Path) -> None:
    one, other, severity, kind = COPIES[case]
    shutil.copy(source / other, source / one)
    found = examine(prepared(source), "folder")
    removed, kept = (one, other) if "two" in case else (other, one)  # what is not in train stays
    assert found_in(found) == {(severity, kind): {removed}} and found.may_train == (severity == "warning")
    detail = found.findings[0].flags[0].detail
    assert f"the same audio as {kept} ({'valid' if 'two' in case else 'train'})" in detail
    tags = {row["path"]: row["tags"] for row in csv.DictReader((source / "tags.csv").open())}
    assert ("tags " in detail) == (tags[one] != tags[other])


@pytest.mark.parametrize(
    ("other", "kind"), [("clip_010.wav", "near copy"), ("clip_042.wav", "near copy in two splits")]
)
def test_the_same_recording_quieter_and_in_silence(other: str, kind: str, source: Path) -> None:
    audio, _ = soundfile.read(source / other)
    quieter = np.concatenate([np.zeros(301), 0.3 * audio, np.zeros(77)])
    soundfile.write(source / "clip_006.wav", quieter, RATE, subtype="PCM_16")
    found = examine(prepared(source), "folder")
    flagged = "clip_006.wav" if "two" in kind else other
    assert found_in(found) == {("warning", kind): {flagged}} and found.may_train


def test_silent_clips_are_not_copies_of_each_other(source: Path) -> None:
    for name in ("clip_006.wav", "clip_042.wav"):
        (source / name).write_bytes(wav(np.zeros(4000)))
    found = examine(prepared(source), "folder")
    assert found_in(found) == {("warning", "silent"): {"clip_006.wav", "clip_042.wav"}}


def test_trimming_and_likeness() -> None:
    pcm = (noise(1) * 30000).astype(np.int16)
    padded = np.concatenate([np.full(50, 5, np.int16), pcm, np.zeros(9, np.int16)])
    assert np.array_equal(trim(padded), trim(pcm)) and len(trim(np.full(99, 33, np.int16))) == 0
    assert shape_of(padded) == shape_of(pcm) == shape_of((pcm // 2).astype(np.int16)) != ""
    assert shape_of(pcm[:0]) == shape_of(np.zeros(9999, np.int16)) == ""
    other = (noise(1, seed=1) * 30000).astype(np.int16)
    assert shape_of(other) != shape_of(pcm)
    one = read_audio_of(pcm)
    assert alike(one, read_audio_of(padded)) and alike(one, read_audio_of(pcm[2:]))
    assert not alike(one, read_audio_of(other)) and not alike(one, read_audio_of(pcm[: len(pcm) // 2]))
    assert not alike(one, read_audio_of((-pcm).astype(np.int16))) and not alike(one, read_audio_of(pcm[:0]))


def read_audio_of(pcm: np.ndarray):
    from atose_ray.data.doctor.facts import Audio

    return Audio(pcm, 1 / 32767)


# ---------------------------------------------------------------- tags, groups, splits


def tag_some(rows: Rows, tag: str, which: Callable[[int, list[str]], bool]) -> None:
    for index, row in enumerate(rows.values()):
        if which(index, row):
            row[1] += f"|{tag}"


def share_group(rows: Rows) -> None:
    for index, row in enumerate(rows.values()):
        row[2] = f"{row[0]}-{index % 4}"
    rows["clip_000.wav"][2] = rows["clip_059.wav"][2] = "Ada"


TAGS = {
    "group": (share_group, "warning", "group in two splits", r"^1 of 13 \(8%\) .*: Ada \(train, test\)$"),
    "spelling": (
        lambda rows: (
            tag_some(rows, "Lo-Fi", lambda i, row: i % 3 == 0) or tag_some(rows, "lofi", lambda i, _: i % 7 < 3)
        ),
        "warning",
        "synonyms",
        r"^1 pair of tags.*: Lo-Fi and lofi \(spelling\)$",
    ),
    "plural": (
        lambda rows: tag_some(rows, "Highs", lambda i, row: i % 3 == 0),
        "warning",
        "synonyms",
        r"Highs and high \(spelling\)$",
    ),
    "same clips": (
        lambda rows: tag_some(rows, "shrill", lambda i, row: "high" in row[1] and i != 1),
        "warning",
        "synonyms",
        r"high and shrill \(97% of their clips in common\)$",
    ),
    "not in valid": (
        lambda rows: tag_some(rows, "gong", lambda i, row: row[0] != "valid" and i % 3 == 0),
        "warning",
        "never positive in valid",
        r"^no clip in valid carries 1 of 5 \(20%\) tags: gong$",
    ),
    "not in test": (
        lambda rows: tag_some(rows, "gong", lambda i, row: row[0] != "test" and i % 3 == 0),
        "warning",
        "never positive in test",
        r"^no clip in test carries 1 of 5 \(20%\) tags: gong$",
    ),
    "rare": (
        lambda rows: (
            tag_some(rows, "gong", lambda i, _: i % 4 == 0) or tag_some(rows, "bell", lambda i, _: i % 4 == 1 or i == 2)
        ),
        "note",
        "rare tags",
        r"^1 tag has fewer than 10 clips in train: gong \(9\)$",
    ),
    "everywhere": (
        lambda rows: tag_some(rows, "sound", lambda i, row: i > 0),
        "note",
        "nearly always positive",
        r"^1 tag is on nearly every clip of train: sound$",
    ),
    "untagged": (
        lambda rows: rows["clip_000.wav"].__setitem__(1, ""),
        "note",
        "left out",
        r"^1 annotated clip is not listed: no tags$",
    ),
}


@pytest.mark.parametrize("case", TAGS)
def test_a_fault_of_the_annotations_is_found_and_nothing_else(case: str, source: Path) -> None:
    change, severity, kind, what = TAGS[case]
    change_rows(source, change)
    found = examine(prepared(source), "folder")
    assert found_in(found) == {(severity, kind): set()} and found.may_train
    assert re.search(what, found.findings[0].what), found.findings[0].what
    assert quarantine(found).decode().splitlines() == ["path,split,problem,detail"]


def test_few_clips_in_common_are_no_synonyms(source: Path) -> None:
    change_rows(source, lambda rows: [tag_some(rows, tag, lambda i, _: i % 15 == 0) for tag in ("gong", "bell")])
    assert "synonyms" not in {kind for _, kind in found_in(examine(prepared(source), "folder"))}


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("Hip-Hop", "hip hop", True),
        ("female_vocals", "female vocal", True),
        ("drum", "drums", True),
        ("bas", "bass", False),
        ("brass", "bras", False),
        ("c", "c#", False),
        ("vocal", "no vocal", False),
        ("is", "i", False),
    ],
)
def test_folding_of_tag_names(a: str, b: str, same: bool) -> None:
    assert (folded(a) == folded(b)) == same


def test_a_tag_lost_with_its_files_forbids_training(source: Path) -> None:
    change_rows(source, lambda rows: tag_some(rows, "gong", lambda i, _: i in (1, 40, 50)))
    (source / "clip_001.wav").write_bytes(b"")
    found = examine(prepared(source), "folder")
    assert found_in(found) == {("error", "never positive in train"): set(), ("warning", "empty"): {"clip_001.wav"}}
    assert not found.may_train and found.findings[0].severity == "error" and "gong" in found.findings[0].what


def test_a_split_too_small_forbids_training(source: Path) -> None:
    change_rows(source, lambda rows: [row.__setitem__(0, "train") for row in rows.values() if row[0] == "test"])
    found = examine(prepared(source), "folder")
    assert found_in(found) == {("error", "split too small"): set()} and "the test split" in found.findings[0].what


def test_classes_of_very_unequal_size(source: Path) -> None:
    def label(rows: Rows) -> None:
        for index, row in enumerate(rows.values()):
            row[1] = "rare" if index in (1, 2, 3, 40, 50) else "usual"

    change_rows(source, label)
    found = examine(prepared(source, exclusive=True), "folder")
    assert found_in(found) == {("note", "imbalance"): set(), ("note", "rare tags"): set()}
    assert "33 clips in train, the smallest 3" in next(one for one in found.findings if one.kind == "imbalance").what


# ---------------------------------------------------------------- MagnaTagATune


HEX = "0123456789abcdef"
NORINE = "6/norine_braun-now_and_zen-08-gently-117-146.mp3"


def mtat(folder: Path, without: str = "", kept: Callable[[str], bool] = lambda path: True) -> Examination:
    """Two clips in every folder; those of some folders are not there."""
    folder.mkdir()
    names = [f"{digit}/artist{digit}-album-0{k}-song-0-29.mp3" for digit in HEX for k in (1, 2)] + [NORINE]
    rows = [(name, {"a", "b"} if index % 2 else {"a"}) for index, name in enumerate(names)]
    write_mtat(folder, rows, ("a", "b"))
    for index, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"" if name == NORINE else wav(noise(1, 16000, index), 16000))
        if name[0] in without or not kept(name):
            (folder / name).unlink()
    store = Store(str(folder.parent / "store"))
    prepare(dataset_config("mtat", source=str(folder)), store)
    return examine(store, "mtat")


def kinds(found: Examination) -> dict[str, str]:
    return {one.kind: one.severity for one in found.findings}


def test_the_files_of_mtat_that_everyone_knows_are_expected(tmp_path: Path) -> None:
    found = mtat(tmp_path / "raw")
    assert kinds(found) == {"known broken": "note", "nearly always positive": "note"} and found.may_train
    known = next(one for one in found.findings if one.kind == "known broken")
    assert [flag.name for flag in known.flags] == [NORINE] and "1 of the 3 files" in known.what
    assert NORINE in quarantine(found).decode()


def test_a_third_of_the_folders_of_mtat_is_missing(tmp_path: Path) -> None:
    found = mtat(tmp_path / "raw", without="01245")
    assert kinds(found)["folders missing"] == "error" and not found.may_train
    missing = next(one for one in found.findings if one.kind == "folders missing")
    assert "5 of the 16 folders have no file: 0, 1, 2, 4, 5" in missing.what and "cat mp3.zip.00*" in missing.hint


def test_single_missing_files_or_folders_of_mtat_are_no_missing_part(tmp_path: Path) -> None:
    some = mtat(tmp_path / "raw", kept=lambda path: "-01-" not in path or path[0] not in "01245")
    assert kinds(some)["missing"] == "warning" and "folders missing" not in kinds(some)
    shutil.rmtree(tmp_path / "store")
    eight = mtat(tmp_path / "eight", kept=lambda path: "-01-" not in path or path[0] not in "01234567")
    assert kinds(eight)["known broken"] == "note" and "too many lost" not in kinds(eight)  # 8 of 33, but 9 not decoded
    shutil.rmtree(tmp_path / "store")
    three = mtat(tmp_path / "again", without="012")
    assert "folders missing" not in kinds(three) and three.may_train


def test_leaks_of_a_published_split_are_told_and_forbid_nothing(tmp_path: Path) -> None:
    mtat(tmp_path / "raw")
    shutil.copy(tmp_path / "raw/0/artist0-album-01-song-0-29.mp3", tmp_path / "raw/f/artistf-album-01-song-0-29.mp3")
    table = tmp_path / "raw" / "annotations_final.csv"
    table.write_text(table.read_text().replace("artiste-album-02", "artist1-album-02"))
    (tmp_path / "raw/e/artiste-album-02-song-0-29.mp3").rename(tmp_path / "raw/e/artist1-album-02-song-0-29.mp3")
    store = Store(str(tmp_path / "store"))
    prepare(dataset_config("mtat", source=str(tmp_path / "raw")), store)
    found = examine(store, "mtat")
    assert kinds(found)["copy in two splits"] == "warning" and kinds(found)["group in two splits"] == "note"
    assert found.may_train


# ---------------------------------------------------------------- stores


def test_an_older_store_is_measured_from_its_shards(tiny_store: Store, tmp_path: Path) -> None:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "data")
    store = Store(str(tmp_path))
    data_store(store, "folder").delete(FACTS)
    manifest = load_manifest(store, "folder")
    was, now = (load_clips(data_store(one, "folder"), manifest) for one in (tiny_store, store))
    unknown = {"source_rate_hz": None, "channels": None, "source_peak": None}
    for before, after in zip(was, now, strict=True):
        assert after.facts == dataclasses.replace(before.facts, **unknown)
    found = examine(store, "folder")
    assert found_in(found) == {("note", "sources not recorded"): set()}
    assert "60 files are not recorded" in found.findings[0].what


def test_facts_of_other_audio_or_nonsense_are_not_believed(tiny_store: Store, tmp_path: Path) -> None:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "data")
    file = Path(data_store(Store(str(tmp_path)), "folder").path(FACTS))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert sorted(line["clip_id"] for line in lines) == list(range(60))
    lines[0]["samples"] += 1
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(examine(Store(str(tmp_path)), "folder").findings) == 1
    file.write_text("{}\n")
    with pytest.raises(StoreError, match=r"facts\.jsonl must hold one clip's facts.*delete it"):
        examine(Store(str(tmp_path)), "folder")


def test_changed_shards_are_noticed(tiny_store: Store, tiny_manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "data")
    first, *_, last = [shard.name for shard in tiny_manifest.shards]
    folder = Path(data_store(Store(str(tmp_path)), "folder").root)
    shutil.copy(folder / last, folder / first)
    with pytest.raises(StoreError, match="changed after prepare"):
        examine(Store(str(tmp_path)), "folder")
    (folder / first).unlink()
    with pytest.raises(StoreError, match=rf"cannot read .*{first}"):
        examine(Store(str(tmp_path)), "folder")


# ---------------------------------------------------------------- the page


def page_of(store: Store) -> tuple[Examination, str]:
    found = examine(store, "folder")
    audio = read_audio(data_store(store, "folder"), [clip for clip, _ in played(found)], 4)
    return found, render_page(found, audio)


def data_of(page: str) -> dict[str, Any]:
    return json.loads(page.split('id="data">')[1].split("</script>")[0])


def test_the_page_stands_alone_and_holds_what_was_found(source: Path) -> None:
    (source / "clip_006.wav").rename(source / "x.wav")
    change_rows(source, lambda rows: rows.__setitem__("x.wav", rows.pop("clip_006.wav")))
    (source / "x.wav").write_bytes(wav((9 * noise(1)).clip(-1, 1)))
    found, page = page_of(prepared(source))
    assert "https:" not in page and "@@" not in page and "default-src 'none'" in page
    assert not re.search(r"<\w[^>]* (src|href)=", page) and "http:" not in page.replace(
        "http://www.w3.org/2000/svg", ""
    )
    assert page.count("<section") == 5 and page.count("</script>") == 2 and str(source.parent) not in page
    data = data_of(page)
    assert data["sentence"] == summary(found) and data["content_hash"] == found.manifest.content_hash
    facts = data["facts"]
    assert facts["may_train"] and facts["found"] == {"warning": 1} and facts["skipped"] == 0 and facts["tags"] == 4
    assert facts["input"]["sample_rate_hz"] == RATE and facts["seconds"] == pytest.approx(60, rel=0.5)
    [finding] = data["findings"]
    assert finding["kind"] == "clipped" and finding["more"] == 0
    assert finding["clips"] == as_json(found)["findings"][0]["clips"] and finding["clips"][0]["name"] == "x.wav"
    players = data["players"]
    assert len(players) == EXTREMES and players[0]["name"] == "x.wav" and players[0]["why"].startswith("clipped: ")
    assert players[1]["why"] == "among the quietest" and base64.b64decode(players[0]["wav"])[:4] == b"RIFF"
    plots = {one["title"]: one for one in data["plots"]}
    assert sum(plots["Length"]["counts"]) == 60 and len(plots["Length"]["edges"]) == len(plots["Length"]["counts"]) + 1
    assert plots["Sample rate of the files"]["values"] == [RATE] and plots["Channels of the files"]["counts"] == [60]
    rows = dict(data["classes"]["tags"])
    assert rows == found.manifest.tag_counts and data["classes"]["splits"] == list(SPLITS)
    assert data["classes"]["clips"] == {"train": 36, "valid": 12, "test": 12}
    names, phi = data["map"]["names"], data["map"]["phi"]
    assert sorted(names) == sorted(rows) and len(phi) == len(phi[0]) == len(names) == data["map"]["of"]


@pytest.mark.browser
def test_of_exclusive_tags_there_is_no_map(source: Path, tmp_path: Path) -> None:
    change_rows(source, lambda rows: [row.__setitem__(1, "usual") for row in rows.values()])
    change_rows(source, lambda rows: [row.__setitem__(1, "rare") for row in list(rows.values())[::4]])
    page = page_of(prepared(source, exclusive=True))[1]
    assert data_of(page)["map"] is None
    drawn = drawn_page(page, tmp_path)
    root = re.search(r"<html[^>]*>", drawn)
    assert root is not None and 'data-ready="true"' in root[0] and "data-error" not in root[0], root
    assert re.search(r'<section id="map"[^>]* hidden', drawn), "they never occur together: nothing is said"


def hostile_page(source: Path) -> str:
    """The page of a file whose name is markup, ends the script element and is no UTF-8."""
    (source / "clip_006.wav").write_bytes(wav((9 * noise(1)).clip(-1, 1)))
    store = prepared(source)
    found = examine(store, "folder")
    flag = dataclasses.replace(found.findings[0].flags[0], name="</script><img src=x> & \udcff.wav")
    worse = dataclasses.replace(found, findings=(dataclasses.replace(found.findings[0], flags=(flag,)),))
    assert b"\\udcff" in quarantine(worse)
    return render_page(worse, read_audio(data_store(store, "folder"), list(found.clips), 4))


def test_a_name_cannot_become_markup(source: Path) -> None:
    page = hostile_page(source)
    page.encode()
    assert "<img" not in page and page.count("</script>") == 2
    assert data_of(page)["findings"][0]["clips"][0]["name"] == "</script><img src=x> & \\udcff.wav"


@pytest.mark.browser
def test_the_page_draws_every_part(source: Path, tmp_path: Path) -> None:
    drawn = drawn_page(hostile_page(source), tmp_path)
    root = re.search(r"<html[^>]*>", drawn)
    assert root is not None and 'data-ready="true"' in root[0] and "data-error" not in root[0], root
    visible = drawn.split('<script type="application/json"')[0]
    assert "&lt;/script&gt;&lt;img src=x&gt; &amp; \\udcff.wav" in visible and "<img" not in visible
    assert visible.count("<audio") == EXTREMES and visible.count("<figure") == 7 and "training may start" in visible
    tiles = dict(re.findall(r"<dd[^>]*>([^<]*)<small>([^<]*)", visible))
    assert (tiles["may start"], tiles["0 errors"]) == ("", "1 warning, 0 notes")
    assert tiles["60"] == "36 train, 12 valid, 12 test"
    assert f"{RATE} Hz, mono" in tiles.values() and tiles["4"] == "any number per clip" and len(tiles) == 6
    assert visible.count('class="bar"') > 20 and visible.count('class="track"') == 4
    assert not re.search(r"\bNaN\b|undefined|\[object |Infinity", visible)


def test_every_kind_of_fault_can_be_played_and_the_number_of_players_is_bounded(source: Path) -> None:
    for index in range(25):
        (source / f"clip_{index:03d}.wav").write_bytes(wav((9 * noise(1, seed=index)).clip(-1, 1)))
    (source / "clip_030.wav").write_bytes(wav(np.zeros(4000)))
    found, page = page_of(prepared(source))
    assert len(played(found)) == MAX_PLAYERS == len(data_of(page)["players"])
    assert {why.split(":")[0] for _, why in played(found)} == {"clipped", "silent"}


def test_an_excerpt_holds_the_loudest_moment() -> None:
    pcm = np.zeros(20 * RATE, np.int16)
    pcm[15 * RATE] = -32767
    audio, rate_hz = soundfile.read(io.BytesIO(excerpt(read_audio_of(pcm)._replace(scale=0.5 / 32767), RATE)))
    assert rate_hz == RATE and len(audio) == 5 * RATE and audio.min() == pytest.approx(-0.5, abs=1e-4)
    assert len(soundfile.read(io.BytesIO(excerpt(read_audio_of(pcm[:100]), RATE)))[0]) == 100


# ---------------------------------------------------------------- the verb


def test_the_verb_writes_prints_and_exits(source: Path, tmp_path: Path, capsys) -> None:
    store = prepared(source)
    doctor_verb.main(["folder", "--store", store.uri])
    out = capsys.readouterr().out
    assert (
        out.startswith("doctor: training may start; 0 errors")
        and f"page: {data_store(store, 'folder').uri}/data.html" in out
    )
    assert {"data.html", "quarantine.csv", FACTS} <= set(data_store(store, "folder").names())
    shutil.copy(source / "clip_042.wav", source / "clip_006.wav")
    (source / "clip_002.wav").write_bytes(b"")
    prepared(source)
    with pytest.raises(SystemExit) as stop:
        doctor_verb.main(["folder", "--store", store.uri, "--json"])
    assert stop.value.code == 1
    tree = json.loads(capsys.readouterr().out)
    assert tree == as_json(examine(store, "folder")) and tree["may_train"] is False
    assert [(one["severity"], one["kind"]) for one in tree["findings"]] == [
        ("error", "copy in two splits"),
        ("warning", "empty"),
    ]
    clip = {"name": "clip_006.wav", "split": "train", "detail": tree["findings"][0]["clips"][0]["detail"]}
    assert tree["findings"][0]["clips"] == [clip]
    rows = list(csv.reader(io.StringIO(data_store(store, "folder").read("quarantine.csv").decode())))
    assert tuple(rows[0]) == COLUMNS == ("path", "split", "problem", "detail")
    assert [row[:3] for row in rows[1:]] == [
        ["clip_006.wav", "train", "copy in two splits"],
        ["clip_002.wav", "train", "empty"],
    ]


@pytest.mark.slow
def test_exit_codes_of_the_process(source: Path, tmp_path: Path) -> None:
    store = prepared(source)
    assert verb("doctor", "folder", "--store", store.uri, cwd=tmp_path).returncode == 0
    shutil.copy(source / "clip_042.wav", source / "clip_006.wav")
    prepared(source)
    done = verb("doctor", "folder", "--store", store.uri, cwd=tmp_path)
    assert done.returncode == 1 and "training must not start" in done.stdout and done.stderr == ""
    done = verb("doctor", "mtat", "--store", store.uri, cwd=tmp_path)
    assert (
        done.returncode == 2 and "error: no prepared data set 'mtat'" in done.stderr and "Traceback" not in done.stderr
    )


def test_prepare_ends_with_the_examination(source: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(
        prepare_verb, "prepare", lambda config, store, run_jobs, name: prepare(config, store, name=name)
    )
    shutil.copy(source / "clip_042.wav", source / "clip_006.wav")
    command = ["folder", "--source", str(source), "--store", str(tmp_path / "s"), "--option", f"sample_rate_hz={RATE}"]
    prepare_verb.main(command)
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "doctor: training must not start; 1 error, 0 warnings, 0 notes in 60 clips of folder: 1 clip is"
    )
    folder = data_store(Store(str(tmp_path / "s")), "folder")
    assert last.endswith(f"More in {folder.uri}/data.html")
    assert folder.read("quarantine.csv").decode().count("\n") == 2
    prepare_verb.main(command)
    assert "doctor" not in capsys.readouterr().out


def test_on_object_storage(source: Path, bucket: Bucket, capsys) -> None:  # noqa: F811
    (source / "clip_006.wav").write_bytes(wav(np.zeros(4000)))
    store = Store(bucket.uri_with_endpoint("lab"))
    prepare(dataset_config("folder", source=str(source), sample_rate_hz=RATE), store)
    doctor_verb.main(["folder", "--store", store.uri])
    assert "doctor: training may start; 0 errors, 1 warning, 0 notes in 60 clips" in capsys.readouterr().out
    place = data_store(store, "folder").uri.partition("?")[0].partition("/lab/")[2]
    written = {f"lab/{place}/{name}" for name in ("data.html", "quarantine.csv", FACTS)}
    assert written <= set(bucket.objects())
    assert b"clip_006.wav,train,silent" in data_store(store, "folder").read("quarantine.csv")


def test_reasons_of_prepare_have_a_word() -> None:
    assert problem_of("x.wav: the part from 2 s to 9 s was asked for, but the file is 5.00 s long; c") == "truncated"
    assert problem_of("x.wav: cannot be decoded (libsndfile: no)") == "broken"


def test_tags_of_many_clips_are_counted_some_at_a_time(monkeypatch, tiny_store, tiny_manifest) -> None:
    clips = load_clips(tiny_manifest.folder(tiny_store), tiny_manifest)
    tags_NC = splits.tag_matrix(tiny_manifest, clips)
    sizes = []
    matrix = splits.tag_matrix
    monkeypatch.setattr(splits, "TAG_ROWS", 7)
    monkeypatch.setattr(splits, "tag_matrix", lambda *given: (sizes.append(len(given[1])), matrix(*given))[1])
    assert np.array_equal(splits.clips_with_both(tiny_manifest, clips), tags_NC.T @ tags_NC) and max(sizes) == 7
    found = correlation_of_counts(tags_NC.T @ tags_NC, len(tags_NC))
    assert np.allclose(found, np.corrcoef(tags_NC.T))
