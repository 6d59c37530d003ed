"""A function of tensors as CUDA graphs: recorded once per shape, then replayed with one launch.

At the published batch of 16 a step is a thousand small kernels, and a GPU waits for the host to launch them. A recorded
step has the same kernels on the same numbers. What a recording keeps is the place of every tensor: so whatever changes
from step to step (the batch, the rate) is copied to where the recorded kernels read it, and the weights must stay where
they lie.

Nothing is taken on trust: the first replay of a shape is compared with the function itself, from the same state on. A
function that cannot be recorded (it waits for the device, it allocates on the host), or whose replay differs, is run as
it is from there on, and `reason` says why."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Protocol

import torch

WARM = 3  # calls of a shape before it is recorded: lazy state (moments, library handles) must be there
SHAPES = 4  # that are recorded at most, as each keeps its activations
LOSS_TOLERANCE, CHANGE_TOLERANCE = 1e-2, 0.1  # relative; of the output, and of how far the state moved

Function = Callable[..., torch.Tensor]


class Recording(Protocol):
    """One shape, recorded."""

    def replay(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the function gives for these inputs, in memory of its own."""


class CudaRecording:
    """`function`, recorded on copies of `inputs`. Its kernels do not run yet.

    Raises RuntimeError where it does what a graph cannot hold."""

    def __init__(self, function: Function, inputs: Sequence[torch.Tensor]) -> None:
        self.inputs = [tensor.clone() for tensor in inputs]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):  # other threads read and write files
            self.output = function(*self.inputs)

    def replay(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """One launch, after the inputs were copied to where it reads them."""
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.output.clone()


class Graphs:
    """`function`, replayed where a recording of its inputs' shapes is there.

    state: the tensors that the function reads or changes in place besides its inputs; the first one says where they
    lie. say: hears why nothing is recorded. record: how a shape is (tests record without a GPU)."""

    def __init__(
        self,
        function: Function,
        state: Callable[[], Iterable[torch.Tensor]],
        say: Callable[[str], None] = lambda reason: None,
        record: Callable[[Function, Sequence[torch.Tensor]], Recording] = CudaRecording,
    ) -> None:
        self.function, self.state, self.say, self.record = function, state, say, record
        self.recordings: dict[Hashable, Recording] = {}
        self.seen: Counter[Hashable] = Counter()
        self.reason: str | None = None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """What `function` gives. Raises what it raises."""
        if self.record is CudaRecording and inputs[0].device.type != "cuda":
            return self.function(*inputs)  # a model made for a GPU, and used on the host
        shape = (tuple((tensor.shape, tensor.dtype) for tensor in inputs), self._place())
        if shape in self.recordings:
            return self.recordings[shape].replay(inputs)
        self.seen[shape] += 1
        if self.reason is not None or self.seen[shape] <= WARM or len(self.recordings) >= SHAPES:
            return self.function(*inputs) if self.reason is not None else self._aside(inputs)
        try:
            recording = self.record(self.function, inputs)
        except torch.OutOfMemoryError:
            self._give_up("its memory does not fit beside the rest")
            return self.function(*inputs)
        except RuntimeError as error:
            self._give_up(f"it cannot be recorded: {str(error).strip().splitlines()[0]}")
            return self.function(*inputs)
        return self._checked(shape, recording, inputs)

    def _place(self) -> int:
        """Where the state lies: a model that was moved away and back lies elsewhere."""
        return next((tensor.data_ptr() for tensor in self.state()), 0)

    def _aside(self, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The function itself, on a stream of its own, as torch asks before a recording."""
        if inputs[0].device.type != "cuda":
            return self.function(*inputs)
        stream, main = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(main)
        with torch.cuda.stream(stream):
            output = self.function(*inputs)
        main.wait_stream(stream)
        return output

    def _checked(self, shape: Hashable, recording: Recording, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """The function once more, after a replay from the same state: its output and state are those that stay."""
        device = inputs[0].device
        random = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
        state = [tensor.detach() for tensor in self.state()]
        before = [tensor.clone() for tensor in state]
        replayed = recording.replay(inputs)
        moved = distance(state, before)
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old)
        if device.type == "cuda":
            torch.cuda.set_rng_state(random, device)
        else:
            torch.set_rng_state(random)
        output = self.function(*inputs)
        should = distance(state, before)
        apart = float((replayed.float() - output.float()).abs().max() / output.float().abs().max().clamp_min(1e-12))
        if not (apart <= LOSS_TOLERANCE and abs(moved - should) <= CHANGE_TOLERANCE * max(should, 1e-30)):
            self._give_up(
                f"its replay differs: the output by {apart:.2g}, and the state moved by {moved:.4g}, not {should:.4g}"
            )
        else:
            self.recordings[shape] = recording
        return output

    def _give_up(self, reason: str) -> None:
        self.reason = reason
        self.recordings.clear()
        self.say(reason)


def distance(now: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> float:
    """The Euclidean distance of two states; counters and other integers stay out of it."""
    parts = [
        (one.double() - other.double()).square().sum()
        for one, other in zip(now, before, strict=True)
        if one.is_floating_point()
    ]
    return float(torch.stack([part.cpu() for part in parts]).sum().sqrt()) if parts else 0.0
