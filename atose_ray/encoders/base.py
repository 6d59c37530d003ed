"""The contract of an encoder: audio or frames of any length the config allows in, one vector per clip out.

A new encoder is one file with an `EncoderConfig` and an `Encoder`, and one line in `encoders/__init__.py`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from atose_ray.types import Config, DataSpec


class Encoder(nn.Module, ABC):
    """Front end, sequence, pooling: `forward` is all three.

    embed_dim: size E of what comes out. min_length: the shortest input that `forward` takes, in samples or frames;
    longer is fine. hop_seconds: from one step of the sequence to the next; None where there is no time axis, so S = 1.
    autocast_dtype: what all three compute in where that is safe (training/precision.py sets it); None is as it comes.
    Parts of an encoder that need float32 say so themselves. What comes out is float32 either way.
    replay: takes the place of `compute` in inference (training/precision.py sets it: CUDA graphs).
    has_kernels: whether kernels of this package (encoders/fused.py) serve it on a GPU, better than a compiler does."""

    embed_dim: int
    min_length: int
    hop_seconds: float | None = None
    autocast_dtype: torch.dtype | None = None
    replay: Callable[[torch.Tensor], torch.Tensor] | None = None
    has_kernels: ClassVar[bool] = False

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T] float32 in [-1, 1], or [B, F, M] float32 -> [B, E]. Raises ValueError for less than min_length."""
        length = inputs.shape[1]
        if length < self.min_length:
            raise ValueError(
                f"this {type(self).__name__} needs inputs of at least {self.min_length} samples (or frames), but got "
                f"{length}; pad them with zeros, or build the encoder for shorter clips"
            )
        if self.replay is not None and not self.training and not torch.is_grad_enabled():
            return self.replay(inputs)
        return self.compute(inputs)

    def compute(self, inputs: torch.Tensor) -> torch.Tensor:
        """`forward`, unchecked: [B, T] or [B, F, M] float32 -> [B, E] float32."""
        if self.autocast_dtype is None:
            return self.encode(inputs)
        with torch.autocast(inputs.device.type, self.autocast_dtype):
            embed_BE = self.encode(inputs)
        return embed_BE.to(inputs.dtype)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        """What `compute` gives, in the precision it finds: [B, T] or [B, F, M] -> [B, E]."""
        return self.pool(self.sequence(self.front_end(inputs)))

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T] or [B, F, M] -> features, [B, F, M] where they are a spectrogram. Of itself the input."""
        return inputs

    @abstractmethod
    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """Features -> [B, S, E], a vector every `hop_seconds`; [B, 1, E] without a time axis."""

    def pool(self, seq_BSE: torch.Tensor) -> torch.Tensor:
        """[B, S, E] -> [B, E]. Of itself the one step of an encoder without a time axis."""
        return seq_BSE[:, 0]

    def statistics(self, inputs: torch.Tensor) -> torch.Tensor | None:
        """Inputs -> sums over a batch (later over the train split) that `fit` makes buffers of; None fits nothing."""
        return None

    def fit(self, total: torch.Tensor) -> None:
        """Fill the buffers (of a scaler, say) from the sums of `statistics` over the train split."""
        raise NotImplementedError(f"{type(self).__name__} gives statistics, so it must say what follows from them")

    def from_published(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of a published checkpoint under this encoder's names. Of itself as they come."""
        return dict(tensors)


EncoderT = TypeVar("EncoderT", bound=Encoder)


class EncoderConfig(Config):
    """Base of every encoder's config.

    INPUT: what it takes. least_length: the shortest clip that one can be built for, in samples or frames;
    published_length: the crop it was published with.
    bn_momentum: share of a batch in BatchNorm's running statistics (published: 0.01, Keras' 0.99). With fewer than a
    few hundred steps these lag far behind the weights and validation scores with them: then take 0.1."""

    INPUT: ClassVar[Literal["audio", "frames"]] = "audio"
    least_length: ClassVar[int]
    published_length: ClassVar[int]

    kind: str
    bn_momentum: float = Field(default=0.01, gt=0, le=1)

    def build(self, spec: DataSpec) -> Encoder:
        """A freshly initialised encoder for clips of `spec`, which `check` lets pass."""
        raise NotImplementedError

    def check(self, spec: DataSpec) -> None:
        """Raises ValueError when an encoder of this config cannot be built for the input of `spec`."""
        found, least = spec.input, self.least_length
        if found.kind != self.INPUT:
            raise ValueError(
                f"{self.kind} takes {self.INPUT}, but the data set holds {found.kind}; take an encoder for {found.kind}"
            )
        if found.length < least:
            raise ValueError(
                f"{self.kind} needs clips of at least {least} {found.unit} ({least / found.rate_hz:.3g} s at "
                f"{found.rate_hz:g} Hz), but got {found.length}; use longer crops (published: {self.published_length})"
            )

    def with_momentum(self, encoder: EncoderT) -> EncoderT:
        """The encoder with this config's momentum in every BatchNorm."""
        for module in encoder.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = self.bn_momentum
        return encoder
