"""The search itself: Optuna suggests, Ray Tune executes.

The trials' own run folders are the truth. A killed search is rebuilt from them: finished trials are told to Optuna and
to the pruner again, unfinished ones are run first and go on from their last checkpoint. (`Tuner.restore` would forget
the pruner's rungs and overwrite its own logs.)
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.execution import class_cache

from atose_ray.config import RunConfig, StudyConfig
from atose_ray.runtime.cluster import ray_storage
from atose_ray.runtime.console import Console
from atose_ray.runtime.costs import costs_in, trainable
from atose_ray.runtime.ledger import Ledger
from atose_ray.runtime.object_store import Spilling
from atose_ray.runtime.schedulers import scheduler
from atose_ray.runtime.shared import SharedRefs
from atose_ray.runtime.study_search import StudySearch
from atose_ray.runtime.train import with_device
from atose_ray.runtime.trial import KEY
from atose_ray.search.budget import Budget
from atose_ray.search.gpu_share import GpuShare
from atose_ray.search.plan import Plan
from atose_ray.search.record import TrialRecord, study_store, trial_store
from atose_ray.search.samplers import sampler, warm_trials
from atose_ray.search.session import Session
from atose_ray.search.space import compose, suggest
from atose_ray.search.study_storage import open_storage, rebuild
from atose_ray.storage import Store
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job
from atose_ray.types import DataSpec

# Tune copies the driver's keys into the runtime environment of every trial, which Ray writes into its logs. Trials have
# the credentials of their node.
class_cache.ENV_VARS_TO_PROPAGATE.difference_update(
    {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}
)


@dataclass(frozen=True)
class Space:
    """The define-by-run space: an Optuna trial -> the run that Tune executes.

    stream_bytes: what Ray Data may keep in the object store for one process of a trial. share: GPUs of a process, where
    the plan's are not the last word.
    """

    study: StudyConfig
    name: str
    store_uri: str
    spec: DataSpec
    content_hash: str
    plan: Plan
    stream_bytes: int | None = None
    share: GpuShare | None = None

    def __call__(self, trial: optuna.Trial, number: int) -> tuple[Job, dict[str, Any]]:
        """The run of one trial, and the configuration with everything that its actor needs, under one key.

        Its run folder is begun here, so that a trial whose process never comes up is on record too.
        """
        plan, settings = self.plan, self.study.search.without_password()
        gpus = self.share.fraction() if self.share else plan.worker_gpus
        chosen = suggest(trial, self.study.space)
        run = compose(self.study, chosen, number).resolve(self.spec, self.content_hash)
        folder = study_store(Store(self.store_uri), self.name)
        about = {
            "number": number,
            "name": trial_name(number, run),
            "params": dict(trial.params),
            "distributions": {k: optuna.distributions.distribution_to_json(d) for k, d in trial.distributions.items()},
            "resources": {"cpus": plan.cpus_per_trial, "gpus": max(plan.workers, 1) * gpus, "workers": plan.workers},
        }
        job = Job(run, self.store_uri, trial_store(folder, run.signature()).uri, about)
        job = with_device(job, gpus)
        head = {"device": "none yet", "parameters": 0, **about}
        RunFolder(Store(job.folder_uri)).start(job.run, run.model_spec(self.spec), head)
        ray_uri = folder.child("ray").uri
        config = {"job": job, "search": settings, "gpus": gpus, "ray_uri": ray_uri}
        return job, {KEY: {**config, "stream_bytes": self.stream_bytes}}

    def values(self, job: Job, result: Mapping[str, Any]) -> Sequence[float] | None:
        """What Optuna is told of a trial that ended: its metric and its costs, or None if one is not known."""
        value, names = result.get(self.study.search.metric), self.study.search.costs
        costs = costs_in(RunFolder(Store(job.folder_uri)), names) if names else {}
        return None if value is None or costs is None else [value, *(costs[name] for name in names)]


def trial_name(number: int, run: RunConfig) -> str:
    """A name a person can read: number, encoder with its block, method with its objective and its latent size."""
    parts = [f"{number:03d}", run.encoder.kind, getattr(run.encoder, "block", None), run.method.kind]
    objective, latent = getattr(run.method, "objective", None), getattr(run.method, "latent", None)
    parts += [objective.kind if objective is not None else None, f"d{latent}" if latent else None]
    return "-".join(part for part in parts if part)


def search(
    space: Space,
    session: Session,
    earlier: tuple[TrialRecord, ...],
    shared: SharedRefs | None = None,
    budget: Budget | None = None,
) -> None:
    """Run the trials that are missing, as far as the budget goes. session: ours at the study's folder. shared: clips
    that all trials take.

    Raises ConfigError when the storage, or a study to learn from, is not what the config says.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    study, settings, folder = space.study, space.study.search, session.folder
    told = [trial for trial in earlier if trial.state != "running"]
    ledger = Ledger(folder, settings.metric, settings.trials, budget, earlier)
    if not ledger.allows():
        return
    console = Console(settings, earlier, Spilling(), session)
    share = GpuShare(space.plan, earlier, console.say)
    space = dataclasses.replace(space, share=share)
    with tempfile.TemporaryDirectory(prefix="atose-tune-") as scratch:
        kept = open_storage(settings, folder, space.name, Path(scratch))
        warm = warm_trials(study, Store(space.store_uri))
        asked = rebuild(kept, study, space.name, earlier, warm, sampler(settings, settings.seed + len(earlier)))
        searcher = StudySearch(asked, settings.metric, space, space.values, ledger, kept, console.may_launch, share)
        with session.listening(), ledger, kept:
            tuner(
                trainable(settings.costs, space.plan, shared),
                searcher,
                scheduler(study, told),
                space,
                f"tune-{len(earlier)}",
                missing=settings.trials - len(told),
                callbacks=[console],
            ).fit()
            console.end_if_stopped()
    console.say_spilled(last=True)
    folder.delete("ray")  # Tune's own state: the run folders hold all that matters


def tuner(
    trainable: Any, searcher: StudySearch, pruner: Any, space: Space, name: str, missing: int, callbacks: list[Any]
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
            reuse_actors=True,
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
        ),
        run_config=tune.RunConfig(
            name=name,
            **ray_storage(ray_folder),
            verbose=0,
            checkpoint_config=at_end,
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            callbacks=callbacks,
        ),
    )


def name_of(trial: Any) -> str:
    """The readable name of a Tune trial."""
    return str(trial.config[KEY]["job"].about["name"])
