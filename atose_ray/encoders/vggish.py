"""VGGish: six 3 x 3 convolutions and three dense layers over 0.96 s of log-mel spectrogram, one vector for each.

Paper: Hershey et al., "CNN Architectures for Large-Scale Audio Classification", ICASSP 2017, in the form that was
published with its weights (tensorflow/models, research/audioset, Apache-2.0): 16 kHz, 64 mels, examples of 96 frames
without overlap, 128 numbers each, 72,141,184 parameters. No BatchNorm, no dropout.

Until 2020 the last layer had a ReLU, which today's code has not: the same weights, other embeddings. AudioTagger (2018)
and the stored features of AudioSet come from the first. `final_relu` says which one is meant.

Behind the net the published features go through a PCA with whitening, are cut to [-2, 2] and stored as 8 bits:
`postprocess: pca`, or `quantised`, which is what data sets of stored frames hold (encoders/frames.py). The rounding
passes the gradient on as it is; as published it has none.

Weights: `init_from` takes the published tensors by their names (`vggish/conv1/weights`, ...), and the two of the PCA
(`pca_eigen_vectors`, `pca_means`) from the same npz."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from atose_ray.audio.mel import VGGISH, LogMel
from atose_ray.encoders.base import Encoder, EncoderConfig
from atose_ray.encoders.frames import BYTE_MIDDLE, from_bytes
from atose_ray.tags.autoencoder import glorot
from atose_ray.types import DataSpec

FRAMES = 96  # of an example
POOLED_CELLS = 6 * 4  # frames by mels that four pools of 2 x 2 leave of 96 by 64
POOL_AFTER = ("conv1", "conv2", "conv3_2", "conv4_2")
CONVS = ("conv1", "conv2", "conv3_1", "conv3_2", "conv4_1", "conv4_2")
PCA_LIMIT = 2.0  # post-processed values lie in [-2, 2]
STEPS_PER_UNIT = 255 / (2 * PCA_LIMIT)
PUBLISHED_NAME = re.compile(r"(?:vggish/)?(?:(?:conv\d|fc1)/)?((?:conv|fc)\d(?:_\d)?)[./](weights|biases)")


class VGGishConfig(EncoderConfig):
    """channels: of the first convolution; the others have 2, 4, 4, 8 and 8 times as many. hidden: of two dense layers.
    embedding: of the last one. The published rate is 16,000 Hz."""

    least_length: ClassVar[int] = VGGISH.samples_for(FRAMES)
    published_length: ClassVar[int] = 160_000

    kind: Literal["vggish"] = "vggish"
    channels: int = Field(default=64, ge=1, le=512)
    hidden: int = Field(default=4096, ge=1, le=16_384)
    embedding: int = Field(default=128, ge=2, le=4096)
    final_relu: bool = False
    postprocess: Literal["none", "pca", "quantised"] = "none"

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the nine layers."""
        return (*(factor * self.channels for factor in (1, 2, 4, 4, 8, 8)), self.hidden, self.hidden, self.embedding)

    def build(self, spec: DataSpec) -> "VGGish":
        return VGGish(self, spec.audio.sample_rate_hz)


class VGGish(Encoder):
    """[B, T] -> [B, embedding], the mean over examples of 0.96 s; what is left behind the last whole one is not heard.
    Buffers: the PCA, which is the identity until weights are loaded."""

    pca_eigen_vectors: torch.Tensor
    pca_means: torch.Tensor

    def __init__(self, config: VGGishConfig, sample_rate_hz: int) -> None:
        super().__init__()
        self.embed_dim, self.min_length = config.embedding, config.least_length
        self.hop_seconds = FRAMES * VGGISH.hop_samples / sample_rate_hz
        self.postprocess = config.postprocess
        self.log_mel = LogMel(VGGISH, sample_rate_hz)
        self.net = VGGishNet(config.widths, config.final_relu)
        if config.postprocess != "none":
            self.register_buffer("pca_eigen_vectors", torch.eye(config.embedding))
            self.register_buffer("pca_means", torch.zeros(config.embedding))

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, S, 96, 64]: the log-mel spectrogram in examples."""
        log_mel_BFM: torch.Tensor = self.log_mel(inputs)
        return log_mel_BFM.unfold(1, FRAMES, FRAMES).transpose(2, 3)

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """[B, S, 96, 64] -> [B, S, E]."""
        clips, steps = features.shape[:2]
        embed_XE: torch.Tensor = self.net(features.flatten(0, 1))
        if self.postprocess != "none":
            with torch.autocast(features.device.type, enabled=False):
                embed_XE = pca(embed_XE.float(), self.pca_eigen_vectors, self.pca_means)
                embed_XE = byte_scale(embed_XE, quantised=self.postprocess == "quantised")
        return embed_XE.view(clips, steps, -1)

    def pool(self, seq_BSE: torch.Tensor) -> torch.Tensor:
        """[B, S, E] -> [B, E]: the mean."""
        return seq_BSE.mean(dim=1)

    def from_published(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """TensorFlow's names and layouts -> ours; tensors that have our names already stay as they are. Optimizer
        slots and a step count are left out, as is a PCA that this config does not use."""
        own: dict[str, torch.Tensor] = {}
        for name, value in tensors.items():
            match = PUBLISHED_NAME.fullmatch(name.removesuffix(":0"))
            if match:
                weight = match[2] == "weights"
                axes = (3, 2, 0, 1) if value.dim() == 4 else (1, 0)
                own[f"net.{match[1]}.{'weight' if weight else 'bias'}"] = value.permute(*axes) if weight else value
            elif name in ("pca_eigen_vectors", "pca_means"):
                if self.postprocess != "none":
                    own[name] = value.float() if name == "pca_eigen_vectors" else value.float().reshape(-1)
            elif "/" not in name and name != "global_step":
                own[name] = value
        return own

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Also of published names (`from_published`)."""
        return super().load_state_dict(self.from_published(state_dict), strict, assign)


class VGGishNet(nn.Module):
    """[X, 96, 64] log-mel examples -> [X, E]. widths: of the nine layers."""

    def __init__(self, widths: Sequence[int], final_relu: bool) -> None:
        super().__init__()
        self.final_relu = final_relu
        channels = (1, *widths[:6])
        for name, before, after in zip(CONVS, channels, channels[1:], strict=False):
            self.add_module(name, glorot(nn.Conv2d(before, after, 3, padding=1)))
        self.fc1_1 = glorot(nn.Linear(POOLED_CELLS * widths[5], widths[6]))
        self.fc1_2 = glorot(nn.Linear(widths[6], widths[7]))
        self.fc2 = glorot(nn.Linear(widths[7], widths[8]))

    def forward(self, mel_XFM: torch.Tensor) -> torch.Tensor:
        x_XCFM = mel_XFM[:, None]
        for name in CONVS:
            x_XCFM = functional.relu(self.get_submodule(name)(x_XCFM))
            if name in POOL_AFTER:
                x_XCFM = functional.max_pool2d(x_XCFM, 2)
        flat = x_XCFM.permute(0, 2, 3, 1).flatten(1)  # frames, mels, channels: as TensorFlow has them
        embed_XE = self.fc2(functional.relu(self.fc1_2(functional.relu(self.fc1_1(flat)))))
        return cast(torch.Tensor, functional.relu(embed_XE) if self.final_relu else embed_XE)


def pca(embed_XE: torch.Tensor, eigen_vectors_EE: torch.Tensor, means_E: torch.Tensor) -> torch.Tensor:
    """[X, E] -> [X, E]: projected, whitened (that is in the vectors), cut to [-2, 2]."""
    return ((embed_XE - means_E) @ eigen_vectors_EE.T).clamp(-PCA_LIMIT, PCA_LIMIT)


def quantise(pca_XE: torch.Tensor) -> torch.Tensor:
    """[X, E] in [-2, 2] -> uint8, as published: cut off, not rounded, so that 0 becomes 127."""
    return ((pca_XE + PCA_LIMIT) * STEPS_PER_UNIT).to(torch.uint8)


def byte_scale(pca_XE: torch.Tensor, quantised: bool) -> torch.Tensor:
    """[X, E] in [-2, 2] -> [X, E] on the scale of stored bytes (encoders/frames.py), with their steps or without."""
    smooth_XE = ((pca_XE + PCA_LIMIT) * STEPS_PER_UNIT - BYTE_MIDDLE) / BYTE_MIDDLE
    if not quantised:
        return smooth_XE
    return smooth_XE + (from_bytes(quantise(pca_XE).float()) - smooth_XE).detach()
