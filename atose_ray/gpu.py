"""Whether kernels of our own, in Triton, take over from PyTorch's for a tensor."""

import functools
import importlib.util

import torch

DEVICES = {"cuda"}  # tests add "cpu", where Triton's interpreter runs the kernels; benchmarks take it away


@functools.cache
def has_triton() -> bool:
    """Whether Triton is there; PyTorch for CUDA brings it on Linux."""
    return importlib.util.find_spec("triton") is not None


def takes_kernels(tensor: torch.Tensor) -> bool:
    """On a GPU with Triton; but a model that is compiled stays with PyTorch, whose compiler sees into its own."""
    return tensor.device.type in DEVICES and has_triton() and not torch.compiler.is_compiling()
