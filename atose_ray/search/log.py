"""The log of a running search: its trials' records as the budget and the forecast read them, the ends of run folders,
and the sessions of a study.

Every run of a study's search is a session: a line in `sessions.jsonl` at its beginning and one at its end. A session
that was killed has no end: then the last thing known of any trial counts as its end.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from atose_ray.search.board import upload_board
from atose_ray.search.budget import Budget
from atose_ray.search.events import Asked, Ended, Epoch, Event
from atose_ray.search.progress import MIN_ENDED, last_sign, measure
from atose_ray.search.record import TrialRecord, load_trial
from atose_ray.storage import Store
from atose_ray.storage.lease import RUN_LEASE
from atose_ray.training.checkpoint import CHECKPOINT
from atose_ray.training.record import EpochRecord, RunFolder

SESSIONS, BEFORE = "sessions.jsonl", "sittings.jsonl"  # what the file was called in studies of the first release
Output = Callable[[str, EpochRecord], None]


def earlier_seconds(folder: Store, trials: Sequence[TrialRecord]) -> float:
    """Wall-clock seconds of all sessions of a study so far."""
    lines = [line for name in (BEFORE, SESSIONS) if folder.exists(name) for line in folder.read(name).splitlines()]
    events: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith(b"}")]
    signs = [sign for trial in trials for sign in (*(e.time for e in trial.epochs), last_sign(trial))]
    total = 0.0
    for this, after in zip(events, [*events[1:], {"event": "start", "time": float("inf")}], strict=False):
        if this["event"] == "start":
            seen = [sign for sign in signs if this["time"] <= sign <= after["time"]]
            total += (after["time"] if after["event"] == "end" else max(seen, default=this["time"])) - this["time"]
    return total


class TrialLog:
    """The trials of a study as this process saw them. outputs: told the name and the record of every epoch.

    Unfinished trials of an earlier session go on whatever the budget says.
    """

    def __init__(
        self,
        folder: Store,
        wanted: int,
        budget: Budget | None,
        earlier: Sequence[TrialRecord],
        outputs: Sequence[Output] = (),
    ) -> None:
        self.folder, self.wanted, self.budget, self.outputs = folder, wanted, budget, outputs
        self.trials = {trial.number: trial for trial in earlier}
        self.unfinished = sum(trial.state == "running" for trial in earlier)
        self.before_s, self.began = earlier_seconds(folder, earlier), time.monotonic()
        self.launched, self.stopped, self.said = 0, False, 0

    def __enter__(self) -> TrialLog:
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
        """Whether the budget holds one more trial; once it does not, no other one is asked for."""
        if self.budget is None or self.launched < self.unfinished or self.stopped:
            return not self.stopped
        self.stopped = not self.budget.allows_another(list(self.trials.values()), self.wall_s)
        if self.stopped:
            running = sum(trial.state == "running" for trial in self.trials.values())
            rest = f"; the {running} that run are finished" if running else ""
            print(f"budget reached: {len(self.trials)} of {self.wanted} trials{rest} ({self.budget})", flush=True)
        return not self.stopped

    def on_event(self, event: Event) -> None:
        """Keep the records up to date, and close the run folder of a trial that ended."""
        if isinstance(event, Asked):
            self.launched += 1
            trial = load_trial(Store(event.job.folder_uri))
            assert trial is not None, "its run folder was begun when it was asked for"
            self.trials[event.number] = trial
            return
        trial = self.trials[event.number]
        if isinstance(event, Epoch):
            for output in self.outputs:
                output(trial.name, event.record)
            if all(one.epoch < event.record.epoch for one in trial.epochs):  # a restart repeats the last one
                self.trials[event.number] = dataclasses.replace(trial, epochs=(*trial.epochs, event.record))
        elif isinstance(event, Ended) and event.state != "paused":
            folder = RunFolder(Store(event.job.folder_uri))
            if not event.recorded:  # its own process did not get so far
                if event.cause is not None:
                    folder.note(event.cause, event.trace)
                folder.end(event.state, event.reason)
            folder.store.delete(CHECKPOINT)
            folder.store.delete(RUN_LEASE)
            upload_board(folder, trial.name)
            self.trials[event.number] = dataclasses.replace(trial, state=event.state, finished=time.time())
            self.say_forecast()

    def say_forecast(self) -> None:
        """How far the budget will go: a line after 3, 6, 12, 24, ... trials."""
        trials = list(self.trials.values())
        ended = sum(trial.state != "running" for trial in trials)
        if self.budget is None or self.stopped or ended < max(MIN_ENDED, 2 * self.said):
            return
        self.said = ended
        line = self.budget.forecast(measure(trials, self.wanted, time.time()), trials, self.wall_s)
        if line:
            print(line, flush=True)
