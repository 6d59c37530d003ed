"""The published code's numbers (shared/parity, see its README), and how its names and layouts become torch's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

PARITY = Path(__file__).parents[2] / "shared" / "parity"
FORWARD, GRADIENT = 1e-5, 1e-4  # of the peak
_NAMES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_KERNEL_AXES = {2: (1, 0), 3: (2, 1, 0), 4: (3, 2, 0, 1)}


def load(name: str) -> dict[str, torch.Tensor]:
    """All arrays of one file. Skips the test where the vectors are not at hand."""
    path = PARITY / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"needs {path}")
    with np.load(path) as arrays:
        return {key: torch.from_numpy(np.atleast_1d(arrays[key])) for key in arrays.files}


def below(arrays: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The arrays under `prefix/`, without it."""
    return {key.removeprefix(f"{prefix}/"): value for key, value in arrays.items() if key.startswith(f"{prefix}/")}


def to_torch(name: str, value: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Name and layout in torch of a published weight, or of its gradient."""
    module, _, leaf = name.rpartition(".")
    if leaf == "kernel":
        value = value.permute(*_KERNEL_AXES[value.dim()])
    return f"{module}.{_NAMES.get(leaf, leaf)}", value


def load_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Fill the whole module from published weights: nothing missing, nothing left over."""
    state = dict(to_torch(name, value) for name, value in weights.items())
    counters = {name: value for name, value in module.state_dict().items() if name.endswith("num_batches_tracked")}
    module.load_state_dict(state | counters, strict=True)


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference over the peak of what is wanted."""
    assert got.shape == want.shape, f"{tuple(got.shape)} instead of {tuple(want.shape)}"
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))


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
