"""Augmentation: a training crop is played faster or slower, made louder or softer, turned round, mixed with another,
believed a little less.

All of it follows from (seed, epoch, clip), mixing also from the batch; validation and test stay as they are. So it is
the same however clips are read (stream, host, device, Ray Data) and after a resume."""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.special import betaincinv

from atose_ray.audio.speed import at_speeds
from atose_ray.data.noise import Change, Noise, NoiseConfig
from atose_ray.data.sampling import Array, uniform
from atose_ray.types import Batch, Config, DataSpec

SALTS = {
    "speed": 0x5350454544,
    "gain": 0x4741494E,
    "shift": 0x5348494654,
    "mix": 0x4D4958,
}  # beside the seed: one draw for each


class AugmentConfig(Config):
    """speed: a third of the crops is played faster by this share, pitch and all, a third slower, a third as it is (Ko
        et al., "Audio Augmentation for Speech Recognition", Interspeech 2015, with 0.1). What is then too short begins
        again, what is too long ends sooner. Torchaudio's resampling.
    gain_db: the level of a crop is changed by up to so many decibels, up or down, drawn evenly.
    shift: a crop is turned round, what leaves it at the end comes in at the front, by up to this share of its length.
    mixup: alpha of Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018. Every crop becomes x times
        itself and 1 - x times the crop before it in its batch, and so do its tags, several or exclusive. x is drawn
        from Beta(alpha, alpha), and the larger of x and 1 - x taken. 0 mixes nothing.
    label_smoothing: so much of a tag's 0 or 1 is given to 1/2, of exclusive tags to all alike (Szegedy et al. 2016)."""

    LATER: ClassVar[tuple[str, ...]] = ("speed",)

    speed: float = Field(default=0.0, ge=0, le=0.5, multiple_of=0.01)
    gain_db: float = Field(default=0.0, ge=0, le=40)
    shift: float = Field(default=0.0, ge=0, le=1)
    mixup: float = Field(default=0.0, ge=0, le=10)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    @property
    def softens_tags(self) -> bool:
        """Whether tags between 0 and 1 come of it."""
        return self.mixup > 0 or self.label_smoothing > 0

    def check(self, spec: DataSpec) -> None:
        """Raises ValueError where the data cannot take it."""
        if spec.input.kind != "audio" and (self.speed or self.gain_db or self.shift):
            raise ValueError(
                "data.augment.speed, .gain_db and .shift are for audio, but this set holds frames; leave them at 0 "
                "(mixup and label_smoothing are for both)"
            )


class Augment(NamedTuple):
    """What a reader makes of the crops of a run. exclusive: whether its tags are."""

    config: AugmentConfig
    seed: int
    exclusive: bool

    def added(self, batch: Batch, draw_B: Array, clip_id_B: Array) -> Batch:
        """The batch with all that is asked for, on its device. draw_B, clip_id_B: as of `Noise.added`."""
        inputs, tags_BC, device = batch.inputs, batch.tags_BC, batch.inputs.device
        drawn = {name: uniform(self.seed ^ salt, draw_B, clip_id_B) for name, salt in SALTS.items()}
        if self.config.speed:
            inputs = at_speeds(inputs, (3 * drawn["speed"]).astype(np.int64) - 1, self.config.speed)
        if self.config.shift:
            start_B = np.floor(drawn["shift"] * (self.config.shift * inputs.shape[1] + 1)).astype(np.int64)
            inputs = turned(inputs, torch.from_numpy(start_B).to(device))
        if self.config.gain_db:
            level_db_B = self.config.gain_db * (2 * drawn["gain"] - 1)
            inputs = inputs * torch.from_numpy((10 ** (level_db_B / 20)).astype(np.float32)).to(device)[:, None]
        if self.config.mixup:
            share_B = betaincinv(self.config.mixup, self.config.mixup, drawn["mix"])
            own_B = torch.from_numpy(np.maximum(share_B, 1 - share_B).astype(np.float32)).to(device)
            inputs, tags_BC = (mixed(values, own_B) for values in (inputs, tags_BC))
        if self.config.label_smoothing:
            share, believed = self.config.label_smoothing, 1 / tags_BC.shape[1] if self.exclusive else 0.5
            tags_BC = tags_BC * (1 - share) + share * believed
        return Batch(inputs, tags_BC, batch.clip_id_B)


def turned(audio_BT: torch.Tensor, by_B: torch.Tensor) -> torch.Tensor:
    """[B, T], int64 [B] -> [B, T]: every row later by so many samples, the end of it in front."""
    length = audio_BT.shape[1]
    place_BT = (torch.arange(length, device=audio_BT.device) - by_B[:, None]) % length
    return audio_BT.gather(1, place_BT)


def mixed(rows: torch.Tensor, own_B: torch.Tensor) -> torch.Tensor:
    """[B, ...] -> own * every row + (1 - own) * the row before it, the last one before the first."""
    own = own_B.view(-1, *[1] * (rows.dim() - 1))
    return own * rows + (1 - own) * rows.roll(1, dims=0)


class InTurn(NamedTuple):
    """Some changes, one after the other."""

    changes: Sequence[Change]

    def added(self, batch: Batch, draw_B: Array, clip_id_B: Array) -> Batch:
        for change in self.changes:
            batch = change.added(batch, draw_B, clip_id_B)
        return batch


def changes_of(noise: NoiseConfig | None, augment: AugmentConfig | None, seed: int, exclusive: bool) -> Change | None:
    """What a run does to its crops: noise below them, and then the rest, so that a mix holds the noise of both."""
    changes: list[Change] = []
    if noise is not None:
        changes.append(Noise(noise, seed))
    if augment is not None:
        changes.append(Augment(augment, seed, exclusive))
    return InTurn(changes) if changes else None
