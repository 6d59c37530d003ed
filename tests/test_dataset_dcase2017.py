"""DCASE 2017 task 4 in its published layout, made of empty files: the adapter never decodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from atose_ray.data.prepare import prepare
from atose_ray.data.shards import data_store, read_row_group
from atose_ray.datasets import DatasetConfig, DatasetError, dataset_config
from atose_ray.datasets.dcase2017 import AUDIO_FOLDERS, CLASSES, TABLE, Line, validation_files, youtube_id
from atose_ray.storage import Store

CLIPS = {"training": 17 * 20, "testing": 34, "evaluation": 34}


def make_dcase2017(folder: Path) -> DatasetConfig:
    """Clip i of a set has class i mod 17, every fifth one the next class too; half of the audio without the Y."""
    for part, count in CLIPS.items():
        audio = folder / AUDIO_FOLDERS[part][0]
        audio.mkdir(parents=True, exist_ok=True)
        lines = []
        for index in range(count):
            file = f"-{part[:2]}_{index:05d}_30.000_40.000.wav"
            (audio / (file if index % 2 else f"Y{file}")).touch()
            classes = [CLASSES[index % 17], CLASSES[(index + 1) % 17]][: 2 if index % 5 == 0 else 1]
            lines += [f"{file}\t30.000\t40.000\t{label}\n" for label in classes]
        (folder / TABLE.format(part)).write_text("".join(lines))
    return dataset_config("dcase2017", source=str(folder))


def test_the_published_layout(tmp_path: Path) -> None:
    listing = make_dcase2017(tmp_path).list_clips()
    assert listing.tags == CLASSES and len(CLASSES) == 17
    assert not listing.exclusive and not listing.peak_normalize and listing.left_out == ()
    assert all(Path(str(clip.source)).is_file() for clip in listing.clips)
    counts = Counter(clip.split for clip in listing.clips)
    assert counts["test"] == 34 and counts["train"] + counts["valid"] == 374
    assert 0.08 < counts["valid"] / 374 < 0.14
    first = listing.clips[0]
    assert first.name == "-tr_00000_30.000_40.000.wav" and first.group == "-tr_00000"
    assert first.tags == ("Train horn", "Air horn, truck horn")
    assert {clip.name[1:3] for clip in listing.clips if clip.split == "test"} == {"ev"}


def test_validation_is_ten_percent_of_every_class_and_the_same_every_time(tmp_path: Path) -> None:
    config = make_dcase2017(tmp_path)
    names = [{clip.name for clip in config.list_clips().clips if clip.split == "valid"} for _ in range(2)]
    other = dataset_config("dcase2017", source=str(tmp_path), seed=124).list_clips()
    assert names[0] == names[1] != {clip.name for clip in other.clips if clip.split == "valid"}
    for label in CLASSES:
        lines = tuple(Line(f"{label}{i}", label) for i in range(40))
        assert len(validation_files(lines, 0.1, 123)) == 4
    assert validation_files((), 0.1, 123) == frozenset()


def test_the_draw_is_that_of_numpy_seed_123() -> None:
    """numpy guarantees this legacy stream; pandas' `sample(frac=0.1, random_state=123)` draws by it."""
    lines = tuple(Line(str(i), "Car") for i in range(50))
    wanted = np.random.RandomState(123).permutation(50)[:5]
    assert validation_files(lines, 0.1, 123) == {str(i) for i in wanted}


@pytest.mark.parametrize("place", ["groundtruth_release", "metadata"])
def test_tables_in_their_published_folders_and_short_audio_folders(place: str, tmp_path: Path) -> None:
    config = make_dcase2017(tmp_path)
    want = [(clip.name, clip.tags, clip.split) for clip in config.list_clips().clips]
    (tmp_path / place).mkdir()
    for part, (long, short) in AUDIO_FOLDERS.items():
        (tmp_path / TABLE.format(part)).rename(tmp_path / place / TABLE.format(part))
        (tmp_path / long).rename(tmp_path / short)
    listing = config.list_clips()
    assert [(clip.name, clip.tags, clip.split) for clip in listing.clips] == want
    assert all(Path(str(clip.source)).is_file() for clip in listing.clips)


def test_lost_clips_stay_listed_and_a_leak_is_left_out(tmp_path: Path) -> None:
    config = make_dcase2017(tmp_path)
    next((tmp_path / AUDIO_FOLDERS["training"][0]).iterdir()).unlink()
    with (tmp_path / TABLE.format("training")).open("a") as file:
        file.write("-ev_00001_30.000_40.000.wav\t30.000\t40.000\tCar\n\n")
    listing = config.list_clips()
    assert len(listing.clips) == sum(CLIPS.values())
    assert listing.left_out == (("in a training file and in the evaluation set", 1),)
    (leak,) = (clip for clip in listing.clips if clip.name.startswith("-ev_00001"))
    assert leak.split == "test" and leak.tags == (CLASSES[1],)


def test_bad_inputs(tmp_path: Path) -> None:
    config = make_dcase2017(tmp_path)
    table = tmp_path / TABLE.format("testing")
    table.write_text("a.wav,0,10,Car\n")
    with pytest.raises(DatasetError, match=r"testing_set.csv line 1 must be file, start, end, label with tabs"):
        config.list_clips()
    table.write_text("a.wav\t0\t10\tCar\nb.wav\t0\t10\tTram\n")
    with pytest.raises(DatasetError, match=r"line 2: a label must be one of the 17 .* 'Tram'"):
        config.list_clips()
    table.unlink()
    with pytest.raises(DatasetError, match=r"needs groundtruth_weak_label_testing_set.csv .*, but .* has no such file"):
        config.list_clips()
    make_dcase2017(tmp_path)
    for folder, _ in AUDIO_FOLDERS.values():
        for path in (tmp_path / folder).iterdir():
            path.unlink()
    with pytest.raises(DatasetError, match="none of the files named in the ground truth is in"):
        config.list_clips()


def test_youtube_id_may_hold_underscores() -> None:
    assert youtube_id("-5QrBL6MzLg_60.000_70.000.wav") == "-5QrBL6MzLg"
    assert youtube_id("__a_b-c_d_e_0.000_10.000.wav") == "__a_b-c_d_e"


def test_a_short_evaluation_clip_is_prepared_with_its_labels(tmp_path: Path) -> None:
    config = make_dcase2017(tmp_path / "raw").model_copy(update={"sample_rate_hz": 4000})
    for folder, _ in AUDIO_FOLDERS.values():
        for path in (tmp_path / "raw" / folder).iterdir():
            soundfile.write(path, np.full(400, 0.1, np.float32), 4000)
    store = Store(str(tmp_path / "store"))
    manifest, _ = prepare(config, store)
    assert manifest.skipped == () and manifest.data_spec.counts["test"] == 34
    group = manifest.row_groups("test")[0]
    clips = read_row_group(data_store(store, "dcase2017"), group, 17)
    assert (clips.tags_NC.sum(axis=1) >= 1).all()
