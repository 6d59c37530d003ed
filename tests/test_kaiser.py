"""resampy's kaiser_best of two releases, against their numbers (shared/parity: vggish_resample), in any blocks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from parity_vectors import FORWARD, assert_close, load_arrays

from atose_ray.audio.kaiser import KaiserBest

RATES = {"44k1": 44_100, "48k": 48_000, "22k05": 22_050, "8k": 8000}


def resampled(audio_T: np.ndarray, rate: int, release: str, block: int) -> torch.Tensor:
    stream = KaiserBest(rate, 16_000, release)
    parts = [stream.push(audio_T[first : first + block]) for first in range(0, len(audio_T), block)]
    return torch.from_numpy(np.concatenate([*parts, stream.finish()]))


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize("release", ["0.2", "0.4"])
def test_published_numbers(name: str, release: str) -> None:
    arrays = load_arrays("vggish_resample")
    audio_T = arrays[f"{name}/x_int16"].astype(np.float64) / 32768
    wanted = torch.from_numpy(arrays[f"{name}/y_resampy{ {'0.2': '022', '0.4': '043'}[release] }"])
    whole = resampled(audio_T, RATES[name], release, len(audio_T))
    assert_close(whole, wanted, FORWARD)
    for block in (100, 1777):
        assert torch.allclose(resampled(audio_T, RATES[name], release, block), whole, atol=1e-6)
