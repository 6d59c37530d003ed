"""The contract of a method: named parts, stages that train some of them, and a score of any tag set in every stage.

A new method is one file with a `MethodConfig` and a `Method` (or an `EmbeddingMethod`, where a clip's embedding is all
it needs), and one line in `methods/__init__.py`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import nn

from atose_ray.encoders.base import Encoder
from atose_ray.methods.stages import CACHED_CROPS, StageConfig, check_carry
from atose_ray.types import AnyBatch, Config, DataSpec, EmbeddedBatch, TagSet


class MethodConfig(Config):
    """Base of every method's config.

    STAGES: stage name -> parts it trains unless told otherwise.
    USES: stage name -> parts whose output reaches its loss; only these may be trained in it.
    COMPARABLE: stages whose scores may be ranked against those of other methods' stages.
    embeds_tags: whether the method has an embedding of every tag (Method.tag_embeddings).
    EMBEDS_CLIPS: whether what it embeds (Method.embed) is one vector of a clip, and not its sequence."""

    embeds_tags: ClassVar[bool] = False
    EMBEDS_CLIPS: ClassVar[bool] = True

    STAGES: ClassVar[dict[str, tuple[str, ...]]]
    USES: ClassVar[dict[str, tuple[str, ...]]]
    COMPARABLE: ClassVar[tuple[str, ...]]

    kind: str
    stages: tuple[StageConfig, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _stages_fit(self) -> "MethodConfig":
        for before, stage in zip((None, *self.stages), self.stages, strict=False):
            if stage.name not in self.STAGES:
                raise ValueError(
                    f"stages of {self.kind} are {', '.join(self.STAGES)}, but a stage is named {stage.name!r}"
                )
            trained, useful = self.trained_parts(stage), self.USES[stage.name]
            if not trained or not set(trained) <= set(useful):
                raise ValueError(
                    f"stage {stage.name!r} of {self.kind} can train {', '.join(useful)}, but got trains={list(trained)}"
                )
            if isinstance(stage.cache, int) and "encoder" in trained:
                raise ValueError(
                    f"cache={stage.cache} of stage {stage.name!r} needs a frozen encoder, but the stage trains "
                    f"{', '.join(trained)}; leave cache out, or the encoder"
                )
            if stage.patience is not None and stage is not self.stages[-1]:
                raise ValueError(f"patience ends the last stage, and with it the run, but stage {stage.name!r} has one")
            if stage.carry:
                check_carry(before, stage, before is not None and self.trained_parts(before) == trained)
        return self

    @property
    def reads_vectors(self) -> bool:
        """Whether it is built with tag vectors."""
        return False

    @property
    def scores_unseen(self) -> bool:
        """Whether it scores tags that it never saw."""
        return False

    @property
    def takes_soft_tags(self) -> bool:
        """Whether its losses mean something for tags between 0 and 1 (data/augment.py makes them)."""
        return False

    def cached_crops(self, index: int) -> int:
        """Crops per clip that stage `index` keeps embedded; 0 where its encoder trains or its cache is off."""
        stage = self.stages[index]
        if stage.cache == "off" or "encoder" in self.trained_parts(stage):
            return 0
        return stage.cache or CACHED_CROPS

    def trained_parts(self, stage: StageConfig) -> tuple[str, ...]:
        return self.STAGES[stage.name] if stage.trains is None else stage.trains

    @property
    def epochs(self) -> int:
        """Epochs of all stages together."""
        return sum(stage.epochs for stage in self.stages)

    def check_encoder(self, kind: str) -> None:
        """Raises ValueError where the method cannot be built around encoders of this kind."""

    @abstractmethod
    def build(self, encoder: Encoder, spec: DataSpec, tags: TagSet) -> "Method":
        """The method around an encoder, for the tags of `spec`; `tags` brings their vectors where it reads them."""


class Method(nn.Module, ABC):
    """Parts are direct children, `encoder` one of them. `forward` gives losses, so that DDP's hooks fire.
    gather: [B, X] -> the rows of all DDP workers; for losses that compare a clip with the others of its batch."""

    encoder: Encoder

    def __init__(self, encoder: Encoder, spec: DataSpec) -> None:
        super().__init__()
        self.spec, self.encoder = spec, encoder
        self.gather: Callable[[torch.Tensor], torch.Tensor] = lambda rows_BX: rows_BX

    def forward(self, batch: AnyBatch, stage: str) -> dict[str, torch.Tensor]:
        return self.losses(batch, stage)

    @abstractmethod
    def losses(self, batch: AnyBatch, stage: str) -> dict[str, torch.Tensor]:
        """`loss` (minimised) and its named terms, scalars; `summed`, with its gradient, is that part of the loss which
        is a sum over clips and no mean. An EmbeddedBatch comes only where the encoder rests."""

    @abstractmethod
    def score(self, batch: AnyBatch, tags: TagSet, stage: str) -> torch.Tensor:
        """B clips -> [B, len(tags)], the higher the likelier. Raises ValueError for tags that it cannot score."""

    @property
    def scores_frames(self) -> bool:
        """Whether `frame_scores` gives any: the method has them, and the encoder's sequence has a time axis."""
        return type(self).frame_scores is not Method.frame_scores and self.encoder.hop_seconds is not None

    def frame_scores(self, batch: AnyBatch, tags: TagSet, stage: str) -> torch.Tensor:
        """B clips -> [B, S, len(tags)]: what `score` says of every step of the encoder's sequence, on the same scale.
        Raises ValueError for tags that it cannot score, NotImplementedError of a method that scores whole clips."""
        raise NotImplementedError(f"{type(self).__name__} scores whole clips")

    def embed(self, batch: AnyBatch) -> EmbeddedBatch:
        """The batch, encoded: what a stage that does not train the encoder may cache, and `score` takes as well."""
        if isinstance(batch, EmbeddedBatch):
            return batch
        return EmbeddedBatch(self.encoder(batch.inputs), batch.tags_BC, batch.clip_id_B)

    def joint_embeddings(self, batch: AnyBatch) -> tuple[torch.Tensor, torch.Tensor] | None:
        """B clips -> unit vectors of their audio and of their tags, [B, D] each; None without a joint space."""
        return None

    def tag_embeddings(self) -> torch.Tensor | None:
        """[C, D] unit embeddings of the single tags, or None for a method that has none."""
        return None

    def from_published(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a published checkpoint under this method's names. Of itself they are all the encoder's."""
        return {f"encoder.{key}": value for key, value in self.encoder.from_published(tensors).items()}

    def train_only(self, parts: tuple[str, ...]) -> list[nn.Parameter]:
        """Freeze all parts but these: no gradient, and eval(), so that BatchNorm and dropout stand still.
        Returns the parameters that train. Raises ValueError when a part does not exist."""
        children: dict[str, nn.Module] = dict(self.named_children())
        missing = [part for part in parts if part not in children]
        if missing:
            raise ValueError(f"{type(self).__name__} has the parts {', '.join(children)}, not {', '.join(missing)}")
        for name, module in children.items():
            module.train(name in parts)
            module.requires_grad_(name in parts)
        return [parameter for name in parts for parameter in children[name].parameters()]


class EmbeddingMethod(Method):
    """A method that needs nothing of a clip but its embedding, for the closed list of tags it is trained on."""

    @abstractmethod
    def embedding_losses(self, embed_BE: torch.Tensor, tags_BC: torch.Tensor, stage: str) -> dict[str, torch.Tensor]:
        """[B, E], [B, C] -> what `losses` returns."""

    @abstractmethod
    def probabilities(self, embed_BE: torch.Tensor, stage: str) -> torch.Tensor:
        """[B, E] -> [B, C] in [0, 1]: how this stage scores every tag of the spec."""

    def losses(self, batch: AnyBatch, stage: str) -> dict[str, torch.Tensor]:
        return self.embedding_losses(self.embed(batch).embed_BE, batch.tags_BC, stage)

    def score(self, batch: AnyBatch, tags: TagSet, stage: str) -> torch.Tensor:
        """B clips -> [B, len(tags)] probabilities. Raises ValueError for a tag the model was not trained on."""
        columns = self.columns(tags)
        return self.probabilities(self.embed(batch).embed_BE, stage)[:, columns]

    def columns(self, tags: TagSet) -> list[int]:
        """Where these tags stand among those of the training. Raises ValueError for one that does not."""
        column = {name: index for index, name in enumerate(self.spec.tags)}
        unknown = [name for name in tags.names if name not in column]
        if unknown:
            raise ValueError(
                f"this {type(self).__name__} was trained on {len(column)} tags and cannot score {', '.join(unknown)}; "
                f"it knows {', '.join(self.spec.tags)}"
            )
        return [column[name] for name in tags.names]


def log_terms(**terms: torch.Tensor) -> dict[str, torch.Tensor]:
    """Named loss terms, `loss` being their sum."""
    return {"loss": torch.stack(list(terms.values())).sum(), **{name: term.detach() for name, term in terms.items()}}


def vectors_of(tags: TagSet, spec: DataSpec, vectors_CV: torch.Tensor) -> torch.Tensor:
    """[C, V]: the vectors that come with the tags, else those of the spec's. Raises ValueError for a name without."""
    if tags.vectors_CV is not None:
        return tags.vectors_CV.to(vectors_CV)
    row = {name: index for index, name in enumerate(spec.tags)}
    unknown = [name for name in tags.names if name not in row]
    if unknown:
        raise ValueError(
            f"this method has no vectors of {', '.join(unknown)}; give them with the tags (TagSet.vectors_CV), from "
            "the source of vectors that it was trained with"
        )
    return vectors_CV[[row[name] for name in tags.names]]
