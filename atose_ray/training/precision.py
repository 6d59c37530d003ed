"""In which precision and memory layout encoders compute: decided here, for training, scoring and tagging alike.

Autocast stands in one place, around an encoder's `encode` (encoders/base.py). Heads, losses and optimizers are small
and stay float32, and so do the weights: bfloat16 copies of them live for one forward pass."""

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn

from atose_ray.config import ExecutionConfig
from atose_ray.encoders import Encoder
from atose_ray.encoders.convolution import onednn_has_avx512
from atose_ray.methods import Method
from atose_ray.ranks import world
from atose_ray.training.compiler import lacks_compiler, node_cache
from atose_ray.training.graphs import Graphs

Precision = Literal["float32", "bfloat16"]


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 faster than float32: not where it is only emulated, or oneDNN kept from
    the units by ONEDNN_MAX_CPU_ISA."""
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    # torch's cpuinfo answers; the names are private, but older and newer releases have both.
    has_cpu_units = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and bool(has_cpu_units) and onednn_has_avx512()


def choose(execution: ExecutionConfig, device: torch.device) -> Precision:
    """The precision that `execution` means on a device. Raises ValueError for one that the device lacks."""
    if execution.precision == "auto":
        return "bfloat16" if has_bfloat16(device) else "float32"
    if execution.precision == "bfloat16" and not has_bfloat16(device):
        needs = "compute capability 8.0" if device.type == "cuda" else "AMX or AVX512-BF16"
        raise ValueError(
            f"execution.precision is bfloat16, but this {device.type} device lacks {needs} and would be slower "
            "with it; use auto or float32"
        )
    return execution.precision


def prepare_for(method: Method, execution: ExecutionConfig, device: torch.device) -> Precision:
    """`prepare_encoder` of a method's encoder."""
    return prepare_encoder(method.encoder, execution, device)


def prepare_encoder(encoder: Encoder, execution: ExecutionConfig, device: torch.device) -> Precision:
    """Make an encoder compute as `execution` says, in place. Raises ValueError where the device cannot."""
    precision = choose(execution, device)
    if device.type == "cuda":
        be_deterministic(execution.deterministic)
    if execution.compile is True:
        require_compiler(device)
        with contextlib.suppress(OSError):  # or the compilers keep their things where they are used to
            node_cache()
        encoder.compile()
    encoder.autocast_dtype = torch.bfloat16 if precision == "bfloat16" else None
    encoder.to(memory_format=torch.channels_last if execution.channels_last else torch.contiguous_format)
    recorded = use_graphs(execution, device) and execution.compile is not True
    encoder.replay = Graphs(encoder.compute, functools.partial(tensors_of, encoder)) if recorded else None
    return precision


def tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers."""
    return itertools.chain(module.parameters(), module.buffers())


def use_graphs(execution: ExecutionConfig, device: torch.device) -> bool:
    """Whether steps are recorded as CUDA graphs. Raises ValueError where they must be and cannot."""
    possible = device.type == "cuda" and world() == 1
    if execution.cuda_graphs is True and not possible:
        why = "DDP's own kernels are not recorded" if device.type == "cuda" else f"this run is on {device.type}"
        raise ValueError(f"execution.cuda_graphs is true, but {why}; use auto or false")
    return possible and execution.cuda_graphs is not False


def be_deterministic(wanted: bool) -> None:
    """What PyTorch's GPU kernels of this process are from here on."""
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it with its first handle
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.backends.cudnn.deterministic = wanted


def prepare_to_score(method: Method, execution: ExecutionConfig, device: torch.device) -> Precision:
    """`prepare_for` a model that is only used, maybe elsewhere than it was trained: never refused, never compiled."""
    wanted = "float32" if execution.precision == "float32" else "auto"
    usual = {"precision": wanted, "compile": False, "cuda_graphs": execution.cuda_graphs and "auto"}
    return prepare_for(method, execution.model_copy(update=usual), device)


def require_compiler(device: torch.device) -> None:
    """Raises ValueError where torch.compile would fail at the first batch, for want of a C++ compiler."""
    if device.type == "cpu" and (lack := lacks_compiler(device)):
        raise ValueError(
            f"execution.compile {lack}; install g++ or clang++, name one in CXX, or set execution.compile=false"
        )
