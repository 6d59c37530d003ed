"""Sounds by words: an index that is cut, gone on with and changed; ranks that are those of `tag`; the page."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile

from atose_ray import find as command
from atose_ray.apps import embedding_parts, embeddings, index, predict, retrieve
from atose_ray.apps.index import open_index, read_rows
from atose_ray.apps.predict import tag_file
from atose_ray.apps.retrieve import Term, find, parse, weighed
from atose_ray.storage import Store
from atose_ray.training.checkpoint import load_model, save_model


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Twelve tones of one to three windows in two folders, and a file that is none."""
    folder = tmp_path / "sounds"
    (folder / "deep").mkdir(parents=True)
    for number in range(12):
        time_T = np.arange(int(16000 * (0.5 + 0.15 * number))) / 16000
        tone_T = 0.4 * np.sin(2 * np.pi * 110 * 2 ** (number / 3) * time_T)
        soundfile.write(folder / ("deep" if number % 2 else "") / f"tone{number:02d}.wav", tone_T, 16000)
    (folder / "broken.wav").write_text("no sound at all")
    (folder / "notes.txt").write_text("not looked at")
    return folder


def made(model_folder: str, sounds: Path, place: Path, *more: str) -> str:
    command.main(["index", model_folder, str(sounds), str(place), *more])
    return str(place)


def test_ranks_are_those_of_tag(model_folder, sounds, tmp_path, capsys) -> None:
    uri = made(model_folder, sounds, tmp_path / "index")
    said = capsys.readouterr()
    assert "13 of 13 files" in said.out and "1 left out" in said.out and "broken.wav" in said.err
    store, _, model = open_index(uri)
    tag = model.spec.tags[0]
    expected = {}
    for path in sounds.rglob("tone*.wav"):
        expected[str(path.relative_to(sounds))] = dict(tag_file(model, str(path)).scores)[tag]
    found = find(store, model, [Term(tag)], top=99)
    assert [one.path for one in found] == sorted(expected, key=lambda path: -expected[path])
    for one in found:
        assert one.score == pytest.approx(expected[one.path], abs=1e-6) == one.terms[tag]
    worst = find(store, model, [Term(tag, -1.0)], top=99)
    assert [one.path for one in worst] == [one.path for one in found][::-1]


def test_a_sound_is_nearest_to_itself_and_says_where(model_folder, sounds, tmp_path) -> None:
    store, _, model = open_index(made(model_folder, sounds, tmp_path / "index"))
    like = sounds / "deep" / "tone07.wav"
    first, *_ = find(store, model, [], str(like), top=3)
    assert first.path == "deep/tone07.wav" and first.score == pytest.approx(1.0, abs=1e-6)
    assert first.terms == {"like": first.score}
    tag = model.spec.tags[1]
    both = find(store, model, [Term(tag, 0.0)], str(like), top=1)
    assert both[0].path == first.path and set(both[0].terms) == {tag, "like"}


def test_an_index_that_was_cut_goes_on_and_is_the_same(model_folder, sounds, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(embedding_parts, "PART_SOUNDS", 3)
    whole, _, model = open_index(made(model_folder, sounds, tmp_path / "whole"))
    cut = Store(str(tmp_path / "cut"))
    index.begin_index(cut, Store(model_folder), index.IndexInfo(Store(str(sounds)).uri, None))
    filling = index.fill_index(cut, model, Store(str(sounds)), None)
    for _ in range(8):
        next(filling)
    filling.close()
    assert len(index.parts_of(cut).names()) == 2  # six files; what was not written is embedded again
    embedded = []
    monkeypatch.setattr(index, "windows_in", counting(index.windows_in, embedded))
    made(model_folder, sounds, tmp_path / "cut")
    assert len(embedded) == 6  # of twelve; the broken one is known
    for one, other in zip(sorted_rows(whole), sorted_rows(cut), strict=True):
        assert one == other
    made(model_folder, sounds, tmp_path / "cut")
    assert len(embedded) == 6


def counting(windows_in, embedded):
    def counted(model, folder, stamp, hop_s):
        embedded.append(stamp.name)
        return windows_in(model, folder, stamp, hop_s)

    return counted


def sorted_rows(store: Store) -> list[tuple]:
    return sorted(
        (path, float(start), embed_E.tobytes())
        for rows in read_rows(store)
        for path, start, embed_E in zip(rows.paths, rows.start_s_R, rows.embed_RE, strict=True)
    )


def test_the_sounds_of_a_part_stand_in_one_row_group(model_folder, sounds, tmp_path) -> None:
    """A row group per sound makes a query seven times as slow."""
    store = Store(made(model_folder, sounds, tmp_path / "index"))
    (name,) = index.parts_of(store).names()
    with store.child(index.PARTS).reading(name) as file:
        assert pq.ParquetFile(file).metadata.num_row_groups == 1


def test_a_changed_file_counts_in_its_last_version(model_folder, sounds, tmp_path) -> None:
    uri = made(model_folder, sounds, tmp_path / "index")
    before = len(sorted_rows(Store(uri)))
    changed = sounds / "tone00.wav"
    soundfile.write(changed, np.zeros(16000 * 2), 16000)
    os.utime(changed, ns=(1, 10**18))
    made(model_folder, sounds, tmp_path / "index")
    rows = sorted_rows(Store(uri))
    model = load_model(model_folder)
    assert [row for row in rows if row[0] == "tone00.wav"] == [
        ("tone00.wav", start_s, embed_E.tobytes()) for start_s, _, embed_E in embeddings.windows_of(model, str(changed))
    ]
    assert len({row[0] for row in rows}) == 12 and len(rows) >= before


def test_a_hop_sets_the_windows(model_folder, sounds, tmp_path) -> None:
    store = Store(made(model_folder, sounds, tmp_path / "index", "--hop", "0.2"))
    starts = [start for path, start, _ in sorted_rows(store) if path == "deep/tone11.wav"]  # 2.15 s, windows of 0.6 s
    assert len(starts) == 11 and starts[0] == 0 and starts[-1] == pytest.approx(2.15 - 0.6, abs=0.01)


def test_an_index_of_another_model_or_folder_is_refused(model_folder, sounds, tmp_path) -> None:
    uri = made(model_folder, sounds, tmp_path / "index")
    with pytest.raises(ValueError, match="made with another folder or --hop; name another folder"):
        made(model_folder, sounds, tmp_path / "index", "--hop", "0.3")
    other = tmp_path / "other"
    model = load_model(model_folder)
    next(model.method.parameters()).data.add_(1)
    save_model(Store(str(other)), model.method, model.run, model.spec, dict(model.metrics))
    with pytest.raises(ValueError, match="made with another model"):
        command.main(["index", str(other), str(sounds), uri])
    with pytest.raises(ValueError, match=r"is not an index: it lacks index.json. Make one: .*find index MODEL"):
        command.main([str(tmp_path / "nothing"), "word"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no audio file; expected names that end in .*\.wav"):
        made(model_folder, tmp_path / "empty", tmp_path / "index2")


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ("slow cello", [Term("slow cello")]),
        ("slow cello, piano:0.5, -drums", [Term("slow cello"), Term("piano", 0.5), Term("drums", -1.0)]),
        ("-rain:2", [Term("rain", -2.0)]),
    ],
)
def test_words_are_read(query, terms) -> None:
    assert parse(query) == terms


@pytest.mark.parametrize("query", ["piano:loud", "a,,b", "-", "x:nan"])
def test_what_is_no_query_is_refused(query) -> None:
    with pytest.raises(ValueError, match=r"must be a number|expected words separated by commas"):
        parse(query)


def test_several_words_are_standardised_before_they_are_weighed() -> None:
    values_NQ = np.array([[0.9, 0.01], [0.8, 0.03], [0.1, 0.02]])
    standard_NQ = (values_NQ - values_NQ.mean(axis=0)) / values_NQ.std(axis=0)
    assert weighed(values_NQ, np.array([1.0, 2.0])) == pytest.approx(standard_NQ @ [1.0, 2.0])
    assert weighed(values_NQ[:, :1], np.array([2.0])) == pytest.approx(2 * values_NQ[:, 0])
    assert weighed(np.array([[0.5, 0.1], [0.5, 0.2]]), np.array([1.0, 1.0])) == pytest.approx([-1.0, 1.0])


def test_a_word_that_the_model_cannot_score_is_refused_before_anything_is_read(model_folder, sounds, tmp_path) -> None:
    store, _, model = open_index(made(model_folder, sounds, tmp_path / "index"))
    with pytest.raises(ValueError, match="trained on, not theremin"):
        find(store, model, [Term("theremin")])


def test_json_and_a_page_that_holds_hostile_names_as_text(model_folder, sounds, tmp_path, capsys) -> None:
    hostile = "<img src=x onerror=alert(1)>.wav"
    (sounds / "tone02.wav").rename(sounds / hostile)
    uri = made(model_folder, sounds, tmp_path / "index")
    capsys.readouterr()
    tag = load_model(model_folder).spec.tags[0]
    page = tmp_path / "found.html"
    command.main([uri, tag, "--like", str(sounds / hostile), "--top", "4", "--json", "--html", str(page)])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 4 and hostile in [row["path"] for row in rows] and set(rows[0]["terms"]) == {tag, "like"}
    html = page.read_text()
    assert "<img src=x" not in html and "find.js" not in html and "file:///" in html
    command.main([uri, tag, "--top", "1"])
    assert capsys.readouterr().out.startswith("  1 ")
    with pytest.raises(ValueError, match="expected words to look for, or --like FILE"):
        command.main([uri])


def test_windows_stand_where_they_are_in_a_long_file(model_folder, tmp_path, monkeypatch) -> None:
    """A file that is read in pieces has the windows of each, at their times in the whole."""
    model = load_model(model_folder)
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "long.wav", 0.1 * rng.standard_normal(16000 * 6), 16000)
    monkeypatch.setattr(predict, "PART_S", 2.4)
    starts = [window.start_s for window in embeddings.windows_of(model, str(tmp_path / "long.wav"), 0.6)]
    assert starts == pytest.approx([0, 0.6, 1.2, 1.8, 2.4, 3.0, 3.6, 4.2, 4.8, 5.4], abs=1e-4)


def test_files_stand_together() -> None:
    assert retrieve.files_in(["a", "a", "b", "c", "c"]) == [(0, 2), (2, 3), (3, 5)]
    assert retrieve.files_in(["a"]) == [(0, 1)] and retrieve.files_in([]) == []
