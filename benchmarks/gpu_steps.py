"""Training step and inference of every encoder on a GPU: as a run executes them, against plain PyTorch.

Three forms of one method with the same weights, in turns in one process: plain float32 eager, plain bfloat16 autocast,
and ours (`training.step.Step`: precision, layout and CUDA graphs as `execution` gives them by default). A round is some
steps on one batch between two waits for the device; a ratio is the median over the rounds, with its range.
`benchmarks/gpu_ladder.py` runs it.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from atose_ray import gpu
from atose_ray.config import ExecutionConfig
from atose_ray.encoders import EncoderConfig, HarmonicCNNConfig, SampleCNNConfig, TagSincNetConfig
from atose_ray.encoders.blocks import BlockKind
from atose_ray.encoders.sample_cnn import SampleBody, SampleBodyConfig
from atose_ray.methods import Method, SupervisedConfig
from atose_ray.optim import AdamConfig
from atose_ray.storage import Store
from atose_ray.training.precision import prepare_for, use_graphs
from atose_ray.training.record import RunFolder
from atose_ray.training.step import Pieces, Step
from atose_ray.types import AudioInput, Batch, DataSpec, TagSet
from benchmarks.plain_encoders import PlainBody
from benchmarks.timing import noise, seconds
from benchmarks.training_step import matmul_flops

TAGS = tuple(f"tag {number}" for number in range(50))
WARM_UP = 5  # calls before the first round: a form may record itself, or allocate
Form = Callable[[], None]


def encoders(quick: bool) -> dict[str, EncoderConfig]:
    """Published sizes, or for a check of the script small ones."""
    small: dict[str, Any] = {"channels": 4, "se_ratio": 1} if quick else {}
    blocks: tuple[BlockKind, ...] = ("rese",) if quick else ("rese", "basic", "se", "res")
    kinds = {block: SampleCNNConfig(block=block, **small) for block in blocks}
    return {
        "harmonic_cnn": HarmonicCNNConfig(channels=4 if quick else 128),
        "tag_sinc_net": TagSincNetConfig(**small),
        **{f"sample_cnn {block}": config for block, config in kinds.items()},
    }


def method_of(config: EncoderConfig) -> Method:
    """A tagger of 50 tags around an encoder."""
    torch.manual_seed(0)
    spec = DataSpec(
        input=AudioInput(sample_rate_hz=16000, clip_samples=config.published_length), tags=TAGS, exclusive=False
    )
    return SupervisedConfig().build(config.build(spec), spec, TagSet(TAGS))


def plain_of(method: Method, config: EncoderConfig) -> Method:
    """The same method with the same weights around the plain form of its encoder."""
    plain = copy.deepcopy(method)
    if isinstance(method.encoder, SampleBody) and isinstance(config, SampleBodyConfig):
        plain._modules["encoder"] = PlainBody(copy.deepcopy(method.encoder), config.dropout)
    return plain


def plain_step(method: Method, batch: Batch, autocast: bool) -> Form:
    """Forward, backward, AdamW as it comes."""
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-4)
    kind = batch.inputs.device.type

    def run() -> None:
        method.train()
        optimizer.zero_grad()
        with torchs_kernels():
            with torch.autocast(kind, torch.bfloat16, enabled=autocast):
                loss = method(batch, "classify")["loss"]
            loss.backward()
        optimizer.step()

    return run


def our_step(method: Method, batch: Batch, folder: Path) -> tuple[Form, Step]:
    """A step as the loop takes it."""
    device = batch.inputs.device
    optimizer = AdamConfig(lr=1e-4).build(method.train_only(("encoder", "classifier")))
    recorded = use_graphs(ExecutionConfig(), device)
    step = Step(method, optimizer, "classify", Pieces(RunFolder(Store(str(folder)))), recorded)

    def run() -> None:
        method.train()
        step(batch, 1e-4)

    return run, step


def plain_inference(method: Method, batch: Batch, autocast: bool) -> Form:
    """Forward in eval mode."""
    kind = batch.inputs.device.type

    @torch.no_grad()
    def run() -> None:
        method.eval()
        with torchs_kernels(), torch.autocast(kind, torch.bfloat16, enabled=autocast):
            method.encoder(batch.inputs)

    return run


@contextmanager
def torchs_kernels() -> Iterator[None]:
    """Without the kernels of this package: what is plain is PyTorch's."""
    devices, gpu.DEVICES = gpu.DEVICES, set()
    try:
        yield
    finally:
        gpu.DEVICES = devices


def timed(form: Form, steps: int, device: str) -> float:
    """Seconds of one call, over `steps` of them."""
    start = seconds(device)
    for _ in range(steps):
        form()
    return (seconds(device) - start) / steps


def kernels_of(form: Form, calls: int = 2) -> dict[str, float]:
    """Kernels of one call, and the share of its time that the GPU computes."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        start = time.perf_counter()
        for _ in range(calls):
            form()
        torch.cuda.synchronize()
        wall = time.perf_counter() - start
    kernels = [event for event in profiler.events() if str(event.device_type).endswith("CUDA")]
    busy = sum(event.time_range.elapsed_us() for event in kernels) / 1e6
    return {"kernels": len(kernels) / calls, "busy": busy / wall}


def compared(forms: dict[str, Form], clips: int, steps: int, rounds: int, device: str) -> dict[str, Any]:
    """Seconds, clips per second and ratios of the forms, `ours` against each other one; on a GPU also what it does."""
    for form in forms.values():
        timed(form, WARM_UP, device)
    turns = [{name: timed(form, steps, device) for name, form in forms.items()} for _ in range(rounds)]
    row: dict[str, Any] = {}
    for name, form in forms.items():
        each_s = statistics.median(turn[name] for turn in turns)
        row[name] = {"seconds": each_s, "clips_per_s": clips / each_s}
        if name != "ours":
            ratios = [turn[name] / turn["ours"] for turn in turns]
            row[f"{name} / ours"] = [statistics.median(ratios), min(ratios), max(ratios)]
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            form()
            row[name] |= {"peak_gib": torch.cuda.max_memory_allocated() / 2**30}
            if name == "ours":  # reading a profile takes as long as a round
                row[name] |= kernels_of(form)
    return row


def measure(name: str, batch_size: int, args: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """Both rows of one encoder at one batch."""
    config, device = encoders(args.quick)[name], args.device
    method = method_of(config)
    plain = plain_of(method, config).to(device)
    autocast = copy.deepcopy(plain)
    batch = Batch(
        noise(batch_size, config.published_length, device),
        (torch.rand(batch_size, len(TAGS), generator=torch.Generator().manual_seed(2)) < 0.1).float().to(device),
        torch.arange(batch_size, device=device),
    )
    method.to(device)
    precision = prepare_for(method, ExecutionConfig(), torch.device(device))
    ours, step = our_step(method, batch, folder)
    forms = {"float32": plain_step(plain, batch, False), "bfloat16": plain_step(autocast, batch, True), "ours": ours}
    row = compared(forms, batch_size, args.steps, args.rounds, device)
    row["graphs"] = "no" if step.graphs is None else step.graphs.reason or "yes"
    if device == "cuda":
        with FlopCounterMode(display=False) as counter:
            forms["float32"]()
        row["share_of_matmul"] = counter.get_total_flops() / row["ours"]["seconds"] / matmul_flops()
    head = {"encoder": name, "batch": batch_size, "precision": precision}
    yield {**head, "what": "training step", **row}

    @torch.no_grad()
    def encode() -> None:
        method.eval()
        method.encoder(batch.inputs)

    forms = {
        "float32": plain_inference(plain, batch, False),
        "bfloat16": plain_inference(autocast, batch, True),
        "ours": encode,
    }
    yield {**head, "what": "inference", **compared(forms, batch_size, args.steps, args.rounds, device)}


def line_of(row: dict[str, Any]) -> str:
    """One row for a person."""
    against = ", ".join(
        f"{name} {row[name][0]:.2f} ({row[name][1]:.2f} to {row[name][2]:.2f})"
        for name in row
        if name.endswith("/ ours")
    )
    ours = row["ours"]
    more = (
        f", {ours['kernels']:.0f} kernels, busy {ours['busy']:.0%}, {ours['peak_gib']:.1f} GiB"
        if "busy" in ours
        else ""
    )
    graphs = f", graphs: {row['graphs']}" if "graphs" in row else ""
    return f"{row['encoder']} b{row['batch']} {row['what']}: {against}; {ours['clips_per_s']:.0f} clips/s{more}{graphs}"
