"""Every adapter: one conformance suite, then what is particular to each. Files are empty: adapters never decode."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from made_up import write_frames
from pydantic import ValidationError
from test_dataset_adapters import MAKERS as PUBLISHED
from test_dataset_adapters import make_gtzan, make_msd
from test_dataset_audioset_frames import make_audioset_frames
from test_dataset_coala import write_coala
from test_dataset_dcase2017 import make_dcase2017

from atose_ray.datasets import KINDS, DatasetConfig, DatasetError, dataset_config
from atose_ray.datasets.mtat import artist_of, read_annotations, split_of
from atose_ray.datasets.remote import list_source, stand_in
from atose_ray.storage import FileStamp, Store
from atose_ray.types import SPLITS

SHARED = Path(__file__).parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the repository")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_mtat(folder: Path, rows: list[tuple[str, set[str]]], tags: tuple[str, ...]) -> None:
    with (folder / "annotations_final.csv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL)
        table.writerow(["clip_id", *tags, "mp3_path"])
        for index, (path, own) in enumerate(rows):
            table.writerow([index, *(int(tag in own) for tag in tags), path])


def make_demo(folder: Path) -> DatasetConfig:
    return dataset_config("demo", source=str(folder / "demo"), clips=24, seconds=1.0)


def make_mtat(folder: Path) -> DatasetConfig:
    rows = [(f"{digit}/artist_{digit}-album-01-t-0-29.mp3", {"a", "b"} if i % 2 else {"b"}) for i, digit in
            enumerate("0123456789abcdef")]  # fmt: skip
    write_mtat(folder, rows, ("a", "b", "c"))
    touch(folder, *(path for path, _ in rows))
    return dataset_config("mtat", source=str(folder))


def make_speech_commands(folder: Path) -> DatasetConfig:
    names = [f"{word}/{who}_nohash_{take}.wav" for word in ("yes", "no") for who in "ab" for take in range(4)]
    touch(folder, *names, "_background_noise_/hum.wav", "yes/notes.txt")
    (folder / "validation_list.txt").write_text("".join(f"{name}\n" for name in names if "_0" in name))
    (folder / "testing_list.txt").write_text("".join(f"{name}\n" for name in names if "_1" in name))
    return dataset_config("speech_commands", source=str(folder))


def write_folder(folder: Path, text: str, encoding: str = "utf-8") -> None:
    """Writes tags.csv, and an empty file for every path in it."""
    folder.mkdir(exist_ok=True)
    (folder / "tags.csv").write_bytes(text.encode(encoding))
    touch(folder, *(line.split(",")[0] for line in text.splitlines()[1:] if line.strip(", ")))


def make_folder(folder: Path) -> DatasetConfig:
    lines = [
        f"{i}.wav,{split},{'x|y' if i % 2 else 'y'},{split}{i}"
        for i, split in enumerate(["train"] * 4 + ["val", "test"])
    ]
    write_folder(folder, "path,split,tags,group\n" + "\n".join(lines))
    return dataset_config("folder", source=str(folder))


def make_frames(folder: Path) -> DatasetConfig:
    make_folder(folder)
    text = (folder / "tags.csv").read_text()
    write_folder(folder, text.replace(".wav", ".npy"))
    return dataset_config("frames", source=str(folder), frame_hop_seconds=0.5)


def make_coala_hdf5(folder: Path) -> DatasetConfig:
    return dataset_config("coala_hdf5", source=str(write_coala(folder)))


def make_folder_without_split(folder: Path) -> DatasetConfig:
    lines = [f"{i}.wav,{'abc'[i % 3]}|{'de'[i % 2]},speaker {i // 4}" for i in range(60)]
    write_folder(folder, "path,tags,group\n" + "\n".join(lines))
    return dataset_config("folder", source=str(folder))


def make_made_up(folder: Path) -> DatasetConfig:
    return dataset_config("made_up_frames", source=str(write_frames(folder)))


MAKERS = [
    make_demo,
    make_mtat,
    make_dcase2017,
    make_speech_commands,
    make_folder,
    make_folder_without_split,
    make_frames,
    make_coala_hdf5,
    make_audioset_frames,
    make_made_up,
    *PUBLISHED,
]


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__.removeprefix("make_"))
def maker(request: pytest.FixtureRequest) -> Callable[[Path], DatasetConfig]:
    return request.param


def test_listing_obeys_the_laws(maker: Callable[[Path], DatasetConfig], tmp_path: Path) -> None:
    config = maker(tmp_path)
    listing = config.list_clips()
    names = [clip.name for clip in listing.clips]
    assert len(set(names)) == len(names) > 0
    packed = {make_coala_hdf5: 2, make_audioset_frames: 3}
    assert len({clip.source for clip in listing.clips}) == packed.get(maker, len(names))
    assert len(set(listing.tags)) == len(listing.tags)
    assert {clip.split for clip in listing.clips} == set(SPLITS)
    assert {tag for clip in listing.clips for tag in clip.tags} == set(listing.tags)
    assert all(len(set(clip.tags)) == len(clip.tags) > 0 for clip in listing.clips)
    assert not listing.exclusive or all(len(clip.tags) == 1 for clip in listing.clips)
    assert all(isinstance(clip.source, str) and Path(clip.source).is_absolute() for clip in listing.clips)
    assert all(not Path(name).is_absolute() for name in names)
    assert config.list_clips() == listing


def test_a_source_behind_a_uri_is_listed_as_the_folder_it_is(
    maker: Callable[[Path], DatasetConfig], tmp_path: Path
) -> None:
    config = maker(tmp_path)
    if config.renders:
        pytest.skip("it makes its audio itself")
    if maker in (make_coala_hdf5, make_audioset_frames):
        with pytest.raises(DatasetError, match=r"must be a local folder|into a local folder"):
            list_source(config.model_copy(update={"source": f"fsspec+file://{config.source}"}))
        return
    here = config.list_clips()
    there = list_source(config.model_copy(update={"source": f"fsspec+file://{config.source}"}))
    assert [clip.source for clip in there.clips] == [f"fsspec+file://{quote(clip.source)}" for clip in here.clips]
    assert [replace(clip, source="") for clip in there.clips] == [replace(clip, source="") for clip in here.clips]
    assert replace(there, clips=()) == replace(here, clips=())


def test_an_error_of_a_source_behind_a_uri_names_the_uri(tmp_path: Path) -> None:
    uri = f"fsspec+file://{tmp_path}"
    for kind in ("mtat", "esc50", "fma", "folder"):
        with pytest.raises(DatasetError, match=re.escape(uri)) as caught:
            list_source(dataset_config(kind, source=uri))
        assert "atose-listing" not in str(caught.value)


def test_what_lies_in_a_bucket_beside_tables_and_audio_is_not_fetched(tmp_path: Path, monkeypatch) -> None:
    write_folder(tmp_path / "a", "path,split,tags\na.wav,train,x\nb.wav,valid,x\nc.wav,test,x\n")
    (tmp_path / "a" / "notes.txt").write_text("fetched")
    (tmp_path / "a" / "archive.zip").write_text("left")
    (tmp_path / "a" / "long").mkdir()
    fetched = []
    reading = Store.reading
    monkeypatch.setattr(Store, "reading", lambda self, name: (fetched.append(name), reading(self, name))[1])
    listed = list_source(dataset_config("folder", source=f"fsspec+file://{tmp_path}/a"))
    assert sorted(fetched) == ["notes.txt", "tags.csv"] and len(listed.clips) == 3
    for name in (
        "tags.csv",
        "../out.csv",
        "x//y.csv",
        "./y.csv",
        "nul\0.csv",
        f"{'n' * 300}.wav",
        "tags.csv/below.wav",
    ):
        stand_in(Store(str(tmp_path / "a")), FileStamp(name, 1, 0), tmp_path / "scratch")
    assert not [path for path in tmp_path.rglob("*") if path.name in ("out.csv", "y.csv", "below.wav")]


def test_no_group_is_in_two_splits(maker: Callable[[Path], DatasetConfig], tmp_path: Path) -> None:
    if maker in (make_speech_commands, make_gtzan, make_msd):
        pytest.skip("the published lists decide")
    listing = maker(tmp_path).list_clips()
    splits_of_group: dict[str | None, set[str]] = {}
    for clip in listing.clips:
        splits_of_group.setdefault(clip.group, set()).add(clip.split)
    assert None not in splits_of_group
    assert all(len(splits) == 1 for splits in splits_of_group.values())


def test_config_survives_json(maker: Callable[[Path], DatasetConfig], tmp_path: Path) -> None:
    config = maker(tmp_path)
    assert KINDS[config.kind].model_validate_json(config.model_dump_json()) == config


def test_every_kind_is_in_the_table_and_in_the_suite(tmp_path: Path) -> None:
    assert {config.model_fields["kind"].default: config for config in KINDS.values()} == KINDS
    assert {maker(tmp_path).kind for maker in MAKERS} == set(KINDS)


# Names, options, folders


def test_unknown_dataset_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match="unknown dataset 'mtta'; known: audioset, audioset_frames, coala_hdf5, dcase2017, demo, esc50, fma, "
        "folder, frames, gtzan, made_up_frames, msd, mtat, mtg_jamendo, nsynth, speech_commands, urbansound8k; "
        "did you mean mtat",
    ):
        dataset_config("mtta")


def test_misspelt_option_is_named() -> None:
    with pytest.raises(ValidationError, match="top_tag\n"):
        dataset_config("mtat", top_tag=10)


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"demo"}))
def test_source_must_be_given_and_be_a_local_folder(kind: str, tmp_path: Path) -> None:
    options = {"frame_hop_seconds": 1.0} if kind == "frames" else {}
    with pytest.raises(DatasetError, match=f"{kind} needs the folder of its (audio|matrices).*--source DIR"):
        dataset_config(kind, **options).list_clips()
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        dataset_config(kind, source=str(tmp_path / "nowhere"), **options).list_clips()
    touch(tmp_path, "file")
    with pytest.raises(DatasetError, match="file is a file"):
        dataset_config(kind, source=str(tmp_path / "file"), **options).list_clips()
    if kind != "folder":  # which may lie in object storage: tests/test_s3.py
        with pytest.raises(DatasetError, match="in a local folder, but got s3://bucket/audio"):
            dataset_config(kind, source="s3://bucket/audio", **options).list_clips()


# MagnaTagATune


@needs_shared
def test_mtat_split_of_all_published_paths() -> None:
    lines = (SHARED / "mtat" / "clip_index.tsv").read_text().splitlines()[1:]
    counts = Counter(split_of(line.split("\t")[1]) for line in lines)
    assert (len(lines), counts["train"], counts["valid"], counts["test"]) == (25863, 18709, 1825, 5329)


@needs_shared
def test_mtat_reads_published_annotations(tmp_path: Path) -> None:
    table = SHARED / "mtat" / "annotations_valid.csv"
    annotations = read_annotations(table)
    assert len(annotations.rows) == 1825
    touch(tmp_path, annotations.rows[0][0])
    listing = dataset_config("mtat", source=str(tmp_path), annotations=str(table)).list_clips()
    assert len(listing.clips) == 1529
    assert listing.left_out == (("none of the 50 most frequent tags", 296),)
    assert len(listing.tags) == 50 and listing.peak_normalize and not listing.exclusive
    assert {clip.split for clip in listing.clips} == {"valid"}


def test_mtat_keeps_the_most_frequent_tags(tmp_path: Path) -> None:
    rows = [("0/a-b.mp3", {"rare", "first"}), ("1/a-b.mp3", {"second", "often"}), ("c/a-b.mp3", {"often", "first"}),
            ("d/a-b.mp3", {"second"}), ("e/a-b.mp3", {"rare2"})]  # fmt: skip
    write_mtat(tmp_path, rows, ("none", "first", "second", "rare", "often", "rare2"))
    touch(tmp_path, *(path for path, _ in rows))
    listing = dataset_config("mtat", source=str(tmp_path), top_tags=2).list_clips()
    assert listing.tags == ("first", "second")  # three tags have two clips each: header order decides
    assert [clip.name for clip in listing.clips] == ["0/a-b.mp3", "1/a-b.mp3", "c/a-b.mp3", "d/a-b.mp3"]
    assert listing.left_out == (("none of the 2 most frequent tags", 1),)
    assert "none" not in dataset_config("mtat", source=str(tmp_path), top_tags=50).list_clips().tags


def test_mtat_artist_is_what_stands_before_the_first_hyphen() -> None:
    assert artist_of("c/lvx_nova-lvx_nova-01-contimune-30-59.mp3") == "lvx_nova"


def test_mtat_path_without_hex_folder_is_refused() -> None:
    for path in ("x/a-b.mp3", "a-b.mp3", "0a/a-b.mp3"):
        with pytest.raises(DatasetError, match="must begin with the folder 0 to 9 or a to f"):
            split_of(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "clip_id,rock,mp3_path\n1,1,0/a.mp3\n",
            "must be tab-separated with the header clip_id.*'clip_id,rock,mp3_path'",
        ),
        ("", "must be tab-separated with the header clip_id"),
        ("clip_id\trock\tmp3_path\n1\t2\t0/a.mp3\n", "line 2 must have 3 cells and 0 or 1"),
        (
            "clip_id\trock\tmp3_path\n1\t1\t0/a.mp3\n2\t1\n",
            "line 3 must have 3 cells .* has 2 cells; is the file complete",
        ),
        ("clip_id\trock\tmp3_path\n1\t1\t0/a.mp3\n2\t1\t0/a.mp3\n", "the annotations names 0/a.mp3 more than once"),
        (
            "clip_id\trock\tmp3_path\n1\t1\t0/a.mp3\n",
            "none of the files named in the annotations is in .*0/a.mp3.*--source",
        ),
        ("clip_id\trock\tmp3_path\n", "names no clip that can be used"),
    ],
)
def test_mtat_bad_annotations(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "annotations_final.csv").write_text(text)
    with pytest.raises(DatasetError, match=message):
        dataset_config("mtat", source=str(tmp_path)).list_clips()


def test_mtat_without_annotations(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"mtat needs annotations_final.csv, but .*; put .* or name another file"):
        dataset_config("mtat", source=str(tmp_path)).list_clips()


# Speech Commands


@needs_shared
def test_speech_commands_on_spoken_digits() -> None:
    listing = dataset_config("speech_commands", source=str(SHARED / "spoken_digits" / "raw")).list_clips()
    words = ("eight", "five", "four", "nine", "one", "seven", "six", "three", "two", "zero")
    assert listing.tags == words and listing.exclusive and listing.left_out == ()
    assert Counter(clip.split for clip in listing.clips) == {"train": 1600, "valid": 200, "test": 200}
    assert len({clip.group for clip in listing.clips}) == 4
    george = next(clip for clip in listing.clips if clip.name == "zero/george_nohash_0.wav")
    assert (george.tags, george.split, george.group) == (("zero",), "test", "george")


def test_speech_commands_counts_listed_files_that_are_not_there(tmp_path: Path) -> None:
    config = make_speech_commands(tmp_path)
    before = config.list_clips()
    with (tmp_path / "testing_list.txt").open("a") as file:
        file.write("yes/c_nohash_0.wav\nmaybe/c_nohash_0.wav\n\n")
    listing = config.list_clips()
    assert listing.clips == before.clips
    assert listing.left_out == (("named in testing_list.txt but not on disk", 2),)


def test_speech_commands_bad_inputs(tmp_path: Path) -> None:
    config = dataset_config("speech_commands", source=str(tmp_path))
    with pytest.raises(DatasetError, match=r"needs one folder of .wav files per label"):
        config.list_clips()
    make_speech_commands(tmp_path)
    (tmp_path / "testing_list.txt").write_text("yes/a_nohash_0.wav\n")
    with pytest.raises(DatasetError, match=r"in one list only, but yes/a_nohash_0.wav is in both"):
        config.list_clips()
    (tmp_path / "testing_list.txt").write_text("".join(f"no/{who}_nohash_{i}.wav\n" for who in "ab" for i in (1, 2, 3)))
    with pytest.raises(DatasetError, match=r"every label must have a file for training.*: no;"):
        config.list_clips()
    (tmp_path / "testing_list.txt").unlink()
    with pytest.raises(DatasetError, match=r"has no testing_list.txt; take it from the archive"):
        config.list_clips()


# Folder


@needs_shared
def test_folder_on_spoken_digits() -> None:
    table = SHARED / "spoken_digits" / "tags.csv"
    listing = dataset_config("folder", csv=str(table)).list_clips()
    assert listing == dataset_config("folder", source=str(table.parent)).list_clips()
    assert len(listing.tags) == 28 and list(listing.tags) == sorted(listing.tags)
    assert Counter(clip.split for clip in listing.clips) == {"train": 1600, "valid": 200, "test": 200}
    assert all(Path(str(clip.source)).is_file() for clip in listing.clips)


def test_folder_reads_bom_crlf_quotes_and_spaces(tmp_path: Path) -> None:
    touch(tmp_path, "a, b.wav", "c.wav", "d.wav")
    text = 'Path, Tags ,Split\r\n"a, b.wav", x | y |x|,TRAIN\r\nc.wav,y,validation\r\n\r\nd.wav,,test\r\n'
    (tmp_path / "tags.csv").write_bytes(text.encode("utf-8-sig"))
    listing = dataset_config("folder", source=str(tmp_path)).list_clips()
    assert [(clip.name, clip.tags, clip.split) for clip in listing.clips] == [
        ("a, b.wav", ("x", "y"), "train"),
        ("c.wav", ("y",), "valid"),
    ]
    assert listing.left_out == (("no tags", 1),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.wav,train,rock\n", r"must begin with the header path,split,tags,group .* first line is 'a.wav,train,rock'"),
        ("path;split;tags\na.wav;train;rock\n", "separated by commas, but its first line is 'path;split;tags'"),
        ("", "must begin with the header"),
        ("path,splitt,tags\na.wav,train,rock\n", "column 'splitt'; did you mean 'split'"),
        ("path,tags,tags\na.wav,x,y\n", "column 'tags' 2 times"),
        ("path,split,tags\na.wav,trian,rock\n", "line 2: split must be train, valid, test, .* 'trian'.* mean train"),
        ("path,split,tags\na.wav,,rock\n", "split must be train, valid, test, but got ''"),
        ("path,split,tags\na.wav,train,rock,fast\n", "line 2 must have 3 cells .* has 4; quote cells"),
        ("path,split,tags\n,train,rock\n", "line 2 has no path"),
        ("path,split,tags\na.wav,train,rock\na.wav,test,rock\n", r"line 3 names a.wav again \(first on line 2\)"),
        ("path,split,tags\na.wav,train,rock\nb.wav,test,rock|pop\nc.wav,valid,jazz\n", "there for jazz, pop; move"),
        ("path,split,tags\na.wav,train,\n", "names no clip that can be used"),
        ("path,split,tags\n", "names no clip that can be used"),
    ],
)  # fmt: skip
def test_folder_bad_tables(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "tags.csv").write_text(text)
    touch(tmp_path, "a.wav", "b.wav", "c.wav")
    with pytest.raises(DatasetError, match=message):
        dataset_config("folder", source=str(tmp_path)).list_clips()


def test_folder_table_in_another_encoding(tmp_path: Path) -> None:
    write_folder(tmp_path, "path,tags\nä.wav,rock\n", encoding="utf-16")
    with pytest.raises(DatasetError, match="must be a table in UTF-8, but cannot be read"):
        dataset_config("folder", source=str(tmp_path)).list_clips()


def test_folder_without_table_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no audio"):
        dataset_config("folder", source=str(tmp_path)).list_clips()
    touch(tmp_path, "birds/one.flac")
    with pytest.raises(
        DatasetError, match=r"does not exist; write it(.|\n)*path,split,tags,group\n *birds/one.flac,train,birds\|"
    ):
        dataset_config("folder", source=str(tmp_path)).list_clips()


def test_folder_keeps_rows_of_missing_files_unless_all_are_missing(tmp_path: Path) -> None:
    config = make_folder(tmp_path)
    (tmp_path / "0.wav").unlink()
    assert len(config.list_clips().clips) == 6
    for path in tmp_path.glob("*.wav"):
        path.unlink()
    with pytest.raises(
        DatasetError, match=r"none of the files named in tags.csv is in .* \(the first would be 0.wav\)"
    ):
        config.list_clips()


def test_folder_exclusive_wants_one_tag(tmp_path: Path) -> None:
    write_folder(tmp_path, "path,split,tags\na.wav,train,x\nb.wav,valid,x\nc.wav,test,x\n")
    assert dataset_config("folder", source=str(tmp_path), exclusive=True).list_clips().exclusive
    write_folder(tmp_path, "path,split,tags\na.wav,train,x|y\n")
    with pytest.raises(DatasetError, match=r"a clip has one tag, but a.wav has x\|y"):
        dataset_config("folder", source=str(tmp_path), exclusive=True).list_clips()


def test_random_split_has_the_asked_sizes_and_depends_on_the_seed(tmp_path: Path) -> None:
    make_folder_without_split(tmp_path)
    listings = [dataset_config("folder", source=str(tmp_path), seed=seed).list_clips() for seed in (0, 0, 1)]
    assert listings[0] == listings[1] != listings[2]
    for listing in listings:
        assert Counter(clip.split for clip in listing.clips) == {"train": 44, "valid": 8, "test": 8}
        assert {tag for clip in listing.clips if clip.split == "train" for tag in clip.tags} == set(listing.tags)
        assert [clip.name for clip in listing.clips] == [f"{i}.wav" for i in range(60)]


def test_random_split_keeps_rare_tags_in_train(tmp_path: Path) -> None:
    lines = [f"{i}.wav,common" + (f"|rare {i}" if i < 24 else "") for i in range(30)]
    write_folder(tmp_path, "path,tags\n" + "\n".join(lines))
    for seed in range(5):
        config = dataset_config("folder", source=str(tmp_path), seed=seed, valid_fraction=0.1, test_fraction=0.1)
        counts = Counter(clip.split for clip in config.list_clips().clips)
        assert counts == {"train": 24, "valid": 3, "test": 3}


def test_random_split_takes_the_smallest_group_where_all_are_too_large(tmp_path: Path) -> None:
    sizes = {"ada": 10, "ben": 6, "cem": 7, "dan": 12}
    lines = [f"{who}{i}.wav,x,{who}" for who, size in sizes.items() for i in range(size)]
    write_folder(tmp_path, "path,tags,group\n" + "\n".join(lines))
    listing = dataset_config("folder", source=str(tmp_path)).list_clips()
    assert {(clip.split, clip.group) for clip in listing.clips if clip.split != "train"} == {
        ("test", "ben"),
        ("valid", "cem"),
    }


def test_random_split_that_cannot_be_names_the_tags(tmp_path: Path) -> None:
    write_folder(tmp_path, "path,tags,group\n" + "\n".join(f"{i}.wav,x|only {i % 3},g{i % 3}" for i in range(9)))
    with pytest.raises(
        DatasetError, match=r"nothing is left for test.*last clips of a tag \(only 0, only 1, only 2\); add clips"
    ):
        dataset_config("folder", source=str(tmp_path)).list_clips()
    with pytest.raises(ValidationError, match=r"must be below 1.* but got 0.5 \+ 0.5"):
        dataset_config("folder", source=str(tmp_path), valid_fraction=0.5, test_fraction=0.5)
