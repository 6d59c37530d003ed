"""What hears: audio in, one vector per clip out. One file per encoder."""

from typing import Annotated

from pydantic import Field

from atose_ray.encoders.base import Encoder, EncoderConfig
from atose_ray.encoders.harmonic_cnn import HarmonicCNNConfig
from atose_ray.encoders.sample_cnn import SampleCNNConfig
from atose_ray.encoders.tag_sinc_net import TagSincNetConfig

EncoderConfigs = Annotated[SampleCNNConfig | HarmonicCNNConfig | TagSincNetConfig, Field(discriminator="kind")]

__all__ = ["Encoder", "EncoderConfig", "EncoderConfigs", "HarmonicCNNConfig", "SampleCNNConfig", "TagSincNetConfig"]
