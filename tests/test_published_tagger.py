"""The published AudioTagger's rules, texts and windows, exactly (shared/parity: audiotagger_tagger, _end_to_end)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from parity_vectors import FORWARD, assert_close, form, load_arrays, load_weights, to_torch, vggish_weights

from atose_ray import tag
from atose_ray.apps.predict import tag_file
from atose_ray.apps.published_tagger import (
    Rule,
    examples,
    first_tags,
    published_name,
    rule_for,
    second_scores,
    spliced,
    srt_text,
    summary_text,
    timing,
    window_rows,
    with_vggish,
)
from atose_ray.audio.kaiser import KaiserBest
from atose_ray.audio.mel import VGGISH, LogMel
from atose_ray.config import ConfigError, run_config
from atose_ray.storage import Store
from atose_ray.training.checkpoint import Model, load_model, save_model
from atose_ray.types import DataSpec, FrameInput

SPEECH, MUSIC, SILENCE = 0, 137, 500
NAMES = tuple(f"Class {k:03d}" + ", second part" * (k % 7 == 3) for k in range(527))


def rule(threshold: float, show: bool) -> Rule:
    return Rule(NAMES, threshold, SILENCE, () if show else (SPEECH, MUSIC))


def pieces_of(audio_T: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (audio_T[first : first + size] for first in range(0, len(audio_T), size))


def test_windows() -> None:
    arrays = load_arrays("audiotagger_tagger")
    cases = arrays["window/cases_nsec_left_right"].tolist()
    assert len(cases) == 80
    for seconds, left, right in cases:
        wanted = arrays[f"window/n{seconds}_left{left}_right{right}"]
        assert np.array_equal(window_rows(seconds, left, right), wanted), (seconds, left, right)
    assert 30 not in window_rows(40, 10, 0)[30]  # the default window does not hear its own second


@pytest.mark.parametrize("show", [False, True])
@pytest.mark.parametrize("threshold", ["0.05", "0.01", "0.09"])
def test_subtitles_and_summary(threshold: str, show: bool) -> None:
    arrays = load_arrays("audiotagger_tagger")
    which = f"text_threshold_{threshold}_show_{'T' if show else 'F'}"
    chosen = rule(float(threshold), show)
    assert srt_text(arrays["srt/prob"], chosen) == str(arrays[f"srt/{which}"])
    assert summary_text(arrays["summary/average_prob"], chosen) == str(arrays[f"summary/{which}"])


def test_times_and_names() -> None:
    arrays = load_arrays("audiotagger_tagger")
    for second, start, end in zip(arrays["srt/num"], arrays["srt/start"], arrays["srt/end"], strict=True):
        assert timing(int(second)) == f"{start} --> {end}"
    assert [published_name(name) for name in ("Dog", "Inside, small room")] == ['"Dog"', '"Inside']
    names = ("Speech", "Dog", "Music", "Silence")
    assert rule_for(names, 0.05, False) == Rule(names, 0.05, 3, (0, 2))
    assert rule_for(("Dog", "Cat"), 0.05, True) == Rule(("Dog", "Cat"), 0.05, None, ())
    assert [len(first_tags(np.linspace(1, 0, 9), t)) for t in (2.0, 0.6, 0.5, 0.3, 0.0)] == [3, 3, 4, 5, 5]


def test_what_is_cut_and_how_many_examples_are_left() -> None:
    """Stereo as published; mono, which it cannot read, is cut like it."""
    cases = load_arrays("audiotagger_tagger")["frontend/fs_channels_samples_truncated_len_examples"].tolist()
    seen = 0
    for rate, channels, samples, cut, count in cases:
        audio_T = np.zeros(samples, np.float32)
        if channels > 1 and cut >= 0:
            assert sum(map(len, spliced(pieces_of(audio_T, 10_007), rate))) == cut
            seen += 1
            if count >= 0:
                assert len(list(examples(pieces_of(audio_T, 5003), rate))) == count, (rate, samples)
    assert seen > 40


@pytest.mark.parametrize("size", [777, 52_800])
def test_examples_of_a_stereo_file(size: int) -> None:
    arrays = load_arrays("audiotagger_tagger")
    audio_TC = arrays["frontend/stereo16k_int16"].astype(np.float32) / 32768
    found = np.stack(list(examples(pieces_of(audio_TC.mean(axis=1), size), 16_000)))
    log_mel = LogMel(VGGISH, 16_000)(torch.from_numpy(found))
    assert_close(log_mel, torch.from_numpy(arrays["frontend/stereo16k_examples"]), FORWARD)


def test_examples_of_another_rate() -> None:
    """Cut at 8 kHz, then resampled; the numbers are of a newer resampy than the tagger's."""
    arrays = load_arrays("audiotagger_tagger")
    audio_T = (arrays["frontend/stereo8k_int16"].astype(np.float32) / 32768).mean(axis=1)
    stream = KaiserBest(8000, 16_000, "0.4")
    parts = [stream.push(piece) for piece in spliced(pieces_of(audio_T, 999), 8000)]
    whole_T = torch.from_numpy(np.concatenate([*parts, stream.finish()]))
    log_mel = LogMel(VGGISH, 16_000)(whole_T.unfold(0, 15_600, 15_360))
    wanted = torch.from_numpy(arrays["frontend/stereo8k_examples_resampy043"])
    assert (log_mel - wanted).abs().max() < 1e-3
    older = np.stack(list(examples(pieces_of(audio_T, 4096), 8000)))
    assert older.shape == (3, 15_600) and (LogMel(VGGISH, 16_000)(torch.from_numpy(older)) - wanted).abs().mean() < 0.1


def full_model(folder: Path) -> None:
    """The end-to-end vectors' model of stored frames as a model folder: levels 2 and 3, 527 classes."""
    arrays = load_arrays("audiotagger_full_width")
    spec = DataSpec(
        input=FrameInput(frames=10, bins=128, frame_hop_seconds=1.0, dtype="uint8"), tags=NAMES, exclusive=False
    )
    run = run_config(
        {"encoder": {"kind": "frames"}, "method": {"kind": "multi_level_attention"}, "data": {"crop_seconds": 10.0}}
    )
    method = run.build(spec)
    rows = zip(
        *(arrays[key].tolist() for key in ("weight_names", "stream_id_S", "log2_scale_p", "offset")), strict=True
    )
    own = method.attention.state_dict()
    weights = {}
    for name, stream, scale, offset in rows:
        target = to_torch(name, torch.zeros(1, 1))[0]
        if target in own:
            shape = (1054, 527) if name == "out.kernel" else tuple(own[target].shape[::-1])
            weights[name] = form(shape, stream, scale, offset)
    load_weights(method.attention, weights)
    save_model(Store(str(folder)), method, run, spec, {"stage": "attend"})


def vggish_file(path: Path) -> None:
    own = {
        f"{name}:0": value.numpy()
        for name, value in vggish_weights((64, 128, 256, 256, 512, 512, 4096, 4096, 128)).items()
    }
    np.savez(path, **own, pca_eigen_vectors=form((128, 128), 2001, 9), pca_means=form((128,), 2002, 0)[:, None])


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stereo WAV to subtitles with the full nets: through the command, and its scores."""
    arrays, stereo = load_arrays("audiotagger_end_to_end"), load_arrays("audiotagger_tagger")
    full_model(tmp_path / "model")
    vggish_file(tmp_path / "vggish.npz")
    file = tmp_path / "street.wav"
    soundfile.write(file, stereo["frontend/stereo16k_int16"], 16_000, subtype="PCM_16")
    model = with_vggish(load_model(str(tmp_path / "model")), str(tmp_path / "vggish.npz"))
    left, right = arrays["left_right"].tolist()
    prob_SC = second_scores(model, str(file), left, right)
    assert_close(torch.from_numpy(prob_SC), torch.from_numpy(arrays["prob"]), FORWARD)
    tagging = tag_file(model, str(file))  # and as any other model of sound
    assert len(tagging.scores) == 527 and tagging.seconds == pytest.approx(3.3)
    options = ["--timeline", "srt", "--published", "--left", str(left), "--right", str(right), "--threshold", "0.5"]
    words = [str(tmp_path / "model"), str(file), "--vggish", str(tmp_path / "vggish.npz"), *options]
    tag.main(words)
    text = (tmp_path / "street.srt").read_text()
    assert "Tagging for the whold clip." in capsys.readouterr().out
    chosen = dataclasses.replace(rule_for(NAMES, 0.5, False), silence=SILENCE, spoken=(SPEECH, MUSIC))
    assert srt_text(prob_SC, chosen) == str(arrays["srt_threshold_0.5"])
    assert text == srt_text(prob_SC, rule_for(NAMES, 0.5, False))


def small_model(folder: Path, encoder: dict, spec: DataSpec, method: str = "multi_level_attention") -> Model:
    crop = spec.input.length / spec.input.rate_hz
    tree = {"encoder": encoder, "method": {"kind": method}, "data": {"crop_seconds": crop}}
    run = run_config(tree)
    torch.manual_seed(0)
    built = run.build(spec)
    save_model(Store(str(folder)), built, run, spec, {"stage": run.method.stages[-1].name})
    return load_model(str(folder))


VGGISH_SMALL = {"kind": "vggish", "channels": 2, "hidden": 8, "embedding": 6, "postprocess": "quantised"}


def test_a_model_that_hears_by_vggish_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Any rate, mono, too short: no failure; scores do not depend on how many seconds go at a time."""
    spec = DataSpec(sample_rate_hz=16_000, clip_samples=160_000, tags=("Speech", "Dog", "Silence"), exclusive=False)
    model = small_model(tmp_path / "model", VGGISH_SMALL, spec)
    noise_T = 0.1 * np.random.default_rng(0).standard_normal(44_100 * 4)
    soundfile.write(tmp_path / "four.flac", noise_T, 44_100)
    soundfile.write(tmp_path / "short.wav", noise_T[:2000], 16_000)
    scores = second_scores(model, str(tmp_path / "four.flac"))
    assert scores.shape == (4, 3)
    execution = model.run.execution.model_copy(update={"eval_batch_size": 1})
    single = dataclasses.replace(model, run=model.run.model_copy(update={"execution": execution}))
    assert np.allclose(second_scores(single, str(tmp_path / "four.flac")), scores, atol=1e-6)
    files = [str(tmp_path / name) for name in ("four.flac", "short.wav")]
    tag.main([str(tmp_path / "model"), *files, "--timeline", "srt", "--published", "--show-music-speech"])
    assert (tmp_path / "four.srt").read_text().count("-->") == 4
    assert (tmp_path / "short.srt").read_text() == "" and "shorter than 0.975 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [["--timeline", "srt,vtt"], ["--timeline", "srt", "--hop", "2"], [], ["--timeline", "srt", "--left", "0.5"]],
)
def test_settings_that_it_does_not_have(options: list[str], tmp_path: Path) -> None:
    spec = DataSpec(sample_rate_hz=16_000, clip_samples=16_000, tags=("a", "b"), exclusive=False)
    small_model(tmp_path, VGGISH_SMALL, spec)
    with pytest.raises(ValueError, match="--published writes what AudioTagger wrote"):
        tag.main([str(tmp_path), "x.wav", "--published", *options])


def test_models_and_weights_that_do_not_fit(tmp_path: Path) -> None:
    audio = DataSpec(sample_rate_hz=16_000, clip_samples=16_000, tags=("a", "b"), exclusive=False)
    bytes_ = FrameInput(frames=10, bins=128, frame_hop_seconds=1.0, dtype="uint8")
    frames = DataSpec(input=bytes_, tags=("a", "b"), exclusive=False)
    supervised = small_model(tmp_path / "supervised", VGGISH_SMALL, audio, "supervised")
    with pytest.raises(ValueError, match="but this is supervised on vggish; train multi_level_attention"):
        second_scores(supervised, "x.wav")
    with pytest.raises(ConfigError, match="stored bytes of VGGish"):
        with_vggish(supervised, "x.npz")
    stored = small_model(tmp_path / "stored", {"kind": "frames"}, frames)
    with pytest.raises(ValueError, match="--vggish FILE"):
        second_scores(stored, "x.wav")
    np.savez(tmp_path / "half.npz", **{"vggish/conv1/weights": np.zeros((3, 3, 1, 64), np.float32)})
    with pytest.raises(ConfigError, match=r"half\.npz does not hold VGGish and its PCA"):
        with_vggish(stored, str(tmp_path / "half.npz"))
