"""SpecAugment: bands and stretches of a spectrogram are hidden while an encoder trains.

Source: Park et al., "SpecAugment: A Simple Data Augmentation Method for Automatic Speech Recognition", Interspeech
2019, without its time warping, which they found to help least. Hidden values become 0: the mean, in a spectrogram that
is scaled. What is hidden is drawn from torch's generator, as dropout is: the loop seeds it by (seed, epoch, rank), and
a checkpoint within an epoch holds how far it has drawn."""

import torch
from pydantic import Field

from atose_ray.types import Config


class SpecAugmentConfig(Config):
    """mel_masks, time_masks: how many bands and stretches of every clip. mel_share, time_share: the widest one, as a
    share of the bands and of the frames; widths are drawn evenly from 0 on."""

    mel_masks: int = Field(default=2, ge=0, le=16)
    mel_share: float = Field(default=0.15, gt=0, le=1)
    time_masks: int = Field(default=2, ge=0, le=16)
    time_share: float = Field(default=0.15, gt=0, le=1)

    def masked(self, features_BFM: torch.Tensor) -> torch.Tensor:
        """[B, F, M] -> [B, F, M] with zeros in every clip's own places."""
        clips, frames, mels = features_BFM.shape
        hidden_BF = spans(clips, frames, self.time_masks, self.time_share, features_BFM.device)
        hidden_BM = spans(clips, mels, self.mel_masks, self.mel_share, features_BFM.device)
        return features_BFM.masked_fill(hidden_BF[:, :, None] | hidden_BM[:, None], 0)


def spans(clips: int, size: int, masks: int, share: float, device: torch.device) -> torch.Tensor:
    """bool [clips, size]: the union of `masks` random spans of every row, each up to `share` of it wide."""
    width_BK, place_BK = torch.rand(2, clips, masks, device=device)
    width_BK = (width_BK * (share * size + 1)).floor()
    start_BK = (place_BK * (size - width_BK + 1)).floor()
    index_X = torch.arange(size, device=device)
    inside_BKX = (index_X >= start_BK[..., None]) & (index_X < (start_BK + width_BK)[..., None])
    hidden_BX: torch.Tensor = inside_BKX.any(dim=1)
    return hidden_BX
