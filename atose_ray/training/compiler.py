"""The compiler of this machine: whether it is there, where its caches lie, what it cost and gained before, and what it
gains for an encoder.

The caches and the record lie in a folder of this user on this node (`ATOSE_CACHE`, else below the system's temporary
folder), which all trials of the node use, at one time too: so the next trial of a kind compiles in seconds."""

import contextlib
import hashlib
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from atose_ray.encoders import Encoder
from atose_ray.gpu import has_triton
from atose_ray.training.graphs import WARM, Graphs

# Seconds to compile, and how much faster a step is then, where nothing is known. CPU: 45 to 230 s and 0.9 to 1.2
# (benchmarks/compile_worth.py); GPU: 41 s and 1.8 for HarmonicCNN on an H100, with PyTorch's own kernels.
ASSUMED = {"cpu": (100.0, 1.05), "cuda": (60.0, 1.3)}
AGAIN = 0.1  # of those seconds, when the caches know it: 0.06 and 0.07 were measured
Form = Callable[[torch.Tensor], torch.Tensor]


def node_cache() -> Path:
    """The folder for what compilers keep, made for this user alone; theirs lie in it unless the environment says
    otherwise. Raises OSError where it cannot be had, or belongs to somebody else."""
    named = os.environ.get("ATOSE_CACHE")
    folder = Path(named) if named else Path(tempfile.gettempdir(), f"atose_ray-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; name a folder of your own in ATOSE_CACHE")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    return folder


def lacks_compiler(device: torch.device) -> str | None:
    """What torch.compile would miss at the first batch; None where it is there."""
    if device.type != "cpu":
        return None if has_triton() else "needs Triton on a GPU, but it is not installed"
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "cl")
    if any(name and shutil.which(name) for name in compilers):
        return None
    return "needs a C++ compiler on a CPU, but none is on the PATH"


class Record:
    """What compiling cost and gained on this node, for one kind of training: JSON lines, appended in one piece each."""

    def __init__(self, kind: Sequence[Any]) -> None:
        self.key = hashlib.sha256(json.dumps([torch.__version__, *kind]).encode()).hexdigest()[:16]
        self.file = node_cache() / "compile.jsonl"

    def lines(self) -> list[dict[str, Any]]:
        """Those of this kind, oldest first."""
        found = []
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return [line for line in found if line["key"] == self.key]

    def add(self, compile_s: float, gain: float) -> None:
        """Append a line. gain: 0 where it could not be compiled."""
        line = json.dumps({"key": self.key, "compile_s": round(compile_s, 3), "gain": round(gain, 4)}) + "\n"
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def expected(self, device: str) -> tuple[float, float]:
        """Seconds to compile and gain, to be expected of the next time."""
        lines = self.lines()
        if not lines:
            return ASSUMED[device]
        seconds = min(line["compile_s"] for line in lines)
        return seconds * (AGAIN if len(lines) == 1 else 1.0), statistics.median(line["gain"] for line in lines)


def compiled(compute: Form) -> Form:
    """The compiled form, anew for every shape. What this process compiled before is forgotten: a reused process would
    come to the compiler's limit of forms of one function."""
    torch.compiler.reset()
    return torch.compile(compute, dynamic=False)


def trial(
    encoder: Encoder, plain: Form, inputs: Sequence[torch.Tensor], recorded: bool, now: Callable[[], float], rounds: int
) -> tuple[Form, float, float]:
    """The compiled form of `plain`, the seconds that compiling took, and those that a training step is shorter by.

    inputs: one of every shape that is compiled; the first is timed. recorded: as CUDA graphs, as the steps are.
    Weights, buffers, gradients and random numbers stay as they are. Raises what the compiler raises."""
    weights = [weight for weight in encoder.parameters() if weight.requires_grad]
    buffers = [(buffer, buffer.clone()) for buffer in encoder.buffers()]

    def passes(form: Form) -> Form:
        def both_ways(inputs: torch.Tensor) -> torch.Tensor:
            loss = form(inputs).square().mean()
            torch.autograd.grad(loss, weights, allow_unused=True)
            return loss.detach()

        return Graphs(both_ways, encoder.buffers) if recorded else both_ways

    def timed(form: Form, inputs: torch.Tensor = inputs[0]) -> float:
        start = now()
        form(inputs)
        return now() - start

    try:
        with torch.random.fork_rng(devices=[inputs[0].device] if inputs[0].device.type == "cuda" else []):
            form = compiled(plain)
            new, old = passes(form), passes(plain)
            first_s = sum(timed(new, one) for one in inputs)
            for _ in range(WARM + 1 if recorded else 1):
                timed(new), timed(old)
            pairs = [(timed(old), timed(new)) for _ in range(rounds)]
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    old_s, new_s = (statistics.median(side) for side in zip(*pairs, strict=True))
    return form, first_s - len(inputs) * new_s, old_s - new_s
