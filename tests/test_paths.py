"""Names as people give them: of files, folders, stores and tags. All come through prepare, unharmed and escaped."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from conftest import RATE
from test_doctor import data_of

from atose_ray import doctor as doctor_verb
from atose_ray.data.batches import CropSettings, LocalBatches
from atose_ray.data.doctor.checks import QUARANTINE, examine
from atose_ray.data.doctor.facts import FACTS
from atose_ray.data.doctor.page import PAGE
from atose_ray.data.prepare import prepare, write_shard
from atose_ray.data.shards import Manifest, data_store, load_manifest
from atose_ray.datasets import DatasetError, dataset_config
from atose_ray.datasets.audioset import find_audio
from atose_ray.storage import Store

COMPOSED, DECOMPOSED = "caf\u00e9.wav", "cafe\u0301.wav"
NAMES = [
    COMPOSED,
    DECOMPOSED,
    "\U0001f3b5 \U0001f468\u200d\U0001f3a4.wav",
    "\u05e9\u05dc\u05d5\u05dd.wav",
    "\u202egnos.wav",
    "日本語/曲 1.flac",
    "two  spaces.wav",
    " leading.wav",
    "trailing .wav",
    "-rf.wav",
    "--source.wav",
    "tab\there.wav",
    "bell\x07 escape\x1b[31m.wav",
    "\u2028line\u0085.wav",
    "x" * 196 + ".wav",
    "ü" * 120 + ".wav",
    "comma, comma.wav",
    'quo"te"".wav',
    "it's.wav",
    "100%.wav",
    "%2e%2e%2Fa.wav",
    "a+b&c=d.wav",
    "#1.wav",
    "why?.wav",
    "[a]{b}*.wav",
    "..wav",
    "a..b.wav",
    "...../x.wav",
    "sub/../up.wav",
    "<script>alert(1)<.wav",
    "&lt;b&gt;.wav",
    "=1+1.wav",
    "back\\slash.wav",
    "a:b;c|d.wav",
    "s3:/x.wav",
    "~home.wav",
    "$HOME`id`.wav",
]
TAGS = [
    "rock, hard",
    '12" mix',
    "R&B/soul",
    "<b>bold</b>",
    "日本",
    "two\nlines",
    "100% #1?",
    "caf\u00e9",
    "=cmd",
    "a:b",
]
FOLDERS = [
    "two words",
    "ünï çøde",
    "cafe\u0301",
    "a#b",
    "50%20x",
    "100%",
    "[a]*",
    "-x",
    "..x",
    "a&b=c",
    "tab\tx",
    "why?x=1",
    "\u05d0",
]
ODD = "raw ü #1? 50%20 [x]"


def sound(path: Path, index: int) -> None:
    """Noise of its own, in the format that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    kind = {".wav": "WAV", ".flac": "FLAC"}[path.suffix]
    soundfile.write(content, samples(index), RATE, format=kind, subtype="PCM_16")
    path.write_bytes(content.getvalue())


def samples(index: int) -> np.ndarray:
    return 0.1 * np.random.default_rng(index).standard_normal(RATE // 4)


def write_table(path: Path, rows: list[tuple[str, ...]], encoding: str = "utf-8", ends: str = "\n") -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=ends, quoting=csv.QUOTE_ALL).writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.getvalue().encode(encoding))


def render(source: Path, names: list[str], encoding: str = "utf-8", ends: str = "\n") -> None:
    """A sound per name; the first clips are for training and carry every tag."""
    rows = [("path", "split", "tags", "group")]
    (source / "sub").mkdir(parents=True)
    for index, name in enumerate(names):
        sound(source / name, index)
        split = ("valid", "test")[index % 2] if index >= len(names) - 8 else "train"
        rows.append((name, split, f"{TAGS[index % len(TAGS)]}|{TAGS[-1]}", f"artist {name}"))
    write_table(source / "tags.csv", rows, encoding, ends)


def elsewhere(jobs):
    """Every shard as another process would write it: nothing but pickles goes there and comes back."""
    for job in pickle.loads(pickle.dumps(jobs)):
        yield pickle.loads(pickle.dumps(write_shard(job)))


def prepared(source: Path, store: Store, **options: object) -> Manifest:
    return prepare(dataset_config("folder", source=str(source), sample_rate_hz=RATE, **options), store, elsewhere)[0]


def rows_of(store: Store, name: str) -> list[dict]:
    """All rows of all shards in the order of the listing."""
    folder, manifest = data_store(store, name), load_manifest(store, name)
    rows = [row for shard in manifest.shards for row in pq.read_table(folder.path(shard.name)).to_pylist()]
    return sorted(rows, key=lambda row: row["clip_id"])


class Page(HTMLParser):
    """The elements, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize(("encoding", "ends"), [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_every_name_and_tag_comes_through(encoding: str, ends: str, tmp_path: Path) -> None:
    source, store = tmp_path / ODD, Store(str(tmp_path / "störe #2? %41 [x]"))
    render(source, NAMES, encoding, ends)
    manifest = prepared(source, store)
    assert not manifest.skipped and manifest.data_spec.tags == tuple(sorted(TAGS))
    rows = rows_of(store, "folder")
    assert [row["name"] for row in rows] == [name.strip() for name in NAMES]
    assert [row["group"] for row in rows] == [f"artist {name}".strip() for name in NAMES]
    for index, row in enumerate(rows):
        assert {manifest.data_spec.tags[tag] for tag in row["tags"]} == {TAGS[index % len(TAGS)], TAGS[-1]}
        pcm_T = np.frombuffer(row["pcm"], "<i2") * row["scale"]
        np.testing.assert_allclose(pcm_T, samples(index), atol=2 / 32767)
    facts = data_store(store, "folder").read(FACTS).decode().splitlines()
    assert sorted(json.loads(line)["clip_id"] for line in facts) == list(range(len(NAMES)))
    assert prepare(dataset_config("folder", source=str(source), sample_rate_hz=RATE), store)[1] is False


def test_what_is_wrong_is_listed_under_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, place = tmp_path / ODD, tmp_path / "the store #1? %41"
    render(source, NAMES)
    broken = [name for name in NAMES[1:] if name[0] in "c\U0001f3b5\u202etbx%#<&= "]
    for name in broken:
        (source / name).write_bytes(b"")
    prepared(source, Store(str(place)))
    with pytest.raises(SystemExit, match="1"):
        doctor_verb.main(["folder", "--store", str(place)])  # a quarter of the files is lost
    out = capsys.readouterr().out
    folder = Path(data_store(Store(str(place)), "folder").root)
    assert f"page: {folder}/{PAGE}\n" in out and (folder / PAGE).is_file()
    table = (folder / QUARANTINE).read_bytes().decode()
    listed = [row["path"] for row in csv.DictReader(io.StringIO(table, newline="")) if row["problem"] == "empty"]
    assert sorted(listed) == sorted(name.strip() for name in broken)
    text = (folder / PAGE).read_bytes().decode()
    page = Page(text)
    assert not page.elements & {"b", "img", "iframe", "a"} and not page.addresses and "alert(1)" in text
    data = data_of(text)
    assert {tag for tag, _ in data["classes"]["tags"]} == set(TAGS) and set(data["map"]["names"]) == set(TAGS)
    shown = {clip["name"] for finding in data["findings"] for clip in finding["clips"]}
    assert shown >= {name.strip() for name in broken}


def test_a_store_of_any_name_is_read_back(tmp_path: Path, tiny_source: Path) -> None:
    for index, name in enumerate(("two words #1? %41", "\u05d0 ünï [x]* =")):
        store = Store(str(tmp_path / name))
        manifest = prepared(tiny_source, store)
        settings = CropSettings(data_store(store, "folder").uri, len(manifest.data_spec.tags), RATE // 2, seed=index)
        batches = LocalBatches(manifest, settings, batch_size=8, eval_crops=1, eval_batch_size=8, mix=2)
        assert sum(len(batch.inputs) for batch in batches.train(1)) == 36
        assert examine(store, "folder").may_train


# Stores


def written_below(place: Path) -> list[str]:
    return sorted(path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("as_uri", [False, True])
def test_a_store_lies_where_its_name_says(name: str, as_uri: bool, tmp_path: Path) -> None:
    place = tmp_path / name
    store = Store(place.as_uri() if as_uri else str(place))
    assert store.root == str(place) and store.local_path == place
    store.child("data", "folder").write("a.json", b"1")
    pickle.loads(pickle.dumps(store)).child("runs").append_line("log.jsonl", "2")
    assert written_below(tmp_path) == [f"{name}/data/folder/a.json", f"{name}/runs/log.jsonl"]
    assert store.child("data").names() == ["folder"] and Store(store.uri).child("runs").read("log.jsonl") == b"2\n"


def test_a_relative_store_is_below_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Store("50%20 #x").child("data").write("a.json", b"1")
    assert written_below(tmp_path) == ["50%20 #x/data/a.json"]


# Tables


def test_a_table_of_any_name(tmp_path: Path) -> None:
    render(tmp_path / ODD, NAMES[:20])
    (tmp_path / ODD / "tags.csv").rename(tmp_path / ODD / "tags, #1? 50%20.csv")
    options = {"source": str(tmp_path / ODD), "csv": "tags, #1? 50%20.csv"}
    assert len(dataset_config("folder", **options).list_clips().clips) == 20
    absolute = dataset_config("folder", csv=str(tmp_path / ODD / "tags, #1? 50%20.csv")).list_clips()
    assert absolute == dataset_config("folder", **options).list_clips()


@pytest.mark.parametrize("name", ["~nobody-of-this-name", "~"])
def test_a_tilde_that_is_no_home_is_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(DatasetError, match=r"the tags table .* does not exist|holds no audio"):
        dataset_config("folder", source=str(tmp_path), csv=name).list_clips()


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_composed_or_not(form: str, tmp_path: Path) -> None:
    """A table typed on one system, files copied from another."""
    names = [f"{name}.wav" for name in ("caf\u00e9", "na\u00efve", "\u00fc", "e", "f", "g")]
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    rows = [("path", "split", "tags")]
    for index, name in enumerate(names):
        sound(tmp_path / unicodedata.normalize(other, name), index)
        rows.append((unicodedata.normalize(form, name), ("train", "valid", "test")[index % 3], "a"))
    write_table(tmp_path / "tags.csv", rows)
    manifest = prepared(tmp_path, Store(str(tmp_path / "store")))
    assert not manifest.skipped
    assert [row["name"] for row in rows_of(Store(str(tmp_path / "store")), "folder")] == [row[0] for row in rows[1:]]


def test_a_name_that_no_disk_can_hold_is_missing(tmp_path: Path) -> None:
    render(tmp_path / "raw", NAMES[:20])
    odd = ["new\nline.wav", f"{'n' * 300}.wav"]
    with (tmp_path / "raw" / "tags.csv").open("a") as table:
        table.writelines(f'"{name}",train,a:b,\n' for name in odd)
    manifest = prepared(tmp_path / "raw", Store(str(tmp_path / "store")))
    assert [clip.name for clip in manifest.skipped] == odd
    with (tmp_path / "raw" / "tags.csv").open("a") as table:
        table.write("nul\0.wav,train,a:b,\n")
    with pytest.raises(DatasetError, match=r"tags\.csv (line \d+ holds NUL|.*must be a table in UTF-8)"):
        prepared(tmp_path / "raw", Store(str(tmp_path / "store")))


# Links


def test_links_to_files_and_folders_are_followed_and_broken_ones_reported(tmp_path: Path) -> None:
    names = [f"{letter}.wav" for letter in "abcdef"]
    render(tmp_path / "real", names)
    source = tmp_path / "links"
    source.mkdir()
    for name in names[:3]:
        (source / name).symlink_to(tmp_path / "real" / name)
    (source / "folder").symlink_to(tmp_path / "real")
    (source / "self.wav").symlink_to("self.wav")
    (source / "gone.wav").symlink_to("nowhere.wav")
    (source / "a folder.wav").mkdir()
    odd = ["self.wav", "gone.wav", "a folder.wav"]
    kept = [*names[:3], *(f"folder/{name}" for name in names[3:])]
    splits = ["train", "valid", "test"]
    rows = [(name, splits[index % 3], "a") for index, name in enumerate([*kept, *odd])]
    write_table(source / "tags.csv", [("path", "split", "tags"), *rows])
    store = Store(str(tmp_path / "store"))
    manifest = prepared(source, store)
    assert [row["name"] for row in rows_of(store, "folder")] == kept
    assert {clip.name for clip in manifest.skipped} == set(odd)
    assert "is a directory" in next(clip.reason for clip in manifest.skipped if clip.name == "a folder.wav")


def circle(folder: Path) -> None:
    """Links to itself and to what is above it."""
    (folder / "here").symlink_to(".")
    (folder / "up").symlink_to("..")


def test_audioset_does_not_walk_in_circles(tmp_path: Path) -> None:
    sound(tmp_path / "audio" / "inner" / "abcdefghijk.wav", 0)
    sound(tmp_path / "outside" / "ABCDEFGHIJK.wav", 1)
    (tmp_path / "audio" / "linked").symlink_to(tmp_path / "outside")
    circle_at = tmp_path / "audio" / "inner"
    (circle_at / "here").symlink_to(".")
    found = find_audio(tmp_path / "audio", {"abcdefghijk", "ABCDEFGHIJK"})
    assert {ytid: len(files) for ytid, files in found.items()} == {"abcdefghijk": 1, "ABCDEFGHIJK": 1}
    (circle_at / "up").symlink_to("..")
    again = find_audio(tmp_path / "audio", {"abcdefghijk", "ABCDEFGHIJK"})
    assert {ytid: len(files) for ytid, files in again.items()} == {"abcdefghijk": 1, "ABCDEFGHIJK": 1}


def make_words(folder: Path) -> None:
    for label in ("no", "yes"):
        for index in range(4):
            sound(folder / label / f"s{index}_nohash_0.wav", index + 10 * (label == "no"))
    (folder / "validation_list.txt").write_text("no/s1_nohash_0.wav\nyes/s1_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text("no/s2_nohash_0.wav\nyes/s2_nohash_0.wav\n")


def test_speech_commands_with_circles_and_a_name_that_is_no_utf8(tmp_path: Path) -> None:
    make_words(tmp_path / "raw")
    circle(tmp_path / "raw")
    circle(tmp_path / "raw" / "no")
    (tmp_path / "raw" / "up").unlink()  # the folder above holds the store: a label like any other
    (tmp_path / "raw" / "no" / "lost_nohash_0.wav").symlink_to("lost_nohash_0.wav")
    yes = tmp_path / "raw" / "yes"
    os.rename(yes / "s0_nohash_0.wav", os.fsencode(yes) + b"/\xff_nohash_0.wav")
    config = dataset_config("speech_commands", source=str(tmp_path / "raw"), sample_rate_hz=RATE)
    store = Store(str(tmp_path / "store"))
    manifest, _ = prepare(config, store, elsewhere)
    assert manifest.data_spec.tags == ("no", "yes") and [c.name for c in manifest.skipped] == ["no/lost_nohash_0.wav"]
    rows = {row["name"]: row["group"] for row in rows_of(store, "speech_commands")}
    assert len(rows) == 8 and rows["yes/\\xff_nohash_0.wav"] == "\\xff"
    assert examine(store, "speech_commands").clips[0].name.startswith("no/")


def test_a_folder_without_a_table_and_with_circles_is_refused_at_once(tmp_path: Path) -> None:
    sound(tmp_path / "birds" / "one.wav", 0)
    circle(tmp_path / "birds")
    with pytest.raises(DatasetError, match=r"does not exist; write it"):
        dataset_config("folder", source=str(tmp_path)).list_clips()
