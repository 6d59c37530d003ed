"""A run's curves as TensorBoard files: `tensorboard --logdir <study>/trials` shows them."""

import os
import tempfile
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter  # type: ignore[import-untyped]
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

from atose_ray.training.record import EpochRecord, RunFolder

BOARD = "tensorboard"


class Board:
    """Appends a run's epochs to a new event file in a folder of this machine.

    SummaryWriter would hand them to a thread, for whose last epoch its flush() does not wait.
    """

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
    """Write the curves of a run that has ended into its folder, where that is object storage: nothing can be appended
    to a file there, so they are made from the log."""
    target = folder.store.child(BOARD, name)
    if folder.store.local_path is not None or target.names():
        return
    with tempfile.TemporaryDirectory(prefix="atose-board-") as scratch:
        epochs = folder.epochs()
        board = Board(Path(scratch))
        for record in epochs:
            board.add(record)
        board.close()
        for file in Path(scratch).iterdir() if epochs else ():
            target.write(file.name, file.read_bytes())
