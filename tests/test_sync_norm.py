"""Two workers with half the batch each compute what one computes with the whole: outputs, statistics and gradients."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from atose_ray.config import run_config
from atose_ray.methods.base import Method
from atose_ray.training.sync_norm import CrossRankBatchNorm, synchronise, synchronise_batch_norm
from atose_ray.types import Batch, DataSpec, TagSet

SPEC = DataSpec(sample_rate_hz=4000, clip_samples=2187, tags=("a", "b", "c"), exclusive=False)
METHODS = {
    "supervised": {"kind": "supervised", "head": {"kind": "linear"}},
    "info_nce": {"kind": "joint_embedding", "latent": 8, "objective": {"kind": "info_nce"}},
    "soft_targets": {"kind": "joint_embedding", "latent": 8, "objective": {"kind": "soft_targets"}},
}
STAGE = {"supervised": "classify", "info_nce": "embed", "soft_targets": "embed"}


def model(name: str = "supervised") -> Method:
    torch.manual_seed(0)
    encoder = {"kind": "sample_cnn", "block": "basic", "channels": 4}
    run = run_config({"encoder": encoder, "method": METHODS[name], "data": {"crop_seconds": 2187 / 4000}})
    method = run.build(SPEC).double()
    method.train_only(run.method.STAGES[STAGE[name]])
    return method


def batch(rows: slice) -> Batch:
    generator = torch.Generator().manual_seed(1)
    audio = torch.randn(8, 2187, generator=generator, dtype=torch.float64)
    tags = (torch.rand(8, 3, generator=generator) < 0.5).double()
    return Batch(audio[rows], tags[rows], torch.arange(8)[rows])


def worker(rank: int, name: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    method = model(name)
    synchronise(method, torch.device("cpu"))
    wrapped = DistributedDataParallel(method)
    for _ in range(2):  # the second step reads what the first one tracked
        wrapped.zero_grad()
        wrapped(batch(slice(rank, None, 2)), STAGE[name])["loss"].backward()
    if rank == 0:
        gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
        torch.save({"state": method.state_dict(), "gradients": gradients}, f"{folder}/result.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "supervised")) for name in METHODS]
)
def test_two_workers_are_one(name: str, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(worker, (name, str(tmp_path)), nprocs=2)
    result = torch.load(tmp_path / "result.pt")
    method = model(name)
    for _ in range(2):
        method.zero_grad()
        method(batch(slice(None)), STAGE[name])["loss"].backward()
    assert result["state"].keys() == method.state_dict().keys()
    for key, value in method.state_dict().items():
        assert torch.allclose(result["state"][key].double(), value.double(), rtol=1e-9, atol=1e-11), key
    trained = [key for key, parameter in method.named_parameters() if parameter.requires_grad]
    assert trained and all(method.get_parameter(key).grad is not None for key in trained)
    for key in trained:
        assert torch.allclose(result["gradients"][key], method.get_parameter(key).grad, rtol=1e-7, atol=1e-12), key


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
