"""CoalaCNN: five strided convolutions over square patches of a log-mel spectrogram.

Paper: Favory, Drossos, Virtanen, Serra, "COALA: Co-Aligned Autoencoders for Learning Semantically Enriched Audio
Representations", 2020 (arXiv:2006.08386), and its published code. 22,000 Hz, 96 Slaney mels, patches of 96 bands and 96
frames (2.23 s), each number scaled by its place in time; five times convolution 4 x 4 of stride 2, BatchNorm, ReLU,
dropout; what is left, 3 x 3 of every channel, is the embedding. 1,052,544 parameters, and the projection behind it,
which belongs to the method, 1,327,104.

Departures: the zeros around a clip are no part of it. They are cut off before the spectrogram is taken, its last patch
may be a partial one, and a patch weighs in the mean what it holds of the clip; so an embedding depends on no padding.
`padding: published` fills clips of up to 10 s to 10 s instead, adds a noise (which is drawn once, not for every clip)
and lets all of that count. The scaler is fitted on the patches of the train split, as published, or is the published
one; an encoder that was trained before keeps its own."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from atose_ray.audio.mel import COALA, LogMel
from atose_ray.encoders.base import Encoder, EncoderConfig
from atose_ray.ranks import rank, sum_over_all_ranks, world
from atose_ray.types import DataSpec, FrameInput, package_yaml

PATCH, BLOCKS, KERNEL = 96, 5, 4
LEFT = PATCH >> BLOCKS  # of a side, after the convolutions
SEARCH_HOP_FRAMES = 12  # between the windows of which the loudest is trained on
PUBLISHED_SECONDS, NOISE = 10, 5e-4
SCALER = "scaler_2X"


class CoalaCNNConfig(EncoderConfig):
    """channels: of every convolution. hop_frames: from one patch to the next. last_patch: whether frames behind the
    last whole patch make one more. padding: masked, or as published (above). pooling: over the patches; mean_max is the
    sum of both. train_patch: all of a crop, or its loudest (published, of whole clips: data.crop_seconds=10). scaler:
    of every frame of a patch, fitted on train, the published one, or none (of frames that are scaled already).

    The published rate is 22,000 Hz: prepare with `--option sample_rate_hz=22000`. Frames are taken as well, if they
    have 96 bins: what `prepare coala_hdf5` makes."""

    least_length: ClassVar[int] = COALA.window_samples
    published_length: ClassVar[int] = COALA.samples_for(PATCH)

    kind: Literal["coala_cnn"] = "coala_cnn"
    bn_momentum: float = Field(default=0.1, gt=0, le=1)
    channels: int = Field(default=128, ge=1, le=2048)
    dropout: float = Field(default=0.25, ge=0, lt=1)
    hop_frames: int = Field(default=PATCH, ge=1, le=PATCH)
    last_patch: Literal["keep", "drop"] = "keep"
    padding: Literal["masked", "published"] = "masked"
    pooling: Literal["mean", "max", "mean_max"] = "mean"
    train_patch: Literal["all", "loudest"] = "all"
    scaler: Literal["fitted", "published", "none"] = "fitted"

    def build(self, spec: DataSpec) -> "CoalaCNN":
        return self.with_momentum(CoalaCNN(self, spec))

    def check(self, spec: DataSpec) -> None:
        """Raises ValueError for too short audio, and for frames of other than 96 bins."""
        if not isinstance(spec.input, FrameInput):
            super().check(spec)
        elif spec.input.bins != PATCH:
            raise ValueError(
                f"coala_cnn takes frames of {PATCH} mel bins, but those of the data set have {spec.input.bins}; "
                "compute others, or prepare the audio"
            )


class CoalaCNN(Encoder):
    """[B, T] or [B, F, 96] -> [B, 9 * channels]. Buffer: scaler_2X, what the frames of a patch are multiplied by, and
    what is added."""

    scaler_2X: torch.Tensor
    extremes_2X: torch.Tensor
    noise_T: torch.Tensor

    def __init__(self, config: CoalaCNNConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config, self.scaled_before = config, False
        rate_hz = spec.input.rate_hz
        self.embed_dim = LEFT * LEFT * config.channels
        if isinstance(spec.input, FrameInput):
            self.log_mel, self.min_length, self.floor = None, 1, 0.0
            self.hop_seconds = config.hop_frames / rate_hz
        else:
            self.log_mel = LogMel(COALA.model_copy(update={"padding": "none"}), int(rate_hz))
            self.min_length, self.floor = config.least_length, float(torch.tensor(COALA.floor).log())
            self.hop_seconds = config.hop_frames * COALA.hop_samples / rate_hz
            noise_T = torch.rand(int(PUBLISHED_SECONDS * rate_hz), generator=torch.Generator().manual_seed(0))
            self.register_buffer("noise_T", NOISE * noise_T.double(), persistent=False)
        published = config.scaler == "published"
        rows = (
            package_yaml(__package__, "coala_scaler.yaml") if published else {"scale": [1] * PATCH, "min": [0] * PATCH}
        )
        self.register_buffer(SCALER, torch.tensor([rows["scale"], rows["min"]], dtype=torch.float32))
        self.register_buffer("extremes_2X", torch.full((2, PATCH), float("inf")), persistent=False)
        self.audio_encoder = conv_blocks(config.channels, config.dropout)
        self.register_load_state_dict_pre_hook(_keep_scaler)  # type: ignore[no-untyped-call]

    def front_end(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, T] -> [B, F, M]: the log-mel spectrogram, not scaled yet; of frames the frames."""
        return self.framed(inputs)[0]

    def framed(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs -> features [B, F, M], and how many frames of each row are of the clip [B]; the others are floor."""
        features_BFM, frames_B = self._spectrogram(inputs)
        place_F = torch.arange(features_BFM.shape[1], device=inputs.device)
        features_BFM = torch.where((place_F < frames_B[:, None])[..., None], features_BFM, self.floor)
        if self.training and self.config.train_patch == "loudest" and len(place_F) > PATCH:
            start_B = loudest(features_BFM)
            within_BF = start_B[:, None] + place_F[:PATCH]
            features_BFM = features_BFM.gather(1, within_BF[..., None].expand(-1, -1, features_BFM.shape[2]))
            frames_B = (frames_B - start_B).clamp(1, PATCH)
        return features_BFM, frames_B

    def _spectrogram(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.log_mel is None:
            first_B, length_B = extent((inputs != 0).any(dim=2))
            place_F = (first_B[:, None] + torch.arange(inputs.shape[1], device=inputs.device)) % inputs.shape[1]
            return inputs.gather(1, place_F[..., None].expand_as(inputs)), length_B
        first_B, length_B = extent(inputs != 0)
        published, samples, whole_B = self.config.padding == "published", inputs.shape[1], length_B
        if published:  # what is silent at its start is part of the clip
            first_B, length_B = torch.zeros_like(first_B), first_B + length_B
            samples, whole_B = max(samples, len(self.noise_T)), length_B.clamp_min(len(self.noise_T))
        half = COALA.window_samples // 2
        place_T = torch.arange(-half, samples + half, device=inputs.device)
        from_BT = reflected(place_T, whole_B[:, None])
        sound_BT = inputs.gather(1, (first_B[:, None] + from_BT).clamp_max(inputs.shape[1] - 1)).double()
        sound_BT = sound_BT * (from_BT < length_B[:, None])
        if published:
            noise_BT = self.noise_T[from_BT.clamp_max(len(self.noise_T) - 1)]
            sound_BT = sound_BT + noise_BT * (length_B <= len(self.noise_T))[:, None]
        sound_BT = sound_BT * (place_T < whole_B[:, None] + half)
        return self.log_mel(sound_BT).to(inputs.dtype), 1 + whole_B // COALA.hop_samples

    def patches(self, features_BFM: torch.Tensor) -> torch.Tensor:
        """[B, F, M] -> [B, S, M, 96], not scaled yet; what the last one lacks is floor."""
        frames, hop = features_BFM.shape[1], self.config.hop_frames
        steps = int(self._steps(torch.tensor(frames)))
        lacking = (steps - 1) * hop + PATCH - frames
        features_BFM = functional.pad(features_BFM, (0, 0, 0, max(lacking, 0)), value=self.floor)
        return features_BFM.unfold(1, PATCH, hop)[:, :steps]

    def _steps(self, frames_B: torch.Tensor) -> torch.Tensor:
        """How many patches so many frames give, one at least."""
        beyond_B, hop = (frames_B - PATCH).clamp_min(0), self.config.hop_frames
        return 1 + (beyond_B + (hop - 1 if self.config.last_patch == "keep" else 0)) // hop

    def weights(self, frames_B: torch.Tensor, steps: int) -> torch.Tensor:
        """Frames of the clips [B] -> [B, S]: the share of a patch that is of its clip, 0 behind the clip's last one."""
        step_S = torch.arange(steps, device=frames_B.device)
        covered_BS = (frames_B[:, None] - step_S * self.config.hop_frames).clamp(0, PATCH) / PATCH
        return covered_BS * (step_S < self._steps(frames_B)[:, None])

    def scaled(self, patches_BSMX: torch.Tensor) -> torch.Tensor:
        """Each frame of a patch by its place."""
        scale_X, added_X = self.scaler_2X
        return cast(torch.Tensor, patches_BSMX * scale_X + added_X)

    def of_patches(self, patches_BSMX: torch.Tensor) -> torch.Tensor:
        """Scaled patches [B, S, M, 96] -> [B, S, E]."""
        z: torch.Tensor = self.audio_encoder(patches_BSMX.flatten(0, 1)[:, None])
        return z.reshape(*patches_BSMX.shape[:2], self.embed_dim)

    def sequence(self, features: torch.Tensor) -> torch.Tensor:
        """[B, F, M] -> [B, S, E]."""
        return self.of_patches(self.scaled(self.patches(features)))

    def pool(self, seq_BSE: torch.Tensor, weight_BS: torch.Tensor | None = None) -> torch.Tensor:
        """[B, S, E], and what each patch weighs [B, S] (None: all the same) -> [B, E]."""
        weight_BS = seq_BSE.new_ones(seq_BSE.shape[:2]) if weight_BS is None else weight_BS.to(seq_BSE)
        mean_BE = (seq_BSE * weight_BS[..., None]).sum(dim=1) / weight_BS.sum(dim=1, keepdim=True)
        if self.config.pooling == "mean":
            return mean_BE
        max_BE = seq_BSE.masked_fill(weight_BS[..., None] == 0, -torch.inf).amax(dim=1)
        return max_BE if self.config.pooling == "max" else mean_BE + max_BE

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.embedded(inputs)[0]

    def embedded(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Inputs -> embeddings [B, E], those of the patches [B, S, E], scaled patches [B, S, M, 96], weights [B, S]."""
        features_BFM, frames_B = self.framed(inputs)
        patches_BSMX = self.scaled(self.patches(features_BFM))
        seq_BSE, weight_BS = self.of_patches(patches_BSMX), self.weights(frames_B, patches_BSMX.shape[1])
        return self.pool(seq_BSE, weight_BS), seq_BSE, patches_BSMX, weight_BS

    def with_patches(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`embedded` in the precision that `forward` computes in, as float32."""
        with torch.autocast(inputs.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            found = self.embedded(inputs)
        return tuple(one.to(inputs.dtype) for one in found)

    def statistics(self, inputs: torch.Tensor) -> torch.Tensor:
        """Nothing to add up: extremes are kept here, batch by batch, until `fit` asks the other ranks for theirs."""
        if self.config.scaler == "fitted" and not self.scaled_before:
            patches_BSMX = self.patches(self.framed(inputs)[0]).float()
            seen_2X = torch.stack([patches_BSMX.amin(dim=(0, 1, 2)), -patches_BSMX.amax(dim=(0, 1, 2))])
            self.extremes_2X.copy_(torch.minimum(self.extremes_2X, seen_2X))
        return inputs.new_zeros(1)

    def fit(self, total: torch.Tensor) -> None:
        """The smallest value of a frame in any band becomes 0, the highest 1."""
        if self.config.scaler != "fitted" or self.scaled_before:
            return
        every_R2X = self.extremes_2X.new_zeros(world(), 2, PATCH)
        every_R2X[rank()] = self.extremes_2X
        least_X, minus_most_X = sum_over_all_ranks(every_R2X).amin(dim=0)
        span_X = -minus_most_X - least_X
        scale_X = 1 / torch.where(span_X > 0, span_X, 1.0)
        self.scaler_2X.copy_(torch.stack([scale_X, -least_X * scale_X]))

    def from_published(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Those of the published audio encoder, or of the published CNN, that are this encoder's."""
        named = {f"audio_{key}" if key.startswith("encoder.") else key: value for key, value in tensors.items()}
        return {key: value for key, value in named.items() if key.startswith("audio_encoder.")}


def _keep_scaler(encoder: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Before weights are loaded: a scaler that is not fitted stays, and so does one for which there is no other."""
    assert isinstance(encoder, CoalaCNN)
    if encoder.config.scaler == "fitted" and f"{prefix}{SCALER}" in state:
        encoder.scaled_before = True
    else:
        state[f"{prefix}{SCALER}"] = encoder.scaler_2X.clone()


def conv_blocks(channels: int, dropout: float) -> nn.Sequential:
    """[B, 1, 96, 96] -> [B, channels, 3, 3], under the published names."""
    layers: list[nn.Module] = []
    for before in (1, *[channels] * (BLOCKS - 1)):
        conv = nn.Conv2d(before, channels, KERNEL, stride=2, padding=1)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def extent(sounds_BX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bool [B, X] -> the first True and how many lie from it to the last, [B]; of a row without one all of it."""
    marks_BX = sounds_BX.to(torch.uint8)
    first_B, behind_B = marks_BX.argmax(dim=1), marks_BX.flip(1).argmax(dim=1)
    return first_B, sounds_BX.shape[1] - behind_B - first_B


def reflected(place_T: torch.Tensor, length_B1: torch.Tensor) -> torch.Tensor:
    """Places [T], also before 0 and behind the end -> those in 0 to length - 1 that stand there, [B, T]."""
    period_B1 = (2 * (length_B1 - 1)).clamp_min(1)
    there_BT = place_T % period_B1
    return torch.where(there_BT < length_B1, there_BT, period_B1 - there_BT)


def window_sums(features_BFM: torch.Tensor) -> torch.Tensor:
    """[B, F, M] -> the sum over each window of 96 frames, one every 12 frames."""
    return features_BFM.sum(dim=2).unfold(1, PATCH, SEARCH_HOP_FRAMES).sum(dim=2)


def loudest(features_BFM: torch.Tensor) -> torch.Tensor:
    """[B, F, M] log-mel -> first frame of the window with the highest sum, [B]; of equal ones the first."""
    return window_sums(features_BFM).argmax(dim=1) * SEARCH_HOP_FRAMES
