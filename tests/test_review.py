"""The review loop: events are cut out, a listener answers, and the answers are the labels of the next training."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import RATE, tiny_tree

from atose_ray import tag as command
from atose_ray.apps import clips as cutting
from atose_ray.apps.clips import Review, clip_name, cut_out
from atose_ray.apps.timeline import Event, Timeline
from atose_ray.config import run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import load_manifest
from atose_ray.datasets import DatasetError, dataset_config
from atose_ray.datasets.review import NOT_YET, read_review
from atose_ray.storage import Store
from atose_ray.training.loop import fit
from atose_ray.training.run import Job, finish_run, open_run, resolve


def recording(path: Path, seconds: float) -> np.ndarray:
    samples_T = np.random.default_rng(len(path.name)).integers(-9000, 9000, round(seconds * RATE)).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples_T, RATE, "PCM_16")
    return samples_T


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "review.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def answer(folder: Path, accept) -> None:
    """Fill in the column, as a listener does in a spreadsheet: which saves a BOM too."""
    rows = [{**row, "accept": accept(row)} for row in rows_of(folder)]
    with (folder / "review.csv").open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def test_clips_are_the_very_samples_whatever_the_pieces(tmp_path, monkeypatch) -> None:
    samples_T = recording(tmp_path / "night.wav", 9.3)
    events = tuple(
        Event(first, last, tag, 0.5, 0.6)
        for first, last, tag in [(0, 9.3, "rain"), (0.5, 0.75, "owl"), (2, 8, "owl"), (9, 9.30002, "dog/cat")]
    )
    monkeypatch.setattr(cutting, "PIECE_S", 0.7)
    places = [tmp_path / "out" / clip_name(number, event) for number, event in enumerate(events, start=1)]
    cut_out(str(tmp_path / "night.wav"), RATE, events, places, name="night.wav")
    for event, place in zip(events, places, strict=True):
        cut_T, rate = soundfile.read(place, dtype="int16")
        first, last = round(event.start_s * RATE), round(event.end_s * RATE)
        assert rate == RATE and np.array_equal(cut_T, samples_T[first:last])
    assert places[3].name == "00004_dog-cat_0.50_00h00m09.00s.wav"
    assert sorted((tmp_path / "out").iterdir()) == sorted(places)  # nothing unfinished
    assert clip_name(7, Event(7385.5, 7386, "a", 1, 1)) == "00007_a_1.00_02h03m05.50s.wav"


def timeline(name: str, *events: tuple[float, float, str]) -> Timeline:
    found = tuple(Event(first, last, tag, 0.5, 0.6) for first, last, tag in events)
    return Timeline(name, 9.0, 1.0, ("owl", "rain"), np.zeros((9, 2)), np.zeros(9), found, {})


def test_answers_stay_when_a_recording_is_cut_anew(tmp_path) -> None:
    source = str(tmp_path / "night.wav")
    recording(tmp_path / "night.wav", 9)
    recording(tmp_path / "day.wav", 9)
    folder = tmp_path / "review"
    review = Review(str(folder))
    review.add(timeline(source, (0, 1, "owl"), (2, 4, "rain")), "night.wav", source, RATE)
    review.add(timeline("day.wav"), "day.wav", str(tmp_path / "day.wav"), RATE)
    assert review.heard() == {"night.wav", "day.wav"} and len(rows_of(folder)) == 2
    answer(folder, lambda row: "yes" if row["tag"] == "rain" else "no")
    review.add(timeline(source, (1, 2, "owl"), (2, 4, "rain")), "night.wav", source, RATE)
    after = rows_of(folder)
    assert [(row["start"], row["tag"], row["accept"]) for row in after] == [
        ("1.000", "owl", ""),
        ("2.000", "rain", "yes"),
    ]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.wav") if path.is_file()) == sorted(
        row["clip"] for row in after
    )
    assert "1 clips to accept" in review.next_step()
    (folder / "review.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="must have the columns file,clip,start,end,tag,score,accept, but begins with"):
        Review(str(folder))


HEAD = "file,clip,start,end,tag,score,accept\n"


def written(folder: Path, text: str) -> Path:
    (folder / "review.csv").write_text(HEAD + text)
    return folder / "review.csv"


def test_a_label_says_what_was_accepted_at_the_same_time(tmp_path) -> None:
    table = written(
        tmp_path,
        "a.wav,1.wav,0,10,rain,0.9,yes\n"
        "a.wav,2.wav,2,4,owl,0.8,YES\n"
        "a.wav,3.wav,2,4,dog,0.7,no\n"
        "a.wav,4.wav,8,20,dog,0.7,no\n"
        "a.wav,5.wav,30,31,owl,0.7,\n"
        "a.wav,6.wav,2,4,rain,0.2,reject\n",
    )
    judged, left_out = read_review(table)
    assert {clip.path: clip.tags for clip in judged} == {
        "1.wav": ("rain",),  # the owl sounds through a fifth of it
        "2.wav": ("owl", "rain"),
        "3.wav": ("rain", "owl"),
        "4.wav": (),
        "6.wav": ("owl",),  # what was rejected of this very clip is not in it
    }
    assert left_out == {NOT_YET: 1}


def test_what_overlaps_stays_in_one_group(tmp_path) -> None:
    lines = [f"a.wav,{start}.wav,{start},{start + 70},rain,0.5,yes\n" for start in (0, 60, 200)]
    judged, _ = read_review(written(tmp_path, "".join(lines)))
    assert [clip.group for clip in judged] == ["a.wav, minute 0", "a.wav, minute 0", "a.wav, minute 3"]
    many = "".join(f"{number}.wav,{number}/1.wav,0,70,rain,0.5,yes\n" for number in range(10))
    judged, _ = read_review(written(tmp_path, many))
    assert [clip.group for clip in judged] == [f"{number}.wav" for number in range(10)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a.wav,1.wav,0,1,rain,0.5,maybe\n", "line 2: accept is yes, no or empty, but got 'maybe'"),
        ("a.wav,1.wav,0,x,rain,0.5,yes\n", "start and end are seconds, but got '0', 'x'"),
        ("a.wav,1.wav,0,1,,0.5,yes\n", "every row has a clip of its own and a tag"),
        ("a.wav,1.wav,0,1,rain,0.5,yes\na.wav,1.wav,0,1,owl,0.5,no\n", "line 3: every row has a clip of its own"),
        ("a.wav,1.wav,0,1,rain,0.5,\n", "nobody has said yes or no to a clip"),
    ],
)
def test_a_table_that_says_nothing_is_named(tmp_path, line, message) -> None:
    written(tmp_path, line)
    with pytest.raises(DatasetError, match=message):
        dataset_config("folder", source=str(tmp_path), csv="review.csv").list_clips()


def test_from_tag_to_the_next_training(model_folder, tmp_path, capsys) -> None:
    """tag -> clips -> filled table -> prepare -> a training that begins with the old model's encoder."""
    for number in range(12):
        recording(tmp_path / "in" / f"{number}.wav", 2.4)
    folder = tmp_path / "in" / "review"  # below the recordings: its clips are not tagged in their turn
    words = ["--timeline", "csv", "--clips", str(folder), "--hop", "0.6", "--threshold", "0.0"]
    command.main([model_folder, str(tmp_path / "in"), *words, "--set", "max_tags=2"])
    said = capsys.readouterr().out
    rows = rows_of(folder)
    assert "12/12" in said and f"{len(rows)} clips to accept (yes) or reject (no); then: python -m" in said
    answer(folder, lambda row: ("yes", "no", "")[sum(map(ord, row["clip"])) % 3])
    before = rows_of(folder)
    command.main([model_folder, str(tmp_path / "in"), *words])
    assert capsys.readouterr().out.count("there already") == 12 and rows_of(folder) == before

    store = Store(str(tmp_path / "store"))
    prepare(dataset_config("folder", source=str(folder), csv="review.csv", sample_rate_hz=RATE), store, name="reviewed")
    manifest = load_manifest(store, "reviewed")
    judged = [row for row in before if row["accept"]]
    assert sum(manifest.data_spec.counts.values()) == len(judged) and manifest.left_out == {
        NOT_YET: len(before) - len(judged)
    }
    tree = tiny_tree()
    tree["data"] = {**tree.get("data", {}), "dataset": "reviewed"}
    run = resolve(run_config({**tree, "init_from": {"uri": model_folder}}), store, manifest)
    job = Job(run, store.uri, str(tmp_path / "run"))
    opened = open_run(job)
    result = fit(opened.run, opened.method, opened.batches, opened.folder)
    assert result.state == "complete" and finish_run(job, Store(str(tmp_path / "best")))["test"]["clips"] > 0


def test_clips_need_a_timeline_and_a_folder_here(model_folder, tmp_path) -> None:
    recording(tmp_path / "a" / "x.wav", 1)
    recording(tmp_path / "b" / "x.wav", 1)
    with pytest.raises(ValueError, match="--timeline csv"):
        command.main([model_folder, str(tmp_path / "a"), "--clips", str(tmp_path / "c")])
    with pytest.raises(ValueError, match="takes a folder of this machine, but got s3://"):
        command.main([model_folder, str(tmp_path / "a"), "--timeline", "csv", "--clips", "s3://bucket/clips"])
    both = [str(tmp_path / "a"), str(tmp_path / "b")]
    with pytest.raises(ValueError, match=r"x.wav is there twice"):
        command.main([model_folder, *both, "--timeline", "csv", "--clips", str(tmp_path / "c")])
