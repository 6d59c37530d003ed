"""What a trial shows at every epoch beside its log: its curves as TensorBoard files (`tensorboard --logdir
<study>/trials`), and a log among those of Ray, which Ray's dashboard lists on its Logs page."""

import contextlib
import os
import tempfile
import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter  # type: ignore[import-untyped]
from tensorboardX.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

from atose_ray.storage import Store
from atose_ray.training.record import EpochRecord, RunFolder

BOARD = "tensorboard"


class Board:
    """Appends a run's epochs to a new event file in its folder, where that is a local one, and to `trial-<name>.log` in
    the folder `logs`. Where neither can be written (a full disk) the trial goes on without.

    SummaryWriter would hand the curves to a thread, for whose last epoch its flush() does not wait.
    """

    def __init__(self, folder: RunFolder, name: str, metric: str, logs: Path | None = None) -> None:
        self.metric, self.text = metric, logs and logs / f"trial-{name}.log"
        self.known = {record.epoch for record in folder.epochs()}  # a run that goes on yields its last epoch again
        self.curves, place = None, folder.store.local_path
        if place is not None:
            (place / BOARD / name).mkdir(parents=True, exist_ok=True)
            self.curves = EventsWriter(str(place / BOARD / name / "events"), f".{os.getpid()}.{time.time_ns()}")
        self.write(f"began in {folder.store.uri}" if not self.known else f"goes on after epoch {max(self.known)}")

    def add(self, record: EpochRecord) -> None:
        """One line, and one point of every curve: the validation scores, the objective, the loss and the rate."""
        if record.epoch in self.known:
            return
        if self.curves is not None:
            values = {f"valid/{name}": value for name, value in record.valid.items()}
            values |= {"objective": record.objective, "train/loss": record.train_loss, "train/lr": record.lr}
            values["epoch_seconds"] = record.seconds
            points = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in sorted(values.items())]
            with contextlib.suppress(OSError):
                event = Event(wall_time=record.time, step=record.epoch, summary=Summary(value=points))
                self.curves.write_event(event)
                self.curves.flush()
        self.write(
            f"epoch {record.epoch} ({record.stage}) in {record.seconds:.1f} s: loss {record.train_loss:.4f}, "
            f"{self.metric} {record.valid[self.metric]:.4f}, best {record.objective:.4f}"
        )

    def write(self, text: str) -> None:
        """A line in the log that Ray's dashboard shows."""
        if self.text is None:
            return
        with contextlib.suppress(OSError), self.text.open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def close(self, text: str) -> None:
        """The trial is over, or leaves this process."""
        if self.curves is not None:
            with contextlib.suppress(OSError):
                self.curves.close()
        self.write(text)


def upload_board(folder: RunFolder, name: str, metric: str) -> None:
    """Write the curves of a run that has ended into its folder, where that is object storage: nothing can be appended
    to a file there, so they are made from the log."""
    target, epochs = folder.store.child(BOARD, name), folder.epochs()
    if folder.store.local_path is not None or target.names() or not epochs:
        return
    with tempfile.TemporaryDirectory(prefix="atose-board-") as scratch:
        board = Board(RunFolder(Store(scratch)), name, metric)
        for record in epochs:
            board.add(record)
        board.close("ended")
        for file in Path(scratch, BOARD, name).iterdir():
            target.write(file.name, file.read_bytes())
