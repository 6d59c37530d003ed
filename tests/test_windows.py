"""A model along a recording: what each hop hears, whatever the pieces and batches; and timelines on disk."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from atose_ray import tag as command
from atose_ray.apps import recordings, windows
from atose_ray.apps.predict import crops_of, tag_file
from atose_ray.apps.windows import hearing_of, iter_windows
from atose_ray.audio.io import AudioError
from atose_ray.training.checkpoint import load_model
from atose_ray.types import TagSet

RATE, CROP = 4000, 2400  # of the tiny model: 0.6 s


@pytest.fixture(scope="module")
def model(model_folder: str):
    return load_model(model_folder)


def recording(folder: Path, seconds: float, name: str = "night.wav", channels: int = 1) -> Path:
    samples = 0.2 * np.random.default_rng(7).standard_normal((round(seconds * RATE), channels))
    soundfile.write(folder / name, samples, RATE, "PCM_16")
    return folder / name


def test_the_middle_of_a_crop_is_scored_and_the_ends_stay_inside(model, tmp_path) -> None:
    path = recording(tmp_path, 2.15)
    audio_T, _ = soundfile.read(path, dtype="float32")
    found = list(iter_windows(model, str(path), hop_s=0.2))
    assert [(round(one.start_s, 6), round(one.end_s, 6)) for one in found] == [
        (round(0.2 * n, 6), round(min(0.2 * n + 0.2, 2.15), 6)) for n in range(11)
    ]
    for number, one in enumerate(found):
        start = min(max(number * 800 - 800, 0), len(audio_T) - CROP)
        batch = torch.from_numpy(audio_T[start : start + CROP])[None]
        with torch.no_grad():
            expected = model.method.probabilities(model.method.encoder(batch), model.stage)[0]
        assert one.scores_C == pytest.approx(expected.numpy(), abs=1e-6), number
        assert one.level == np.abs(audio_T[number * 800 : (number + 1) * 800]).max()


def test_scores_do_not_depend_on_pieces_batches_or_where_it_was_begun(model, tmp_path, monkeypatch) -> None:
    path = str(recording(tmp_path, 3.0))
    whole = list(iter_windows(model, path, hop_s=0.25, left_s=1.1, right_s=0.4))
    monkeypatch.setattr(windows, "PIECE_S", 0.31)
    one_by_one = model.run.execution.model_copy(update={"eval_batch_size": 1})
    other = dataclasses.replace(model, run=model.run.model_copy(update={"execution": one_by_one}))
    pieces = list(iter_windows(other, path, hop_s=0.25, left_s=1.1, right_s=0.4))
    for one, same in zip(whole, pieces, strict=True):
        assert one[:2] == same[:2] and one.level == same.level
        assert one.scores_C == pytest.approx(same.scores_C, abs=1e-6)
    rest = list(iter_windows(model, path, hop_s=0.25, left_s=1.1, right_s=0.4, skip=5))
    assert [one[:2] for one in rest] == [one[:2] for one in whole[5:]]
    for one, same in zip(whole[5:], rest, strict=True):
        assert one.scores_C == pytest.approx(same.scores_C, abs=1e-6)


@pytest.mark.parametrize(("left", "right"), [(0.0, 0.0), (1.0, 0.0), (0.0, 0.7), (1.3, 0.9)])
def test_nothing_outside_of_the_context_is_heard(model, tmp_path, left, right) -> None:
    """Sound beyond it may change as it likes."""
    path = recording(tmp_path, 4.0)
    audio_T, _ = soundfile.read(path, dtype="float32")
    hop, number = 0.5, 4  # [2.0, 2.5)
    before = list(iter_windows(model, str(path), hop_s=hop, left_s=left, right_s=right))[number]
    first, end = round((2.0 - left) * RATE), round((2.5 + right) * RATE)
    changed_T = np.full_like(audio_T, 0.9)
    changed_T[first:end] = audio_T[first:end]
    soundfile.write(path, changed_T, RATE, "PCM_16")
    after = list(iter_windows(model, str(path), hop_s=hop, left_s=left, right_s=right))[number]
    assert np.array_equal(before.scores_C, after.scores_C)
    changed_T[first] += 0.05
    soundfile.write(path, changed_T, RATE, "PCM_16")
    assert not np.array_equal(
        list(iter_windows(model, str(path), hop_s=hop, left_s=left, right_s=right))[number][2], after[2]
    )


def test_one_long_window_is_what_tag_gives(model, tmp_path) -> None:
    path = recording(tmp_path, 1.8)
    (only,) = iter_windows(model, str(path), hop_s=1.8, left_s=0.0, right_s=0.0)
    crops_BT = torch.from_numpy(crops_of(model, soundfile.read(path, dtype="float32")[0], 3))
    with torch.no_grad():
        expected = model.method.probabilities(model.method.encoder(crops_BT), model.stage).mean(dim=0)
    assert only.scores_C == pytest.approx(expected.numpy(), abs=1e-6)
    assert dict(tag_file(model, str(path)).scores) == pytest.approx(
        dict(zip(model.spec.tags, only.scores_C.tolist(), strict=True)), abs=1e-6
    )


def test_a_level_is_that_of_the_sound_around(model, tmp_path) -> None:
    """Of a model of clips at one level: ten times as loud is the same."""
    spec = model.spec.model_copy(update={"peak_normalize": True})
    other = dataclasses.replace(model, spec=spec)
    path = recording(tmp_path, 3.0)
    loud = list(iter_windows(other, str(path), hop_s=0.3))
    audio_T, _ = soundfile.read(path, dtype="float32")
    soundfile.write(tmp_path / "quiet.wav", audio_T / 10, RATE, "FLOAT")
    for one, same in zip(loud, iter_windows(other, str(tmp_path / "quiet.wav"), hop_s=0.3), strict=True):
        assert one.scores_C == pytest.approx(same.scores_C, abs=1e-5)
    assert hearing_of(other, 0.3, None, None).margin == 15 * RATE


@pytest.mark.parametrize(("hop", "left"), [(0.0, None), (-1.0, None), (1.0, -0.1)])
def test_a_hop_or_context_that_is_none_is_refused(model, hop, left) -> None:
    with pytest.raises(ValueError, match="expected a hop above 0 s and contexts of 0 s or more"):
        hearing_of(model, hop, left, None)


# ---------------------------------------------------------------- the command


def test_a_folder_of_recordings(model_folder, tmp_path, capsys) -> None:
    """All formats beside the sounds; those that are done are left out; one that is broken is named."""
    (tmp_path / "deep").mkdir()
    recording(tmp_path, 1.3)
    recording(tmp_path / "deep", 0.3, "short.flac")
    recording(tmp_path, 1.0, "eight.wav", channels=8)
    soundfile.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    (tmp_path / "broken.wav").write_bytes((tmp_path / "night.wav").read_bytes()[:30])
    with pytest.raises(SystemExit) as ended:
        command.main([model_folder, str(tmp_path), "--timeline", "srt,csv,npz", "--hop", "0.2", "--threshold", "0.01"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and "broken.wav" in said.err and "5/5" in said.out
    for name in ("night", "eight", "silence", "deep/short"):
        assert all((tmp_path / f"{name}{suffix}").exists() for suffix in (".srt", ".csv", ".npz")), name
    assert not list(tmp_path.rglob("*.partial.npz"))
    with np.load(tmp_path / "deep" / "short.npz") as read:
        assert read["scores_SC"].shape == (2, len(load_model(model_folder).spec.tags)) and read["seconds"] == 0.3
        settings = json.loads(str(read["settings"]))
    assert settings["hop_s"] == 0.2 and settings["timeline"]["threshold"] == 0.01
    (tmp_path / "broken.wav").unlink()
    command.main([model_folder, str(tmp_path), "--timeline", "srt", "--hop", "0.2"])
    assert capsys.readouterr().out.count("there already (--again writes it anew)") == 4


def test_a_recording_that_was_cut_goes_on(model_folder, model, tmp_path, monkeypatch) -> None:
    path = recording(tmp_path, 4.0)
    listening = recordings.Listening(hop_s=0.1)
    whole = recordings.timeline_of(model, str(path), listening, model_folder)
    monkeypatch.setattr(recordings, "SAVE_EVERY", 8)
    partial, seen = tmp_path / "partial.npz", []

    def killed(seconds: float) -> None:
        seen.append(seconds)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recordings.timeline_of(model, str(path), listening, model_folder, partial=partial, progress=killed)
    skipped = []
    monkeypatch.setattr(recordings, "iter_windows", noting(recordings.iter_windows, skipped))
    again = recordings.timeline_of(model, str(path), listening, model_folder, partial=partial)
    assert skipped == [16] and not partial.exists()
    assert again.scores_SC == pytest.approx(whole.scores_SC, abs=1e-6) and again.seconds == whole.seconds == 4.0
    assert np.array_equal(again.level_S, whole.level_S)
    with pytest.raises(KeyboardInterrupt):
        seen.clear()
        recordings.timeline_of(model, str(path), listening, model_folder, partial=partial, progress=killed)
    recordings.timeline_of(model, str(path), recordings.Listening(hop_s=0.2), model_folder, partial=partial)
    assert skipped[-1] == 0, "scores of another hop are not taken up"


def noting(iter_windows, skipped):
    def noted(*given, **options):
        skipped.append(options["skip"])
        return iter_windows(*given, **options)

    return noted


def test_raw_samples_from_standard_input(model_folder, tmp_path, monkeypatch) -> None:
    path = recording(tmp_path, 1.7, channels=2)
    samples, _ = soundfile.read(path, dtype="int16")
    raw = SimpleNamespace(buffer=io.BytesIO(samples.tobytes() + b"\x01"))
    monkeypatch.setattr(sys, "stdin", raw)
    monkeypatch.setattr(recordings, "BLOCK", 1001)
    words = [
        "--timeline",
        "npz,jsonl",
        "--out",
        str(tmp_path / "out"),
        "--hop",
        "0.5",
        "--channels",
        "2",
        "--rate",
        "4000",
    ]
    command.main([model_folder, "-", *words])
    command.main([model_folder, str(path), *words])
    with np.load(tmp_path / "out" / "stdin.npz") as one, np.load(tmp_path / "out" / "night.npz") as other:
        assert np.array_equal(one["scores_SC"], other["scores_SC"])


def test_thresholds_that_were_fitted_are_the_default(model, model_folder, tmp_path) -> None:
    assert recordings.thresholds_of(model, None, None) == {"threshold": 0.5}
    with pytest.raises(ValueError, match=r"a rule that the model has \(none: it was made by an older"):
        recordings.thresholds_of(model, None, "f1")
    first = model.spec.tags[0]
    fitted = {"f1": {first: 0.2}, "precision": {}}
    other = dataclasses.replace(model, metrics={**model.metrics, "thresholds": fitted})
    assert recordings.thresholds_of(other, None, None) == {"thresholds": {first: 0.2}}
    assert recordings.thresholds_of(other, None, "precision") == {"thresholds": {}}
    assert recordings.thresholds_of(other, TagSet((model.spec.tags[1],)), None) == {"thresholds": {}}
    assert recordings.thresholds_of(other, TagSet(("snow",)), None) == {"threshold": 0.5}
    with pytest.raises(ValueError, match=r"has \(f1, precision\), but got 'recall'"):
        recordings.thresholds_of(other, None, "recall")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--timeline", "srt,midi"], r"--timeline knows srt, vtt, .*, but got midi"),
        (["--timeline", "srt", "--set", "join_gap=2"], r"join_gap: no such key; did you mean 'join_gap_s'"),
        (["--timeline", "srt", "--set", "min_duration_s=-1"], r"min_duration_s.*but got -1"),
        (["--timeline", "srt", "--set", "exclusive=[[guitar, snow]]"], r"names .*snow.*, but what is scored is"),
        (["--timeline", "srt", "--hop", "0"], r"expected a hop above 0 s"),
    ],
)
def test_what_the_command_refuses(model_folder, tmp_path, words, message) -> None:
    recording(tmp_path, 1.0)
    with pytest.raises(ValueError, match=message):
        command.main([model_folder, str(tmp_path), *words])


def test_a_folder_without_sound_is_refused(model_folder, tmp_path) -> None:
    for words in ([], ["--timeline", "srt"]):
        with pytest.raises(ValueError, match="holds no sound or video file; name files, or another folder"):
            command.main([model_folder, str(tmp_path), *words])


def test_a_broken_tail_is_an_error_and_no_timeline(model, tmp_path) -> None:
    path = recording(tmp_path, 3.0, "tail.flac")
    path.write_bytes(path.read_bytes()[:-8000])
    with pytest.raises(AudioError):
        list(iter_windows(model, str(path), hop_s=0.5))
