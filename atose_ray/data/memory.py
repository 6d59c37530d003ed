"""Where the clips of a run are kept: streamed from shards, whole in host memory, or whole on the training's device.

`auto` takes the first that holds:

    device   the run trains on CUDA, and the clips need at most DEVICE_PART of the device memory that is free now
    host     the clips, once per worker of the run on this node, need at most HOST_PART of the host memory that is free
             now, or the run's part of the machine's cores where that is less (a search may fill the others with runs)
    stream   otherwise

In a search, one copy that all trials of a node share comes before `host` and `stream` where Ray's object store has room
for it (runtime/shared.py).

What is needed is the size of the shards, which are not compressed: a few bytes per clip above 2 bytes per sample. A
worker holds the whole train split, for its clips are others every epoch, and its own part of valid. A `host` or
`device` that is asked for by name is refused only when it needs more than is free.
"""

import os
from pathlib import Path
from typing import Literal

import torch

Residency = Literal["auto", "stream", "host", "device"]
DEVICE_PART = 1 / 4
HOST_PART = 1 / 8
CONTEXT_BYTES = 512 << 20  # of a CUDA context with its kernels; torch's allocator does not count it


class ResidencyError(ValueError):
    """The clips cannot be kept where the config says: the message says what is needed and free, and what to do."""


def choose_residency(wanted: Residency, need: int, world: int, device: torch.device) -> Residency:
    """stream, host or device, by the rule above. need: bytes of one worker; world: workers of the run on this node.
    Raises ResidencyError when `wanted` names a place that is too small or is not there."""
    if wanted == "stream":
        return "stream"
    if wanted == "auto":
        if device.type == "cuda" and need <= DEVICE_PART * free_device_bytes(device):
            return "device"
        return "host" if need * world <= host_part(world) * free_host_bytes() else "stream"
    if wanted == "device" and device.type != "cuda":
        raise ResidencyError(
            f"data.residency is device, but this run trains on {device.type}: use data.residency=host or auto"
        )
    copies = world if wanted == "host" else 1
    free = free_host_bytes() if wanted == "host" else free_device_bytes(device)
    if need * copies > free:
        each = f" ({copies} workers of {_size(need)})" if copies > 1 else ""
        raise ResidencyError(
            f"data.residency={wanted} needs {_size(need * copies)}{each}, but {_size(free)} of {wanted} memory is "
            "free; use data.residency=stream or auto, or a smaller data.train_share"
        )
    return wanted


def host_part(world: int) -> float:
    """The part of the free host memory that the `world` workers of a run on one node may take unasked."""
    return min(HOST_PART, world * torch.get_num_threads() / (os.cpu_count() or 1))


def free_device_bytes(device: torch.device) -> int:
    """Free memory of a CUDA device."""
    return int(torch.cuda.mem_get_info(device)[0])


def gpu_memory_held(device: torch.device) -> float:
    """Share of its GPU's memory that this process held at most since the peak was last reset; 0.0 on a CPU. What
    torch's allocator reserved, and CONTEXT_BYTES for the CUDA context beside it."""
    if device.type != "cuda":
        return 0.0
    held = torch.cuda.max_memory_reserved(device) + CONTEXT_BYTES
    return float(min(1.0, held / torch.cuda.get_device_properties(device).total_memory))


def free_host_bytes(root: Path = Path("/")) -> int:
    """Memory a process may still take: what the kernel says is available, or what the control groups leave of it. Page
    cache counts as free, in both. Where the system does not say (not Linux), half of the physical memory."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return max(0, min([free, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> list[int]:
    """Bytes left below the limit of each control group (v1 and v2) that this process is in, up to the outermost."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers in ("", "memory"):
            mount = root / "sys/fs/cgroup" / controllers
            parts = [part for part in path.split("/") if part not in ("", "..")]
            left += [_left(mount.joinpath(*parts[:depth]), bool(controllers)) for depth in range(len(parts) + 1)]
    return [value for value in left if value is not None]


def _left(group: Path, version_1: bool) -> int | None:
    """Bytes left in one control group, or None when it sets no limit (or is another namespace's)."""
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version_1 else ("memory.max", "memory.current")
    try:
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        prefix = "total_" if version_1 else ""
        cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
        limit, used = (int((group / name).read_text()) for name in names)
        return limit - used + cache
    except (OSError, ValueError):  # absent, or "max"
        return None


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
