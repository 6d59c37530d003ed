"""Recorded steps: the bookkeeping with recordings that need no GPU, and, where there is one, CUDA graphs themselves."""

from __future__ import annotations

import io
import os

import pytest
import torch
from torch import nn

from atose_ray.config import ExecutionConfig
from atose_ray.optim import AdamConfig, KerasAdamConfig, KerasSGDConfig, SGDConfig, be_recorded, set_rate
from atose_ray.training import graphs
from atose_ray.training.graphs import SHAPES, WARM, Graphs
from atose_ray.training.loop import fit
from atose_ray.training.precision import be_deterministic, use_graphs
from atose_ray.training.run import Job, open_run
from atose_ray.training.step import NOT_RECORDED

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Training:
    """A small training as a function of two tensors, with dropout, and the losses of its steps."""

    def __init__(self, steps: int = 12) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.batches = [(torch.randn(6, 5), torch.randn(6, 1)) for _ in range(steps)]
        self.calls = 0

    def update(self, x_BX: torch.Tensor, y_B1: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.optimizer.zero_grad()
        loss = (self.model(x_BX) - y_B1).square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def state(self):
        yield from self.model.parameters()
        yield from self.model.buffers()
        for moments in self.optimizer.state.values():
            yield from (value for value in moments.values() if isinstance(value, torch.Tensor))

    def losses(self, step) -> list[float]:
        torch.manual_seed(1)
        return [float(step(*batch)) for batch in self.batches]


class Again:
    """A recording that runs the function again, on inputs it holds. fault: how it is wrong."""

    made = 0

    def __init__(self, function, inputs, fault: str = "") -> None:
        Again.made += 1
        self.function, self.fault = function, fault
        self.inputs = [tensor.clone() for tensor in inputs]

    def replay(self, inputs) -> torch.Tensor:
        if self.fault == "still":
            return torch.zeros(())
        if self.fault == "stale":
            return self.function(*(tensor + 1 for tensor in self.inputs))
        return self.function(*inputs)


@pytest.fixture(autouse=True)
def none_made() -> None:
    Again.made = 0


def test_replayed_steps_are_the_steps() -> None:
    plain, recorded = Training(), Training()
    replaying = Graphs(recorded.update, recorded.state, record=Again)
    assert recorded.losses(replaying) == plain.losses(plain.update)
    assert Again.made == 1 and replaying.reason is None
    assert recorded.calls == len(recorded.batches) + 1  # the first replay is compared with the step itself
    for one, other in zip(recorded.state(), plain.state(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("fault", ["stale", "still"])
def test_a_recording_that_is_wrong_is_not_used(fault: str) -> None:
    """One that reads old inputs, and one that changes nothing: the step's own numbers stay."""
    plain, recorded, said = Training(), Training(), []
    replaying = Graphs(recorded.update, recorded.state, said.append, lambda *given: Again(*given, fault))
    assert recorded.losses(replaying) == plain.losses(plain.update)
    assert said == [replaying.reason] and "its replay differs" in said[0] and Again.made == 1


def test_what_cannot_be_recorded_runs_as_it_is() -> None:
    def refuse(function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    plain, recorded, said = Training(), Training(), []
    replaying = Graphs(recorded.update, recorded.state, said.append, refuse)
    assert recorded.losses(replaying) == plain.losses(plain.update)
    assert said == ["it cannot be recorded: operation not permitted when stream is capturing"]


def test_what_has_no_room_runs_as_it_is() -> None:
    def refuse(function, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    recorded, said = Training(), []
    recorded.losses(Graphs(recorded.update, recorded.state, said.append, refuse))
    assert said == ["its memory does not fit beside the rest"] and recorded.calls == len(recorded.batches)


def test_on_the_host_nothing_is_recorded() -> None:
    """A model made for a GPU, inputs that are not there: a recording would hold nothing, and always say the same."""
    graphs = Graphs(lambda x: x + 1, lambda: ())
    for number in range(WARM + 3):
        assert float(graphs(torch.tensor([float(number)]))) == number + 1
    assert not graphs.recordings and graphs.reason is None


def test_every_shape_has_its_recording_up_to_a_limit() -> None:
    weight = nn.Parameter(torch.ones(1))
    replaying = Graphs(lambda x: (weight * x).detach(), lambda: iter([weight]), record=Again)
    for _ in range(WARM + 2):
        for size in range(1, SHAPES + 3):
            assert torch.equal(replaying(torch.full((size,), 2.0)), torch.full((size,), 2.0))
    assert Again.made == len(replaying.recordings) == SHAPES


def test_weights_that_moved_are_recorded_again() -> None:
    weights = [torch.ones(1)]
    replaying = Graphs(lambda x: weights[0] * x, lambda: iter(weights), record=Again)
    for value in (1.0, 3.0):
        weights[0] = torch.tensor([value])
        assert [float(replaying(torch.ones(1))) for _ in range(WARM + 1)] == [value] * (WARM + 1)
    assert Again.made == 2


def test_a_state_of_counters_alone_did_not_move() -> None:
    assert graphs.distance([torch.tensor(3)], [torch.tensor(0)]) == 0.0
    assert graphs.distance([torch.tensor([3.0, 4.0])], [torch.zeros(2)]) == 5.0


def trained(config, together: bool) -> tuple[list[torch.Tensor], torch.optim.Optimizer]:
    """Two weights after seven updates at two rates."""
    made = torch.Generator().manual_seed(3)
    weights = [nn.Parameter(torch.randn(4, 3, generator=made)), nn.Parameter(torch.randn(7, generator=made))]
    optimizer = config.build(weights)
    for number in range(7):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=made) * 10.0 ** -(2 * number)
        lr = 1e-2 if number < 4 else 1e-3
        if together:
            optimizer.advance(lr)
        else:
            set_rate(optimizer, lr, recorded=False)
        optimizer.step()
    return [weight.detach() for weight in weights], optimizer


@pytest.mark.parametrize(
    "config",
    [
        KerasAdamConfig(),
        KerasAdamConfig(steps_before=20, weight_decay=0.1),
        KerasSGDConfig(weight_decay=0.1),
        KerasSGDConfig(nesterov=False),
    ],
)
def test_keras_updates_on_the_device_are_those_one_by_one(config) -> None:
    (alone, one), (together, other) = trained(config, False), trained(config, True)
    for expected, found in zip(alone, together, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-8)
    assert one.param_groups[0]["t"] == other.param_groups[0]["t"] == config.model_dump().get("steps_before", 0) + 7


@pytest.mark.parametrize("config", [AdamConfig(), SGDConfig(), KerasAdamConfig(), KerasSGDConfig()])
def test_a_checkpoint_of_a_recorded_optimizer_goes_on_unrecorded(config) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = config.build([weight])
    be_recorded(optimizer, True)
    set_rate(optimizer, 0.25, recorded=True)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    other = config.build([nn.Parameter(torch.ones(3))])
    other.load_state_dict(torch.load(buffer, weights_only=True))
    be_recorded(other, False)
    (group,) = other.param_groups
    assert group["lr"] == 0.25 and isinstance(group["lr"], float) and not group.get("capturable")
    group["params"][0].grad = torch.ones(3)
    other.step()
    assert (group["params"][0] < 1).all()


def test_graphs_are_for_a_gpu_and_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert use_graphs(ExecutionConfig(), cuda) and not use_graphs(ExecutionConfig(), CPU)
    assert not use_graphs(ExecutionConfig(cuda_graphs=False), cuda)
    with pytest.raises(ValueError, match="cuda_graphs is true, but this run is on cpu; use auto or false"):
        use_graphs(ExecutionConfig(cuda_graphs=True), CPU)
    monkeypatch.setattr("atose_ray.training.precision.world", lambda: 2)
    assert not use_graphs(ExecutionConfig(), cuda)
    with pytest.raises(ValueError, match="DDP's own kernels are not recorded"):
        use_graphs(ExecutionConfig(cuda_graphs=True), cuda)


def test_deterministic_kernels_are_asked_for_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        be_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        be_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


# ---------------------------------------------------------------- on a GPU

OPTIMIZERS = ["adam", "sgd", "keras_adam", "keras_sgd"]


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("method", ["supervised", "joint_embedding"])
def test_a_recorded_training_is_the_training(kind, method, tiny_run, tiny_store, tmp_path) -> None:
    """Both in float32, with enough steps to replay in each stage; a rate that changes from step to step."""
    scores = []
    for graphed in (False, True):
        execution = {"precision": "float32", "cuda_graphs": graphed, "deterministic": True}
        optim = {"kind": kind, "lr": 1e-3, "schedule": "cosine"}
        run = tiny_run(method, execution=execution, optim=optim)
        opened = open_run(Job(run, tiny_store.uri, str(tmp_path / f"{graphed}")))
        fit(opened.run, opened.method, opened.batches, opened.folder, device=opened.device)
        assert not [event for event in opened.folder.events() if event.get("cause") == NOT_RECORDED]
        scores.append([(epoch.train_loss, epoch.valid["pr_auc_macro"]) for epoch in opened.folder.epochs()])
    for (plain, its_score), (recorded, score) in zip(*scores, strict=True):
        assert recorded == pytest.approx(plain, rel=2e-3)
        assert score == pytest.approx(its_score, abs=0.02)  # of a dozen clips: two that change places are 0.007


@pytest.mark.gpu
@needs_gpu
def test_recorded_inference_is_inference(tiny_run, tiny_store, tmp_path) -> None:
    opened = open_run(Job(tiny_run(execution={"precision": "float32"}), tiny_store.uri, str(tmp_path)))
    encoder = opened.method.to(opened.device).eval().encoder
    batches = [batch.to(opened.device) for batch in opened.batches.train(0)][:2] * (WARM + 2)
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(encoder(batch.inputs), encoder.compute(batch.inputs), rtol=1e-4, atol=1e-5)
    assert encoder.replay.recordings and encoder.replay.reason is None
