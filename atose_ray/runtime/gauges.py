"""What a trial shows at every epoch beside its log: Ray's metrics, TensorBoard files, a log in Ray's dashboard.

Prometheus scrapes the gauges of cluster/grafana/metrics.json (with `ray_` in front) from the driver's node; the
dashboard's Logs page lists `trial-<name>.log` on the node that ran the trial; `tensorboard --logdir <study>/trials`
shows the curves.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ray._private import worker as ray_worker
from ray.util.metrics import Gauge
from tensorboardX.event_file_writer import EventsWriter  # type: ignore[import-untyped]
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

from atose_ray.training.record import EpochRecord, RunFolder

TAGS = ("study", "trial", "metric")
GAUGES = {  # name -> what it is
    "atose_trial_objective": "best value of the search's metric so far, on the validation split",
    "atose_trial_epoch": "epochs done, counted from 1 over all stages",
    "atose_trial_train_loss": "mean training loss of the last epoch",
}
BOARD = "tensorboard"


class Gauges:
    """The gauges of a search's trials, set where its driver hears of an epoch."""

    def __init__(self, study: str, metric: str) -> None:
        self.study, self.metric = study, metric
        self.gauges = {name: Gauge(name, description=text, tag_keys=TAGS) for name, text in GAUGES.items()}

    def set(self, trial: str, result: dict[str, Any]) -> None:
        """result: what a trial reported of an epoch."""
        values = result.get(self.metric), result.get("epoch"), result.get("train_loss")
        for gauge, value in zip(self.gauges.values(), values, strict=True):
            if value is not None:
                gauge.set(float(value), tags={"study": self.study, "trial": trial, "metric": self.metric})


class Board:
    """Appends a run's epochs to a TensorBoard event file in a folder of this machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")

    def add(self, record: EpochRecord) -> None:
        """One point of every curve: the scores of the validation split, the objective, the loss and the rate."""
        values = {f"valid/{name}": value for name, value in record.valid.items()}
        values |= {"objective": record.objective, "train/loss": record.train_loss, "train/lr": record.lr}
        values["epoch_seconds"] = record.seconds
        points = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in sorted(values.items())]
        self.writer.write_event(Event(wall_time=record.time, step=record.epoch, summary=Summary(value=points)))
        self.writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


def upload_board(folder: RunFolder, name: str) -> None:
    """Write the event file of a run that has ended into its folder, where that is object storage: it cannot be
    appended to there, so it is made from the log."""
    epochs = folder.epochs()
    if folder.store.local_path is not None or not epochs:
        return
    target = folder.store.child(BOARD, name)
    if target.names():
        return
    with tempfile.TemporaryDirectory(prefix="atose-board-") as scratch:
        board = Board(Path(scratch))
        for record in epochs:
            board.add(record)
        board.close()
        for file in Path(scratch).iterdir():
            target.write(file.name, file.read_bytes())


class Shown:
    """What a trial's process shows of each epoch: its log, and its curves where the run folder is a local one.

    Where neither can be written (a full disk) the trial goes on without.
    """

    def __init__(self, folder: RunFolder, name: str, metric: str) -> None:
        self.name, self.metric = name, metric
        self.known = {record.epoch for record in folder.epochs()}  # a run that goes on yields its last epoch again
        path = folder.store.local_path
        self.board = Board(path / BOARD / name) if path is not None else None
        self.write(f"began in {folder.store.uri}" if not self.known else f"goes on after epoch {max(self.known)}")

    def epoch(self, record: EpochRecord) -> None:
        """One line, and one point of every curve."""
        if record.epoch in self.known:
            return
        if self.board is not None:
            with contextlib.suppress(OSError):
                self.board.add(record)
        self.write(
            f"epoch {record.epoch} ({record.stage}) in {record.seconds:.1f} s: loss {record.train_loss:.4f}, "
            f"{self.metric} {record.valid[self.metric]:.4f}, best {record.objective:.4f}"
        )

    def write(self, text: str) -> None:
        """A line in the log that Ray's dashboard shows; nothing where no Ray runs."""
        node = ray_worker._global_node
        if node is None:
            return
        stamp = time.strftime("%H:%M:%S")
        path = Path(node.get_logs_dir_path()) / f"trial-{self.name}.log"
        with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as stream:
            stream.write(f"{stamp} {text}\n")

    def close(self, text: str = "") -> None:
        """The trial is over, or leaves this process."""
        if self.board is not None:
            with contextlib.suppress(OSError):
                self.board.close()
            self.board = None
        if text:
            self.write(text)
