"""torch's optimizers without its compiler: the same numbers, and a process that trains does not import it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import environment

from atose_ray.optim import AdamConfig, OptimizerConfig, SGDConfig
from atose_ray.storage import Store

TRAIN = """
import sys
from atose_ray.config import RunConfig
from atose_ray.training.folds import begin
from atose_ray.training.run import Job
for number, run in enumerate(sys.argv[3:]):
    _, epochs = begin(Job(RunConfig.model_validate_json(run), sys.argv[1], f"{sys.argv[2]}/{number}"))
    print(len(list(epochs)), *({"torch._dynamo", "sympy"} & set(sys.modules)))
"""


def updates(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, count: int) -> list[torch.Tensor]:
    generator, seen = torch.Generator().manual_seed(3), []
    for _ in range(count):
        optimizer.zero_grad()
        (weight * torch.randn(5, generator=generator)).sum().backward()
        optimizer.step()
        seen.append(weight.detach().clone())
    return seen


@pytest.mark.parametrize(
    ("config", "kind", "settings"),
    [
        (AdamConfig(lr=0.1, weight_decay=0.3), torch.optim.AdamW, {}),
        (SGDConfig(lr=0.1, weight_decay=0.3), torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_an_update_is_torchs_to_the_bit_and_so_is_its_state(
    config: OptimizerConfig, kind: type[torch.optim.Optimizer], settings: dict[str, object]
) -> None:
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(3)]
    ours, again = config.build(weights[:1]), config.build(weights[1:2])
    theirs = kind(weights[2:], lr=0.1, weight_decay=0.3, fused=True, **settings)  # type: ignore[call-arg]
    expected = updates(theirs, weights[2], 3)
    assert all(map(torch.equal, updates(ours, weights[0], 3), expected)) and not torch.equal(*expected[:2])
    again.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        weights[1].copy_(weights[2])
    assert torch.equal(updates(again, weights[1], 1)[0], updates(ours, weights[0], 1)[0])
    assert isinstance(ours, kind) and set(ours.state_dict()["state"][0]) == set(theirs.state_dict()["state"][0])


def test_a_process_that_trains_does_not_import_the_compiler(tiny_run, tiny_store: Store, tmp_path: Path) -> None:
    kinds = ("adam", "sgd", "keras_adam", "keras_sgd")
    runs = [tiny_run(optim={"kind": kind}, execution={"compile": False}) for kind in kinds]
    given = [tiny_store.uri, str(tmp_path), *(run.model_dump_json() for run in runs)]
    done = subprocess.run([sys.executable, "-c", TRAIN, *given], env=environment(), capture_output=True, text=True)
    assert done.stdout.splitlines() == [str(runs[0].method.epochs)] * len(kinds), done.stdout + done.stderr
