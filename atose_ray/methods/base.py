"""The contract of a method: named parts, stages that train some of them, and a score per tag in every stage.

A new method is one file with a `MethodConfig` and a `Method`, and one line in `methods/__init__.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn

from atose_ray.optim import OptimizerConfigs
from atose_ray.types import Batch, Config, DataSpec, TagSet


class StageConfig(Config):
    """One phase of training: `epochs` with one optimizer, training `trains` and freezing all other parts.

    name: which loss and score of the method; several phases may share it (an optimizer schedule as data).
    optimizer: None takes the run's `optim`.
    trains: None takes the method's own choice for this stage.
    """

    name: str
    epochs: int = Field(ge=1, le=10_000)
    optimizer: OptimizerConfigs | None = None
    trains: tuple[str, ...] | None = None


class MethodConfig(Config):
    """Base of every method's config.

    STAGES: stage name -> parts it trains unless told otherwise.
    USES: stage name -> parts whose output reaches its loss; only these may be trained in it.
    embeds_tags: whether the method has an embedding of every tag (Method.tag_embeddings).
    """

    embeds_tags: ClassVar[bool] = False

    STAGES: ClassVar[dict[str, tuple[str, ...]]]
    USES: ClassVar[dict[str, tuple[str, ...]]]

    kind: str
    stages: tuple[StageConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _stages_exist(self) -> MethodConfig:
        for stage in self.stages:
            if stage.name not in self.STAGES:
                raise ValueError(
                    f"stages of {self.kind} are {', '.join(self.STAGES)}, but a stage is named {stage.name!r}"
                )
            wrong = [part for part in stage.trains or () if part not in self.USES[stage.name]]
            if wrong or stage.trains == ():
                raise ValueError(
                    f"stage {stage.name!r} of {self.kind} can train {', '.join(self.USES[stage.name])}, "
                    f"but got trains={list(stage.trains or ())}"
                )
        return self

    def trained_parts(self, stage: StageConfig) -> tuple[str, ...]:
        """The parts that this stage trains."""
        return self.STAGES[stage.name] if stage.trains is None else stage.trains

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(stage.epochs for stage in self.stages)

    @abstractmethod
    def build(self, encoder: nn.Module, embed_dim: int, spec: DataSpec) -> Method:
        """The method around an encoder."""


class Method(nn.Module, ABC):
    """Parts are direct children. `forward` gives losses, so that DDP's hooks fire; `score` gives probabilities."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, batch: Batch, stage: str) -> dict[str, torch.Tensor]:
        """Losses of a batch in a stage: `loss` (what is minimised) and its named terms, all scalars."""
        return self.losses(batch, stage)

    @abstractmethod
    def losses(self, batch: Batch, stage: str) -> dict[str, torch.Tensor]:
        """What `forward` returns. Raises KeyError for an unknown stage."""

    @abstractmethod
    def probabilities(self, audio_BT: torch.Tensor, stage: str) -> torch.Tensor:
        """[B, T] -> [B, C] in [0, 1]: how this stage scores every tag of the spec."""

    def score(self, batch: Batch, tags: TagSet, stage: str) -> torch.Tensor:
        """[B, T] -> [B, len(tags)] probabilities. Raises ValueError for a tag the model was not trained on."""
        column = {name: index for index, name in enumerate(self.spec.tags)}
        unknown = [name for name in tags.names if name not in column]
        if unknown:
            raise ValueError(
                f"this {type(self).__name__} was trained on {len(column)} tags and cannot score {', '.join(unknown)}; "
                f"it knows {', '.join(self.spec.tags)}"
            )
        scores_BC = self.probabilities(batch.audio_BT, stage)
        return scores_BC[:, [column[name] for name in tags.names]]

    def tag_embeddings(self) -> torch.Tensor | None:
        """[C, D] unit embeddings of the single tags, or None for a method that has none."""
        return None

    def train_only(self, parts: tuple[str, ...]) -> list[nn.Parameter]:
        """Freeze all parts but these: no gradient, and eval(), so that BatchNorm and dropout stand still.

        Returns the parameters that train. Raises ValueError when a part does not exist.
        """
        children: dict[str, nn.Module] = dict(self.named_children())
        missing = [part for part in parts if part not in children]
        if missing:
            raise ValueError(f"{type(self).__name__} has the parts {', '.join(children)}, not {', '.join(missing)}")
        for name, module in children.items():
            module.train(name in parts)
            module.requires_grad_(name in parts)
        return [parameter for name in parts for parameter in children[name].parameters()]


def log_terms(**terms: torch.Tensor) -> dict[str, torch.Tensor]:
    """Named loss terms, `loss` being their sum."""
    return {"loss": torch.stack(list(terms.values())).sum(), **{name: term.detach() for name, term in terms.items()}}


def count_parameters(module: nn.Module) -> int:
    """How many numbers a module can train."""
    parameters: Any = module.parameters()
    return sum(int(parameter.numel()) for parameter in parameters)
