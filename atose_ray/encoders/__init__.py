"""Encoders: audio or frames in, one vector per clip out. One file and one line in `ENCODERS` each."""

from typing import Annotated

from pydantic import SerializeAsAny

from atose_ray.encoders.base import Encoder, EncoderConfig
from atose_ray.encoders.coala_cnn import CoalaCNNConfig
from atose_ray.encoders.frames import FramesConfig
from atose_ray.encoders.harmonic_cnn import HarmonicCNNConfig
from atose_ray.encoders.mel_cnn import MelCNNConfig
from atose_ray.encoders.pann_cnn import PannCNNConfig
from atose_ray.encoders.pretrained import PretrainedConfig
from atose_ray.encoders.sample_cnn import SampleCNNConfig
from atose_ray.encoders.tag_sinc_net import TagSincNetConfig
from atose_ray.encoders.vggish import VGGishConfig
from atose_ray.types import ByKind, by_kind

ENCODERS: dict[str, type[EncoderConfig]] = by_kind(
    SampleCNNConfig,
    HarmonicCNNConfig,
    TagSincNetConfig,
    MelCNNConfig,
    PannCNNConfig,
    CoalaCNNConfig,
    VGGishConfig,
    FramesConfig,
    PretrainedConfig,
)
AnyEncoderConfig = Annotated[SerializeAsAny[EncoderConfig], ByKind(ENCODERS)]

__all__ = [
    "CoalaCNNConfig",
    "Encoder",
    "EncoderConfig",
    "FramesConfig",
    "HarmonicCNNConfig",
    "MelCNNConfig",
    "PannCNNConfig",
    "PretrainedConfig",
    "SampleCNNConfig",
    "TagSincNetConfig",
    "VGGishConfig",
]
