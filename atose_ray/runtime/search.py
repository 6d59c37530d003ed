"""The search itself: Optuna suggests, Ray Tune executes.

The trials' own run folders are the truth. A killed search is rebuilt from them: finished trials are told to Optuna and
to the pruner again, unfinished ones are run first and go on from their last checkpoint. (`Tuner.restore` would forget
the pruner's rungs and overwrite its own logs.)
"""

from __future__ import annotations

import dataclasses
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search.optuna import OptunaSearch

from atose_ray.config import RunConfig, SearchConfig, StudyConfig
from atose_ray.runtime.cluster import Plan
from atose_ray.runtime.console import Console
from atose_ray.runtime.object_store import Spilling
from atose_ray.runtime.shared import SharedClips
from atose_ray.runtime.train import with_device
from atose_ray.runtime.trial import KEY, ActorTrial, worker_group_trial
from atose_ray.search.record import TrialRecord, study_store, trial_store
from atose_ray.search.space import compose, longest_run, suggest
from atose_ray.store import Store
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job
from atose_ray.types import DataSpec

NUMBER = "number"  # user attribute of an Optuna trial: its number in the study folder


@dataclass(frozen=True)
class Space:
    """The define-by-run space that OptunaSearch calls; a plain picklable object, as Tune saves it.

    stream_bytes: what Ray Data may keep in the object store for one process of a trial. offset: what Optuna's own
    number lacks to the study folder's, after a rebuild.
    """

    study: StudyConfig
    name: str
    store_uri: str
    spec: DataSpec
    content_hash: str
    gpus: float
    stream_bytes: int | None = None
    offset: int = 0

    def __call__(self, trial: Any) -> dict[str, Any]:
        """The configuration of one trial: everything its actor needs, under one key.

        Its run folder is begun here, so that a trial whose process never comes up is on record too.
        """
        chosen = suggest(trial, self.study.space)
        number = trial.user_attrs.get(NUMBER, trial.number + self.offset)
        run = compose(self.study, chosen, number).resolve(self.spec, self.content_hash)
        folder = study_store(Store(self.store_uri), self.name)
        about = {
            "number": number,
            "name": trial_name(number, run),
            "params": dict(trial.params),
            "distributions": {k: optuna.distributions.distribution_to_json(d) for k, d in trial.distributions.items()},
        }
        job = Job(run, self.store_uri, trial_store(folder, run.signature()).uri, about)
        job = with_device(job, self.gpus)
        head = {"device": "none yet", "parameters": 0, **about}
        RunFolder(Store(job.folder_uri)).start(job.run, run.model_spec(self.spec), head)
        ray_uri = folder.child("ray").uri
        trial_config = {"job": job, "search": self.study.search, "gpus": self.gpus, "ray_uri": ray_uri}
        return {KEY: {**trial_config, "stream_bytes": self.stream_bytes}}


def trial_name(number: int, run: RunConfig) -> str:
    """A name a person can read: number, encoder, method with its objective."""
    parts = [f"{number:03d}", run.encoder.kind, getattr(run.encoder, "block", None), run.method.kind]
    objective = getattr(run.method, "objective", None)
    parts += [objective.kind] if objective is not None else []
    return "-".join(part for part in parts if part)


def search(
    study: StudyConfig,
    folder: Store,
    plan: Plan,
    space: Space,
    earlier: tuple[TrialRecord, ...],
    shared: SharedClips | None = None,
) -> None:
    """Run the trials that are missing. shared: clips that they all take."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    told = [trial for trial in earlier if trial.state != "running"]
    metric, with_scheduler = study.search.metric, scheduler(study, told)
    console = Console(study.search, len(told), Spilling())
    with tempfile.TemporaryDirectory(prefix="atose-tune-") as scratch:
        storage, offset = rebuild_storage(earlier, folder, Path(scratch))
        sampler_seed = study.search.seed + len(earlier)
        tuner = tune.Tuner(
            trainable(study.search, plan, shared),
            tune_config=tune.TuneConfig(
                metric=metric,
                mode="max",
                num_samples=study.search.trials - len(told),
                max_concurrent_trials=plan.concurrency,
                search_alg=OptunaSearch(
                    dataclasses.replace(space, offset=offset),
                    metric=metric,
                    mode="max",
                    sampler=sampler(study.search, sampler_seed),
                    storage=storage,
                    study_name="study",
                ),
                scheduler=with_scheduler,
                reuse_actors=study.search.workers_per_trial == 0,
                trial_name_creator=name_of,
                trial_dirname_creator=name_of,
            ),
            run_config=tune.RunConfig(
                name=f"tune-{len(earlier)}",
                storage_path=folder.child("ray").uri,
                verbose=0,
                checkpoint_config=None
                if study.search.workers_per_trial
                else tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=study.search.max_failures),
                callbacks=[console],
            ),
        )
        tuner.fit()
    console.say_spilled(last=True)
    folder.delete("ray")  # Tune's own state: the run folders hold all that matters


def name_of(trial: Any) -> str:
    """The readable name of a Tune trial."""
    return str(trial.config[KEY]["job"].about["name"])


def trainable(settings: SearchConfig, plan: Plan, shared: SharedClips | None) -> Any:
    """What Tune runs, with the resources of the trial's own process and the references to what trials share."""
    kind: Any = worker_group_trial if settings.workers_per_trial else ActorTrial
    gpu = {"GPU": plan.worker_gpus} if plan.worker_gpus and kind is ActorTrial else {}
    if shared is not None:
        kind = tune.with_parameters(kind, shared=shared)
    return tune.with_resources(kind, {"CPU": plan.trial_cpus, **gpu})


def sampler(settings: SearchConfig, seed: int) -> optuna.samplers.BaseSampler:
    """Optuna's sampler: TPE over the conditional groups, told of trials still running, or plain random."""
    if settings.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=settings.startup_trials, multivariate=True, group=True, constant_liar=True
    )


def scheduler(study: StudyConfig, told: list[TrialRecord]) -> TrialScheduler:
    """ASHA on the run's own epoch count, with the rungs of earlier trials filled in again."""
    pruner = study.search.pruner
    if pruner.kind == "none":
        return FIFOScheduler()
    metric = study.search.metric
    longest = longest_run(study)
    asha = ASHAScheduler(
        time_attr="epoch",
        metric=metric,
        mode="max",
        max_t=longest + 1,  # at max_t itself ASHA would stop every trial that finishes
        grace_period=min(pruner.grace_epochs, longest),
        reduction_factor=pruner.reduction_factor,
    )
    for trial in told:
        stand_in = SimpleNamespace(trial_id=f"earlier-{trial.number}")
        asha.on_trial_add(None, stand_in)
        for epoch in trial.epochs:
            asha.on_trial_result(None, stand_in, {"epoch": epoch.epoch, metric: epoch.objective})
        asha.on_trial_remove(None, stand_in)
    # Tune sets metric and mode itself and refuses to be overruled
    asha._metric, asha._mode = None, None
    return asha


def rebuild_storage(
    earlier: tuple[TrialRecord, ...], folder: Store, scratch: Path
) -> tuple[optuna.storages.BaseStorage, int]:
    """An Optuna journal holding the finished trials, with the unfinished ones queued first.

    On a local disk it is `optuna.journal` in the study folder, which optuna-dashboard opens live.
    Returns the storage and the offset from Optuna's trial numbers to the study's.
    """
    path = (folder.local_path or scratch) / "optuna.journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, study_name="study", direction="maximize")
    for trial in earlier:
        if trial.state == "running":
            continue
        failed = trial.state == "failed" or trial.value is None
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.params,
                distributions={k: optuna.distributions.json_to_distribution(d) for k, d in trial.distributions.items()},
                value=None if failed else trial.value,
                state=optuna.trial.TrialState.FAIL if failed else optuna.trial.TrialState.COMPLETE,
                user_attrs={NUMBER: trial.number},
            )
        )
    for trial in earlier:
        if trial.state == "running":
            study.enqueue_trial(trial.params, user_attrs={NUMBER: trial.number})
    next_number = max((trial.number + 1 for trial in earlier), default=0)
    return storage, next_number - len(earlier)
