"""What a trial shows at every epoch beside its log: Ray's metrics, TensorBoard files, a log in Ray's dashboard.

Prometheus scrapes the gauges of cluster/grafana/metrics.json (with `ray_` in front) from the driver's node; the
dashboard's Logs page lists `trial-<name>.log` on the node that ran the trial.
"""

import contextlib
import time

from ray.util.metrics import Gauge

from atose_ray.runtime.ray_private import logs_folder
from atose_ray.search.board import BOARD, Board
from atose_ray.training.record import EpochRecord, RunFolder

TAGS = ("study", "trial", "metric")
GAUGES = {  # name -> what it is
    "atose_trial_objective": "best value of the search's metric so far, on the validation split",
    "atose_trial_epoch": "epochs done, counted from 1 over all stages",
    "atose_trial_train_loss": "mean training loss of the last epoch",
}


class Gauges:
    """The gauges of a search's trials, set where its driver is told of an epoch."""

    def __init__(self, study: str, metric: str) -> None:
        self.study, self.metric = study, metric
        self.gauges = [Gauge(name, description=text, tag_keys=TAGS) for name, text in GAUGES.items()]

    def __call__(self, trial: str, record: EpochRecord) -> None:
        """Show an epoch of a trial."""
        values = record.objective, record.epoch, record.train_loss
        for gauge, value in zip(self.gauges, values, strict=True):
            gauge.set(float(value), tags={"study": self.study, "trial": trial, "metric": self.metric})


class Shown:
    """What a trial's process shows of each epoch: its log, and its curves where the run folder is a local one.

    Where neither can be written (a full disk) the trial goes on without.
    """

    def __init__(self, folder: RunFolder, name: str, metric: str) -> None:
        self.name, self.metric, self.logs = name, metric, logs_folder()
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
        """A line in the log that Ray's dashboard shows."""
        if self.logs is None:
            return
        with contextlib.suppress(OSError), (self.logs / f"trial-{self.name}.log").open("a", encoding="utf-8") as stream:
            stream.write(f"{time.strftime('%H:%M:%S')} {text}\n")

    def close(self, text: str) -> None:
        """The trial is over, or leaves this process."""
        if self.board is not None:
            with contextlib.suppress(OSError):
                self.board.close()
        self.write(text)
