"""The demo data: reproducible, in the MTAT layout, honest sound, and a task that no single feature solves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from atose_ray.datasets import DatasetError, dataset_config
from atose_ray.datasets.demo import DemoConfig, synthesis
from atose_ray.datasets.demo.composition import Artist, compose
from atose_ray.datasets.demo.genres import GENRES, INSTRUMENTS, KITS
from atose_ray.datasets.demo.synthesis import RATE_HZ, Samples, Timbre
from atose_ray.types import SPLITS, Listing


def small(folder: Path, **options: int) -> DemoConfig:
    return DemoConfig(source=str(folder), **{"clips": 24, "seconds": 1.0, **options})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_other_seed_other_sound(tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in "abc")
    assert small(first).render(first)
    assert small(second).render(second)
    assert small(other, seed=1).render(other)
    assert contents(first) == contents(second)
    assert all(contents(first)[name] != contents(other)[name] for name in contents(first))


def test_rendered_once_and_again_only_if_something_is_missing(tmp_path: Path) -> None:
    config = small(tmp_path)
    listing = config.list_clips()
    whole = contents(tmp_path)
    assert not config.render(tmp_path)
    clip = Path(str(listing.clips[3].source))
    clip.unlink()
    assert config.list_clips() == listing and contents(tmp_path) == whole
    clip.write_bytes(b"half")  # a run that was killed: no annotations yet
    (tmp_path / "annotations_final.csv").unlink()
    assert config.list_clips() == listing and contents(tmp_path) == whole


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DatasetError, match=r"empty folder, but .* holds other files; name a new folder: --source DIR"):
        small(tmp_path).list_clips()
    with pytest.raises(DatasetError, match=r"thesis.tex is a file"):
        small(tmp_path / "thesis.tex").list_clips()
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "demo.json").write_text(json.dumps(small(tmp_path, seed=3).settings()))
    with pytest.raises(DatasetError, match=r"rendered with .*'seed': 3.* but .*'seed': 0.* is asked for"):
        small(tmp_path / "demo").list_clips()
    with pytest.raises(DatasetError, match=r"in a local folder, but got s3://"):
        DemoConfig(source="s3://bucket/demo").list_clips()


def test_without_source_the_cache_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = DemoConfig().folder()
    assert folder.is_relative_to(tmp_path)
    assert len({DemoConfig(**options).folder() for options in ({}, {"seed": 1}, {"clips": 30}, {"seconds": 2})}) == 4


def test_files_are_what_the_annotations_say(tmp_path: Path) -> None:
    listing = small(tmp_path).list_clips()
    assert len(listing.clips) == 24 and listing.name == "demo" and listing.peak_normalize
    for clip in listing.clips:
        audio_T, rate_hz = soundfile.read(str(clip.source))
        assert (audio_T.shape, rate_hz) == ((RATE_HZ,), RATE_HZ)
        assert 0.05 < np.abs(audio_T).max() <= 1.0
    first_line = (tmp_path / "annotations_final.csv").read_text().splitlines()[0].split("\t")
    assert first_line[0] == '"clip_id"' and first_line[-1] == '"mp3_path"'


# Instruments


def timbre_of(number: int) -> Timbre:
    return Timbre.draw(np.random.default_rng(number))


def strongest_hz(note_T: Samples, low_hz: float, high_hz: float) -> float:
    power = np.abs(np.fft.rfft(note_T * np.hanning(len(note_T)), 1 << 18))
    hz = np.fft.rfftfreq(1 << 18, 1 / RATE_HZ)
    inside = (hz > low_hz) & (hz < high_hz)
    return float(hz[inside][np.argmax(power[inside])])


TUNED = {name: instrument for name, instrument in INSTRUMENTS.items() if name not in ("women", "men", "strings", "pad")}


@pytest.mark.parametrize("name", TUNED)
@pytest.mark.parametrize("pitch_hz", [110.0, 277.18, 523.25])
def test_notes_are_in_tune(name: str, pitch_hz: float) -> None:
    note_T = TUNED[name].play(pitch_hz, RATE_HZ, 0.5, timbre_of(1), np.random.default_rng(0))
    assert np.isfinite(note_T).all() and note_T.shape == (RATE_HZ,)
    cents = 1200 * np.log2(strongest_hz(note_T, 0.9 * pitch_hz, 1.1 * pitch_hz) / pitch_hz)
    assert abs(cents) < 15


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_short_high_and_low_notes_are_finite(name: str) -> None:
    for seed, (pitch_hz, samples) in enumerate([(40.0, 400), (40.0, 64000), (2500.0, 401), (2500.0, 16000)]):
        note_T = INSTRUMENTS[name].play(pitch_hz, samples, seed / 3, timbre_of(seed), np.random.default_rng(seed))
        assert note_T.shape == (samples,) and np.isfinite(note_T).all() and np.abs(note_T).max() < 20


def test_plucked_and_struck_notes_decay_bowed_and_blown_ones_stand() -> None:
    def fall(name: str) -> float:
        note_T = INSTRUMENTS[name].play(330.0, RATE_HZ, 0.5, timbre_of(2), np.random.default_rng(0))
        early, late = np.mean(note_T[2000:5000] ** 2), np.mean(note_T[11000:14000] ** 2)
        return float(10 * np.log10(early / late))

    assert min(fall(name) for name in ("guitar", "harp", "sitar", "piano")) > 6.0
    assert max(abs(fall(name)) for name in ("violin", "cello", "flute")) < 3.0


def test_force_changes_colour() -> None:
    def centroid_hz(play_force: float, name: str) -> float:
        note_T = INSTRUMENTS[name].play(220.0, 8000, play_force, timbre_of(0), np.random.default_rng(0))
        power = np.abs(np.fft.rfft(note_T)) ** 2
        return float((power * np.fft.rfftfreq(8000, 1 / RATE_HZ)).sum() / power.sum())

    for name in ("guitar", "piano", "flute", "pad", "lead"):
        assert centroid_hz(0.9, name) > 1.05 * centroid_hz(0.1, name)


def test_saw_is_antialiased() -> None:
    pitch_hz = 1234.5
    steps = pitch_hz / RATE_HZ * np.arange(RATE_HZ)
    hz = np.fft.rfftfreq(RATE_HZ, 1 / RATE_HZ)
    off = np.abs(hz[:, None] - pitch_hz * np.arange(1, 7)).min(axis=1) > 50

    def aliased(wave_T: Samples) -> float:
        power = np.abs(np.fft.rfft(wave_T * np.hanning(RATE_HZ))) ** 2
        return float(power[off].sum() / power.sum())

    assert aliased(synthesis.saw(steps, pitch_hz / RATE_HZ)) < 0.2 * aliased(2 * (steps % 1) - 1)


def test_tables_fit_together() -> None:
    for genre in GENRES.values():
        assert {*genre.leads, *genre.backing} <= {*INSTRUMENTS, "singer"}
        assert set(genre.drums) <= set(KITS)


def test_fft_size_is_enough_and_little_more() -> None:
    for samples in (1, 15, 16, 17, 1000, 64000, 65537):
        size = synthesis.fft_size(samples)
        assert samples <= size <= 1.125 * samples + 1 and size % (1 << max(0, samples.bit_length() - 4)) == 0


def test_pieces_of_one_artist_differ_and_repeat_exactly() -> None:
    one, two = (compose(Artist(0, 3), piece, 1.0)[0] for piece in (0, 1))
    assert np.array_equal(one, compose(Artist(0, 3), 0, 1.0)[0])
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.5


# The task, on the set that `make demo` uses


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    return dataset_config("demo", source=str(tmp_path_factory.mktemp("demo") / "audio")).list_clips()


def of_split(listing: Listing, split: str) -> NDArray[np.bool_]:
    return np.array([clip.split == split for clip in listing.clips])


def tag_matrix(listing: Listing) -> NDArray[np.bool_]:
    return np.array([[tag in clip.tags for tag in listing.tags] for clip in listing.clips])


@pytest.mark.slow
def test_demo_has_the_promised_counts(demo: Listing) -> None:
    assert [int(of_split(demo, split).sum()) for split in SPLITS] == [288, 96, 96]
    assert [len({clip.group for clip in demo.clips if clip.split == split}) for split in SPLITS] == [48, 16, 16]
    assert len({clip.group for clip in demo.clips}) == 80  # so no artist is in two splits
    assert 20 <= len(demo.tags) <= 26
    for split in SPLITS:
        counts = dict(zip(demo.tags, tag_matrix(demo)[of_split(demo, split)].sum(axis=0), strict=True))
        assert min(counts.values()) >= 5, (split, counts)


@pytest.mark.slow
def test_demo_tags_correlate_as_in_music(demo: Listing) -> None:
    tags_NC = tag_matrix(demo).astype(float)
    correlation = np.corrcoef(tags_NC.T)

    def between(one: str, other: str) -> float:
        return float(correlation[demo.tags.index(one), demo.tags.index(other)])

    together = (
        "choir vocal, choir slow, techno beat, techno synth, techno fast, rock guitar, rock loud, ambient slow, "
        "ambient quiet, indian sitar, violin strings, beat drums, electronic synth"
    )
    for pair in together.split(", "):
        assert between(*pair.split()) > 0.15, (pair, between(*pair.split()))
    for pair in ("slow fast", "loud quiet", "ambient loud", "classical beat", "solo drums"):
        assert between(*pair.split()) < -0.1, (pair, between(*pair.split()))


def mel_filters(size: int, bands: int) -> NDArray[np.float64]:
    hz = np.linspace(0, RATE_HZ / 2, size // 2 + 1)
    edges = 700 * (
        10 ** (np.linspace(2595 * np.log10(1 + 40 / 700), 2595 * np.log10(1 + 7800 / 700), bands + 2) / 2595) - 1
    )
    rise = (hz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    fall = (edges[2:, None] - hz) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(rise, fall))


def features(audio_T: Samples) -> tuple[dict[str, float], NDArray[np.float64]]:
    """Scalars of the kind that might give a tag away, and statistics of a log-mel spectrogram over time."""
    frames = np.lib.stride_tricks.sliding_window_view(audio_T, 1024)[::256]
    power = np.abs(np.fft.rfft(frames * np.hanning(1024))) ** 2 + 1e-9
    hz, total = np.linspace(0, RATE_HZ / 2, 513), power.sum(axis=1)
    mel = np.log10(power @ mel_filters(1024, 64).T + 1e-7)
    flux = np.maximum(np.diff(mel, axis=0), 0).mean(axis=1)
    peaks = (flux[1:-1] > flux[:-2]) & (flux[1:-1] > flux[2:]) & (flux[1:-1] > flux.mean() + flux.std())
    centroid, level = power @ hz / total, np.sqrt((frames**2).mean(axis=1))
    rms, peak = np.sqrt(np.mean(audio_T**2)), np.abs(audio_T).max()
    scalars = {
        "length": len(audio_T),
        "peak": peak,
        "rms": rms,
        "crest": peak / rms,
        "zero crossings": np.mean(np.diff(np.sign(audio_T)) != 0),
        "centroid": centroid.mean(),
        "centroid spread": centroid.std(),
        "flatness": np.mean(np.exp(np.log(power).mean(axis=1)) / power.mean(axis=1)),
        "log power": np.log(power).mean(),
        "onsets": peaks.sum(),
        "flux": flux.mean(),
        "flux spread": flux.std(),
        "level spread": level.std() / level.mean(),
        "bass share": np.log(power[:, :13].sum() / power.sum()),
        "treble share": np.log(power[:, 256:].sum() / power.sum()),
    }
    shape = mel - mel.mean()
    pooled = [shape.mean(0), mel.std(0), np.abs(np.diff(mel, axis=0)).mean(0), np.percentile(shape, 90, axis=0)]
    return {name: float(value) for name, value in scalars.items()}, np.concatenate(pooled)


@pytest.mark.slow
def test_no_single_feature_solves_the_demo_and_a_modest_model_gets_far(demo: Listing) -> None:
    described = [features(soundfile.read(str(clip.source))[0]) for clip in demo.clips]
    names = list(described[0][0])
    scalars_NX = np.array([list(scalars.values()) for scalars, _ in described])
    tags_NC, train, test = tag_matrix(demo), of_split(demo, "train"), of_split(demo, "test")
    prevalence = float(tags_NC[test].mean())

    def macro(scores_NC: NDArray[np.float64]) -> float:
        return float(
            np.mean([average_precision_score(t, s) for t, s in zip(tags_NC[test].T, scores_NC.T, strict=True)])
        )

    single = {}
    for column, name in enumerate(names):
        signs = [np.sign(np.corrcoef(scalars_NX[train, column], tag)[0, 1]) if np.ptp(scalars_NX[:, column]) else 0.0
                 for tag in tags_NC[train].T]  # fmt: skip
        single[name] = macro(scalars_NX[test, column][:, None] * np.array(signs))
    inputs_NX = np.concatenate((scalars_NX, np.array([pooled for _, pooled in described])), axis=1)
    inputs_NX = StandardScaler().fit(inputs_NX[train]).transform(inputs_NX)
    models = [LogisticRegression(C=0.01, max_iter=500).fit(inputs_NX[train], tag) for tag in tags_NC[train].T]
    modest = macro(np.array([model.decision_function(inputs_NX[test]) for model in models]).T)
    figures = {"prevalence": prevalence, "modest model": modest, **single}
    print({name: round(value, 3) for name, value in figures.items()})
    assert single["length"] == pytest.approx(prevalence, abs=1e-6), "clips must not differ in length"
    assert max(single.values()) < prevalence + 0.25, figures
    assert modest > prevalence + 0.40, figures
    assert modest > max(single.values()) + 0.25, figures
