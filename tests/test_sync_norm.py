"""Two workers with half the batch each compute what one computes with the whole: outputs, statistics and gradients."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from atose_ray.config import run_config
from atose_ray.training.sync_norm import CrossRankBatchNorm, synchronise_batch_norm
from atose_ray.types import Batch, DataSpec, TagSet

SPEC = DataSpec(sample_rate_hz=4000, clip_samples=2187, tags=("a", "b", "c"), exclusive=False)
TREE = {
    "encoder": {"kind": "sample_cnn", "block": "basic", "channels": 4},
    "method": {"kind": "supervised", "head": {"kind": "linear"}},
}


def model() -> nn.Module:
    torch.manual_seed(0)
    run = run_config({**TREE, "data": {"crop_seconds": 2187 / 4000}})
    return run.build(SPEC).double()


def batch(rows: slice) -> Batch:
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(8, 2187, generator=generator, dtype=torch.float64)
    tags = (torch.rand(8, 3, generator=generator) < 0.5).double()
    return Batch(audio[rows], tags[rows], torch.arange(8)[rows])


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    method = model().train()
    synchronise_batch_norm(method, torch.device("cpu"))
    wrapped = DistributedDataParallel(method)
    for _ in range(2):  # the second step reads what the first one tracked
        wrapped.zero_grad()
        wrapped(batch(slice(rank, None, 2)), "classify")["loss"].backward()
    if rank == 0:
        gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
        torch.save({"state": method.state_dict(), "gradients": gradients}, f"{folder}/result.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_are_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (str(tmp_path),), nprocs=2)
    result = torch.load(tmp_path / "result.pt")
    method = model().train()
    for _ in range(2):
        method.zero_grad()
        method(batch(slice(None)), "classify")["loss"].backward()
    assert result["state"].keys() == method.state_dict().keys()
    for name, value in method.state_dict().items():
        assert torch.allclose(result["state"][name].double(), value.double(), rtol=1e-9, atol=1e-11), name
    for name, parameter in method.named_parameters():
        assert torch.allclose(result["gradients"][name], parameter.grad, rtol=1e-7, atol=1e-12), name


def test_replacement_keeps_parameters_buffers_and_mode() -> None:
    method = model()
    before = copy.deepcopy(method.state_dict())
    parameters = {id(parameter) for parameter in method.parameters()}
    method.eval()
    synchronise_batch_norm(method, torch.device("cpu"))
    norms = [module for module in method.modules() if isinstance(module, CrossRankBatchNorm)]
    assert norms and not any(norm.training for norm in norms)
    assert {id(parameter) for parameter in method.parameters()} == parameters
    assert all(torch.equal(value, method.state_dict()[name]) for name, value in before.items())
    plain = model().eval()
    data = batch(slice(None))
    scores = [each.score(data, TagSet(each.spec.tags), "classify") for each in (plain, method)]
    assert torch.equal(*scores)
