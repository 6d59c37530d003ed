"""`execution.compile: auto`: an encoder is compiled while it trains where that pays, as measured in the run itself.

The first steps train as they are and are timed. If what compiling is known (from the record of this node) or assumed to
save over the steps that are left is well above its cost, the encoder is compiled aside: forward and backward on the
batch at hand, both forms in turns. Nothing of that reaches the training: buffers and random numbers are put back,
gradients thrown away. So a run that stays plain, for whatever reason, is to the bit the run with `compile: false`.
Where the compiled form is faster it trains from there on; validation stays plain. Its first steps are timed too, and
when they are slower than plain ones were, the run goes back.

A compiled step rounds differently, and a clock decides. So every decision stands in the run's log with the step after
which it holds, written before the next step: a run that goes on does the same after the same step (one that was cut
short before it decided, or before it looked back, does that then). Two runs of one configuration may differ, and with
`execution.deterministic` nothing is compiled. Rank 0 decides for all ranks, and what fails on one none does.

Tested on CPUs. On a GPU this has not run yet: there, steps that are CUDA graphs are recorded anew in either form."""

import platform
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from atose_ray.config import RunConfig
from atose_ray.encoders.convolution import onednn_has_avx512
from atose_ray.gpu import takes_kernels
from atose_ray.methods import Method, MethodConfig
from atose_ray.ranks import from_every_rank, is_main
from atose_ray.training.compiler import Form, Record, lacks_compiler, node_cache, trial
from atose_ray.training.graphs import WARM
from atose_ray.training.notice import StoppedError
from atose_ray.training.record import RunFolder
from atose_ray.training.sync_norm import CrossRankBatchNorm
from atose_ray.types import AnyBatch, Batch

if TYPE_CHECKING:
    from atose_ray.training.step import Step

COMPILE = "compile"  # cause of a note in the log
SKIP, LOOK = WARM + 2, 5  # steps that are not timed (first ones are slow, or recorded as CUDA graphs), and that are
SIZES = 2  # of batches, which an epoch has: its clips are shared out evenly
MARGIN = 2.0  # times its cost is what compiling must save
LEAST_GAIN = 1.03  # less is within what a clock can tell
clock = time.perf_counter


def updates_left(method: MethodConfig, epochs: int, step: int, steps: int) -> int:
    """How many updates of the encoder a run has left after `epochs` epochs and `step` updates, of `steps` an epoch."""
    end, left = 0, 0
    for stage in method.stages:
        start, end = end, end + stage.epochs
        left += max(0, end - max(start, epochs)) if "encoder" in method.trained_parts(stage) else 0
    return left * steps - step


class Compiling:
    """What one training does about it. Steps of stages that train the encoder come through here."""

    def __init__(self, run: RunConfig, method: Method, folder: RunFolder, device: torch.device) -> None:
        self.run, self.encoder, self.folder, self.device = run, method.encoder, folder, device
        self.auto = run.execution.compile == "auto"
        notes = [event for event in folder.events() if event.get("cause") == COMPILE] if self.auto else []
        self.noted = [(tuple(note["after"]), bool(note["on"])) for note in notes]  # what is to come
        self.plain_s = max((note["plain_s"] for note in notes), default=0.0)
        self.looks, self.on = self.auto and [on for _, on in self.noted] in ([], [True]), False
        self.at, self.seconds = (0, 0), list[float]()
        self.sizes, self.shapes = Counter[int](), list[torch.Size]()  # of an epoch's batches; that are compiled
        self.plain: Form = self.encoder.compute
        self.form: Form = self.plain

    def begin(self, epochs: int, step: int, sizes: Sequence[int]) -> None:
        """The next update is the one after `step`, after so many epochs. sizes: of an epoch's batches."""
        self.at, self.sizes = (epochs, step), Counter(sizes)

    def __call__(self, step: "Step", batch: AnyBatch) -> torch.Tensor:
        """One update: its loss."""
        due = [on for after, on in self.noted if self.at >= after]
        if due and isinstance(batch, Batch):
            self.noted = self.noted[len(due) :]
            self._as_noted(step, batch, due[-1])
        self.at = (self.at[0], self.at[1] + 1)
        if self.noted or not self.looks or not isinstance(batch, Batch):
            return step.take(batch)
        began = self._now()
        loss = step.take(batch)
        self.seconds.append(self._now() - began)
        if len(self.seconds) == SKIP + LOOK:
            step_s, self.seconds = statistics.median(self.seconds[SKIP:]), []
            was = self.on
            on, why = self._look_back(step_s) if was else self._decide(step, batch, step_s)
            self._note(on, why)
            self.looks = on and not was
            self._turn(step, on)
        return loss

    def compute(self, inputs: torch.Tensor) -> torch.Tensor:
        """Takes the place of the encoder's `compute` while it is compiled."""
        known = inputs.shape in self.shapes and self.encoder.training and torch.is_grad_enabled()
        return self.form(inputs) if known else self.plain(inputs)

    def _turn(self, step: "Step", on: bool) -> None:
        """Compiled from here on, or plain."""
        if on != self.on:
            self.on = on
            vars(self.encoder).pop("compute", None)
            if on:
                vars(self.encoder)["compute"] = self.compute
            step.record_anew()

    def _as_noted(self, step: "Step", batch: Batch, on: bool) -> None:
        """What the run did here before it was cut short."""
        if on and not self.on:
            error = max(from_every_rank(self._refusal(step, batch.inputs) or self._trial(step, batch.inputs)[2]))
            if error:
                self._note(False, f"it was until here, and the numbers may now round differently: {error}")
                self.noted, self.looks = [], False
            on = not error
        self._turn(step, on)

    def _note(self, on: bool, why: str) -> None:
        """Written before the step that it holds for."""
        if is_main():
            text = f"{'compiled' if on else 'not compiled'}: {why}"
            self.folder.note(COMPILE, text, after=list(self.at), on=on, plain_s=self.plain_s)

    def _decide(self, step: "Step", batch: Batch, step_s: float) -> tuple[bool, str]:
        """Whether to compile, and why; on all ranks the same."""
        if refused := max(from_every_rank(self._refusal(step, batch.inputs))):
            return False, refused
        record = Record(self._kind(step, batch.inputs))
        left = updates_left(self.run.method, *self.at, self.sizes.total())
        (cost_s, gain, self.plain_s), *_ = from_every_rank((*record.expected(self.device.type), step_s))
        saved_s = left * self.plain_s * (1 - 1 / gain) if gain >= LEAST_GAIN else 0.0
        begin = f"{left} steps of {self.plain_s:.3g} s are left, "
        if saved_s < MARGIN * cost_s:
            said = f"{gain:.2f}x as fast after {cost_s:.0f} s" if gain else "but the compiler failed here before"
            return False, begin + f"expected {said}: would save {saved_s:.0f} s" if gain else begin + said
        found = from_every_rank(self._trial(step, batch.inputs))
        compile_s, gain, error = max(f[0] for f in found), min(f[1] for f in found), max(f[2] for f in found)
        if is_main():
            record.add(compile_s, gain)
        return gain >= LEAST_GAIN, error or begin + f"measured {gain:.2f}x as fast after {compile_s:.1f} s"

    def _look_back(self, step_s: float) -> tuple[bool, str]:
        """Whether compiled steps of the training itself are faster."""
        step_s = from_every_rank(step_s)[0]
        return step_s < self.plain_s, f"a compiled step takes {step_s:.3g} s, a plain one took {self.plain_s:.3g} s"

    def _refusal(self, step: "Step", inputs: torch.Tensor) -> str:
        """What speaks against it, whatever it may gain, or ""."""
        if self.run.execution.deterministic:
            return "execution.deterministic asks for the same bits in every run, and here a clock would decide"
        if step.pieces.count > 1:
            return "memory ran out, so batches go in halves"
        if self.encoder.has_kernels and takes_kernels(inputs):
            return "this encoder has kernels of its own on a GPU, which are faster"
        if any(isinstance(module, (CrossRankBatchNorm, nn.SyncBatchNorm)) for module in self.encoder.modules()):
            return "BatchNorm waits for the other ranks in the middle of the encoder"
        if lack := lacks_compiler(self.device):
            return f"torch.compile {lack}"
        try:
            node_cache()
        except OSError as error:
            return f"no folder for the compiler's cache: {error}"
        return ""

    def _kind(self, step: "Step", inputs: torch.Tensor) -> list[Any]:
        """What the compiler's work depends on."""
        on_cpu = self.device.type == "cpu"
        isa = (torch.backends.cpu.get_cpu_capability(), onednn_has_avx512(), torch.get_num_threads())
        name = [platform.machine(), *isa] if on_cpu else torch.cuda.get_device_name(self.device)
        precision = [str(self.encoder.autocast_dtype), self.run.execution.channels_last, step.recorded]
        return [self.run.encoder.model_dump(mode="json"), [*self.sizes.keys(), *inputs.shape[1:]], precision, name]

    def _trial(self, step: "Step", inputs: torch.Tensor) -> tuple[float, float, str]:
        """Seconds to compile, gain of a whole step, and what went wrong (gain 0) or ""."""
        others = [size for size, _ in self.sizes.most_common(SIZES) if size != len(inputs)]
        every = [inputs, *(inputs.new_zeros(size, *inputs.shape[1:]) for size in others)]
        self.shapes = [one.shape for one in every]
        try:
            self.form, compile_s, saved_s = trial(self.encoder, self.plain, every, step.recorded, self._now, LOOK)
        except StoppedError:
            raise
        except Exception as error:  # whatever a compiler raises, the training goes on
            text = (str(error).strip().splitlines() or [""])[0][:300]
            return 0.0, 0.0, f"{type(error).__name__}: {text}"
        return compile_s, self.plain_s / max(self.plain_s - saved_s, 1e-9), ""

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return clock()
