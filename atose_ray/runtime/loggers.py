"""A search in MLflow and Weights & Biases (`search.loggers`; extras `mlflow`, `wandb`), by Ray's own callbacks.

Where it goes and with which key is said by the tools' own environment variables, so that no study holds a key:
MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME; WANDB_PROJECT, WANDB_ENTITY, WANDB_API_KEY, WANDB_MODE, WANDB_DIR. A trial
that goes on goes on in its run. A tool that fails while a search runs is named once and left out: it ends no search.
"""

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ray import tune

from atose_ray.config import ConfigError
from atose_ray.runtime.ray_private import reopened
from atose_ray.runtime.trial import KEY
from atose_ray.search.record import StudyRecord
from atose_ray.storage import Store
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.run import Job

PROJECT = "atose_ray"  # experiment or project, where the environment names none


@dataclass(eq=False)
class Shown:
    """A trial as Ray's callbacks look at one. config: what they log as parameters. local_path: where wandb's
    process works."""

    trial_id: str
    name: str
    config: dict[str, Any]
    local_path: str
    experiment_dir_name: str

    def __str__(self) -> str:
        return self.name


class Tool(Protocol):
    """MLflow or Weights & Biases, open for one study. callback: Ray's, which is told of the trials."""

    callback: Any

    def start(self, trial: Shown) -> None:
        """Begin a trial's run, or go on with it."""

    def note_state(self, trial: Shown, state: str) -> None:
        """How a trial ended."""

    def finish(self, config: dict[str, Any], scores: Mapping[str, float], folder: Path) -> None:
        """The search is over. folder: `report.html` and `best/`, as artefacts."""


class Mlflow:
    """One run for the study, and one below it per trial."""

    def __init__(self, study: str, uri: str) -> None:
        import mlflow
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        self.callback = MLflowLoggerCallback(experiment_name=experiment)
        self.callback.setup()
        self.client, util = mlflow.MlflowClient(), self.callback.mlflow_util
        self.experiment = util.experiment_id
        self.parent = self.find("atose.study", uri) or util.start_run(study, {"atose.study": uri}).info.run_id
        self.client.update_run(self.parent, status="RUNNING")
        self.callback.tags = {"mlflow.parentRunId": self.parent}

    def find(self, tag: str, value: str) -> str | None:
        """The run whose tag has a value; of trials, below this study's run."""
        below = f" and tags.mlflow.parentRunId = '{self.parent}'" if tag == "trial_name" else ""
        found = self.client.search_runs([self.experiment], f"tags.`{tag}` = '{value}'{below}", max_results=1)
        return str(found[0].info.run_id) if found else None

    def start(self, trial: Shown) -> None:
        """Begin a trial's run; one that was begun before gets its epochs in the old run."""
        run_id = self.find("trial_name", trial.name)
        if run_id is None or not reopened(self.callback, trial, run_id):
            self.callback.log_trial_start(trial)

    def note_state(self, trial: Shown, state: str) -> None:
        """Tag `atose.state`, as MLflow knows only finished, failed and killed."""
        if run_id := self.find("trial_name", trial.name):
            self.client.set_tag(run_id, "atose.state", state)

    def finish(self, config: dict[str, Any], scores: Mapping[str, float], folder: Path) -> None:
        """The study's own run: its configuration, the winner's scores, report and model."""
        self.callback.mlflow_util.log_params(config, self.parent)
        self.callback.mlflow_util.log_metrics(0, dict(scores), self.parent)
        self.client.log_artifacts(self.parent, str(folder))
        self.client.set_terminated(self.parent)


class Wandb:
    """A group named as the study; in it a run per trial, and at the end one of the study's name."""

    def __init__(self, study: str, uri: str) -> None:
        from ray.air.integrations.wandb import WandbLoggerCallback

        self.study, self.uri = study, uri
        place = {"project": os.environ.get("WANDB_PROJECT", PROJECT), "entity": os.environ.get("WANDB_ENTITY")}
        # the trials' runs are of processes of a Ray that may be older than this one's environment
        where = {"dir": os.environ.get("WANDB_DIR", os.getcwd()), "mode": os.environ.get("WANDB_MODE")}
        self.given = {**place, **where, "group": study}
        self.callback = WandbLoggerCallback(**self.given, resume="allow")
        self.callback.setup()

    def start(self, trial: Shown) -> None:
        """Begin a trial's run, under an id that is the same in every session."""
        self.callback.log_trial_start(trial)

    def note_state(self, trial: Shown, state: str) -> None:
        """Nothing: the last result says it."""

    def finish(self, config: dict[str, Any], scores: Mapping[str, float], folder: Path) -> None:
        """The study's own run: its configuration, the winner's scores, report and model."""
        import wandb
        from ray.air.integrations.wandb import setup_wandb

        about = {"trial_id": id_of(self.uri), "trial_name": self.study, "job_type": "study", "resume": "allow"}
        run = setup_wandb(config, rank_zero_only=False, **self.given, **about)
        run.log(dict(scores))
        artefact = wandb.Artifact(self.study, type="model")
        artefact.add_dir(str(folder))
        run.log_artifact(artefact)
        run.finish()


TOOLS: dict[str, Callable[[str, str], Tool]] = {"mlflow": Mlflow, "wandb": Wandb}


class Logger(tune.Callback):  # type: ignore[misc]
    """Tells a tool of a study's trials."""

    def __init__(self, kind: str, study: str, uri: str) -> None:
        self.kind, self.study, self.uri = kind, study, uri
        self.works = True
        self.tool = TOOLS[kind](study, uri)
        self.shown: dict[str, Shown] = {}  # by the trial's name
        self.epochs: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def tell(self, call: Callable[[], None]) -> None:
        """Do what may fail. Tune would end the search with what a callback raises."""
        if not self.works:
            return
        try:
            call()
        except Exception as error:
            self.works = False
            print(f"{self.kind} failed, and the search goes on without it: {error}", flush=True)

    def show(self, trial: Any) -> Shown:
        """What the tool sees of a trial of Tune."""
        job: Job = trial.config[KEY].job
        name = str(job.about["name"])
        if name not in self.shown:
            config = job.run.model_dump(mode="json")
            self.shown[name] = Shown(id_of(f"{self.uri}/{name}"), name, config, os.getcwd(), self.study)
        return self.shown[name]

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial got its resources, maybe once more."""
        name = str(trial.config[KEY].job.about["name"])
        if name not in self.shown:
            self.tell(lambda: self.tool.start(self.show(trial)))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch ended; one that is reported again is not."""
        record, shown = result.get("record"), self.show(trial)
        if record is not None and record.epoch > self.epochs.get(shown.name, 0):
            self.epochs[shown.name] = record.epoch
            self.tell(lambda: self.tool.callback.log_trial_result(record.epoch, shown, values_of(record)))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended, which `Hooks` has written into its folder; or it will go on."""
        ending, shown = RunFolder(Store(trial.config[KEY].job.folder_uri)).ending(), self.show(trial)
        state = ending["state"] if ending else "paused"
        self.tell(lambda: self.tool.note_state(shown, state))
        self.tell(lambda: self.tool.callback.log_trial_end(shown, failed=state in ("failed", "diverged")))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        self.on_trial_complete(iteration, trials, trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Wait for what is on its way."""
        self.tell(lambda: self.tool.callback.on_experiment_end(trials))


def open_loggers(kinds: tuple[str, ...], study: str, uri: str) -> list[Logger]:
    """The loggers of a study at `uri`. Raises ConfigError, before any trial, where a package is missing or the tool
    cannot be opened."""
    for kind in kinds:
        if find_spec(kind) is None:
            raise ConfigError(
                f"search.loggers names {kind}, which is not installed here; pip install 'atose_ray[{kind}]', or leave "
                "it out"
            )
    try:
        return [Logger(kind, study, uri) for kind in kinds]
    except Exception as error:
        raise ConfigError(f"search.loggers: {', '.join(kinds)} cannot be opened: {error}") from error


def finish_loggers(loggers: list[Logger], record: StudyRecord, study: Store) -> None:
    """The search is over: hand on its configuration, the chosen model's scores, the report and the model."""
    if not loggers:
        return
    metrics = record.best.metrics if record.best else {}
    splits = {split: metrics.get(split) or {} for split in ("valid", "test")}
    scores = {f"{split}/{name}": value for split, named in splits.items() for name, value in named.items()}
    with tempfile.TemporaryDirectory(prefix="atose-loggers-") as scratch:
        folder = Path(scratch)
        (folder / "report.html").write_bytes(study.read("report.html"))
        best = study.child("best")
        for file in best.files() if record.best else ():
            place = folder / "best" / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(best.read(file.name))
        for logger in loggers:
            logger.tell(lambda tool=logger.tool: tool.finish(record.config, scores, folder))  # type: ignore[misc]


def values_of(record: EpochRecord) -> dict[str, float]:
    """The numbers of an epoch, as TensorBoard has them (search/board.py)."""
    values = {f"valid/{name}": float(value) for name, value in record.valid.items()}
    own = {"objective": record.objective, "train/loss": record.train_loss, "train/lr": record.lr}
    return {**values, **own, "epoch_seconds": record.seconds, "training_iteration": record.epoch}


def id_of(text: str) -> str:
    """An id that is the same in every session."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
