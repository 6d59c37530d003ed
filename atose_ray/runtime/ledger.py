"""What a running search knows of its own trials, without reading their folders again: for the budget and the forecast.

The sessions of a study (every run of its search) stand in `sessions.jsonl`, a line at the beginning and one at the end
of each. A session that was killed has no end: then the last thing known of any trial counts as its end.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from atose_ray.search.budget import Budget
from atose_ray.search.progress import MIN_ENDED, last_sign, measure
from atose_ray.search.record import TrialRecord, TrialState
from atose_ray.storage import Store
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.run import Job

SESSIONS = "sessions.jsonl"
FOREVER: dict[str, Any] = {"event": "start", "time": float("inf")}


def earlier_seconds(folder: Store, trials: Sequence[TrialRecord]) -> float:
    """Wall-clock seconds of all sessions of a study so far."""
    lines = folder.read(SESSIONS).decode().splitlines() if folder.exists(SESSIONS) else []
    events: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
    signs = [sign for trial in trials for sign in (*(e.time for e in trial.epochs), last_sign(trial))]
    total = 0.0
    for index, this in enumerate(events):
        after = events[index + 1] if index + 1 < len(events) else FOREVER
        if this["event"] == "start":
            seen = [sign for sign in signs if this["time"] <= sign <= after["time"]]
            total += (after["time"] if after["event"] == "end" else max(seen, default=this["time"])) - this["time"]
    return total


class Ledger:
    """The trials of a study as this process saw them. unfinished: those that an earlier session left, which are gone on
    with whatever the budget says."""

    def __init__(self, folder: Store, metric: str, wanted: int, budget: Budget | None, earlier: Sequence[TrialRecord]):
        self.folder, self.metric, self.wanted, self.budget = folder, metric, wanted, budget
        self.trials = {trial.number: trial for trial in earlier}
        self.unfinished = sum(trial.state == "running" for trial in earlier)
        self.before_s, self.began = earlier_seconds(folder, earlier), time.monotonic()
        self.launched, self.stopped, self.said = 0, False, 0

    def __enter__(self) -> Ledger:
        self.folder.append_line(SESSIONS, json.dumps({"event": "start", "time": time.time()}))
        return self

    def __exit__(self, *error: object) -> None:
        self.folder.append_line(SESSIONS, json.dumps({"event": "end", "time": time.time()}))

    @property
    def next_number(self) -> int:
        """The number of the next trial that has none."""
        return max(self.trials, default=-1) + 1

    @property
    def wall_s(self) -> float:
        """Seconds that this search has run, all sessions together."""
        return self.before_s + time.monotonic() - self.began

    def allows(self) -> bool:
        """Whether one more trial may begin; once it may not, no other one is asked for."""
        if self.budget is None or self.launched < self.unfinished:
            return True
        if not self.stopped:
            self.stopped = not self.budget.allows_another(list(self.trials.values()), self.wall_s)
            if self.stopped:
                print(self.reached(), flush=True)
        return not self.stopped

    def reached(self) -> str:
        """What is said when the budget allows no further trial."""
        assert self.budget is not None
        running = sum(trial.state == "running" for trial in self.trials.values())
        rest = f"; the {running} that run are finished" if running else ""
        return f"budget reached: {len(self.trials)} of {self.wanted} trials{rest} ({self.budget})"

    def begin(self, number: int, job: Job) -> None:
        """A trial is handed to Tune."""
        self.launched += 1
        before, about = self.trials.get(number), job.about
        self.trials[number] = TrialRecord(
            number=number,
            name=about["name"],
            signature=job.run.signature(),
            params=about["params"],
            distributions=about["distributions"],
            config={},
            state="running",
            reason=None,
            started=before.started if before else time.time(),
            finished=None,
            device="",
            parameters=0,
            epochs=before.epochs if before else (),
            resources=about["resources"],
        )

    def add_epoch(self, number: int, result: Mapping[str, Any]) -> None:
        """A trial reported an epoch. One that it repeats after a restart is known already."""
        trial, value = self.trials[number], result.get(self.metric)
        if "epoch" not in result or value is None or any(one.epoch >= result["epoch"] for one in trial.epochs):
            return
        seconds = float(result.get("time_this_iter_s", 0.0))
        epoch = EpochRecord(result["epoch"], "", seconds, 0.0, 0.0, {self.metric: value}, value, time.time())
        self.trials[number] = dataclasses.replace(trial, epochs=(*trial.epochs, epoch))

    def end(self, number: int, job: Job, result: Mapping[str, Any] | None, failed: bool) -> None:
        """A trial ended; says how far the budget will go when enough of them have.

        With a budget its log is read once: what a worker group reports holds its start too.
        """
        if result:
            self.add_epoch(number, result)
        trial = self.trials[number]
        epochs = (RunFolder(Store(job.folder_uri)).epochs() if self.budget else ()) or trial.epochs
        state: TrialState = "failed" if failed else "complete"
        self.trials[number] = dataclasses.replace(trial, state=state, finished=time.time(), epochs=epochs)
        ended = sum(trial.state != "running" for trial in self.trials.values())
        if ended >= MIN_ENDED and ended >= 2 * self.said:  # at 3, 6, 12, 24, ... ended trials
            self.said = ended
            self.say_forecast()

    def say_forecast(self) -> None:
        """A line about the budget, if there is one."""
        trials = list(self.trials.values())
        line = self.budget and self.budget.forecast(measure(trials, self.wanted, time.time()), trials, self.wall_s)
        if line and not self.stopped:
            print(line, flush=True)
