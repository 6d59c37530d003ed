"""Other sounds that a training's embeddings are tried on: a prepared set beside its own, and a small classifier."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from atose_ray.types import Config

Classifier = Literal["mlp", "linear"]
OF_PROBE = (
    "probe_accuracy",
    "probe_pr_auc_macro",
    "probe_roc_auc_macro",
)  # evaluation/probe.py: exclusive tags, others


class DownstreamConfig(Config):
    """What a small classifier finds in the embeddings, as a score of an epoch: fitted on the set's train split, scored
    on its valid split. Its test split is read once, by the model that is chosen.

    dataset: name of a prepared set in the store. fold: which fold of it is its test split; None is the first.
    classifier: `linear` is a logistic regression, `mlp` has one layer of 256 (COALA, Favory et al. 2020).
    seeds: how often mlp is fitted; the score is the mean.
    every: epochs from one probe to the next. The first epoch and the last of a stage have one in any case; where none
        is due, or the encoder rests, the last score stands.
    content_hash: of the shards; filled in when a run starts, so that other data is another run."""

    dataset: str = Field(min_length=1)
    fold: Annotated[int, Field(ge=0)] | None = None
    classifier: Classifier = "linear"
    seeds: int = Field(default=1, ge=1, le=100)
    every: int = Field(default=1, ge=1, le=10_000)
    content_hash: str | None = None

    @model_validator(mode="after")
    def _one_solution(self) -> "DownstreamConfig":
        if self.classifier == "linear" and self.seeds > 1:
            raise ValueError(
                f"probe.seeds={self.seeds}, but a linear classifier has one solution; leave seeds out, or take "
                "probe.classifier=mlp"
            )
        return self

    def due(self, epoch: int, end: int) -> bool:
        """Whether an epoch, from 1 over all stages, has a probe of its own. end: the last epoch of its stage."""
        return (epoch - 1) % self.every == 0 or epoch == end
