"""An exponential moving average of the weights: what a stage trains is one thing, what is scored and kept another.

    average <- d average + (1 - d) weights after every step, d = min(decay, (1 + n) / (10 + n)) after n steps

Source: Polyak & Juditsky 1992; with a decay, and the ramp by which it forgets the first weights, as in TensorFlow's
ExponentialMovingAverage. The running statistics of BatchNorm are averaged alike. The average of a stage begins with the
stage; at its end it becomes the weights, so that the next stage trains on what was scored."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from atose_ray.methods import Method

Tensors = dict[str, torch.Tensor]


class Average:
    """Of the parts that a stage trains. steps: updates that are in it; averages: name in the method -> mean."""

    def __init__(self, method: Method, parts: Sequence[str], decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.weights: Tensors = {
            name: value.detach()
            for name, value in method.state_dict().items()
            if name.partition(".")[0] in parts and value.is_floating_point()
        }
        self.averages: Tensors = {name: value.clone() for name, value in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the weights of this moment in."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        torch._foreach_lerp_(list(self.averages.values()), list(self.weights.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the method computes with the averages; after it, with its weights."""
        trained = [value.clone() for value in self.weights.values()]
        self.settle()
        try:
            yield
        finally:
            put(self.weights.values(), trained)

    def settle(self) -> None:
        """Make the averages the method's weights."""
        put(self.weights.values(), self.averages.values())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"steps": self.steps, "averages": self.averages}

    def load(self, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.steps = state["steps"]
        put(self.averages.values(), (state["averages"][name] for name in self.averages))


@torch.no_grad()
def put(places: Iterable[torch.Tensor], values: Iterable[torch.Tensor]) -> None:
    """Write the values into the places."""
    for place, value in zip(places, values, strict=True):
        place.copy_(value)
