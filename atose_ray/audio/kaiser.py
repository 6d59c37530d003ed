"""Resampling as resampy's `kaiser_best` has it (McFee, ISC), with which VGGish's published front end gets its 16 kHz.

Two filters bear that name: that of releases before 0.3, from which the published features and tagger are, and today's.
They differ by 1.5 to 3 % of the peak. The older one adds up its times, whose rounding decides between two samples.
Everything but the published tagger goes through resample.py."""

import math
from typing import Literal, NamedTuple

import numpy as np

from atose_ray.types import Array

BLOCK = 4096  # samples that come out at a time


class Filter(NamedTuple):
    """A sinc of so many zeros, each of them sampled steps times, cut off at rolloff of the lower rate, in a Kaiser
    window of beta."""

    zeros: int
    steps: int
    rolloff: float
    beta: float


FILTERS = {
    "0.2": Filter(64, 1 << 9, 0.9475937167399596, 14.769656459379492),
    "0.4": Filter(50, 1 << 13, 0.917347306, 12.9846),
}


class KaiserBest:
    """Mono blocks at `source_hz` -> float32 blocks at `target_hz`: of T samples, floor(T target / source)."""

    def __init__(self, source_hz: int, target_hz: int, release: Literal["0.2", "0.4"] = "0.2") -> None:
        common = math.gcd(source_hz, target_hz)
        self._up, self._down = target_hz // common, source_hz // common
        self._weights_PX, self._before = weights(self._up, self._down, FILTERS[release])
        self._held_T = np.zeros(self._before, np.float64)  # from sample `_begin - before` of the source on
        self._begin = self._pushed = self._given = 0
        self._adds_up, self._time = release == "0.2", 0.0

    def push(self, mono_T: Array) -> Array:
        """[T] more of the source -> [T'] that is certain now."""
        self._pushed += len(mono_T)
        self._held_T = np.concatenate([self._held_T, mono_T])
        behind = self._weights_PX.shape[1] - self._before
        certain = (max(self._pushed - behind, 0) * self._up) // self._down
        return self._until(certain)

    def finish(self) -> Array:
        """[T'] what is left. Behind its end the source is silent."""
        self._held_T = np.concatenate([self._held_T, np.zeros(self._weights_PX.shape[1] + 1)])
        return self._until(self._pushed * self._up // self._down)

    def _until(self, end: int) -> Array:
        parts = [np.zeros(0, np.float32)]
        while self._given < end:
            count = min(end - self._given, BLOCK)
            sample_B, phase_B = self._times(count)
            windows = np.lib.stride_tricks.sliding_window_view(self._held_T, self._weights_PX.shape[1])
            out_B = np.einsum("bx,bx->b", windows[sample_B - self._begin], self._weights_PX[phase_B])
            parts.append(out_B.astype(np.float32))
            self._given += count
        keep = max(self._given * self._down // self._up - 1 - self._begin, 0)
        self._held_T, self._begin = self._held_T[keep:], self._begin + keep
        return np.concatenate(parts)

    def _times(self, count: int) -> tuple[Array, Array]:
        """Of the next samples: the one of the source before each, and at which of `up` places behind it."""
        if not self._adds_up:
            time_B = np.arange(self._given, self._given + count) * self._down
            return time_B // self._up, time_B % self._up
        steps_B = np.full(count + 1, self._down / self._up)
        steps_B[0] = self._time
        time_B = np.cumsum(steps_B)  # one after the other: a time just below a whole sample is still that before it
        self._time = float(time_B[-1])
        sample_B = time_B[:-1].astype(np.int64)
        return sample_B, np.rint((time_B[:-1] - sample_B) * self._up).astype(np.int64)


def weights(up: int, down: int, kind: Filter) -> tuple[Array, int]:
    """float64 [P, X]: what the X samples around each of the up + 1 places from one sample to the next weigh, and how
    many of the X lie before the first of these two. Steps through the filter are whole, as resampy takes them, so that
    the last place is not quite the first one of the next sample."""
    scale, size = min(1.0, up / down), kind.zeros * kind.steps
    table = kind.rolloff * np.sinc(kind.rolloff * np.linspace(0, kind.zeros, size + 1))
    table *= np.kaiser(2 * size + 1, kind.beta)[size:] * scale
    slope = np.diff(table, append=table[-1])
    step = int(scale * kind.steps)
    wing = (size + 1) // step + 1
    weights_PX = np.zeros((up + 1, 2 * wing))
    for phase in range(up + 1):
        part = scale * phase / up
        for side, distance in enumerate((part, scale - part)):
            offset, rest = divmod(distance * kind.steps, 1)
            at = int(offset) + step * np.arange((len(table) - int(offset)) // step)
            here = table[at] + rest * slope[at]
            taps = wing - 1 - np.arange(len(at)) if side == 0 else wing + np.arange(len(at))
            weights_PX[phase, taps] = here
    return weights_PX, wing - 1
