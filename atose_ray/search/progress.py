"""How far a search is, from its trials' records alone: counts, the best, the rate, what it has used and a forecast."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atose_ray.search.record import TrialRecord, best_trial, existing_study, load_trials
from atose_ray.storage import Store

if TYPE_CHECKING:
    from atose_ray.config import StudyConfig

MIN_ENDED = 3  # trials that must have ended before a forecast is worth its line
SILENT_S = 600.0  # a running trial without an epoch for so long, and three times its own pace, is worth a look


@dataclass(frozen=True)
class Progress:
    """wanted: trials of the search in all. busy_s: seconds that trials trained. cpu_hours, gpu_hours: what they used
    meanwhile; None where it is not on record. trials_per_hour, seconds_left: None before MIN_ENDED trials ended.
    at_most_s: seconds left if no trial were pruned; None before the first epoch.
    silent: running trials that have reported nothing for long."""

    counts: dict[str, int]
    wanted: int
    best: TrialRecord | None
    trials_per_hour: float | None
    seconds_left: float | None
    busy_s: float
    cpu_hours: float | None
    gpu_hours: float | None
    silent: tuple[TrialRecord, ...]
    at_most_s: float | None = None

    @property
    def ended(self) -> int:
        """Trials that will not go on."""
        return sum(count for state, count in self.counts.items() if state not in ("running", "stopped"))


def read_study(store: Store, name: str) -> tuple["StudyConfig", tuple[TrialRecord, ...]]:
    """A study's config and trials. Raises ValueError, naming the studies that are there, when it does not exist."""
    from atose_ray.config import StudyConfig  # which brings PyTorch with it

    folder = existing_study(store, name)
    return StudyConfig.model_validate(folder.read_json("study.json")["config"]), load_trials(folder)


def read_search(store: Store, name: str) -> tuple[dict[str, Any], tuple[TrialRecord, ...]]:
    """The `search` of a study as it was recorded, and its trials, without PyTorch. Raises as `read_study`."""
    folder = existing_study(store, name)
    return dict(folder.read_json("study.json")["config"]["search"]), load_trials(folder)


def busy_seconds(trial: TrialRecord) -> float:
    """Seconds a trial trained and scored: an interruption between two epochs does not count, nor do the epochs of
    another trial whose result it took."""
    return 0.0 if trial.same_as is not None else sum(epoch.seconds for epoch in trial.epochs)


def last_sign(trial: TrialRecord) -> float:
    """Unix time of the last thing known of a trial."""
    return max([trial.started, *(epoch.time for epoch in trial.epochs), trial.finished or 0.0])


def measure(trials: Sequence[TrialRecord], wanted: int, now: float, searched: bool = True) -> Progress:
    """What the trials say at the Unix time `now`. searched: whether a driver is at work; else trials that have not
    ended are not running but stopped.

    The forecast takes the mean of what ended trials needed, pruned ones with the rest, for every trial that is missing
    (half of it for one that runs), over as many trials at a time as there were on average.
    """
    ended = [trial for trial in trials if trial.state not in ("running", "infeasible") and trial.same_as is None]
    running = [trial for trial in trials if trial.state == "running"]
    rate = left = None
    spans = [last_sign(trial) - trial.started for trial in ended]
    if len(ended) >= MIN_ENDED and sum(spans) > 0:
        needs = [busy_seconds(trial) for trial in ended]
        elapsed = max(_elapsed(trials), 1e-9)
        at_a_time = max(1.0, sum(busy_seconds(trial) for trial in trials) / elapsed)
        each = max(statistics.fmean(needs), 1e-9)
        rate = 3600 * at_a_time / each
        missing = max(0, wanted - len(trials)) + len(running) / 2
        left = missing * each / at_a_time
    return Progress(
        counts=dict(Counter(trial.state if searched or trial.state != "running" else "stopped" for trial in trials)),
        wanted=wanted,
        best=best_trial(trials),
        trials_per_hour=rate,
        seconds_left=left,
        busy_s=sum(busy_seconds(trial) for trial in trials),
        cpu_hours=_hours(trials, "cpus"),
        gpu_hours=_hours(trials, "gpus"),
        silent=tuple(
            trial
            for trial in running
            if searched and now - last_sign(trial) > max(SILENT_S, *(3 * epoch.seconds for epoch in trial.epochs), 0.0)
        ),
        at_most_s=at_most(trials, wanted),
    )


def at_most(trials: Sequence[TrialRecord], wanted: int) -> float | None:
    """Seconds left if no trial were pruned, by what epochs took so far; None before the first epoch, or where trials do
    not say how many epochs they have. A trial that is not begun counts as the longest, over as many at a time as run.
    """
    lengths = [epochs_of(trial.config) for trial in trials]
    paces = [statistics.fmean(epoch.seconds for epoch in trial.epochs) for trial in trials if trial.epochs]
    if not paces or not all(lengths):
        return None
    pace, longest = statistics.fmean(paces), max(lengths)
    rest = [
        (length - len(trial.epochs)) * (busy_seconds(trial) / len(trial.epochs) if trial.epochs else pace)
        for trial, length in zip(trials, lengths, strict=True)
        if trial.state == "running"
    ]
    rest += [longest * pace] * max(0, wanted - len(trials))
    return over(rest, sum(trial.state == "running" for trial in trials))


def over(work: Sequence[float], at_a_time: int) -> float:
    """Seconds of trials that need `work` seconds each, so many at a time: no less than the longest."""
    return max(sum(work) / max(1, at_a_time), *work, 0.0)


def epochs_of(config: Mapping[str, Any]) -> int:
    """Epochs of a recorded configuration, all stages together; 0 where it does not say."""
    return sum(stage["epochs"] for stage in config.get("method", {}).get("stages", ()))


def bound(seconds: float) -> str:
    """`at_most` for a person."""
    return f"at most about {duration(seconds)} (if no trial were pruned)"


def duration(seconds: float) -> str:
    """Seconds in two units at most."""
    whole = round(seconds)
    for unit, name, small, of in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // small} {of}"
    return f"{whole} s"


def _elapsed(trials: Sequence[TrialRecord]) -> float:
    """Seconds in which at least one trial was at work: a night between two sessions does not count."""
    total, until = 0.0, float("-inf")
    for first, last in sorted((epoch.time - epoch.seconds, epoch.time) for trial in trials for epoch in trial.epochs):
        total += max(0.0, last - max(first, until))
        until = max(until, last)
    return total


def _hours(trials: Sequence[TrialRecord], kind: str) -> float | None:
    held = [trial.resources.get(kind) for trial in trials]
    if not trials or any(count is None for count in held):
        return None
    return sum(busy_seconds(trial) * trial.resources[kind] for trial in trials) / 3600
