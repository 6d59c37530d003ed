"""Scores of single frames: what they are of multi-level attention, and how timelines take them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import made_up  # noqa: F401  # an encoder with a time axis
import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE
from test_parity_audiotagger import build

from atose_ray import tag as command
from atose_ray.apps import windows
from atose_ray.apps.recordings import Listening, timeline_of
from atose_ray.apps.windows import Hop, iter_windows, own_frames
from atose_ray.config import run_config
from atose_ray.storage import Store
from atose_ray.training.checkpoint import Model, load_model, save_model
from atose_ray.types import Batch, DataSpec, TagSet

TAGS = ("owl", "rain", "wind")


@pytest.fixture(scope="module")
def model() -> Model:
    """Frames of 128 samples that know nothing of each other, in crops of 0.64 s."""
    spec = DataSpec(sample_rate_hz=RATE, clip_samples=RATE, tags=TAGS, exclusive=False)
    run = run_config(
        {
            "data": {"crop_seconds": 0.64},
            "encoder": {"kind": "made_up_steps"},
            "method": {"kind": "multi_level_attention", "levels": [1, 2], "width": 12},
        }
    )
    torch.manual_seed(3)
    method = run.build(spec).eval()
    return Model(method, run, method.spec, "attend", {"stage": "attend"})


def recording(folder: Path, seconds: float) -> tuple[str, np.ndarray]:
    audio_T = np.random.default_rng(5).uniform(-0.5, 0.5, round(seconds * RATE)).astype(np.float32)
    soundfile.write(folder / "night.wav", audio_T, RATE, "FLOAT")
    return str(folder / "night.wav"), audio_T


@torch.no_grad()
def scores_of_all(model: Model, audio_T: np.ndarray) -> np.ndarray:
    """Of every frame of a recording, in one piece."""
    batch = Batch(torch.from_numpy(audio_T)[None], torch.zeros(1, 3), torch.zeros(1))
    return model.method.frame_scores(batch, TagSet(TAGS), "attend")[0].numpy()


@pytest.mark.parametrize("pooling", ["attention", "mean", "max", "linear_softmax"])
@pytest.mark.parametrize("levels", [(1,), (1, 2)])
@torch.no_grad()
def test_a_frame_scores_as_a_clip_that_is_all_of_it(pooling, levels) -> None:
    method = build(levels, (6, 5), 4, pooling=pooling).eval()
    x_BFM = torch.randint(0, 256, (3, 7, 128), generator=torch.Generator().manual_seed(1)).float()
    tags = TagSet(method.spec.tags[::-1])
    found_BSC = method.frame_scores(Batch(x_BFM, torch.zeros(3, 4), torch.arange(3)), tags, "attend")
    for frame in range(7):
        clip = Batch(x_BFM[:, frame : frame + 1].expand(3, 5, 128), torch.zeros(3, 4), torch.arange(3))
        assert torch.allclose(found_BSC[:, frame], method.score(clip, tags, "attend"), atol=1e-6)
    with pytest.raises(ValueError, match="cannot score snow"):
        method.frame_scores(Batch(x_BFM, torch.zeros(3, 4), torch.arange(3)), TagSet(("snow",)), "attend")


def test_hops_of_whole_frames(model, tmp_path, monkeypatch) -> None:
    """Four frames a hop, whatever the pieces, batches and context."""
    path, audio_T = recording(tmp_path, 3.2)
    expected_SC = scores_of_all(model, audio_T).reshape(-1, 4, 3).mean(axis=1)
    assert np.ptp(expected_SC, axis=0).min() > 0.01  # there is something to tell apart
    one_by_one = model.run.execution.model_copy(update={"eval_batch_size": 1})
    other = dataclasses.replace(model, run=model.run.model_copy(update={"execution": one_by_one}))
    found = [one.scores_C for one in iter_windows(model, path, hop_s=0.128, frames=True)]
    assert np.array(found) == pytest.approx(expected_SC, abs=1e-6)
    monkeypatch.setattr(windows, "PIECE_S", 0.31)
    found = [one.scores_C for one in iter_windows(other, path, hop_s=0.128, frames=True, skip=3)]
    assert np.array(found) == pytest.approx(expected_SC[3:], abs=1e-6)
    wide = iter_windows(model, path, hop_s=0.128, left_s=1.024, right_s=1.024, frames=True)
    inside = slice(8, -8)  # nearer to the ends less is heard, so that crops begin within a frame
    assert np.array([one.scores_C for one in wide])[inside] == pytest.approx(expected_SC[inside], abs=1e-6)


def test_a_hop_within_a_frame_takes_the_nearest(model, tmp_path) -> None:
    path, audio_T = recording(tmp_path, 0.64)
    found = [one.scores_C for one in iter_windows(model, path, hop_s=0.016, frames=True)]
    assert np.array(found) == pytest.approx(np.repeat(scores_of_all(model, audio_T), 2, axis=0), abs=1e-6)


def test_frames_of_a_hop() -> None:
    def own(first: int, end: int, *starts: int) -> list[list[bool]]:
        hop = Hop(first, end, 0.0, np.zeros((len(starts), 8)), np.array(starts))
        return own_frames(hop, 4, 2.0).tolist()

    assert own(2, 6, 0) == [[False, True, True, False]]  # middles 1, 3, 5, 7
    assert own(3, 5, 0) == [[False, True, False, False]]
    assert own(4, 5, 0) == [[False, False, True, False]]  # none: the nearest
    assert own(0, 2, -3) == [[False, True, False, False]]  # middles -2, 0, 2, 4: silence stands before the sound
    assert own(2, 6, -2, 3) == [[False, False, True, True], [True, False, False, False]]


def test_timelines_take_frames_where_there_are_some(model, model_folder, tmp_path, capsys) -> None:
    path, audio_T = recording(tmp_path, 1.28)
    expected_SC = scores_of_all(model, audio_T).reshape(-1, 4, 3).mean(axis=1)
    found = timeline_of(model, path, Listening(hop_s=0.128), "model")
    assert found.scores_SC == pytest.approx(expected_SC, abs=1e-6) and found.settings["scores"] == "frame"
    whole = timeline_of(model, path, Listening(hop_s=0.128, scores="window"), "model")
    assert np.abs(whole.scores_SC - found.scores_SC).max() > 0.01
    assert (
        whole.settings["scores"] == "window"
        and np.ptp(whole.scores_SC[2:-2], axis=0).max() < np.ptp(expected_SC[2:-2], axis=0).max()
    )
    save_model(Store(str(tmp_path / "best")), model.method, model.run, model.spec, dict(model.metrics))
    words = ["--timeline", "npz", "--hop", "0.128", "--again"]
    for choice, same in (([], found), (["--scores", "window"], whole)):
        command.main([str(tmp_path / "best"), path, *words, *choice])
        with np.load(tmp_path / "night.npz") as read:
            assert read["scores_SC"] == pytest.approx(same.scores_SC, abs=1e-3)  # the other is further off
    plain = load_model(model_folder)
    assert timeline_of(plain, path, Listening(), model_folder).settings["scores"] == "window"
    with pytest.raises(ValueError, match="supervised model with encoder sample_cnn scores whole windows, not frames"):
        command.main([model_folder, path, *words, "--scores", "frame"])
