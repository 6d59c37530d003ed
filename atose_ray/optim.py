"""Optimizers and learning-rate schedules, as configs.

`adam` and `sgd` are torch's. `keras_adam` and `keras_sgd` follow the arithmetic of TF-Keras (2.4 to 2.21), with which
ATOSE / JETATAG (Appl. Sci. 2023, 13(15), 9002) was trained; they differ from torch's where gradients are tiny and where
the learning rate changes. Their weight decay, which the published code does not use, is decoupled."""

import inspect
import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field

from atose_ray.types import Config

PLATEAU_EPOCHS, PLATEAU_FACTOR, PLATEAU_DELTA, PLATEAU_LEAST = 5, 0.2, 1e-4, 1.6e-7


OptimizerT = TypeVar("OptimizerT", bound="OptimizerConfig")


class Eager(torch.optim.Optimizer):
    """Optimizers that torch.compile never sees. torch wraps their methods for it, and the wrappers import it: sympy,
    FSDP and DTensor with it, 4 CPU seconds of every process that trains. These are the methods below the wrappers."""

    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)


class AdamW(Eager, torch.optim.AdamW):
    """torch's."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class SGD(Eager, torch.optim.SGD):
    """torch's."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class OptimizerConfig(Config):
    """What every optimizer has.

    schedule: `constant`, or `cosine` from lr to 0 over the steps of the stage (Loshchilov & Hutter 2017, no restarts),
        or `plateau`: a fifth after every 5 epochs of the stage without a better validation score (`after_plateaus`).
    warmup_steps: linear rise from lr / warmup_steps to lr over the first steps of a stage.
    average: decay of an exponential moving average of the weights, step by step; it is what is scored, kept, and what
        the next stage begins with (training/averaging.py). None scores the weights as they are trained."""

    LATER: ClassVar[tuple[str, ...]] = ("average",)

    lr: float = Field(default=1e-3, gt=0, le=10)
    weight_decay: float = Field(default=0.0, ge=0, le=1)
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    warmup_steps: int = Field(default=0, ge=0)
    average: float | None = Field(default=None, gt=0, lt=1)

    @abstractmethod
    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over `parameters`."""

    def after(self: OptimizerT, scores: Sequence[float]) -> OptimizerT:
        """The optimizer after epochs of a stage with these validation scores: another rate where it follows them."""
        if self.schedule != "plateau":
            return self
        return self.model_copy(update={"lr": after_plateaus(self.lr, [-score for score in scores])})

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of update `step` (from 0) of a stage of `steps` updates."""
        factor = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.schedule == "cosine":
            factor *= 0.5 * (1 + math.cos(math.pi * min(step / max(steps, 1), 1.0)))
        return self.lr * factor


def after_plateaus(lr: float, losses: Sequence[float]) -> float:
    """The learning rate after epochs with these values, the lower the better: times 0.2 after 5 in a row that were not
    better by 1e-4, down to 1.6e-7. Keras' ReduceLROnPlateau as Choi et al. 2019 (zero-shot tagging) set it."""
    best, waited = math.inf, 0
    for loss in losses:
        best, waited = (loss, 0) if loss < best - PLATEAU_DELTA else (best, waited + 1)
        if waited == PLATEAU_EPOCHS:
            lr, waited = max(lr * PLATEAU_FACTOR, min(lr, PLATEAU_LEAST)), 0
    return lr


class AdamConfig(OptimizerConfig):
    """Adam (Kingma & Ba 2015); with weight decay it is AdamW (decoupled)."""

    kind: Literal["adam"] = "adam"

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        weights = list(parameters)
        return AdamW(weights, lr=self.lr, weight_decay=self.weight_decay, fused=can_fuse(weights))


class MomentumConfig(OptimizerConfig):
    """What both forms of stochastic gradient descent have; the published value is 0.9 with Nesterov."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = True


class SGDConfig(MomentumConfig):
    """Stochastic gradient descent with (Nesterov) momentum."""

    kind: Literal["sgd"] = "sgd"

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        weights, nesterov = list(parameters), self.nesterov and self.momentum > 0
        settings: dict[str, Any] = self.model_dump(include={"lr", "momentum", "weight_decay"})
        return SGD(weights, **settings, nesterov=nesterov, fused=can_fuse(weights))


def can_fuse(weights: list[torch.nn.Parameter]) -> bool:
    """Whether torch has one kernel for the whole update where these weights are; it is several times as fast."""
    return all(weight.is_floating_point() and weight.device.type in ("cpu", "cuda") for weight in weights)


class KerasAdamConfig(OptimizerConfig):
    """Adam whose epsilon stands outside the bias correction.

    steps_before: updates that the bias correction counts as done. The published code keeps one Adam for both stages,
        so that its classifier starts after 57,180 of them, with zero moments and no correction."""

    kind: Literal["keras_adam"] = "keras_adam"
    steps_before: int = Field(default=0, ge=0)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return KerasAdam(parameters, self.lr, weight_decay=self.weight_decay, t=self.steps_before)


class KerasSGDConfig(MomentumConfig):
    """SGD whose velocity contains the learning rate: after a drop of the rate the old velocity decays by `momentum`.

    decay: the rate of update n (from 0) of a stage is divided by 1 + decay * n."""

    LATER: ClassVar[tuple[str, ...]] = ("average", "decay")

    kind: Literal["keras_sgd"] = "keras_sgd"
    decay: float = Field(default=0.0, ge=0, le=1)

    def lr_at(self, step: int, steps: int) -> float:
        return super().lr_at(step, steps) / (1 + self.decay * step)

    def build(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return KerasSGD(parameters, **self.model_dump(include={"lr", "momentum", "nesterov", "weight_decay"}))


Tensors = list[torch.Tensor]


def gradient_of(weight: torch.Tensor) -> torch.Tensor:
    """Of a weight that has one."""
    assert weight.grad is not None
    return weight.grad


class KerasOptimizer(Eager):
    """Base of the two: decay, then one `update` per weight that has a gradient. `t` counts the calls of `step`."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float, **settings: Any) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": 0.0, "t": 0, **settings})

    rates: list[torch.Tensor] | None = None  # of each group, on the device: [rate of the update, factor of decay]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of all weights; after `advance` it is made of operations on the device alone."""
        assert closure is None, "these optimizers take the gradients that are there"
        for number, group in enumerate(self.param_groups):
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if self.rates is not None:
                rate, decay = self.rates[number].unbind()
                self.update_together(weights, [gradient_of(weight) for weight in weights], rate, decay, group)
                continue
            group["t"] += 1
            for weight in weights:
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                self.update(weight, weight.grad, self.state[weight], group)

    def advance(self, lr: float) -> None:
        """Count an update, and put what it depends on where a recorded `step` reads it."""
        device = self.param_groups[0]["params"][0].device
        if self.rates is None:
            self.rates = [torch.zeros(2, device=device) for _ in self.param_groups]
        for group, rates in zip(self.param_groups, self.rates, strict=True):
            group["lr"], group["t"] = lr, group["t"] + 1
            rates[0].fill_(self.rate(group))
            rates[1].fill_(1 - lr * group["weight_decay"])

    def rate(self, group: dict[str, Any]) -> float:
        """What update `t` of a group is multiplied with."""
        return float(group["lr"])

    def update(self, weight: torch.Tensor, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Change one weight in place. state: its own; group: the settings."""
        raise NotImplementedError

    def update_together(
        self, weights: Tensors, grads: Tensors, rate: torch.Tensor, decay: torch.Tensor, group: dict[str, Any]
    ) -> None:
        """Change weights in place, as `update` does one by one. rate, decay: 0-dim, on the device."""
        raise NotImplementedError


class KerasAdam(KerasOptimizer):
    """w -= a m / (sqrt(v) + 1e-7), a = lr sqrt(1 - b2^t) / (1 - b1^t); b1 = 0.9, b2 = 0.999."""

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-7

    def update(self, weight: torch.Tensor, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if not state:
            state["m"], state["v"] = torch.zeros_like(weight), torch.zeros_like(weight)
        m, v = state["m"], state["v"]
        m.lerp_(grad, 1 - self.BETA1)
        v.mul_(self.BETA2).addcmul_(grad, grad, value=1 - self.BETA2)
        weight.addcdiv_(m, v.sqrt().add_(self.EPSILON), value=-self.rate(group))

    def rate(self, group: dict[str, Any]) -> float:
        t = group["t"]
        return float(group["lr"] * math.sqrt(1 - self.BETA2**t) / (1 - self.BETA1**t))

    def update_together(
        self, weights: Tensors, grads: Tensors, rate: torch.Tensor, decay: torch.Tensor, group: dict[str, Any]
    ) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight].update(m=torch.zeros_like(weight), v=torch.zeros_like(weight))
        m, v = ([self.state[weight][name] for weight in weights] for name in "mv")
        torch._foreach_lerp_(m, grads, 1 - self.BETA1)
        torch._foreach_mul_(v, self.BETA2)
        torch._foreach_addcmul_(v, grads, grads, 1 - self.BETA2)
        roots = torch._foreach_sqrt(v)
        torch._foreach_add_(roots, self.EPSILON)
        steps = torch._foreach_div(m, roots)
        torch._foreach_mul_(steps, rate)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, decay)
        torch._foreach_sub_(weights, steps)


class KerasSGD(KerasOptimizer):
    """v = momentum v - lr g; w += v, or with Nesterov w += momentum v - lr g."""

    def update(self, weight: torch.Tensor, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        velocity = state.setdefault("velocity", torch.zeros_like(weight))
        velocity.mul_(group["momentum"]).sub_(grad, alpha=group["lr"])
        if group["nesterov"]:
            weight.add_(velocity, alpha=group["momentum"]).sub_(grad, alpha=group["lr"])
        else:
            weight.add_(velocity)

    def update_together(
        self, weights: Tensors, grads: Tensors, rate: torch.Tensor, decay: torch.Tensor, group: dict[str, Any]
    ) -> None:
        velocity = [self.state[weight].setdefault("velocity", torch.zeros_like(weight)) for weight in weights]
        steps = torch._foreach_mul(grads, rate)
        torch._foreach_mul_(velocity, group["momentum"])
        torch._foreach_sub_(velocity, steps)
        if group["weight_decay"]:
            torch._foreach_mul_(weights, decay)
        if group["nesterov"]:
            torch._foreach_add_(weights, velocity, alpha=group["momentum"])
            torch._foreach_sub_(weights, steps)
        else:
            torch._foreach_add_(weights, velocity)


def be_recorded(optimizer: torch.optim.Optimizer, recorded: bool) -> None:
    """Make an optimizer fit to be recorded in a CUDA graph, or as it was: a checkpoint may come from the other kind."""
    for group in optimizer.param_groups:
        lr = float(group["lr"])
        group["lr"] = lr
        if recorded and not isinstance(optimizer, KerasOptimizer):
            group["lr"] = torch.tensor(lr, device=group["params"][0].device)
        if "capturable" in group:
            group["capturable"] = recorded
    if isinstance(optimizer, KerasOptimizer) and not recorded:
        optimizer.rates = None


def set_rate(optimizer: torch.optim.Optimizer, lr: float, recorded: bool) -> None:
    """Before an update: its rate. recorded: whether `be_recorded` made the optimizer so."""
    if recorded and isinstance(optimizer, KerasOptimizer):
        optimizer.advance(lr)
        return
    for group in optimizer.param_groups:
        if recorded:
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


OptimizerConfigs = Annotated[AdamConfig | SGDConfig | KerasAdamConfig | KerasSGDConfig, Field(discriminator="kind")]
