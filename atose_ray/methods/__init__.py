"""One published system per file, all on the same walk."""

from typing import Annotated

from pydantic import Field

from atose_ray.methods.base import Method, MethodConfig
from atose_ray.methods.joint_embedding import JointEmbeddingConfig
from atose_ray.methods.stages import StageConfig
from atose_ray.methods.supervised import SupervisedConfig

MethodConfigs = Annotated[SupervisedConfig | JointEmbeddingConfig, Field(discriminator="kind")]

__all__ = ["JointEmbeddingConfig", "Method", "MethodConfig", "MethodConfigs", "StageConfig", "SupervisedConfig"]
