"""The run folder: what one training leaves behind. Its log is append-only and the only truth about the run.

config.json        the resolved RunConfig           data_spec.json   the DataSpec its model is built from
about.json         number, name, parameters searched, start time, device, model size
log.jsonl          one line per epoch, per note and one at the end: {"event": "epoch", ...},
                   {"event": "note", "cause", "text"}, {"event": "end", "state", "reason"}. In object storage: one
                   object per writer below log.jsonl.d/ (Store.append_line)
checkpoint.pt      what the run goes on with (training/resume.py). Nothing in it is unpickled but tensors
best.safetensors   weights of the epoch with the best validation score, whose number stands in the file
epoch-*            weights of the last epochs, where the run keeps some (execution.keep_epochs)
frozen-*           weights that a stage does not train, once: by their hash. Those above name the one they need"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atose_ray.evaluation.names import CLIP_NAME
from atose_ray.storage import Store

if TYPE_CHECKING:  # PyTorch is imported where it is needed: a record is read without it
    from atose_ray.config import RunConfig
    from atose_ray.types import DataSpec

LOG = "log.jsonl"
OUT_OF_MEMORY = "out_of_memory"  # cause of the note of a run whose batches went in two halves from then on
EXAMPLES = "examples.json"  # of a model folder: what it gets wrong (training/examples.py)
CHECKPOINT, BEST_WEIGHTS, FROZEN = "checkpoint.pt", "best.safetensors", "frozen-"
EPOCH_WEIGHTS = "epoch-"


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of one run. `epoch` counts from 1 over all stages; `valid` maps metric name to value;
    `objective` is the best value of the run's metric so far; `time` is the Unix time of its end; `protocol` is that of
    all its scores; `gpu_memory` is the share of its GPU's memory that the process held at most, 0 without one;
    `folds`, of a run of all folds, are the objectives of each: scores and objective are then means."""

    epoch: int
    stage: str
    seconds: float
    train_loss: float
    lr: float
    valid: dict[str, float]
    objective: float
    time: float
    protocol: str = CLIP_NAME
    gpu_memory: float = 0.0
    folds: tuple[float, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For the log: `folds` only where there are some."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key != "folds" or value}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "EpochRecord":
        """What `as_json` gave, maybe among other keys."""
        known = {one.name: tree[one.name] for one in dataclasses.fields(cls) if one.name in tree}
        return cls(**{**known, "folds": tuple(known.get("folds", ()))})


@dataclass(frozen=True)
class RunFolder:
    """A run folder in a store."""

    store: Store

    def start(self, run: "RunConfig", spec: "DataSpec", about: dict[str, Any] | None = None) -> None:
        """Write what is known before the first epoch. An earlier start time is kept when a run goes on. about: of a
        run; a folder that holds a model only has none."""
        self.store.write("config.json", run.model_dump_json(indent=1).encode())
        self.store.write("data_spec.json", spec.model_dump_json(indent=1).encode())
        if about is not None:
            self.store.write_json("about.json", {**about, "started": self.about().get("started", time.time())})

    def config(self) -> tuple["RunConfig", "DataSpec"]:
        """config.json and data_spec.json. Raises ValidationError when another version wrote them."""
        from atose_ray.config import RunConfig
        from atose_ray.types import DataSpec

        config, spec = self.store.read("config.json"), self.store.read("data_spec.json")
        return RunConfig.model_validate_json(config), DataSpec.model_validate_json(spec)

    def about(self) -> dict[str, Any]:
        """about.json, or {} before the run started."""
        return dict(self.store.read_json("about.json")) if self.store.exists("about.json") else {}

    def events(self) -> list[dict[str, Any]]:
        """All lines of the log; a last line cut short by a crash is dropped."""
        events = []
        for line in self.store.read_lines(LOG):
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return events

    def epochs(self, events: list[dict[str, Any]] | None = None) -> tuple[EpochRecord, ...]:
        """The finished epochs in order, up to the run's end; of an epoch repeated after a crash the last counts.

        (A worker that is told to stop may finish one more epoch after the end was written.) events: of the log, where
        they are read already."""
        by_epoch: dict[int, EpochRecord] = {}
        for event in self.events() if events is None else events:
            if event["event"] == "end":
                break
            if event["event"] == "epoch":
                by_epoch[event["epoch"]] = EpochRecord.from_json(event)
        return tuple(by_epoch[epoch] for epoch in sorted(by_epoch))

    def best_epoch(self, metric: str, epochs: tuple[EpochRecord, ...] | None = None) -> EpochRecord:
        """The first epoch with the best validation score, whose weights are kept. Raises ValueError for none.
        epochs: of the log, where they are read already."""
        epochs = self.epochs() if epochs is None else epochs
        if not epochs:
            raise ValueError(f"the run in {self.store.uri} has no finished epoch, so it has no model")
        return max(epochs, key=lambda record: (record.valid[metric], -record.epoch))

    def add_epoch(self, record: EpochRecord) -> None:
        """Append an epoch to the log."""
        self.store.append_line(LOG, json.dumps({"event": "epoch", **record.as_json()}, allow_nan=False))

    def checkpoints(self) -> list[str]:
        """The names of its checkpoint and, of a run of all folds, of its folds', as far as they are there."""
        folds = (f"folds/{name}/{CHECKPOINT}" for name in self.store.child("folds").names())
        return [name for name in (CHECKPOINT, *folds) if self.store.exists(name)]

    def note(self, cause: str, text: str, **facts: Any) -> None:
        """Append what happened to the run on its way, for the report. facts: for the run itself, when it goes on."""
        event = {"event": "note", "cause": cause, "text": text, "time": time.time(), **facts}
        self.store.append_line(LOG, json.dumps(event))

    def end(self, state: str, reason: str | None = None) -> None:
        """Append how the run ended: complete, pruned, diverged or failed."""
        self.store.append_line(LOG, json.dumps({"event": "end", "state": state, "reason": reason, "time": time.time()}))

    def ending(self, events: list[dict[str, Any]] | None = None) -> dict[str, Any] | None:
        """The line that says how the run ended, or None while it has not. events: as in `epochs`."""
        return next((event for event in (self.events() if events is None else events) if event["event"] == "end"), None)


def test_scorings(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How often a model folder's test split was scored: a line per winner, oldest first, {"number", "time", "metric",
    "value", "protocol"}. A metrics.json from before they were kept counts as one, at a time that is not known."""
    if "test_scorings" in metrics:
        return list(metrics["test_scorings"])
    if not metrics.get("test"):
        return []
    metric, number = metrics.get("metric", ""), metrics.get("number", 0)
    value = metrics["test"].get(metric)
    return [{"number": number, "time": None, "metric": metric, "value": value, "protocol": metrics["protocol"]}]
