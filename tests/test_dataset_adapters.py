"""The adapters of published sets, each on a small tree in the published layout: short generated tones, real files.

The makers are in the conformance suite of test_datasets.py too. What is tested here is what each layout means.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from pydantic import ValidationError

from atose_ray.data.prepare import prepare
from atose_ray.data.shards import data_store, read_row_group
from atose_ray.data.views import ViewError, of_fold
from atose_ray.datasets import DatasetConfig, DatasetError, dataset_config
from atose_ray.datasets.audioset import find_audio, is_start
from atose_ray.datasets.fma import FAULTY
from atose_ray.datasets.gtzan import EXCERPTS, names_of
from atose_ray.datasets.mtg_jamendo import middle
from atose_ray.storage import Store
from atose_ray.types import SPLITS, ClipRef

RATE_HZ = 16000


def tone(path: Path, seconds: float = 0.25) -> None:
    """A tone of its own pitch, in the format that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hz = 200 + sum(path.name.encode()) % 2000
    soundfile.write(path, 0.4 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ), RATE_HZ)


def write(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))


def summary(clips: tuple[ClipRef, ...]) -> dict[str, tuple[tuple[str, ...], str, str | None]]:
    return {clip.name: (clip.tags, clip.split, clip.group) for clip in clips}


# The trees


def make_esc50(folder: Path) -> DatasetConfig:
    """Two clips of each of two classes in every fold; each two cuts of one recording; rain is not in ESC-10."""
    root, lines = folder / "esc50", ["filename,fold,target,category,esc10,src_file,take"]
    for fold in range(1, 6):
        for target, category, esc10 in ((0, "dog", "True"), (10, "rain", "False")):
            source = 1000 * fold + target
            for take in "AB":
                name = f"{fold}-{source}-{take}-{target}.wav"
                lines.append(f"{name},{fold},{target},{category},{esc10},{source},{take}")
                tone(root / "audio" / name)
    write(root / "meta" / "esc50.csv", "\n".join(lines) + "\n")
    return dataset_config("esc50", source=str(root))


def make_msd(folder: Path) -> DatasetConfig:
    """Four tracks in each part, found by name or by id; one without tags, one of another duration, one broken."""
    root = folder / "msd"
    for at, split in enumerate(SPLITS):
        ids = [f"TR{'ABC'[at]}{'XYZW'[i]}Q{at}{i}" for i in range(4)]
        numbers, labels = [f"{100 * at + i}" for i in range(4)], np.zeros((4, 50))
        labels[0, [0, 9]] = labels[1, 9] = labels[2, 1] = 1
        if split == "train":
            labels[3, 0] = 1
            write(root / "MSD_split_for_tagging" / "train_x_7d_bad_duration_id.txt", f"{numbers[3]}\n")
        names = [f"{number[-1]}/1/{number}.npy" for number in numbers]
        for what, lines in (("msd_id", ids), ("7d_id", numbers), ("filename", names)):
            write(root / "MSD_split_for_tagging" / f"{split}_x_{what}.txt", "\n".join(lines) + "\n")
        np.save(root / "MSD_split_for_tagging" / f"{split}_y.npy", labels)
        tone(root / f"{names[0].removesuffix('.npy')}.clip.mp3")
        for track in ids[1:]:
            tone(root / "/".join((*track[2:5], f"{track}.mp3")))
    return dataset_config("msd", source=str(root), lists=str(root / "MSD_split_for_tagging"))


def make_urbansound8k(folder: Path) -> DatasetConfig:
    """Two cuts of one recording of each of two classes in every fold."""
    root, lines = folder / "UrbanSound8K", ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        for number, name in ((3, "dog_bark"), (8, "siren")):
            source = 100 * fold + number
            for cut in range(2):
                file = f"{source}-{number}-0-{cut}.wav"
                lines.append(f"{file},{source},{cut * 58.5},{cut * 58.5 + 4},1,{fold},{number},{name}")
                tone(root / "audio" / f"fold{fold}" / file)
    write(root / "metadata" / "UrbanSound8K.csv", "\n".join(lines) + "\n")
    return dataset_config("urbansound8k", source=str(root))


def make_nsynth(folder: Path) -> DatasetConfig:
    """Two instruments with two notes each in every part; the organ has no quality."""
    root = folder / "nsynth"
    for part, split in enumerate(SPLITS):
        notes = {}
        for family, qualities in (("organ", []), ("bass", ["dark", "percussive"])):
            for pitch in (60, 33):
                instrument = f"{family}_synthetic_{part:03d}"
                name = f"{instrument}-{pitch:03d}-100"
                notes[name] = {
                    "note": 1,
                    "note_str": name,
                    "instrument": part,
                    "instrument_str": instrument,
                    "instrument_family": 0,
                    "instrument_family_str": family,
                    "instrument_source": 2,
                    "instrument_source_str": "synthetic",
                    "pitch": pitch,
                    "velocity": 100,
                    "sample_rate": 16000,
                    "qualities": [0] * 10,
                    "qualities_str": qualities,
                }
                tone(root / f"nsynth-{split}" / "audio" / f"{name}.wav")
        write(root / f"nsynth-{split}" / "examples.json", json.dumps(notes))
    return dataset_config("nsynth", source=str(root))


def make_gtzan(folder: Path) -> DatasetConfig:
    """The first excerpt of every genre and part, and one that is not in the split."""
    root = folder / "gtzan"
    for lists in EXCERPTS.values():
        for genre, numbers in lists.items():
            tone(root / "genres_original" / genre / f"{names_of(genre, numbers)[0]}.wav")
    tone(root / "genres_original" / "hiphop" / "hiphop.00001.wav")
    return dataset_config("gtzan", source=str(root))


FMA_TRACKS = [  # track, artist, split, subset, genre_top, genres_all
    (2, 1, "training", "small", "Hip-Hop", "[21]"),
    (5, 1, "training", "medium", "Rock", "[12, 25]"),
    (10, 6, "validation", "small", "Rock", "[12]"),
    (140, 7, "test", "small", "Rock", "[25, 12]"),
    (141, 8, "test", "large", "", "[12, 21]"),
    (142, 8, "test", "large", "Hip-Hop", "[21]"),
    (99134, 9, "training", "small", "Hip-Hop", "[21]"),
    (143992, 9, "training", "medium", "Hip-Hop", "[21]"),
]


def make_fma(folder: Path, size: str = "small") -> DatasetConfig:
    root = folder / "fma"
    columns = [("", ""), ("album", "information"), ("artist", "id"), ("set", "split"), ("set", "subset"),
               ("track", "genre_top"), ("track", "genres"), ("track", "genres_all"), ("track", "title")]  # fmt: skip
    lines = [",".join(column[level] for column in columns) for level in (0, 1)] + ["track_id" + "," * 8]
    for track, artist, split, subset, genre_top, genres_all in FMA_TRACKS:
        information = '"<p>Of a ""live"" night,\n\nin two lines</p>"'
        lines.append(f'{track},{information},{artist},{split},{subset},{genre_top},[],"{genres_all}",Food')
        if subset == "small" or size == "large":
            tone(root / f"fma_{size}" / f"{track:06d}"[:3] / f"{track:06d}.mp3")
    write(root / "fma_metadata" / "tracks.csv", "\n".join(lines) + "\n")
    genres = "genre_id,#tracks,parent,title,top_level\n12,32923,0,Rock,12\n21,8389,0,Hip-Hop,21\n25,9261,12,Punk,12\n"
    write(root / "fma_metadata" / "genres.csv", genres)
    return dataset_config("fma", source=str(root), size=size)


def make_mtg_jamendo(folder: Path) -> DatasetConfig:
    """Three tracks a part, every second one in the low-quality edition; moods are in a subset of their own."""
    root = folder / "mtg_jamendo"
    for part, name in enumerate(("train", "validation", "test")):
        lines = {stem: ["TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS"] for stem in ("", "_moodtheme")}
        for index in range(3):
            track = 786400 + 10 * part + index
            path = f"{track % 100:02d}/{track}.mp3"
            head = f"track_{track:07d}\tartist_{part:06d}\talbum_092222\t{path}\t2.0"
            lines[""].append(f"{head}\tgenre---rock\tmood/theme---deep" if index else f"{head}\tgenre---rock")
            lines["_moodtheme"] += [f"{head}\tmood/theme---deep"] if index else []
            tone(root / (path.replace(".mp3", ".low.mp3") if index % 2 else path), seconds=2.0)
        for stem, text in lines.items():
            write(root / "data/splits/split-0" / f"autotagging{stem}-{name}.tsv", "\n".join(text) + "\n")
    return dataset_config("mtg_jamendo", source=str(root))


def ytid(index: int, part: str = "b") -> str:
    return f"-{part}_{index:06d}-Y"


AUDIOSET_HEAD = "# Segments csv created Sun Mar  5 10:54:31 2017\n# num_ytids=3, num_segs=3\n"
AUDIOSET_HEAD += "# YTID, start_seconds, end_seconds, positive_labels\n"


def make_audioset(folder: Path) -> DatasetConfig:
    """20 training and 4 evaluation segments with audio in all the ways to name it, one of each without."""
    root = folder / "audioset"
    labels = 'index,mid,display_name\n0,/m/09x0r,"Speech"\n1,/t/dd00088,"Gush"\n2,/m/07q6cd_,"Squeak, creak"\n'
    write(root / "class_labels_indices.csv", labels)
    forms = (
        "{id}.wav",
        "Y{id}.flac",
        "{id}_30.wav",
        "{id}_30000_40000.flac",
        "{id}_30.000-40.000.ogg",
        "{id}_000030.mp3",
    )
    for part, count in (("balanced_train", 20), ("eval", 4)):
        lines = [AUDIOSET_HEAD]
        for index in range(count + 1):
            mids = '"/t/dd00088,/m/09x0r"' if index % 2 else '"/m/07q6cd_"'
            lines.append(f"{ytid(index, part[0])}, 30.000, 40.000, {mids}\n")
            if index < count:
                form = forms[index % len(forms)].format(id=ytid(index, part[0]))
                tone(root / "audio" / f"{part}_segments" / form)
        write(root / f"{part}_segments.csv", "".join(lines))
    return dataset_config("audioset", source=str(root), valid_fraction=0.2)


MAKERS = [
    *(make_audioset, make_esc50, make_fma, make_gtzan, make_msd, make_mtg_jamendo, make_nsynth),
    make_urbansound8k,
]


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__.removeprefix("make_"))
def test_prepare_decodes_every_file_that_is_there(maker: Callable[[Path], DatasetConfig], tmp_path: Path) -> None:
    config = maker(tmp_path / "raw")
    listing = config.list_clips()
    there = [clip for clip in listing.clips if Path(str(clip.source)).is_file()]
    store = Store(str(tmp_path / "store"))
    manifest, written = prepare(config, store)
    assert written and manifest.dataset["kind"] == listing.name == config.kind
    assert manifest.data_spec.tags == listing.tags and manifest.data_spec.exclusive == listing.exclusive
    assert manifest.data_spec.counts == Counter(clip.split for clip in there)
    assert len(manifest.skipped) == len(listing.clips) - len(there) == (900 if config.kind == "gtzan" else 0)
    assert dict(manifest.left_out) == dict(listing.left_out)
    by_id = dict(enumerate(listing.clips))
    for split in SPLITS:
        for group in manifest.row_groups(split):
            rows = read_row_group(data_store(store, config.kind), group, len(listing.tags))
            for clip_id, tags_C in zip(rows.clip_id_N, rows.tags_NC, strict=True):
                clip = by_id[int(clip_id)]
                assert clip.split == split
                assert {listing.tags[index] for index in np.flatnonzero(tags_C)} == set(clip.tags)
    assert prepare(config, store)[1] is False


@pytest.mark.parametrize(
    ("maker", "table"),
    [
        (make_esc50, "esc50/meta/esc50.csv"),
        (make_urbansound8k, "UrbanSound8K/metadata/UrbanSound8K.csv"),
        (make_fma, "fma/fma_metadata/tracks.csv"),
        (make_fma, "fma/fma_metadata/genres.csv"),
        (make_mtg_jamendo, "mtg_jamendo/data/splits/split-0/autotagging-validation.tsv"),
        (make_audioset, "audioset/class_labels_indices.csv"),
        (make_audioset, "audioset/eval_segments.csv"),
        (make_nsynth, "nsynth/nsynth-test/examples.json"),
    ],
)
def test_tables_with_bom_and_crlf_broken_and_missing(
    maker: Callable[[Path], DatasetConfig], table: str, tmp_path: Path
) -> None:
    config = maker(tmp_path)
    path = tmp_path / table
    want, text = config.list_clips(), path.read_text()
    write(path, text.replace("\n", "\r\n"), "utf-8-sig")
    assert config.list_clips() == want
    path.write_bytes(text.replace("1", "\u00e9").encode("latin-1"))
    with pytest.raises(DatasetError, match=rf"{path.name} must be .* cannot be read"):
        config.list_clips()
    write(path, "<html>\n")
    with pytest.raises(DatasetError, match=path.name):
        config.list_clips()
    path.unlink()
    with pytest.raises(DatasetError, match=rf"{config.kind} needs .*{path.name}.* has no such file; \S+"):
        config.list_clips()


def test_no_audio_at_all_is_said(tmp_path: Path) -> None:
    for maker in MAKERS:
        config = maker(tmp_path)
        for path in tmp_path.rglob("*"):
            if path.suffix in (".wav", ".mp3", ".flac", ".ogg"):
                path.unlink()
        with pytest.raises(DatasetError, match=r"none of the "):
            config.list_clips()


# Folds


def test_esc50_folds_and_recordings(tmp_path: Path) -> None:
    config = make_esc50(tmp_path)
    listing = config.list_clips()
    assert listing.tags == ("dog", "rain") and listing.exclusive and listing.left_out == ()
    assert summary(listing.clips)["3-3010-B-10.wav"] == (("rain",), "train", "3010")
    fold_of = {split: {clip.name[0] for clip in listing.clips if clip.split == split} for split in SPLITS}
    assert fold_of == {"test": {"1"}, "valid": {"2"}, "train": {"3", "4", "5"}}
    assert all(clip.name[0] == str(clip.fold) for clip in listing.clips)
    last = dataset_config("esc50", source=config.source, esc10=True).list_clips()
    assert last.tags == ("dog",) and last.left_out == (("not in the ESC-10 subset", 10),)


def test_urbansound8k_folds_and_recordings(tmp_path: Path) -> None:
    config = make_urbansound8k(tmp_path)
    listing = config.list_clips()
    assert listing.tags == ("dog_bark", "siren") and listing.exclusive
    assert summary(listing.clips)["fold10/1003-3-0-1.wav"] == (("dog_bark",), "train", "1003")
    assert Counter(clip.split for clip in listing.clips) == {"train": 32, "valid": 4, "test": 4}
    assert all(clip.name.startswith(f"fold{clip.fold}/") for clip in listing.clips)
    outer = dataset_config("urbansound8k", source=str(tmp_path)).list_clips()
    assert outer == listing


def test_folds_are_views_of_one_prepared_set(tmp_path: Path) -> None:
    config, store = make_esc50(tmp_path), Store(str(tmp_path / "store"))
    manifest, _ = prepare(config, store)
    assert prepare(config, store)[1] is False and [fold.number for fold in manifest.folds] == [1, 2, 3, 4, 5]
    for test, valid in ((1, 2), (2, 3), (5, 1)):
        view = of_fold(manifest, test)
        for split, fold in (("test", test), ("valid", valid)):
            shards = [shard.name for shard in view.shards if shard.split == split]
            names = [clip for s in shards for clip in pq.read_table(view.folder(store).path(s))["name"].to_pylist()]
            assert {clip[0] for clip in names} == {str(fold)} and len(names) == 4 == view.data_spec.counts[split]
    with pytest.raises(ViewError, match=r"data.fold is one of 1, 2, 3, 4, 5, but got 6"):
        of_fold(manifest, 6)


def test_folds_are_no_option_of_prepare_any_more() -> None:
    with pytest.raises(ValidationError, match=r"a training or search picks one: --set data.fold=2"):
        dataset_config("urbansound8k", test_fold=2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("x.wav,1,0,4,1,11,3,dog_bark", r"UrbanSound8K.csv line 42: fold must be 1 to 10, but got '11'"),
        ("x.wav,1,0,4,1,1,3", r"line 42 must have 8 cells as the header has, but has 7"),
        ("103-3-0-0.wav,103,0,4,1,1,3,dog_bark", r"names fold1/103-3-0-0.wav more than once"),
    ],
)
def test_urbansound8k_bad_lines(line: str, message: str, tmp_path: Path) -> None:
    config = make_urbansound8k(tmp_path)
    with (tmp_path / "UrbanSound8K/metadata/UrbanSound8K.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DatasetError, match=message):
        config.list_clips()


def test_columns_are_named(tmp_path: Path) -> None:
    config = make_esc50(tmp_path)
    write(tmp_path / "esc50/meta/esc50.csv", "filename,fold,category\n1-1-A-0.wav,1,dog\n")
    with pytest.raises(DatasetError, match=r"must have the columns filename, fold, category, esc10, src_file, but its"):
        config.list_clips()


# NSynth


def test_nsynth_tags(tmp_path: Path) -> None:
    config = make_nsynth(tmp_path)
    listing = config.list_clips()
    assert listing.tags == ("bass", "organ") and listing.exclusive
    assert summary(listing.clips)["bass_synthetic_001-060-100"] == (("bass",), "valid", "bass_synthetic_001")
    pitches = dataset_config("nsynth", source=config.source, tags="pitch").list_clips()
    assert pitches.tags == ("pitch 033", "pitch 060") and pitches.exclusive
    assert dataset_config("nsynth", source=config.source, tags="source").list_clips().tags == ("synthetic",)
    qualities = dataset_config("nsynth", source=config.source, tags="qualities").list_clips()
    assert qualities.tags == ("dark", "percussive") and not qualities.exclusive
    assert qualities.left_out == (("no quality", 6),) and len(qualities.clips) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must map each note's name to its fields"),
        ('{"a": 1}', "must map each note's name to its fields"),
        (
            '{"a": {"instrument_str": "b"}}',
            r"the note a must have the field instrument_family_str \(str\).* it is None",
        ),
        ('{"a": {"instrument_family_str": "b"}}', r"the note a must have the field instrument_str \(str\)"),
    ],
)
def test_nsynth_bad_notes(text: str, message: str, tmp_path: Path) -> None:
    config = make_nsynth(tmp_path)
    write(tmp_path / "nsynth/nsynth-valid/examples.json", text)
    with pytest.raises(DatasetError, match=message):
        config.list_clips()


# GTZAN


def test_gtzan_split_is_the_fault_filtered_one(tmp_path: Path) -> None:
    listing = make_gtzan(tmp_path).list_clips()
    assert Counter(clip.split for clip in listing.clips) == {"train": 443, "valid": 197, "test": 290}
    assert len({clip.name for clip in listing.clips}) == 930 and len(listing.tags) == 10
    assert listing.left_out == (("not in the fault-filtered split", 1),)
    split_of = {clip.name: clip.split for clip in listing.clips}
    assert split_of["jazz.00054"] == "train"  # cannot be read in most copies: for `prepare` to report
    assert split_of["blues.00000"] == "valid" and split_of["reggae.00090"] == "test"
    assert "hiphop.00001" not in split_of and "metal.00004" not in split_of


def test_gtzan_split_equals_that_of_torchaudio() -> None:
    gtzan = pytest.importorskip("torchaudio.datasets.gtzan")
    for split in SPLITS:
        names = [name for genre, numbers in EXCERPTS[split].items() for name in names_of(genre, numbers)]
        assert names == getattr(gtzan, f"filtered_{split}")


def test_gtzan_in_the_layout_of_the_first_archive(tmp_path: Path) -> None:
    for genre in EXCERPTS["train"]:
        tone(tmp_path / "genres" / genre / f"{names_of(genre, EXCERPTS['train'][genre])[0]}.au")
    clips = dataset_config("gtzan", source=str(tmp_path)).list_clips().clips
    assert sum(Path(str(clip.source)).is_file() for clip in clips) == 10
    assert dataset_config("gtzan", source=str(tmp_path / "genres")).list_clips().clips == clips
    with pytest.raises(DatasetError, match="gtzan needs the folders blues, classical"):
        dataset_config("gtzan", source=str(tmp_path / "genres" / "blues")).list_clips()


# FMA


def test_fma_sizes_nest(tmp_path: Path) -> None:
    listing = make_fma(tmp_path).list_clips()
    assert listing.tags == ("Hip-Hop", "Rock") and listing.exclusive
    assert summary(listing.clips) == {
        "000/000002.mp3": (("Hip-Hop",), "train", "1"),
        "000/000010.mp3": (("Rock",), "valid", "6"),
        "000/000140.mp3": (("Rock",), "test", "7"),
    }
    assert listing.left_out == (("known fault: empty or cut short", 1),)
    large = make_fma(tmp_path / "large", "large").list_clips()
    assert [clip.name[-7:-4] for clip in large.clips] == ["002", "005", "010", "140", "142"]
    assert large.left_out == (("no genre_top", 1), ("known fault: empty or cut short", 2))
    medium = dataset_config("fma", source=str(tmp_path / "large" / "fma"), size="medium").list_clips()
    assert len(medium.clips) == 4 and "fma_large" in str(medium.clips[0].source)
    assert len(FAULTY) == 21 and {99134, 108925, 133297} <= FAULTY


def test_fma_all_genres(tmp_path: Path) -> None:
    config = make_fma(tmp_path, "large")
    listing = dataset_config("fma", source=config.source, size="large", tags="genres_all").list_clips()
    assert listing.tags == ("Hip-Hop", "Punk", "Rock") and not listing.exclusive
    assert summary(listing.clips)["000/000140.mp3"] == (("Punk", "Rock"), "test", "7")
    assert summary(listing.clips)["000/000141.mp3"] == (("Rock", "Hip-Hop"), "test", "8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("small,Rock", "tiny,Rock", r"subset small, medium, large, but got 'validation' and 'tiny'"),
        ("validation", "valid", r"split must be training, validation, test .* but got 'valid'"),
        ("track_id", "2", r"must begin with two header lines .* lacks the line track_id; unpack"),
        ("genre_top", "genre", r"lacks track/genre_top; unpack"),
        ("[12, 25]", "[12, 99]", r"genres_all must be a list of ids of genres.csv, but got '\[12, 99\]'"),
        ("[12, 25]", "Rock", r"genres_all must be a list of ids of genres.csv, but got 'Rock'"),
        ("\n10,", "\nten,", r"track_id must be a whole number, but got 'ten'"),
        (",Food\n10", "\n10", r"must have 9 cells as the header has, but has 8"),
    ],
)
def test_fma_bad_tables(old: str, new: str, message: str, tmp_path: Path) -> None:
    config = make_fma(tmp_path, "large")
    table = tmp_path / "fma/fma_metadata/tracks.csv"
    write(table, table.read_text().replace(old, new))
    with pytest.raises(DatasetError, match=message):
        dataset_config("fma", source=config.source, size="large", tags="genres_all").list_clips()


def test_fma_without_audio_of_the_size(tmp_path: Path) -> None:
    config = make_fma(tmp_path)
    with pytest.raises(
        DatasetError, match=r"audio of size medium in fma_medium or fma_large, but .* --option size=SIZE"
    ):
        dataset_config("fma", source=config.source, size="medium").list_clips()


# MTG-Jamendo


def test_mtg_jamendo_subsets_and_editions(tmp_path: Path) -> None:
    config = make_mtg_jamendo(tmp_path)
    listing = config.list_clips()
    assert listing.tags == ("genre---rock", "mood/theme---deep") and not listing.exclusive
    assert summary(listing.clips)["11/786411.mp3"] == (listing.tags, "valid", "artist_000001")
    assert [Path(str(clip.source)).name for clip in listing.clips][:3] == ["786400.mp3", "786401.low.mp3", "786402.mp3"]
    mood = dataset_config("mtg_jamendo", source=config.source, subset="moodtheme", excerpt_seconds=0.5).list_clips()
    assert len(mood.clips) == 6 and mood.tags == ("mood/theme---deep",)
    assert {(clip.start_s, clip.end_s) for clip in mood.clips} == {(0.75, 1.25)}
    assert middle(460.8, 29.1) == (215.85, 244.95) and middle(20.0, 29.1) == (0.0, None)
    with pytest.raises(DatasetError, match=r"needs data/splits/split-3/autotagging-train.tsv.*--option splits=DIR"):
        dataset_config("mtg_jamendo", source=config.source, split=3).list_clips()


def test_mtg_jamendo_audio_and_splits_in_two_places(tmp_path: Path) -> None:
    want = make_mtg_jamendo(tmp_path).list_clips()
    root, audio = tmp_path / "mtg_jamendo", tmp_path / "download" / "raw_30s" / "audio"
    audio.mkdir(parents=True)
    for path in root.glob("[0-9][0-9]"):
        path.rename(audio / path.name)
    moved = {"source": str(tmp_path / "download"), "splits": str(root / "data" / "splits")}
    listing = dataset_config("mtg_jamendo", **moved).list_clips()
    assert summary(listing.clips) == summary(want.clips)
    assert all(Path(str(clip.source)).is_file() for clip in listing.clips)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("track_1\tartist_1\talbum_1\t01/1.mp3\t20.0", "line 5 must be TRACK_ID, .* at least one tag, but is 'track_1"),
        ("track_1\tartist_1\talbum_1\t01/1.mp3\tlong\tgenre---rock", "with a duration in seconds"),
        ("track_1\tartist_1", "is the file complete"),
        ("track_1\tartist_1\talbum_1\t20/786420.mp3\t20\tgenre---rock", "names 20/786420.mp3 more than once"),
    ],
)
def test_mtg_jamendo_bad_lines(line: str, message: str, tmp_path: Path) -> None:
    config = make_mtg_jamendo(tmp_path)
    with (tmp_path / "mtg_jamendo/data/splits/split-0/autotagging-train.tsv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DatasetError, match=message):
        config.list_clips()


# AudioSet


def test_audioset_finds_every_way_to_name_a_file(tmp_path: Path) -> None:
    listing = make_audioset(tmp_path).list_clips()
    assert listing.tags == ("Speech", "Gush", "Squeak, creak") and not listing.exclusive  # in the order of the labels
    assert listing.left_out == (("no audio file of the segment", 2),)
    counts = Counter(clip.split for clip in listing.clips)
    assert counts["test"] == 4 and counts["train"] + counts["valid"] == 20 and counts["valid"] >= 1
    assert listing.clips[1].tags == ("Speech", "Gush") and listing.clips[1].group == ytid(1)
    assert all(clip.start_s == 0 and clip.end_s is None for clip in listing.clips)


def test_audioset_validation_depends_on_the_video_and_the_seed_alone(tmp_path: Path) -> None:
    config = make_audioset(tmp_path)
    valid = {clip.name for clip in config.list_clips().clips if clip.split == "valid"}
    lost = next(clip for clip in config.list_clips().clips if clip.split == "train")
    Path(str(lost.source)).unlink()
    assert {clip.name for clip in config.list_clips().clips if clip.split == "valid"} == valid
    other = config.model_copy(update={"seed": 1}).list_clips()
    assert {clip.name for clip in other.clips if clip.split == "valid"} != valid


def test_audioset_whole_videos_are_cut(tmp_path: Path) -> None:
    config = make_audioset(tmp_path).model_copy(update={"files": "videos"})
    parts = {Path(str(clip.source)).name: (clip.start_s, clip.end_s) for clip in config.list_clips().clips}
    assert parts[f"{ytid(0)}.wav"] == parts[f"Y{ytid(1)}.flac"] == (30.0, 40.0)
    assert parts[f"{ytid(2)}_30.wav"] == (0.0, None)
    tone(tmp_path / "audioset/audio/balanced_train_segments" / f"{ytid(0)}.wav", seconds=41)
    manifest, _ = prepare(config, Store(str(tmp_path / "store")))
    assert manifest.data_spec.input.length == 10 * RATE_HZ
    assert {skipped.name for skipped in manifest.skipped} >= {ytid(1)}  # shorter than its video is said to be


def test_audioset_another_cut_of_a_video_is_not_the_segment(tmp_path: Path) -> None:
    config = make_audioset(tmp_path)
    audio = tmp_path / "audioset/audio/balanced_train_segments"
    (audio / f"{ytid(2)}_30.wav").rename(audio / f"{ytid(2)}_130.wav")
    tone(audio / "another" / f"{ytid(0)}_30000.wav")
    clips = {clip.name: Path(str(clip.source)).name for clip in config.list_clips().clips}
    assert ytid(2) not in clips and clips[ytid(0)] == f"{ytid(0)}_30000.wav"
    assert is_start(30, 30.0) and is_start(30000, 30.0) and not is_start(3, 30.0) and is_start(0, 0.0)


def test_audioset_names_of_ids_with_y_and_underscores(tmp_path: Path) -> None:
    files = ("Yabcdefghij.wav", "Y_a-b_c-d_e_.wav", "__a-b_c-d_e_10_20.wav", "YYbcdefghij_0.m4a")
    for name in (*files, "toolongforanid.wav", "Yabcdefghij.txt", "short.wav"):
        (tmp_path / name).touch()
    found = find_audio(tmp_path, {"Yabcdefghij", "_a-b_c-d_e_", "__a-b_c-d_e", "YYbcdefghij"})
    assert {video: [(Path(path).name, start_s) for path, start_s in audio] for video, audio in found.items()} == {
        "Yabcdefghij": [("Yabcdefghij.wav", None)],
        "_a-b_c-d_e_": [("Y_a-b_c-d_e_.wav", None)],
        "__a-b_c-d_e": [("__a-b_c-d_e_10_20.wav", 10.0)],
        "YYbcdefghij": [("YYbcdefghij_0.m4a", 0.0)],
    }


def test_audioset_ontology_leaks_and_unbalanced(tmp_path: Path) -> None:
    config = make_audioset(tmp_path)
    root = tmp_path / "audioset"
    (root / "class_labels_indices.csv").unlink()
    names = {"/m/09x0r": "Speech", "/t/dd00088": "Gush", "/m/07q6cd_": "Speech", "/m/0unused": "Unused"}
    write(
        root / "ontology.json", json.dumps([{"id": mid, "name": name, "child_ids": []} for mid, name in names.items()])
    )
    write(root / "unbalanced_train_segments.csv", f'{AUDIOSET_HEAD}{ytid(0, "e")}, 30.000, 40.000, "/m/09x0r"\n')
    listing = dataset_config("audioset", source=config.source, train="both").list_clips()
    assert listing.tags == ("Speech", "Gush", "Speech (/m/07q6cd_)")
    assert listing.left_out == (
        ("no audio file of the segment", 2),
        ("in a training file and in the evaluation set", 1),
    )
    assert {clip.split for clip in listing.clips if clip.name == ytid(0, "e")} == {"test"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("abc, 0.000, 10.000", "line 25 must be YTID, start_seconds, end_seconds, .* but is 'abc, 0.000, 10.000'"),
        ('abc, zero, 10.000, "/m/09x0r"', "must be YTID, start_seconds"),
        (
            'abc, 0.000, 10.000, "/m/none"',
            "must be ids of the list of labels, but got '/m/none'; are the tables of one",
        ),
        ('abc, 0.000, 10.000, "/m/09x0r', "cannot be read: unexpected end of data"),
    ],
)
def test_audioset_bad_lines(line: str, message: str, tmp_path: Path) -> None:
    config = make_audioset(tmp_path)
    with (tmp_path / "audioset/balanced_train_segments.csv").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DatasetError, match=message):
        config.list_clips()


# The Million Song Dataset


def test_msd_lists_and_tags(tmp_path: Path) -> None:
    config = make_msd(tmp_path)
    listing = config.list_clips()
    assert summary(listing.clips)["TRAXQ00"] == (("rock", "jazz"), "train", None)
    assert listing.tags == ("rock", "pop", "jazz") and dict(listing.left_out) == {
        "no tags": 2,
        "another duration than 30 s": 1,
    }
    files = {clip.name: Path(str(clip.source)) for clip in listing.clips}
    assert files["TRAXQ00"].name == "0.clip.mp3" and files["TRAYQ01"].name == "TRAYQ01.mp3"
    write(tmp_path / "words.csv", "track_id,tags\nTRAXQ00,sitar|tabla\nTRBXQ10,sitar\nTRCXQ20,tabla\n")
    other = config.model_copy(update={"tags": str(tmp_path / "words.csv")}).list_clips()
    assert other.tags == ("sitar", "tabla") and len(other.clips) == 3
    lists = tmp_path / "msd" / "MSD_split_for_tagging"
    np.save(lists / "test_y.npy", np.zeros((3, 50)))
    with pytest.raises(DatasetError, match=r"test_y\.npy must be \[4, 50\].* but is \(3, 50\)"):
        config.list_clips()
    write(lists / "test_x_7d_id.txt", "1\n")
    with pytest.raises(DatasetError, match="three lists of test must be of one length, but have 4, 1 and 4"):
        config.list_clips()
    (lists / "train_y.npy").write_bytes(b"text")
    with pytest.raises(DatasetError, match=r"train_y\.npy is no array of numbers"):
        config.list_clips()
