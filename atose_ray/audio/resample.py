"""Resampling block by block, by libsoxr: the same bits however the source was cut (docs/LOG.md: why not torchaudio)."""

import numpy as np
import soxr

QUALITY = "HQ"  # to 16 kHz: flat up to 7.3 kHz, 140 dB down from 8.1 kHz on; VHQ takes 1.6 times as long


class Resampler:
    """Mono float32 blocks at `source_hz` -> float32 blocks at `target_hz`: of T samples, ceil(T target / source)."""

    def __init__(self, source_hz: int, target_hz: int) -> None:
        self._source_hz, self._target_hz = source_hz, target_hz
        self._stream = soxr.ResampleStream(source_hz, target_hz, 1, dtype="float32", quality=QUALITY)
        self._pushed = self._given = 0

    def push(self, mono_T: np.ndarray) -> np.ndarray:
        """[T] more of the source -> [T'] that is certain now, often nothing."""
        self._pushed += len(mono_T)
        out_T = mono_T if self._source_hz == self._target_hz else self._stream.resample_chunk(mono_T)
        self._given += len(out_T)
        return np.asarray(out_T)

    def finish(self) -> np.ndarray:
        """[T'] what is left. Behind its end the source is silent."""
        left = -(-self._pushed * self._target_hz // self._source_hz) - self._given
        silence_T = np.zeros(self._source_hz // self._target_hz + 1, np.float32)  # else soxr rounds the length down
        return np.asarray(self._stream.resample_chunk(silence_T, last=True)[:left])
