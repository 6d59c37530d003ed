"""A stage list is data: the published recipe is seven phases in a YAML file."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from atose_ray.optim import OptimizerConfigs
from atose_ray.types import Config

CACHED_CROPS = 8


_OffIsAWord = BeforeValidator(lambda value: "off" if value is False else value)  # YAML reads a bare `off` as false
CacheField = Annotated[Annotated[int, Field(ge=1, le=1024)] | Literal["off"] | None, _OffIsAWord]


class StageConfig(Config):
    """One phase of training: `epochs` with one optimizer, training `trains` and freezing all other parts.

    name: which loss and score of the method; several phases may share it (an optimizer schedule as data).
    optimizer: None takes the run's `optim`.
    lr_scale: multiplies the learning rate: the same search space, a lower rate in this phase.
    carry: true goes on with the state (moments, velocity, step count) of the phase before, which must have trained the
        same parts with the same kind of optimizer. Schedule and warm-up start anew.
    trains: None takes the method's own choice for this stage.
    cache: crops of every clip whose embeddings are kept where the encoder is frozen, so that each crop is encoded once
        (training/cached.py); `off` embeds a fresh crop in every epoch, as published. None is 8.
    patience: of the last stage: it ends after so many epochs in a row without a better validation score. None trains
        all its epochs. Source: Keras' EarlyStopping, which Choi et al. 2019 (zero-shot tagging) set to 20."""

    LATER: ClassVar[tuple[str, ...]] = ("patience",)

    name: str
    epochs: int = Field(ge=1, le=10_000)
    optimizer: OptimizerConfigs | None = None
    lr_scale: float = Field(default=1.0, gt=0, le=1000)
    carry: bool = False
    trains: tuple[str, ...] | None = None
    cache: CacheField = None
    patience: int | None = Field(default=None, ge=1)

    def is_over(self, scores: Sequence[float]) -> bool:
        """Whether the stage ends after epochs with these validation scores, before it has had all its epochs."""
        if self.patience is None or not scores:
            return False
        return len(scores) - 1 - scores.index(max(scores)) >= self.patience

    def optimizer_under(self, default: OptimizerConfigs) -> OptimizerConfigs:
        """The optimizer of this phase, its rate scaled; `default` is the run's."""
        chosen = self.optimizer or default
        return chosen.model_copy(update={"lr": chosen.lr * self.lr_scale})


def check_carry(before: StageConfig | None, stage: StageConfig, train_alike: bool) -> None:
    """Raises ValueError when a phase cannot go on with the optimizer state of the phase before."""
    if before is None or not train_alike:
        raise ValueError(
            f"stage {stage.name!r} carries the optimizer state of the phase before, so there must be one and it must "
            "train the same parts; set carry to false, or give both the same `trains`"
        )
    kinds = [phase.optimizer.kind if phase.optimizer else "the run's optim" for phase in (before, stage)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"stage {stage.name!r} carries the optimizer state of the phase before, so both need the same kind of "
            f"optimizer, but got {kinds[0]} and {kinds[1]}"
        )
