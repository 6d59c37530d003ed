"""What a study left behind, read back from its folder: the only source of the report.

A study folder holds

    study.json             the StudyConfig and the versions of what ran it
    data.json              facts about the data: DataSpec, tag counts, tag correlation, skipped files, content hash
    trials/<number>-<signature>/   one run folder per trial (training/record.py); <signature> alone in older studies
    best/                  the chosen model, its test scores and how often this study scored test (metrics.json), and
                           what it gets wrong (examples.json)
    examples/<number>.json the same of other trials, for which somebody asked
    promotion.json         the best trials trained again with other seeds, and how sure it is which one is better
    crossvalidation.json   the chosen model's configuration trained and tested on every fold (crossvalidate.py)
    tag_embeddings.json    what the best trial that embeds tags learned of them
    finished.json          what the command that ended the search was given (search/finished.py)
    report.html
"""

import re
import shlex
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from atose_ray.storage import Store, folder_of
from atose_ray.training.record import EXAMPLES, OUT_OF_MEMORY, EpochRecord, RunFolder
from atose_ray.types import DataSpec

EMBEDDINGS = "tag_embeddings.json"
PROMOTION, CROSSVALIDATION = "promotion.json", "crossvalidation.json"
READERS = 16
FOLDER = re.compile(r"\d{3,}-(.+)")
TrialState = Literal["running", "complete", "pruned", "diverged", "failed", "infeasible"]


@dataclass(frozen=True)
class Note:
    """What happened to a run on its way, at the Unix time `time`."""

    time: float
    cause: str
    text: str


@dataclass(frozen=True)
class TrialRecord:
    """One trial. `params` maps config path (`encoder[sample_cnn].block`) to the value Optuna chose;
    `distributions` maps the same paths to Optuna's JSON of the range. `objective` of an epoch is best so far.
    resources: cpus, gpus and workers that the trial holds; threads: of each process that trains. latency_ms: of one
    clip, where it was measured. opened: Unix time at which a process took the trial, where it was recorded. folder: its
    run folder's name. same_as: number of the trial whose result it took, as their configurations are equal. folds: its
    score on each fold, where it was trained on all. An infeasible trial is a configuration that cannot be built: its
    `config` is what was asked for, and nothing ran."""

    number: int
    name: str
    signature: str
    params: dict[str, Any]
    distributions: dict[str, str]
    config: dict[str, Any]
    state: TrialState
    reason: str | None
    started: float
    finished: float | None
    device: str
    parameters: int
    epochs: tuple[EpochRecord, ...]
    resources: dict[str, float] = field(default_factory=dict)
    threads: int | None = None
    notes: tuple[Note, ...] = ()
    precision: str | None = None
    residency: str | None = None
    latency_ms: float | None = None
    opened: float | None = None
    folder: str = ""
    same_as: int | None = None

    @property
    def folds(self) -> tuple[float, ...]:
        """Its best score on each fold so far, where it is trained on all folds."""
        return self.epochs[-1].folds if self.epochs else ()

    @property
    def halved(self) -> bool:
        """Whether memory ran out on the way, so that batches went in two halves."""
        return any(note.cause == OUT_OF_MEMORY for note in self.notes)

    @property
    def identity(self) -> str:
        """The signature, with what only the run could tell."""
        if not self.halved:
            return self.signature
        from atose_ray.config import RunConfig  # which brings PyTorch

        return RunConfig.model_validate(self.config).signature(int(self.resources.get("workers", 0)), halved=True)

    @property
    def value(self) -> float | None:
        """Best objective so far, or None when no epoch was finished."""
        return self.epochs[-1].objective if self.epochs else None

    @property
    def gpu_memory(self) -> float:
        """Share of its GPU's memory that a process of the trial held at most; 0.0 without a GPU."""
        return max((epoch.gpu_memory for epoch in self.epochs), default=0.0)


@dataclass(frozen=True)
class BestRecord:
    """The chosen model. `metrics` is best/metrics.json: {"protocol", "stage", "epoch", "valid": {name: value},
    "test": {name: value}, "test_intervals": {name: [low, high]}, "test_scorings": [{"number", "time", "metric",
    "value", "protocol"}], "test_prevalence_mean", "per_tag": [{"tag", "average_precision", "roc_auc", "positives",
    "clips"}], "tag_embedding_cosine_CC": [[float]] or None, "tag_embedding_collapsed": bool or None}. A tag without
    positives in test has average_precision and roc_auc None; exclusive tags also have precision, recall and f1. The
    intervals and scorings may be missing: 0.1.0 did not write them."""

    number: int
    config: dict[str, Any]
    metrics: dict[str, Any]


@dataclass(frozen=True)
class TagEmbeddings:
    """What the best trial that embeds tags learned of them. cosine_CC: between the unit vectors of the single tags."""

    number: int
    name: str
    cosine_CC: list[list[float]]
    collapsed: bool


@dataclass(frozen=True)
class StudyRecord:
    """Everything the report shows. `tag_counts`: tag -> split -> positive clips. `tag_correlation_CC`: Pearson (phi)
    correlation of the tags over the train split. `tag_embeddings`: None when no finished trial embeds tags.
    `examples`: trial number -> examples.json. `promotion`, `crossvalidation`: these files. `arguments` name it to a
    command."""

    name: str
    metric: str
    config: dict[str, Any]
    data_spec: DataSpec
    tag_counts: dict[str, dict[str, int]]
    tag_correlation_CC: list[list[float]]
    trials: tuple[TrialRecord, ...]
    best: BestRecord | None
    rerun_command: str | None
    versions: dict[str, str]
    skipped: tuple[tuple[str, str], ...] = ()
    tag_embeddings: TagEmbeddings | None = None
    examples: dict[int, dict[str, Any]] = field(default_factory=dict)
    promotion: dict[str, Any] | None = None
    arguments: str = ""
    crossvalidation: dict[str, Any] | None = None


def study_store(store: Store, name: str) -> Store:
    """The folder of a study."""
    return store.child("studies", name)


def existing_study(store: Store, name: str) -> Store:
    """The folder of a study that was begun. Raises ValueError, naming those that are there, when it was not."""
    folder = study_store(store, name)
    if not folder.exists("study.json"):
        names = [one for one in store.child("studies").names() if study_store(store, one).exists("study.json")]
        there = ", ".join(names) or "none"
        raise ValueError(f"there is no study {name!r} in the store {store.uri}; it holds: {there}")
    return folder


def trial_store(study: Store, trial: TrialRecord) -> Store:
    """The run folder of a trial."""
    return study.child("trials", trial.folder or trial.signature)


def folder_name(number: int, signature: str) -> str:
    """What the run folder of a new trial is called: equal configurations are trials of their own."""
    return f"{number:03d}-{signature}"


def load_trials(study: Store, ended: Mapping[str, TrialRecord] | None = None) -> tuple[TrialRecord, ...]:
    """All trials of a study, by number, many at a time: object storage answers seven requests for each.
    ended: folder -> what is known already, and not read again."""
    trials, known = study.child("trials"), ended or {}
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda folder: known.get(folder) or load_trial(trials.child(folder)), trials.names()))
    return tuple(sorted((trial for trial in found if trial is not None), key=lambda trial: trial.number))


def load_trial(store: Store) -> TrialRecord | None:
    """The trial of a run folder, as it stands; None of a folder that was not begun."""
    folder = RunFolder(store)
    about = folder.about()
    if not about:
        return None
    events = folder.events()
    ending = folder.ending(events) or {"state": "running", "reason": None, "time": None}
    notes = (event for event in events if event["event"] == "note")
    name = folder_of(store.uri)[1]
    numbered = FOLDER.fullmatch(name)
    return TrialRecord(
        **{one.name: about[one.name] for one in fields(TrialRecord) if one.name in about},
        signature=numbered[1] if numbered else name,
        folder=name,
        config=store.read_json("config.json"),
        state=ending["state"],
        reason=ending["reason"],
        finished=ending["time"],
        epochs=folder.epochs(events),
        notes=tuple(Note(event["time"], event["cause"], event["text"]) for event in notes),
    )


def best_trial(trials: Iterable[TrialRecord]) -> TrialRecord | None:
    """The trial with the highest objective (the earliest of equals), or None when no epoch was finished."""
    scored = [trial for trial in trials if trial.value is not None]
    return max(scored, key=lambda trial: (trial.value, -trial.number), default=None)


def load_study_record(store: Store, name: str, before: StudyRecord | None = None) -> StudyRecord:
    """Read a study folder. before: an earlier reading; trials that had ended by then are not read again.

    Raises ValueError, naming the studies that are there, when it does not exist.
    """
    folder = existing_study(store, name)
    study, data = folder.read_json("study.json"), folder.read_json("data.json")
    best, at = None, f"--store {shlex.quote(store.uri)}"
    if folder.child("best").exists("metrics.json"):
        metrics = folder.child("best").read_json("metrics.json")
        best = BestRecord(metrics["number"], folder.child("best").read_json("config.json"), metrics)
    ended = {trial.folder: trial for trial in (before.trials if before else ()) if trial.state != "running"}
    return StudyRecord(
        name=name,
        metric=study["config"]["search"]["metric"],
        config=study["config"],
        data_spec=DataSpec.model_validate(data["data_spec"]),
        tag_counts=data["tag_counts"],
        tag_correlation_CC=data["tag_correlation_CC"],
        trials=load_trials(folder, ended),
        best=best,
        rerun_command=f"python -m atose_ray.rerun {shlex.quote(name)} {best.number} {at}" if best else None,
        versions=study["versions"],
        skipped=tuple((name, reason) for name, reason in data["skipped"]),
        tag_embeddings=TagEmbeddings(**folder.read_json(EMBEDDINGS)) if folder.exists(EMBEDDINGS) else None,
        examples=load_examples(folder),
        promotion=folder.read_json(PROMOTION) if folder.exists(PROMOTION) else None,
        arguments=f"{shlex.quote(name)} {at}",
        crossvalidation=folder.read_json(CROSSVALIDATION) if folder.exists(CROSSVALIDATION) else None,
    )


def load_examples(folder: Store) -> dict[int, dict[str, Any]]:
    """Trial number -> its examples.json, of the chosen model and of the trials for which somebody asked."""
    others, best = folder.child("examples"), folder.child("best")
    found = [others.read_json(name) for name in others.names() if name.endswith(".json")]
    if best.exists(EXAMPLES):
        found.append(best.read_json(EXAMPLES))
    return {one["number"]: one for one in found}
