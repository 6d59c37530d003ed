"""Whether kernels of our own, in Triton, take over from PyTorch's for a tensor."""

import functools
import importlib
import importlib.util
import warnings

import torch

DEVICES = {"cuda"}  # tests add "cpu", where Triton's interpreter runs the kernels; benchmarks take it away
OLDEST = (8, 0)  # compute capability; run on 9.0


def takes_kernels(tensor: torch.Tensor) -> bool:
    """On an NVIDIA GPU of compute capability 8.0 or more, where Triton works (PyTorch for CUDA brings it on Linux). A
    model that is compiled stays with PyTorch, whose compiler sees into its own kernels."""
    if tensor.device.type not in DEVICES or torch.compiler.is_compiling():
        return False
    return has_triton() if tensor.device.type == "cpu" else why_not(tensor.device) is None


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def why_not(device: torch.device) -> str | None:
    """Why kernels cannot run on a GPU, found by one that does nothing; warns, once, where that costs speed."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(device) < OLDEST:
        return f"they are written for NVIDIA GPUs of compute capability {OLDEST[0]}.{OLDEST[1]} and more"
    if not has_triton():
        reason = "Triton is not installed"
    else:
        try:
            importlib.import_module("atose_ray.gpu_trial").run_on(device)
            return None
        except Exception as error:  # whatever Triton, its compilers and the driver raise
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    warnings.warn(
        f"the GPU kernels of atose_ray are not used but PyTorch's, and steps take about twice as long: {reason}. "
        "Triton needs a C compiler and Python's headers: install gcc and python3-dev.",
        stacklevel=2,
    )
    return reason
