"""The lines that a search prints: starts, changes of the lead, ends, and what a person should know in between."""

import hashlib
import re
import time
from collections.abc import Sequence

from atose_ray.config import SearchConfig
from atose_ray.evaluation.protocols import CLIP
from atose_ray.search.events import Ended, Epoch, Event, Started
from atose_ray.search.record import TrialRecord, best_trial
from atose_ray.storage import Store
from atose_ray.training.record import RunFolder

EQUAL_BUGS = 3  # trials that end by one and the same traceback, before anything else ended well, end the search
TRACE_START = "Traceback (most recent call last)"


class Console:
    """Prints a line per event that is worth one, with the count of ended trials and the time before it.

    equal_bugs: names of trials that one mistake ended, by their tracebacks' `likeness`.
    """

    def __init__(self, search: SearchConfig, earlier: Sequence[TrialRecord]) -> None:
        self.metric, self.trials = search.metric, search.trials
        self.done, self.began = sum(trial.state != "running" for trial in earlier), time.monotonic()
        leads = best_trial(earlier)
        self.best, self.leader = (leads.value, leads.name) if leads and leads.value is not None else (float("-inf"), "")
        self.last: dict[int, tuple[float, int]] = {}  # of the trials that run: best value and epoch
        self.equal_bugs: dict[str, list[str]] = {}
        self.ended_well = False

    def on_event(self, event: Event) -> None:
        """Print what there is to say."""
        if isinstance(event, Started):
            params = event.job.about["params"].items()
            shown = ((path, f"{value:.3g}" if isinstance(value, float) else value) for path, value in params)
            chosen = (f"{path.rpartition('.')[2]}={value}" for path, value in shown if path[-5:] != ".kind")
            self.say(f"start  {event.job.about['name']}  {', '.join(chosen)}")
        elif isinstance(event, Epoch):  # worth a line only when another trial takes the lead
            record, name = event.record, event.job.about["name"]
            self.last[event.number] = record.objective, record.epoch
            if record.objective > self.best:
                leader, self.best, self.leader = self.leader, record.objective, name
                if name != leader:
                    self.say(f"lead   {name}  {self.metric} {self.best:.4f} [{CLIP.name}] at epoch {record.epoch}")
        elif isinstance(event, Ended):
            self.ended(event)

    def ended(self, event: Ended) -> None:
        """How a trial ended; the traceback of a bug is shown once."""
        name = str(event.job.about["name"])
        value, epochs = self.last.pop(event.number, (float("nan"), 0))
        if event.state == "paused":
            self.say(f"paused {name}  after {epochs} epochs")
            return
        self.done += 1
        if event.state == "failed":
            self.say(f"failed {name}: {event.reason}")
            if event.cause == "bug":
                alike = self.equal_bugs.setdefault(likeness(event.trace), [])
                alike.append(name)
                if len(alike) == 1:
                    print(event.trace, flush=True)
            return
        self.ended_well = True
        best = " (best so far)" if name == self.leader else ""
        why = "" if event.state == "complete" else f": {event.reason}"
        score = f"{self.metric} {value:.4f} [{CLIP.name}]"
        self.say(f"{event.state:<6} {name}  {score} after {epochs} epochs{best}{why}")
        note = RunFolder(Store(event.job.folder_uri)).about().get("note")
        if note:
            self.say(f"note   {name}: {note}")

    def too_many_bugs(self) -> list[str]:
        """Names of the trials that one mistake ended, when there are enough of them and nothing ended well."""
        alike = [] if self.ended_well else self.equal_bugs.values()
        return next((names for names in alike if len(names) >= EQUAL_BUGS), [])

    def say(self, text: str) -> None:
        """Print a line with the count of ended trials and the time."""
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        print(f"[{self.done:>3}/{self.trials} {minutes:02d}:{seconds:02d}] {text}", flush=True)


def likeness(trace: str) -> str:
    """A short hash that two tracebacks share when they come from the same lines: numbers and addresses do not count."""
    lines = trace[trace.rfind(TRACE_START) :] if TRACE_START in trace else trace
    bare = "\n".join(line.strip() for line in lines.splitlines())
    bare = re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?(e-?\d+)?", "N", bare)
    return hashlib.sha256(bare.encode()).hexdigest()[:12]
