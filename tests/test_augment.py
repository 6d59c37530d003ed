"""Augmentation of training crops: what each part does to them and to their tags, and what it follows from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from atose_ray.config import ConfigError, RunConfig, run_config
from atose_ray.data.augment import Augment, AugmentConfig, changes_of
from atose_ray.data.noise import Noise, NoiseConfig
from atose_ray.types import AudioInput, Batch, DataSpec, FrameInput

T, ROWS, TAGS = 1000, 600, 4
ALL = {"speed": 0.1, "gain_db": 6.0, "shift": 0.5, "mixup": 0.4, "label_smoothing": 0.1}


def ramps() -> Batch:
    """Row i is 1, 2, ..., T, all of it times 1 + i; it has the tag i % TAGS alone."""
    audio_BT = torch.arange(1, T + 1).float() * (1 + torch.arange(ROWS)[:, None])
    return Batch(audio_BT, torch.eye(TAGS).repeat(ROWS // TAGS, 1), torch.arange(ROWS))


def changed(batch: Batch, epoch: int = 0, seed: int = 3, exclusive: bool = True, **settings: float) -> Batch:
    augment = Augment(AugmentConfig(**settings), seed, exclusive)
    return augment.added(batch, np.full(len(batch.inputs), epoch), batch.clip_id_B.numpy())


def test_gain_changes_the_level_up_and_down_evenly() -> None:
    clean = ramps()
    ratio_BT = changed(clean, gain_db=6.0).inputs / clean.inputs
    assert torch.allclose(ratio_BT, ratio_BT[:, :1].expand_as(ratio_BT), rtol=1e-5)
    gain_db_B = 20 * ratio_BT[:, 0].log10().numpy()
    assert np.percentile(gain_db_B, [0, 25, 50, 75, 100]) == pytest.approx([-6, -3, 0, 3, 6], abs=0.6)


def test_speed_moves_pitch_and_tempo_of_two_thirds() -> None:
    rate_hz, tone_hz, seconds = 8000, 1000, 0.5
    time_T = torch.arange(int(rate_hz * seconds)) / rate_hz
    tone_T = torch.sin(2 * torch.pi * tone_hz * time_T)
    clean = Batch(tone_T.repeat(ROWS, 1), torch.eye(TAGS).repeat(ROWS // TAGS, 1), torch.arange(ROWS))
    played = changed(clean, speed=0.1)
    assert played.inputs.shape == clean.inputs.shape and torch.equal(played.tags_BC, clean.tags_BC)
    peak_hz_B = torch.fft.rfft(played.inputs[:, :3600]).abs().argmax(dim=1) * rate_hz / 3600
    found, counts = np.unique(np.round(peak_hz_B.numpy(), -1), return_counts=True)
    assert found.tolist() == [900, 1000, 1100] and counts.min() > ROWS / 4
    as_it_is_B = (peak_hz_B - tone_hz).abs() < 20
    assert torch.equal(played.inputs[as_it_is_B], clean.inputs[as_it_is_B])
    faster = played.inputs[int(((peak_hz_B - 1100).abs() < 20).nonzero()[0])]
    ends = -(-len(time_T) * 10 // 11)
    assert torch.equal(faster[ends:], faster[: len(faster) - ends]), "what is too short begins again"


def test_a_shift_turns_the_crop_round() -> None:
    clean = ramps()
    turned = changed(clean, shift=0.25).inputs
    by_B = turned.argmin(dim=1)  # where the beginning is now
    assert by_B.min() >= 0 and by_B.max() <= T // 4 and len(by_B.unique()) > 150
    for row in range(0, ROWS, 50):
        assert torch.equal(turned[row], clean.inputs[row].roll(int(by_B[row])))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixup_mixes_tags_as_it_mixes_sound(alpha: float) -> None:
    clean = ramps()
    mixed = changed(clean, mixup=alpha)
    own_B = mixed.tags_BC[torch.arange(ROWS), torch.arange(ROWS) % TAGS]
    before = torch.arange(-1, ROWS - 1)
    assert own_B.min() >= 0.5 and torch.allclose(mixed.tags_BC.sum(dim=1), torch.ones(ROWS))
    assert torch.allclose(mixed.tags_BC[torch.arange(ROWS), before % TAGS], 1 - own_B, atol=1e-6)
    want_BT = own_B[:, None] * clean.inputs + (1 - own_B[:, None]) * clean.inputs[before]
    assert torch.allclose(mixed.inputs, want_BT, rtol=1e-4)
    share_B = np.random.default_rng(0).beta(alpha, alpha, 20_000)
    want = np.percentile(np.maximum(share_B, 1 - share_B), [10, 50, 90])
    assert np.percentile(own_B.numpy(), [10, 50, 90]) == pytest.approx(want, abs=0.05)


def test_smoothed_tags_lie_between() -> None:
    one = changed(ramps(), label_smoothing=0.1).tags_BC[0].tolist()
    assert one == pytest.approx([0.925, 0.025, 0.025, 0.025])  # a tenth of it to the four tags alike
    assert changed(ramps(), exclusive=False, label_smoothing=0.1).tags_BC[0].tolist() == pytest.approx(
        [0.95, 0.05, 0.05, 0.05]
    )


def test_it_follows_from_seed_epoch_and_clip_alone() -> None:
    drawn = {**ALL, "mixup": 0.0}
    whole = changed(ramps(), **drawn)
    row = Batch(*(part[7:8] for part in ramps()))
    assert torch.equal(changed(row, **drawn).inputs[0], whole.inputs[7])
    for other in (changed(ramps(), epoch=1, **ALL), changed(ramps(), seed=4, **ALL)):
        assert not torch.equal(other.inputs, changed(ramps(), **ALL).inputs)
    assert not torch.equal(whole.inputs[0] / 1, whole.inputs[1] / 2)


def test_nothing_is_asked_for_and_nothing_changes() -> None:
    clean, same = ramps(), changed(ramps())
    assert all(torch.equal(one, other) for one, other in zip(clean, same, strict=True))
    assert changes_of(None, None, 0, True) is None


def test_noise_comes_first_so_a_mix_holds_that_of_both() -> None:
    noise, augment = NoiseConfig(), AugmentConfig(mixup=1.0)
    both = changes_of(noise, augment, 3, True)
    assert both is not None
    draw_B, clip_id_B = np.zeros(ROWS), np.arange(ROWS)
    found = both.added(ramps(), draw_B, clip_id_B)
    noisy = Noise(noise, 3).added(ramps(), draw_B, clip_id_B)
    assert torch.equal(found.inputs, Augment(augment, 3, True).added(noisy, draw_B, clip_id_B).inputs)


def test_frames_are_mixed_but_not_turned() -> None:
    frames = FrameInput(frames=10, bins=4, frame_hop_seconds=1)
    spec = DataSpec(input=frames, tags=("a", "b"), exclusive=False)
    AugmentConfig(mixup=1.0, label_smoothing=0.1).check(spec)
    with pytest.raises(ValueError, match=r"gain_db and .shift are for audio"):
        AugmentConfig(shift=0.1).check(spec)
    AugmentConfig(**ALL).check(spec.model_copy(update={"input": AudioInput(sample_rate_hz=8000, clip_samples=8000)}))
    batch = Batch(torch.rand(6, 10, 4), torch.eye(6), torch.arange(6))
    own_B = changed(batch, mixup=1.0).tags_BC.diagonal()[:, None, None]
    want = own_B * batch.inputs + (1 - own_B) * batch.inputs.roll(1, dims=0)
    assert torch.allclose(changed(batch, mixup=1.0).inputs, want, atol=1e-6)


@pytest.mark.parametrize("knob", ["mixup", "label_smoothing"])
def test_a_method_that_counts_tags_takes_no_soft_ones(knob: str) -> None:
    def tree(**method: object) -> dict:
        vectors = {"kind": "random", "size": 8}
        return {"data": {"augment": {knob: 0.2}}, "method": method, "tag_vectors": vectors}

    for kind in ("supervised", "probe", "joint_embedding"):
        run_config(tree(kind=kind))
    soft = {"kind": "soft_targets"}
    for method in (
        {"kind": "zero_shot"},
        {"kind": "joint_embedding", "objective": soft},
        {"kind": "joint_embedding", "tag_side": "vectors"},
    ):
        with pytest.raises(ConfigError, match=f"between 0 and 1, which method {method['kind']} .*set both to 0"):
            run_config(tree(**method))
    run_config({**tree(kind="zero_shot"), "data": {"augment": {"gain_db": 3.0, "shift": 0.1}}})


def test_a_run_without_it_is_what_it_was_before_there_was_any() -> None:
    """Hashes of before `data.augment` and `encoder.spec_augment`."""
    assert RunConfig().signature() == "87f34ebbe52e"
    assert run_config({"encoder": {"kind": "mel_cnn"}}).signature() == "8fc797410904"
    others = ({"data": {"augment": {}}}, {"encoder": {"kind": "mel_cnn", "spec_augment": {}}})
    assert len({run_config(tree).signature() for tree in others} | {"87f34ebbe52e", "8fc797410904"}) == 4
