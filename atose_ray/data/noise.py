"""Noise below what is trained on: isolated sounds are cut out of silence, and where a model later listens, there is
none."""

import functools
from typing import ClassVar, Literal, NamedTuple, Protocol

import numpy as np
import torch
from pydantic import Field, model_validator

from atose_ray.data.sampling import Array, uniform
from atose_ray.types import Batch, Config, DataSpec

SALTS = {"start": 0x4E4F495345, "level": 0x4C4556454C, "blank": 0x424C414E4B}  # beside the seed: one draw for each
LEAST_SAMPLES = 1 << 18  # of noise that crops are cut from


class Change(Protocol):
    """What is done to the batches of a training, and to no others."""

    def added(self, batch: Batch, draw_B: Array, clip_id_B: Array) -> Batch:
        """The batch with it. draw_B, clip_id_B int64, on the host: what crop every row is."""


class NoiseConfig(Config):
    """Pink noise (1/f) over every training crop, behind its clip and around it. A clip that is shorter than the crop
    stands at a random place in it, as ever (data/sampling.py: crop_starts).

    low_db, high_db: RMS of the noise, in dB below full scale (of peak-normalised clips: below their peak); the level of
        a crop is drawn evenly between them.
    below: what the decibels are below of, full scale, or the RMS of the crop itself; a low of -20 and a high of -10 are
        then signal-to-noise ratios of 10 to 20 dB. Silence gets none.
    blank: share of crops that are noise alone, without a tag, so that a model learns what no sound is like.

    All of it follows from (seed, epoch, clip); validation and test stay as they are."""

    LATER: ClassVar[tuple[str, ...]] = ("below",)

    low_db: float = Field(default=-70.0, ge=-120, le=0)
    high_db: float = Field(default=-30.0, ge=-120, le=0)
    below: Literal["full_scale", "clip"] = "full_scale"
    blank: float = Field(default=0.0, ge=0, le=0.9)

    @model_validator(mode="after")
    def _low_is_low(self) -> "NoiseConfig":
        if self.low_db > self.high_db:
            raise ValueError(f"low_db must not be above high_db, but got {self.low_db:g} and {self.high_db:g}")
        return self

    def check(self, spec: DataSpec) -> None:
        """Raises ValueError where the data cannot take it."""
        if spec.input.kind != "audio":
            raise ValueError("data.noise is for audio, but this set holds frames; leave it out")
        if self.blank and spec.exclusive:
            raise ValueError(
                "data.noise.blank makes crops without a tag, but this set's tags are exclusive; set it to 0, or "
                "prepare with --option exclusive=false"
            )


class Noise(NamedTuple):
    """What a reader adds to the crops of a run."""

    config: NoiseConfig
    seed: int

    def added(self, batch: Batch, draw_B: Array, clip_id_B: Array) -> Batch:
        """The batch with its noise, on its device. draw_B, clip_id_B int64, on the host: what crop it is, as
        `sampling.crop_starts` has it."""
        drawn = {name: uniform(self.seed ^ salt, draw_B, clip_id_B) for name, salt in SALTS.items()}
        length, device = batch.inputs.shape[1], batch.inputs.device
        pink_S = pink_on(device, self.seed, max(LEAST_SAMPLES, 2 * length))
        start_B = torch.from_numpy((drawn["start"] * (len(pink_S) - length)).astype(np.int64)).to(device)
        level_db_B = self.config.low_db + drawn["level"] * (self.config.high_db - self.config.low_db)
        gain_B = torch.from_numpy((10 ** (level_db_B / 20)).astype(np.float32)).to(device)
        if self.config.below == "clip":
            gain_B = gain_B * batch.inputs.square().mean(dim=1).sqrt()
        noise_BT = pink_S[start_B[:, None] + torch.arange(length, device=device)].mul_(gain_B[:, None])
        sounds_B = torch.from_numpy((drawn["blank"] >= self.config.blank).astype(np.float32)).to(device)
        inputs, tags_BC = batch.inputs * sounds_B[:, None], batch.tags_BC * sounds_B[:, None]
        return Batch(noise_BT.add_(inputs), tags_BC, batch.clip_id_B)


@functools.lru_cache(maxsize=2)
def pink_on(device: torch.device, seed: int, samples: int) -> torch.Tensor:
    """`pink`, kept on a device for the next batch."""
    return torch.from_numpy(pink(seed, samples)).to(device)


def pink(seed: int, samples: int) -> Array:
    """float32 [samples] of Gaussian noise whose power falls as 1/f, with RMS 1."""
    spectrum_F = np.fft.rfft(np.random.default_rng((seed, 0x50494E4B)).standard_normal(samples))
    spectrum_F[1:] /= np.sqrt(np.arange(1, len(spectrum_F)))
    spectrum_F[0] = 0
    noise_S = np.fft.irfft(spectrum_F, samples)
    return np.asarray(noise_S / np.sqrt(np.mean(noise_S**2)), np.float32)
