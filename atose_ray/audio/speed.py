"""Rows of sound played faster or slower."""

import numpy as np
import numpy.typing as npt
import torch
from torchaudio.functional import resample


def at_speeds(audio_BT: torch.Tensor, way_B: npt.NDArray[np.int64], share: float) -> torch.Tensor:
    """[B, T], int [B] -> [B, T]: rows of way 1 faster by this share, of -1 slower, of 0 as they are."""
    length, played_BT = audio_BT.shape[1], audio_BT.clone()
    for way in (-1, 1):
        rows = torch.from_numpy(np.flatnonzero(way_B == way)).to(audio_BT.device)
        if len(rows):
            percent = 100 + way * round(100 * share)
            other_RT = resample(audio_BT[rows], percent, 100)
            played_BT[rows] = other_RT.repeat(1, -(-length // other_RT.shape[1]))[:, :length]
    return played_BT
