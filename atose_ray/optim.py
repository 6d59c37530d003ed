"""Optimizers and learning-rate schedules, as configs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal

import torch
from pydantic import Field

from atose_ray.types import Config


class OptimizerConfig(Config):
    """What every optimizer has.

    schedule: `constant`, or `cosine` from lr to 0 over the steps of the stage (Loshchilov & Hutter 2017, no restarts).
    warmup_steps: linear rise from lr / warmup_steps to lr over the first steps of a stage.
    """

    lr: float = Field(default=1e-3, gt=0, le=10)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of update `step` (from 0) of a stage of `steps` updates."""
        factor = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))
        return self.lr * factor


class AdamConfig(OptimizerConfig):
    """Adam (Kingma & Ba 2015); with weight decay it is AdamW (decoupled)."""

    kind: Literal["adam"] = "adam"

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over `parameters`."""
        return torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)


class SGDConfig(OptimizerConfig):
    """Stochastic gradient descent with (Nesterov) momentum; the published value is 0.9 with Nesterov."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over `parameters`."""
        return torch.optim.SGD(
            parameters,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
            weight_decay=self.weight_decay,
        )


OptimizerConfigs = Annotated[AdamConfig | SGDConfig, Field(discriminator="kind")]
