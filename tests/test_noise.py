"""Noise below training crops: its level, what it leaves alone, and what it follows from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from atose_ray.config import ConfigError, RunConfig, run_config
from atose_ray.data.noise import Noise, NoiseConfig, pink
from atose_ray.types import AudioInput, Batch, DataSpec, FrameInput

T, ROWS = 4000, 400


def silent(tags: int = 3) -> Batch:
    return Batch(torch.zeros(ROWS, T), torch.ones(ROWS, tags), torch.arange(ROWS))


def noisy(batch: Batch, epoch: int = 0, seed: int = 3, **settings: float) -> Batch:
    noise = Noise(NoiseConfig(**settings), seed)
    return noise.added(batch, np.full(len(batch.inputs), epoch), batch.clip_id_B.numpy())


def test_pink_noise_falls_by_three_decibels_an_octave() -> None:
    noise_S = pink(0, 1 << 18)
    assert np.sqrt(np.mean(noise_S**2)) == pytest.approx(1, abs=1e-5) and abs(noise_S.mean()) < 1e-3
    power_F = np.abs(np.fft.rfft(noise_S)) ** 2
    octaves = [power_F[1 << n : 2 << n].mean() for n in range(8, 17)]
    assert np.diff(10 * np.log10(octaves)) == pytest.approx([-3] * 8, abs=0.7)


def test_levels_lie_between_the_two_and_the_clip_stays_on_top() -> None:
    noise_BT = noisy(silent(), low_db=-60, high_db=-20).inputs
    level_B = 10 * np.log10(noise_BT.double().square().mean(dim=1).numpy())
    assert np.percentile(level_B, [5, 50, 95]) == pytest.approx([-58, -40, -22], abs=5)  # 0.25 s of pink noise waver
    clip = silent()._replace(inputs=torch.full((ROWS, T), 0.25))
    assert torch.allclose(noisy(clip, low_db=-60, high_db=-20).inputs - 0.25, noise_BT, atol=1e-6)
    assert torch.equal(noisy(clip).tags_BC, clip.tags_BC)


def test_below_the_clip_is_a_signal_to_noise_ratio() -> None:
    loud_B = torch.logspace(-3, -1, ROWS)
    clip = silent()._replace(inputs=loud_B[:, None].expand(ROWS, T).clone())
    found = noisy(clip, low_db=-20, high_db=-10, below="clip").inputs - clip.inputs
    ratio_B = -10 * np.log10((found.square().mean(dim=1) / loud_B**2).double().numpy())
    assert np.percentile(ratio_B, [5, 50, 95]) == pytest.approx([10.5, 15, 19.5], abs=3.5)
    assert not noisy(silent(), below="clip").inputs.any()


def test_it_follows_from_seed_epoch_and_clip_alone() -> None:
    whole = noisy(silent())
    row = Batch(*(part[7:8] for part in silent()))
    assert torch.equal(noisy(row).inputs[0], whole.inputs[7])
    for other in (noisy(silent(), epoch=1), noisy(silent(), seed=4)):
        assert not torch.equal(other.inputs, whole.inputs)
    assert not torch.equal(whole.inputs[0], whole.inputs[1])


def test_a_share_of_the_crops_is_noise_without_a_tag() -> None:
    clip = silent()._replace(inputs=torch.ones(ROWS, T))
    mixed = noisy(clip, blank=0.25)
    blank_B = mixed.tags_BC.sum(dim=1) == 0
    assert 0.15 < blank_B.float().mean() < 0.35
    assert mixed.inputs[blank_B].abs().max() < 0.5 < mixed.inputs[~blank_B].mean()
    assert mixed.inputs[blank_B].abs().amax(dim=1).min() > 0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="low_db must not be above high_db, but got -20 and -40"):
        run_config({"data": {"noise": {"low_db": -20, "high_db": -40}}})
    spec = DataSpec(input=AudioInput(sample_rate_hz=8000, clip_samples=8000), tags=("a", "b"), exclusive=True)
    NoiseConfig().check(spec)
    with pytest.raises(ValueError, match=r"blank makes crops without a tag.*exclusive=false"):
        NoiseConfig(blank=0.1).check(spec)
    frames = spec.model_copy(update={"input": FrameInput(frames=10, bins=4, frame_hop_seconds=1)})
    with pytest.raises(ValueError, match="noise is for audio"):
        NoiseConfig().check(frames)


def test_a_run_without_noise_is_what_it_was_before_there_was_any() -> None:
    """Its identity is that of a config in which the field is not there."""
    run, with_noise = RunConfig(), run_config({"data": {"noise": {}}})
    assert run.signature() != with_noise.signature()
    hashed: list[dict] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "dumps", lambda tree, **_: hashed.append(tree) or "")
        run.signature(), with_noise.signature()
    assert ["noise" in tree["data"] for tree in hashed] == [False, True]
