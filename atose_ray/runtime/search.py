"""The search itself: Optuna suggests, Ray Tune executes.

The trials' own run folders are the truth. A killed search is rebuilt from them: finished trials are told to Optuna and
to the pruner again, unfinished ones are run first and go on from their last checkpoint. (`Tuner.restore` would forget
the pruner's rungs and overwrite its own logs.) So nothing that Tune itself writes is ever read: what is saved of the
classes here is empty.
"""

import dataclasses
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.search import Searcher

from atose_ray.runtime.cluster import ray_storage, up_nodes
from atose_ray.runtime.failures import cause_of, reason_of, trace_of
from atose_ray.runtime.gauges import Gauges
from atose_ray.runtime.object_store import Spilling
from atose_ray.runtime.ray_private import (
    controller_class,
    end_trials,
    end_with_next_report,
    error_of,
    keep_keys_out_of_trials,
    own_node_is_gone,
)
from atose_ray.runtime.schedulers import scheduler
from atose_ray.runtime.shared import SharedRefs
from atose_ray.runtime.trial import KEY, name_of, trainable
from atose_ray.runtime.watchdog import Watchdog, failed_types
from atose_ray.search.asking import Asking
from atose_ray.search.awaited import AwaitedNodes
from atose_ray.search.budget import Budget
from atose_ray.search.events import Ended, Epoch, Started
from atose_ray.search.gpu_share import GpuShare
from atose_ray.search.listeners import Console, Listeners, OptunaListener, TrialLog
from atose_ray.search.record import TrialRecord, load_study_record, study_store
from atose_ray.search.report import render_report
from atose_ray.search.samplers import sampler, warm_trials
from atose_ray.search.session import Session
from atose_ray.search.study_storage import open_storage, rebuild
from atose_ray.search.trials import Space
from atose_ray.storage import Store
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job

PRUNED = {"median": "below the median of the others", "asha": "by successive halving"}


class Asker(Searcher):  # type: ignore[misc]
    """Tune asks it for every trial. may_launch: whether one may begin just now, beside those that run."""

    def __init__(self, metric: str, asking: Asking, may_launch: Callable[[], bool]) -> None:
        super().__init__(metric=metric, mode="max")
        self.asking, self.may_launch = asking, may_launch

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Tune's way of naming a space; the space is ours."""
        return not config

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The config of the next trial, FINISHED, or None when it is not the time for one."""
        if not self.may_launch():
            return None
        setup = self.asking.next()
        return str(Searcher.FINISHED) if setup is None else {KEY: setup}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """`Hooks` is told, with the trial."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search goes on from its run folders."""
        Path(checkpoint_path).write_bytes(b"")


class Hooks(tune.Callback):  # type: ignore[misc]
    """Turns Tune's hooks into trial events, and ends a search that was asked to stop or that one mistake ends."""

    def __init__(self, space: Space, session: Session, listeners: Listeners) -> None:
        self.space, self.session, self.listeners, self.console = space, session, listeners, listeners.console
        self.watchdog, self.spilling = Watchdog(name_of, space.plan.available), Spilling()
        self.awaited_nodes = AwaitedNodes(space.plan)
        self.awaited: set[str] | None = None  # ids of the trials whose epoch is waited for, since a stop was asked

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def setup(self, **info: Any) -> None:
        """Tune begins. A trial that failed reports no value, which Tune refuses unless told."""
        os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's loop turns, some ten times a second. Raises KeyboardInterrupt or SystemExit to end the search."""
        self.stop_if_asked(trials)
        if names := self.console.too_many_bugs():
            self.report()
            raise SystemExit(
                f"error: {len(names)} trials ended by the same error, none ended well: {', '.join(names)}. It stands "
                "above in full; once it is mended, the same command goes on with the trials that are left"
            )
        for line in self.watchdog.lines(trials):
            self.console.say(f"wait   {line}")
        self.look_at_nodes(trials)

    def look_at_nodes(self, trials: list[Any]) -> None:
        """Say which nodes came, and which do not. Raises SystemExit where no trial can run without them."""
        if not self.awaited_nodes.due():
            return
        groups = bool(self.space.plan.workers)  # the process above one runs, and its workers wait
        waiting = any(
            trial.status == "PENDING" or (groups and trial.status == "RUNNING" and "epoch" not in trial.last_result)
            for trial in trials
        )
        for line in self.awaited_nodes.look(up_nodes(), waiting, failed_types()):
            self.console.say(f"nodes  {line}")
        if why := self.awaited_nodes.hopeless():
            self.report()
            raise SystemExit(f"error: {why}")

    def stop_if_asked(self, trials: list[Any]) -> None:
        """Let the trials that run end with their epoch, unfinished; then raise KeyboardInterrupt."""
        request = self.session.request()
        if not request:
            return
        waits = [end_with_next_report(trial) for trial in trials]
        running = {trial.trial_id for trial in trials if trial.status == "RUNNING"}
        if self.awaited is None:
            if self.session.lease.lost:
                self.console.say("stop   another driver has taken this study over, as this one was silent for long")
            self.awaited = running if request == "stop" and all(waits) else set()
            rest = f"the {len(self.awaited)} trials that run finish their epoch" if self.awaited else "now"
            self.console.say(f"stop   {rest}")
        if request == "now" or not running & self.awaited:
            self.end_if_stopped()

    def end_if_stopped(self) -> None:
        """Tune's loop may end before it turns again, with the last trials that were waited for. Raises
        KeyboardInterrupt."""
        if self.awaited is not None:
            self.report()
            raise KeyboardInterrupt  # the command says that it was stopped, and ends with code 130

    def report(self) -> None:
        """Write the study's report, as nobody else will."""
        store = Store(self.space.store_uri)
        page = render_report(load_study_record(store, self.space.name))
        study_store(store, self.space.name).write("report.html", page.encode())

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial got its resources."""
        job: Job = trial.config[KEY].job
        for listener in self.listeners:
            listener.on_event(Started(job.about["number"], job))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch ended, or a trial did without one."""
        self.watchdog.reported(trial)
        job: Job = trial.config[KEY].job
        if "record" in result:
            if self.space.share:
                self.space.share.note(job.run.model_dump(mode="json"), result["record"].gpu_memory)
            for listener in self.listeners:
                listener.on_event(Epoch(job.about["number"], job, result["record"]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended by itself, was pruned, or was stopped with the search."""
        result, job = trial.last_result or {}, trial.config[KEY].job
        ending, number = RunFolder(Store(job.folder_uri)).ending(), job.about["number"]
        if ending is not None:
            cause, trace = result.get("failed"), result.get("trace", "")
            event = Ended(number, job, ending["state"], ending["reason"], cause, trace, recorded=True)
        elif self.awaited is not None:
            event = Ended(number, job, "paused")
        else:
            how = PRUNED.get(self.space.study.search.pruner.kind)
            event = Ended(number, job, "pruned", f"{how} at epoch {result.get('epoch', 0)}")
        for listener in self.listeners:
            listener.on_event(event)
        if event.state != "paused":
            self.say_spilled()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial failed for good, though it was tried again. Raises SystemExit where the driver's own node died: no
        trial is to blame then, and all of them stay unfinished."""
        error = error_of(trial) or ConnectionError("its process died without a message (killed, or out of memory)")
        job, cause = trial.config[KEY].job, cause_of(error)
        if cause == "infrastructure" and own_node_is_gone():
            raise SystemExit("error: Ray's node on this machine has died; the same command goes on from here")
        ending = RunFolder(Store(job.folder_uri)).ending()
        reason = ending["reason"] if ending else f"{cause}: {reason_of(error)}"
        event = Ended(job.about["number"], job, "failed", reason, cause, trace_of(error), ending is not None)
        for listener in self.listeners:
            listener.on_event(event)
        self.say_spilled()

    def say_spilled(self, last: bool = False) -> None:
        """A line about the object store, when it was too small. last: the search is over."""
        if line := self.spilling.line(last):
            self.console.say(f"memory {line}")


def search(
    space: Space,
    session: Session,
    earlier: tuple[TrialRecord, ...],
    shared: SharedRefs | None = None,
    budget: Budget | None = None,
    loggers: Sequence[tune.Callback] = (),
) -> None:
    """Run the trials that are missing, as far as the budget goes. session: ours at the study's folder. shared: clips
    that all trials take. loggers: told of the trials after everything else.

    Raises ConfigError when the storage, or a study to learn from, is not what the config says.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    keep_keys_out_of_trials()
    study, settings, folder = space.study, space.study.search, session.folder
    told = [trial for trial in earlier if trial.state != "running"]
    console = Console(settings, earlier)
    share = GpuShare(space.plan, earlier, console.say)
    log = TrialLog(folder, settings.trials, budget, earlier, [Gauges(space.name, settings.metric)])
    space = dataclasses.replace(space, share=share, trials=log.trials)
    if not log.allows():
        return
    with tempfile.TemporaryDirectory(prefix="atose-tune-") as scratch:
        kept = open_storage(settings, folder, space.name, Path(scratch))
        warm = warm_trials(study, Store(space.store_uri))
        asked = rebuild(kept, study, space.name, earlier, warm, sampler(settings, settings.seed + len(earlier)))
        listeners = Listeners(log, OptunaListener(asked, kept, settings.costs), console)
        hooks = Hooks(space, session, listeners)

        def may_launch() -> bool:
            stays = hooks.awaited is None and not console.too_many_bugs()
            asked = [log.trials[number].resources["gpus"] for number in listeners.optuna.open]
            return stays and hooks.awaited_nodes.may_launch(len(asked)) and share.may_launch(asked)

        missing = settings.trials - len(told)
        asking = Asking(space, listeners, missing, session.request)
        searcher = Asker(settings.metric, asking, may_launch)
        with session.listening(own_node_is_gone), log, kept:
            pruner = scheduler(study, told)
            trainables, name = trainable(space.plan, shared), f"tune-{len(earlier)}"
            try:
                tuner(trainables, searcher, pruner, space, name, missing, [hooks, *loggers]).fit()
            except (KeyboardInterrupt, SystemExit):
                if not own_node_is_gone():
                    end_trials(pruner.loop)
                raise
            hooks.end_if_stopped()
            if asking.cut:
                hooks.stop_if_asked([])
            if why := asking.hopeless():
                hooks.report()
                raise SystemExit(f"error: {why}")
    hooks.say_spilled(last=True)
    folder.delete("ray")  # Tune's own state: the run folders hold all that matters


def tuner(
    trainable: Any, searcher: Searcher, pruner: Any, space: Space, name: str, missing: int, hooks: list[tune.Callback]
) -> tune.Tuner:
    """Tune's side of a search. missing: how many trials to run. name: of Tune's own folder, gone after the search."""
    settings, plan = space.study.search, space.plan
    at_end = None if plan.workers else tune.CheckpointConfig(checkpoint_at_end=False)
    ray_folder = study_store(Store(space.store_uri), space.name).child("ray")
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            metric=settings.metric,
            mode="max",
            num_samples=missing,
            max_concurrent_trials=plan.concurrency,
            search_alg=searcher,
            scheduler=pruner,
            reuse_actors=plan.workers == 0 or controller_class() is not None,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=name,
            **ray_storage(ray_folder),
            verbose=0,
            checkpoint_config=at_end,
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            callbacks=hooks,
        ),
    )
