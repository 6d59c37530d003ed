"""One published system per file, all on the same walk; one line in `METHODS` each."""

from typing import Annotated

from pydantic import SerializeAsAny

from atose_ray.methods.base import EmbeddingMethod, Method, MethodConfig
from atose_ray.methods.coala import CoalaConfig
from atose_ray.methods.joint_embedding import JointEmbeddingConfig
from atose_ray.methods.multi_level_attention import MultiLevelAttentionConfig
from atose_ray.methods.stages import StageConfig
from atose_ray.methods.supervised import ProbeConfig, SupervisedConfig
from atose_ray.methods.zero_shot import ZeroShotConfig
from atose_ray.types import ByKind, by_kind

METHODS: dict[str, type[MethodConfig]] = by_kind(
    SupervisedConfig, JointEmbeddingConfig, ProbeConfig, ZeroShotConfig, CoalaConfig, MultiLevelAttentionConfig
)
AnyMethodConfig = Annotated[SerializeAsAny[MethodConfig], ByKind(METHODS)]

__all__ = [
    "EmbeddingMethod",
    "JointEmbeddingConfig",
    "Method",
    "MethodConfig",
    "ProbeConfig",
    "StageConfig",
    "SupervisedConfig",
]
