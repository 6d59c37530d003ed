"""The three listeners of a search's events: the log, Optuna and the console.

The log keeps the trials' records as the budget and the forecast read them, closes run folders, and knows the sessions
of a study: every run of its search is one, a line in `sessions.jsonl` at its beginning and one at its end. A session
that was killed has no end: then the last thing known of any trial counts as its end.

Optuna is asked for every trial and told how each one ended. The trials' run folders are the truth, and the study that
is asked is rebuilt from them when a search goes on. So a storage that is away for a while (a database that restarts)
delays the search, and ends it only after minutes.

The console prints starts, changes of the lead, ends, and what a person should know in between.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import optuna
from optuna.trial import TrialState

from atose_ray.config import SearchConfig
from atose_ray.evaluation.protocols import CLIP
from atose_ray.search.board import upload_board
from atose_ray.search.budget import Budget
from atose_ray.search.costs import FLOOR, costs_of, values_of
from atose_ray.search.events import MENDABLE, Asked, Ended, Epoch, Event, Listener, Settled, Started
from atose_ray.search.progress import MIN_ENDED, bound, last_sign, measure, over
from atose_ray.search.record import TrialRecord, best_trial, load_trial
from atose_ray.search.study_storage import NUMBER, StudyStorage
from atose_ray.storage import Store
from atose_ray.storage.lease import RUN_LEASE
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.run import Job

SESSIONS, BEFORE = "sessions.jsonl", "sittings.jsonl"  # what the file was called in studies of the first release
PAUSES_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 60)  # three minutes for a database to come back
EQUAL_BUGS = 3  # trials that end by one and the same traceback, before anything else ended well, end the search
TRACE_START = "Traceback (most recent call last)"
Output = Callable[[str, EpochRecord], None]
T = TypeVar("T")


def earlier_seconds(folder: Store, trials: Sequence[TrialRecord]) -> float:
    """Wall-clock seconds of all sessions of a study so far."""
    lines = [line for name in (BEFORE, SESSIONS) for line in folder.read_lines(name)]
    events: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
    signs = [sign for trial in trials for sign in (*(e.time for e in trial.epochs), last_sign(trial))]
    total = 0.0
    for this, after in zip(events, [*events[1:], {"event": "start", "time": float("inf")}], strict=False):
        if this["event"] == "start":
            seen = [sign for sign in signs if this["time"] <= sign <= after["time"]]
            total += (after["time"] if after["event"] == "end" else max(seen, default=this["time"])) - this["time"]
    return total


class TrialLog(Listener):
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
        if isinstance(event, (Asked, Settled)):
            self.launched += 1
            trial = load_trial(Store(event.folder_uri if isinstance(event, Settled) else event.job.folder_uri))
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
            if event.state != "failed" or event.cause not in MENDABLE:  # else --retry-failed goes on from there
                for name in folder.checkpoints():
                    folder.store.delete(name)
            folder.store.delete(RUN_LEASE)
            upload_board(folder, trial.name, event.job.run.metric)
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


class OptunaListener(Listener):
    """Asks `study` for trials and tells it their values. kept: where the study is stored. costs: what is minimised
    beside the metric; then Optuna is told no value of single epochs, which it has for one objective only."""

    def __init__(self, study: optuna.Study, kept: StudyStorage, costs: Sequence[str] = ()) -> None:
        self.study, self.kept, self.costs = study, kept, costs
        self.taken: set[int] = set()  # Optuna's numbers of all trials that were asked for here
        self.open: dict[int, optuna.Trial] = {}
        self.best: dict[int, float] = {}

    def ask(self, configure: Callable[[optuna.Trial, int], T], next_number: int) -> T:
        """Ask for a trial and configure it under its number: `next_number`, or its own if it was begun before."""
        tries = itertools.count()

        def attempt() -> optuna.Trial:
            if next(tries):  # one that was begun when the storage went away is taken up, so that none is lost
                for begun in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                    if begun.number not in self.taken:
                        return optuna.Trial(self.study, begun._trial_id)
            return self.study.ask()

        trial = patiently(attempt)
        self.taken.add(trial.number)
        number = int(trial.user_attrs.get(NUMBER, next_number))
        patiently(lambda: trial.set_user_attr(NUMBER, number))
        self.open[number] = trial
        return patiently(lambda: configure(trial, number))

    def on_event(self, event: Event) -> None:
        """Report an epoch's value, so that a dashboard shows the curve; tell how a trial ended: one that was pruned
        with its best value so far, one that cannot be built as one that diverged at once, so that the sampler turns
        away from it, one without values as failed. One that was paused has not ended."""
        if isinstance(event, Settled):
            settled = load_trial(Store(event.folder_uri))
            self.tell(event.number, values_of(settled, self.costs) if settled else None)
        elif isinstance(event, Epoch):
            trial, record = self.open[event.number], event.record
            self.best[event.number] = record.objective
            if not self.costs:
                patiently(lambda: trial.report(record.objective, record.epoch))
        elif isinstance(event, Ended) and event.state != "paused":
            value = self.best.get(event.number)
            value = FLOOR if value is None and event.state == "diverged" else value
            ended = load_trial(Store(event.job.folder_uri)) if self.costs else None
            costs = costs_of(ended, self.costs) if ended else {}
            values: tuple[float, ...] | None = None
            if event.state != "failed" and value is not None and costs is not None:
                values = (value, *costs.values())
            self.tell(event.number, values)

    def tell(self, number: int, values: Sequence[float] | None) -> None:
        """The end of a trial, with its values or failed."""
        trial, state = self.open.pop(number), TrialState.FAIL if values is None else TrialState.COMPLETE
        patiently(lambda: self.study.tell(trial, values and list(values), state=state, skip_if_finished=True))
        self.kept.keep()


def patiently(call: Callable[[], T]) -> T:
    """What `call` gives, tried anew while the study's storage is away. Raises what the last try raised."""
    for pause in PAUSES_S:
        try:
            return call()
        except Exception as error:
            from sqlalchemy.exc import DBAPIError  # here: it takes a part of a second, and most studies are journals

            if not isinstance(error, (DBAPIError, optuna.exceptions.StorageInternalError)):
                raise
            time.sleep(pause)
    return call()


class Console(Listener):
    """Prints a line per event that is worth one, with the count of ended trials and the time before it.

    equal_bugs: names of trials that one mistake ended, by their tracebacks' `likeness`.
    """

    def __init__(self, search: SearchConfig, earlier: Sequence[TrialRecord]) -> None:
        self.metric, self.trials = search.metric, search.trials
        self.done, self.began = sum(trial.state != "running" for trial in earlier), time.monotonic()
        leads = best_trial(earlier)
        self.best, self.leader = (leads.value, leads.name) if leads and leads.value is not None else (float("-inf"), "")
        # best value and epoch of the trials that run, and of those that will go on
        self.last = {one.number: (one.value or 0.0, one.epochs[-1].epoch) for one in earlier if _goes_on(one)}
        self.running: dict[int, int] = {}  # epochs left of the trials that run
        self.forecast = False
        self.equal_bugs: dict[str, list[str]] = {}
        self.ended_well = False
        self.notes: set[str] = set()

    def on_event(self, event: Event) -> None:
        """Print what there is to say."""
        if isinstance(event, Settled):
            self.done += 1
            self.say(f"{event.state:<6} {event.name}: {event.reason}")
            return
        name = str(event.job.about["name"])
        if isinstance(event, Started):
            params = event.job.about["params"].items()
            shown = ((path, f"{value:.3g}" if isinstance(value, float) else value) for path, value in params)
            chosen = (f"{path.rpartition('.')[2]}={value}" for path, value in shown if path[-5:] != ".kind")
            done = self.last.get(event.number, (0.0, 0))[1]
            self.running[event.number] = event.job.run.method.epochs - done
            goes_on = f"goes on after epoch {done}  " if done else ""
            self.say(f"start  {name}  {goes_on}{', '.join(chosen)}")
        elif isinstance(event, Epoch):  # worth a line only when another trial takes the lead
            record = event.record
            if event.number not in self.last:
                self.say_note(event.job)
            self.last[event.number] = record.objective, record.epoch
            self.running[event.number] = event.job.run.method.epochs - record.epoch
            self.say_bound(record.seconds, event.job.run.method.epochs)
            if record.objective > self.best:
                leader, self.best, self.leader = self.leader, record.objective, name
                if name != leader:
                    self.say(f"lead   {name}  {self.metric} {self.best:.4f} [{CLIP.name}] at epoch {record.epoch}")
        elif isinstance(event, Ended):
            value, epochs = self.last.pop(event.number, (float("nan"), 0))
            self.running.pop(event.number, None)
            self.done += event.state != "paused"
            if event.state == "paused":
                self.say(f"paused {name}  after {epochs} epochs")
            elif event.state == "failed":
                self.say(f"failed {name}: {event.reason}")
                if event.cause == "bug":
                    self.show_once(event.trace, name)
            else:
                self.ended_well = True
                best = " (best so far)" if name == self.leader else ""
                why = "" if event.state == "complete" else f": {event.reason}"
                score = f"{self.metric} {value:.4f} [{CLIP.name}]"
                self.say(f"{event.state:<6} {name}  {score} after {epochs} epochs{best}{why}")
                self.say_note(event.job)

    def say_note(self, job: Job) -> None:
        """What a trial's process found remarkable, once: others often find the same."""
        note = RunFolder(Store(job.folder_uri)).about().get("note")
        if note and note not in self.notes:
            self.notes.add(note)
            self.say(f"note   {job.about['name']}: {note}")

    def say_bound(self, seconds: float, epochs: int) -> None:
        """Once, after the first epoch of the search: when it will be over at the latest, as far as is known then."""
        if self.forecast:
            return
        self.forecast = True
        unbegun = max(0, self.trials - self.done - len(self.running))
        work = [seconds * left for left in (*self.running.values(), *[epochs] * unbegun)]
        self.say(f"left   {bound(over(work, len(self.running)))}")

    def show_once(self, trace: str, name: str) -> None:
        """Print the traceback of a trial's bug, unless one like it was."""
        alike = self.equal_bugs.setdefault(likeness(trace), [])
        alike.append(name)
        if len(alike) == 1:
            print(trace, flush=True)

    def too_many_bugs(self) -> list[str]:
        """Names of the trials that one mistake ended, when there are enough of them and nothing ended well."""
        alike = [] if self.ended_well else self.equal_bugs.values()
        return next((names for names in alike if len(names) >= EQUAL_BUGS), [])

    def say(self, text: str) -> None:
        """Print a line with the count of ended trials and the time."""
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        print(f"[{self.done:>3}/{self.trials} {minutes:02d}:{seconds:02d}] {text}", flush=True)


class Listeners(NamedTuple):
    """Those of a search, in the order in which they are told."""

    log: TrialLog
    optuna: OptunaListener
    console: Console


def _goes_on(trial: TrialRecord) -> bool:
    """Whether a trial of an earlier session has epochs that it goes on after."""
    return trial.state == "running" and bool(trial.epochs)


def likeness(trace: str) -> str:
    """A short hash that two tracebacks share when they come from the same lines: numbers and addresses do not count."""
    lines = trace[trace.rfind(TRACE_START) :] if TRACE_START in trace else trace
    bare = "\n".join(line.strip() for line in lines.splitlines())
    bare = re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?(e-?\d+)?", "N", bare)
    return hashlib.sha256(bare.encode()).hexdigest()[:12]
