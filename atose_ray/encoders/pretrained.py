"""An encoder that was trained before: `encoder: {kind: pretrained, model: URI}` takes it from a model folder.

When a run is resolved (training/run.py) this becomes the folder's own encoder config, its crop length, and an
`init_from` with the hash of its weights: what is trained from it stands alone, and says what it began with."""

from typing import Literal

from pydantic import Field

from atose_ray.encoders.base import Encoder, EncoderConfig
from atose_ray.types import DataSpec


class PretrainedConfig(EncoderConfig):
    """model: a model folder, `best` of a study or of a run, by path or URI; all nodes of a search must see it."""

    kind: Literal["pretrained"] = "pretrained"
    model: str = Field(min_length=1)

    def build(self, spec: DataSpec) -> Encoder:
        """Raises ValueError: what stands in the folder is built, once it was looked up."""
        raise ValueError(f"encoder pretrained: {self.model} is not looked up yet; resolve the run first")

    def check(self, spec: DataSpec) -> None:
        self.build(spec)
