"""What a run goes on with, and the weights of its best epoch. Nothing here unpickles objects.

A checkpoint holds what its stage trains: those weights, the optimizer's state, and how far the training has come. What
the stage leaves as it is (a frozen encoder) stands once in the run folder, in a file named by its content.

A checkpoint is of a number of steps, not of an epoch. That of an epoch's last step is written in the background while
the epoch is validated; then the epoch's line goes into the log, and its weights into best.safetensors last, so that
they are always of an epoch on record. An epoch that is neither the best so far nor the last of its stage goes without a
checkpoint when the one before is younger than two seconds: a run that goes on trains such epochs, which stand in the
log already, again from there, and leaves the log as it is. On a CPU that is the same training to the bit."""

import contextlib
import hashlib
import io
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from atose_ray.methods import Method
from atose_ray.ranks import is_main
from atose_ray.storage import Store
from atose_ray.training.record import BEST_WEIGHTS, CHECKPOINT, EPOCH_WEIGHTS, FROZEN, EpochRecord, RunFolder

RARELY_S = 2.0  # epochs that follow each other faster do not all write a checkpoint
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Position:
    """How far a training has come. epochs: that are behind it; step: updates of the next one, of so many `steps`;
    loss: the sum of their losses on rank 0; seconds: that they took; dropout: the random generators' states of every
    rank after them, where they are in the middle of an epoch."""

    epochs: int = 0
    step: int = 0
    steps: int = 1
    loss: float = 0.0
    seconds: float = 0.0
    dropout: tuple[tuple[torch.Tensor, ...], ...] = ()

    @property
    def trained(self) -> int | None:
        """The epoch whose training has just ended, if one has."""
        return self.epochs + 1 if self.step == self.steps else None if self.step else self.epochs


class Checkpoints:
    """Writes a run's checkpoints, by a thread of its own, one at a time. Used as a context: its end waits for the last.

    trained: names of the parts that the current stage trains."""

    def __init__(self, folder: RunFolder, method: Method) -> None:
        self.folder, self.method = folder, method
        self.trained: tuple[str, ...] = ()
        self.frozen: str | None = None
        self.known = False  # whether `frozen` is that of this stage
        self.begun = time.monotonic() - 2 * RARELY_S  # of the last one
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self.writing: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(Exception) if error[0] is not None else contextlib.nullcontext():
            self.wait()
        self.thread.shutdown()

    def begin_stage(self, trained: tuple[str, ...]) -> None:
        """From here on these parts train, and only they."""
        self.wait()
        self.trained, self.known = trained, False

    @property
    def age(self) -> float:
        """Seconds since the last checkpoint, or since the run began in this process."""
        return time.monotonic() - self.begun

    def save(self, position: Position, optimizer: dict[str, Any]) -> None:
        """Begin to write the checkpoint of this moment; what may train on is copied. optimizer: its state, as
        `Step.state_dict` has it. Waits for the one before, and raises what that raised. A run that was ended meanwhile
        (a pruned trial, whose process hears of it later) stays as it is."""
        self.wait()
        self.begun = time.monotonic()
        state = on_host({"method": self.trained_weights(), "optimizer": optimizer})
        self.writing = self.thread.submit(self._write, position, state)

    def wait(self) -> None:
        """Until the last one is safe. Raises what writing it raised."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            writing.result()

    def trained_weights(self) -> Tensors:
        """The weights and buffers of the parts that train."""
        return {name: value for name, value in self.method.state_dict().items() if self._trains(name)}

    def save_best(self, epoch: int) -> None:
        """Write the weights of this moment as those of the best epoch."""
        self.wait()
        frozen = self._frozen_file()
        self.folder.store.write(BEST_WEIGHTS, as_bytes(self.trained_weights(), epoch, frozen))

    def keep(self, epoch: int, count: int) -> None:
        """Write the weights of this moment as those of an epoch that is kept, of the last `count`."""
        self.wait()
        store = self.folder.store
        store.write(epoch_file(epoch), as_bytes(self.trained_weights(), epoch, self._frozen_file()))
        for old in kept_epochs(store)[:-count]:
            store.delete(epoch_file(old))

    def _trains(self, name: str) -> bool:
        return name.partition(".")[0] in self.trained

    def _frozen_file(self) -> str | None:
        """The file of what the stage does not train, written if it is not there; None where there is nothing."""
        if not self.known:
            rest = {name: value for name, value in self.method.state_dict().items() if not self._trains(name)}
            self.frozen, self.known = None, True
            if rest:
                content = as_bytes(rest)
                self.frozen = f"{FROZEN}{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
                if not self.folder.store.exists(self.frozen):
                    self.folder.store.write(self.frozen, content)
        return self.frozen

    def _write(self, position: Position, state: dict[str, Any]) -> None:
        if self.folder.ending() is None:
            content = {**vars(position), **state, "frozen": self._frozen_file()}
            buffer = io.BytesIO()
            torch.save(content, buffer)
            self.folder.store.write(CHECKPOINT, buffer.getvalue())


def on_host(tree: Any) -> Any:
    """A copy of a tree of dicts and lists whose tensors lie on the host."""
    if isinstance(tree, torch.Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: on_host(value) for key, value in tree.items()}
    return type(tree)(map(on_host, tree)) if isinstance(tree, (list, tuple)) else tree


def as_bytes(tensors: Tensors, epoch: int | None = None, frozen: str | None = None) -> bytes:
    """A safetensors file. epoch: that the weights are of; frozen: the file that holds the rest of them."""
    kept = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    about = {"epoch": epoch, "frozen": frozen}  # under one key: safetensors writes several in any order
    return bytes(save_tensors(kept, metadata=None if epoch is None else {"about": json.dumps(about)}))


@dataclass(frozen=True)
class Resumed:
    """What a run goes on with. weights: of the whole method. record: of the last epoch, in a checkpoint of before
    (0.1.0), which was written before the epoch's line."""

    position: Position
    weights: Tensors
    optimizer: dict[str, Any]
    record: EpochRecord | None = None

    @property
    def scored(self) -> Tensors:
        """The weights that were scored: their averages, where the stage takes some (training/averaging.py)."""
        return {**self.weights, **self.optimizer.get("average", {}).get("averages", {})}


def last_checkpoint(folder: RunFolder) -> Resumed | None:
    """What the run folder holds to go on with."""
    if not folder.store.exists(CHECKPOINT):
        return None
    state = torch.load(io.BytesIO(folder.store.read(CHECKPOINT)), map_location="cpu", weights_only=True)
    if "record" in state:
        record = EpochRecord.from_json(json.loads(state["record"]))
        return Resumed(Position(record.epoch), state["method"], state["optimizer"], record)
    weights = {**frozen_weights(folder.store, state.pop("frozen")), **state.pop("method")}
    optimizer = state.pop("optimizer")
    return Resumed(Position(**state), weights, optimizer)


def mend_log(folder: RunFolder, resumed: Resumed, metric: str) -> dict[int, EpochRecord]:
    """The epochs on record, by number, of a run that goes on. A crash may have come between a checkpoint, its epoch's
    line and its best weights: rank 0 writes what is missing, unless the run has ended."""
    recorded = {record.epoch: record for record in folder.epochs()}
    writes, record = is_main() and folder.ending() is None, resumed.record
    if record is not None and record.epoch not in recorded:
        recorded[record.epoch] = record
        if writes:
            folder.add_epoch(record)
    epoch, store = resumed.position.trained, folder.store
    if writes and epoch in recorded and folder.best_epoch(metric, tuple(recorded.values())).epoch == epoch:
        content = store.read(BEST_WEIGHTS) if store.exists(BEST_WEIGHTS) else None
        if content is None or epoch_of(content) != epoch:
            store.write(BEST_WEIGHTS, as_bytes(resumed.scored, epoch))
    return recorded


def frozen_weights(store: Store, name: str | None) -> Tensors:
    """What `frozen` of a checkpoint, or of the best weights, stands for."""
    return {} if name is None else load_tensors(store.read(name))


def about_weights(content: bytes) -> tuple[int | None, str | None]:
    """`epoch` and `frozen` of `as_bytes`; None in files of 0.1.0, which say nothing."""
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    known = head.get("__metadata__") or {}
    about = json.loads(known["about"]) if "about" in known else known
    return None if about.get("epoch") is None else int(about["epoch"]), about.get("frozen")


def epoch_of(content: bytes) -> int | None:
    """The epoch that the best weights are of; None where the file does not say."""
    return about_weights(content)[0]


def epoch_file(epoch: int) -> str:
    """The file of the weights of an epoch that is kept."""
    return f"{EPOCH_WEIGHTS}{epoch:06d}.safetensors"


def kept_epochs(store: Store) -> list[int]:
    """The epochs whose weights are in a folder, in order."""
    names = (name for name in store.names() if name.startswith(EPOCH_WEIGHTS))
    return sorted(int(name.removeprefix(EPOCH_WEIGHTS).partition(".")[0]) for name in names)


def keep_epoch(checkpoints: Checkpoints, record: EpochRecord, metric: str, count: int = 0) -> None:
    """Put a finished epoch on record, once its checkpoint is safe, and write the best weights last. A run that was
    ended meanwhile stays as it is. count: of how many last epochs the weights are kept; those of an epoch on record are
    there."""
    checkpoints.wait()
    folder = checkpoints.folder
    if folder.ending() is None:
        if count:
            checkpoints.keep(record.epoch, count)
        folder.add_epoch(record)
        keep_if_best(checkpoints, record.epoch, metric)


def keep_if_best(checkpoints: Checkpoints, epoch: int, metric: str) -> None:
    """Write the best weights, where this epoch is on record and has the best score."""
    epochs = checkpoints.folder.epochs()
    if epochs and checkpoints.folder.best_epoch(metric, epochs).epoch == epoch:
        checkpoints.save_best(epoch)
