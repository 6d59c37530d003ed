"""How far a search is, from its trials' records alone: counts, the best, the rate, what it has used and a forecast."""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from atose_ray.config import StudyConfig
from atose_ray.search.record import TrialRecord, best_trial, existing_study, load_trials
from atose_ray.storage import Store

MIN_ENDED = 3  # trials that must have ended before a forecast is worth its line
SILENT_S = 600.0  # a running trial without an epoch for so long, and three times its own pace, is worth a look


@dataclass(frozen=True)
class Progress:
    """wanted: trials of the search in all. busy_s: seconds that trials trained. cpu_hours, gpu_hours: what they used
    meanwhile; None where it is not on record. trials_per_hour, seconds_left: None before MIN_ENDED trials ended.
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

    @property
    def ended(self) -> int:
        """Trials that will not go on."""
        return sum(count for state, count in self.counts.items() if state != "running")


def read_study(store: Store, name: str) -> tuple[StudyConfig, tuple[TrialRecord, ...]]:
    """A study's config and trials. Raises ValueError, naming the studies that are there, when it does not exist."""
    folder = existing_study(store, name)
    return StudyConfig.model_validate(folder.read_json("study.json")["config"]), load_trials(folder)


def busy_seconds(trial: TrialRecord) -> float:
    """Seconds a trial trained and scored: an interruption between two epochs does not count, nor do the epochs of
    another trial whose result it took."""
    return 0.0 if trial.same_as is not None else sum(epoch.seconds for epoch in trial.epochs)


def last_sign(trial: TrialRecord) -> float:
    """Unix time of the last thing known of a trial."""
    return max([trial.started, *(epoch.time for epoch in trial.epochs), trial.finished or 0.0])


def measure(trials: Sequence[TrialRecord], wanted: int, now: float) -> Progress:
    """What the trials say at the Unix time `now`.

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
        counts=dict(Counter(trial.state for trial in trials)),
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
            if now - last_sign(trial) > max(SILENT_S, *(3 * epoch.seconds for epoch in trial.epochs), 0.0)
        ),
    )


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
