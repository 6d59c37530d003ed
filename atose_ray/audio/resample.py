"""Resampling block by block: what comes out is what torchaudio's windowed sinc makes of the whole, whatever the blocks.

torchaudio computes one filter per phase, so two rates without a common divisor (48001 and 16000 Hz) cost gigabytes:
there the same filter is evaluated at the points that are needed. And it multiplies with every filter's zeros, nine of
ten taps for 44,100 to 16,000 Hz: there neighbouring filters are cut to where they are not zero, which gives the same
sums in a third of the time.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
import torchaudio

# Of the source: what is shorter is resampled in one piece, what is longer in windows of about this length. Of one
# length, because oneDNN keeps nearly a megabyte for every length of input that it has met.
HOLD_SAMPLES = 1 << 20
# Held back, because a convolution of a few samples rounds otherwise than one of many. So 30 s at 48 kHz are one piece.
BACK_SAMPLES = 3 << 17
FILTER_VALUES = 1 << 22  # the largest table of filters for which torchaudio is asked
LOBES, ROLLOFF = 6, 0.99  # of the windowed sinc: torchaudio's default filter
NEGLIGIBLE = 1e-12  # of a filter's tap: where the window ends, cos(pi / 2) squared is not quite zero
BAND_PHASES = 16  # filters that are multiplied together; with as few as this in all, torchaudio is as fast
_ROWS_TIMES_TAPS = 1 << 18


class Resampler:
    """Mono float32 blocks at `source_hz` -> float32 blocks at `target_hz`; their concatenation does not depend on
    how the source was cut."""

    def __init__(self, source_hz: int, target_hz: int) -> None:
        divisor = math.gcd(source_hz, target_hz)
        self._step_in, self._step_out = source_hz // divisor, target_hz // divisor
        self._reach = math.ceil(LOBES * self._step_in / (min(self._step_in, self._step_out) * ROLLOFF))
        self._direct = self._step_out * (self._step_in + 2 * self._reach) > FILTER_VALUES
        self._window = max(-(-HOLD_SAMPLES // self._step_in), 4) * self._step_in
        self._blocks: list[np.ndarray] = []  # of the source, from sample `_start`, a whole number of steps
        self._start = self._held = self._done = 0  # _done: steps that came out

    def push(self, mono_T: np.ndarray) -> np.ndarray:
        """[T] more of the source -> [T'] that is certain now, often nothing."""
        if self._step_in == self._step_out:
            return mono_T
        self._blocks.append(mono_T)
        self._held += len(mono_T)
        ready = [np.zeros(0, np.float32)]
        while self._held > self._window + BACK_SAMPLES:
            held_T = np.concatenate(self._blocks)
            certain = (self._start + self._window - self._reach) // self._step_in
            ready.append(self._outputs(held_T[: self._window], certain * self._step_out))
            self._done = certain
            keep = max(0, certain - -(-self._reach // self._step_in)) * self._step_in
            self._blocks = [held_T[keep - self._start :].copy()]
            self._start, self._held = keep, len(self._blocks[0])
        return np.concatenate(ready)

    def finish(self) -> np.ndarray:
        """[T'] what is left. Behind its end the source is silent."""
        total = resampled_length(self._start + self._held, self._step_in, self._step_out)
        if self._step_in == self._step_out or total <= self._done * self._step_out:
            return np.zeros(0, np.float32)
        silence_T = np.zeros(self._step_in if self._done else 0, np.float32)  # else torchaudio may drop the last sample
        return self._outputs(np.concatenate([*self._blocks, silence_T]), total)

    def _outputs(self, held_T: np.ndarray, last: int) -> np.ndarray:
        """Output samples from the first that is not out yet to `last` - 1."""
        before = self._start // self._step_in * self._step_out
        first, last = self._done * self._step_out - before, last - before
        if self._direct:
            return _evaluated(held_T, first, last, self._step_in, self._step_out, self._reach)
        if self._step_out > BAND_PHASES:
            return _bands(self._step_in, self._step_out).apply(held_T)[first:last]
        held = torch.from_numpy(held_T)
        out_T: np.ndarray = torchaudio.functional.resample(held, self._step_in, self._step_out).numpy()[first:last]
        return out_T


@dataclass(frozen=True)
class _Bands:
    """torchaudio's filters, one for each phase of the output, in groups without the taps that are zero in all of one.

    groups: first phase, first tap, and the filters, float32 [taps, phases].
    """

    step_in: int
    step_out: int
    width: int
    groups: tuple[tuple[int, int, torch.Tensor], ...]

    def apply(self, held_T: np.ndarray) -> np.ndarray:
        """float32 [T] -> [T'], as torchaudio.functional.resample."""
        steps = len(held_T) // self.step_in + 1
        padded_T = torch.zeros(self.width + len(held_T) + self.width + self.step_in)
        padded_T[self.width : self.width + len(held_T)] = torch.from_numpy(held_T)
        out_SP = torch.empty(steps, self.step_out)
        for phase, tap, filters_KP in self.groups:
            taps, phases = filters_KP.shape
            part_SK = padded_T.as_strided((steps, taps), (self.step_in, 1), tap)  # a view: rows of what is multiplied
            out_SP[:, phase : phase + phases] = part_SK @ filters_KP
        out_T: np.ndarray = out_SP.view(-1).numpy()
        return out_T[: resampled_length(len(held_T), self.step_in, self.step_out)]


@functools.lru_cache(maxsize=8)
def _bands(step_in: int, step_out: int) -> _Bands:
    """The filters between two rates whose common divisor is taken out."""
    whole = torchaudio.transforms.Resample(step_in, step_out, dtype=torch.float32)  # as resampling float32 makes them
    groups = []
    for phase in range(0, step_out, BAND_PHASES):
        filters_PK = whole.kernel[phase : phase + BAND_PHASES, 0]
        tap_N = (filters_PK.abs() > NEGLIGIBLE).any(dim=0).nonzero().flatten()
        first, last = int(tap_N[0]), int(tap_N[-1]) + 1
        groups.append((phase, first, filters_PK[:, first:last].T.contiguous()))
    return _Bands(step_in, step_out, int(whole.width), tuple(groups))


def resampled_length(samples: int, step_in: int, step_out: int) -> int:
    """Samples that resampling gives: those that begin before the source's end.

    torchaudio rounds the quotient to float32 first, which now and then loses the last sample. Shards were cut so:
    it stays so for as long as float32 can count samples.
    """
    exact = -(-samples * step_out // step_in)
    return exact if exact >= 1 << 24 else math.ceil(np.float32(samples * step_out / step_in))


def _evaluated(held_T: np.ndarray, first: int, last: int, step_in: int, step_out: int, reach: int) -> np.ndarray:
    """Output samples `first` to `last` - 1, counted from the beginning of held_T, each by a filter of its own."""
    padded_T = np.concatenate([np.zeros(reach, np.float32), held_T, np.zeros(reach + 2, np.float32)])
    taps = 2 * reach + 2
    windows_TK = np.lib.stride_tricks.sliding_window_view(padded_T, taps)
    base = min(step_in, step_out) * ROLLOFF / step_in  # cut-off as a share of the source's
    rows = max(1, _ROWS_TIMES_TAPS // taps)
    out_T = np.empty(max(0, last - first), np.float32)
    for begin in range(first, last, rows):
        position_T = np.arange(begin, min(begin + rows, last), dtype=np.int64) * step_in
        whole_T, phase_T = np.divmod(position_T, step_out)
        time_TK = base * (np.arange(-reach, reach + 2) - phase_T[:, None] / step_out)
        window_TK = np.cos(np.clip(time_TK / LOBES, -1, 1) * (np.pi / 2)) ** 2
        filter_TK = base * np.sinc(time_TK) * window_TK
        out_T[begin - first : begin - first + len(whole_T)] = np.einsum("tk,tk->t", windows_TK[whole_T], filter_TK)
    return out_T
