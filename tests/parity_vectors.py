"""The published code's numbers (shared/parity, see its README), and how its names and layouts become torch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atose_ray.reproduction.vectors import below, error, load_weights, to_torch

__all__ = ["below", "error", "load_weights", "to_torch"]
PARITY = Path(__file__).parents[2] / "shared" / "parity"
FORWARD, GRADIENT = 1e-5, 1e-4  # of the peak


def load(name: str) -> dict[str, torch.Tensor]:
    """All arrays of numbers of one file. Skips the test where the vectors are not at hand."""
    arrays = load_arrays(name)
    numbers = {key: np.atleast_1d(array) for key, array in arrays.items() if array.dtype.kind != "U"}
    return {key: torch.from_numpy(array) for key, array in numbers.items()}


def load_arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of one file, text as well, as numpy has them."""
    path = PARITY / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with np.load(path) as arrays:
        return {key: arrays[key] for key in arrays.files}


def form(shape: tuple[int, ...], stream: int, log2_scale: int, offset: float = 0.0) -> torch.Tensor:
    """The weights that the formula of audiotagger_* and vggish_* gives, bit for bit; i counts the tensor in C order."""
    i, mask = np.arange(np.prod(shape), dtype=np.uint64), np.uint64(0xFFFFFFFF)
    h = (i * np.uint64(2654435761) + np.uint64(stream * 1013904223 % 2**32)) & mask
    h = ((h ^ (h >> np.uint64(16))) * np.uint64(73244475)) & mask
    value = offset + (((h >> np.uint64(24)) % np.uint64(17)).astype(np.float64) - 8) * 2.0 ** -int(log2_scale)
    return torch.from_numpy(value.astype(np.float32).reshape(shape))


def vggish_weights(widths: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The nine layers of vggish_net under TensorFlow's names, in its layouts."""
    numbers, before, tensors = load_arrays("vggish_net"), (1, *widths), {}
    shapes = [(3, 3, before[i], widths[i]) for i in range(6)]
    shapes += [(24 * widths[5], widths[6]), (widths[6], widths[7]), (widths[7], widths[8])]
    for at, (name, shape) in enumerate(zip(numbers["layer_names"].tolist(), shapes, strict=True)):
        for what, of in (("weights", shape), ("biases", shape[-1:])):
            stream, scale = (int(numbers[f"{key}_{what}"][at]) for key in ("stream_id_S", "log2_scale_p"))
            tensors[f"vggish/{name}/{what}"] = form(of, stream, scale)
    return tensors


def assert_close(got: torch.Tensor, want: torch.Tensor, tolerance: float, what: str = "") -> None:
    """The peak-relative error is within `tolerance`."""
    measured = error(got.detach(), want)
    assert measured <= tolerance, f"{what}: error {measured:.2e} of the peak, allowed {tolerance:.0e}"


def assert_gradients(module: nn.Module, wanted: dict[str, torch.Tensor]) -> None:
    """Every trainable parameter has its published gradient."""
    parameters = dict(module.named_parameters())
    gradients = dict(to_torch(name, value) for name, value in wanted.items())
    assert gradients.keys() == parameters.keys()
    for name, want in gradients.items():
        grad = parameters[name].grad
        assert grad is not None, name
        assert_close(grad.float(), want, GRADIENT, name)
