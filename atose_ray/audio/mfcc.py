"""The 120 numbers of a clip that a learned embedding must beat: MFCCs, their changes, mean and variance of each.

Source: the baseline of COALA (Favory et al. 2020) as librosa 0.7.2 computes it: 20 coefficients (window 2048, hop 512,
128 Slaney mels of the power, decibels down to 80 below the peak, DCT-II), first and second derivative by a parabola
over five frames (Savitzky-Golay), ends repeated; of each of the three 20 means and 20 variances over time."""

import numpy as np
import torch
from scipy.fft import dct
from scipy.signal import savgol_filter

from atose_ray.audio.mel import LogMel, LogMelConfig
from atose_ray.types import Array

COEFFICIENTS, WIDTH_FRAMES = 20, 5
RANGE_DB, LEAST_POWER = 80.0, 1e-10
SPECTRUM = LogMelConfig(window_samples=2048, hop_samples=512, mels=128, double=True)


class MFCC:
    """[T] audio of a rate -> [120] float64."""

    def __init__(self, sample_rate_hz: int) -> None:
        self.mel = LogMel(SPECTRUM, sample_rate_hz)

    def __call__(self, audio_T: torch.Tensor) -> Array:
        lacking = SPECTRUM.samples_for(1) - len(audio_T)  # of a clip shorter than half a window
        audio_T = torch.nn.functional.pad(audio_T, (0, max(lacking, 0)))
        power_FM = self.mel.magnitude(audio_T[None])[0].square() @ self.mel.bank_XM
        decibel_FM = 10 * power_FM.clamp_min(LEAST_POWER).log10().numpy()
        decibel_FM = np.maximum(decibel_FM, decibel_FM.max() - RANGE_DB)
        rows_KF = dct(decibel_FM, axis=1, norm="ortho")[:, :COEFFICIENTS].T
        changes = [savgol_filter(rows_KF, WIDTH_FRAMES, order, order, axis=1, mode="nearest") for order in (1, 2)]
        return np.concatenate([of(one, axis=1) for one in (rows_KF, *changes) for of in (np.mean, np.var)])
