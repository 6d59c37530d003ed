"""From Optuna's trial to the run that is executed: where a search composes and resolves configurations."""

from dataclasses import dataclass

import optuna

from atose_ray.config import SearchConfig, StudyConfig
from atose_ray.data.shards import Manifest
from atose_ray.data.views import view_of
from atose_ray.search.gpu_share import GpuShare
from atose_ray.search.parameters import asked_of
from atose_ray.search.plan import Plan
from atose_ray.search.record import study_store, trial_store
from atose_ray.search.space import compose, walk
from atose_ray.storage import Store
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, resolve


@dataclass(frozen=True)
class TrialSetup:
    """What the process of a trial is given. gpus, threads: of each process that trains; ray_uri: where Ray keeps its
    own state; stream_bytes: what Ray Data may keep in the object store for one process."""

    job: Job
    search: SearchConfig
    gpus: float
    threads: int
    ray_uri: str
    stream_bytes: int | None = None


@dataclass(frozen=True)
class Space:
    """The define-by-run space: an Optuna trial -> the run that Tune executes.

    stream_bytes: as in TrialSetup. share: GPUs of a process, where the plan's are not the last word.
    """

    study: StudyConfig
    name: str
    store_uri: str
    manifest: Manifest
    plan: Plan
    stream_bytes: int | None = None
    share: GpuShare | None = None

    def __call__(self, trial: optuna.Trial, number: int) -> TrialSetup:
        """The run of one trial. Its run folder is begun here, so that a trial whose process never comes up is on record
        too."""
        plan, search, store = self.plan, self.study.search, Store(self.store_uri)
        folder = study_store(store, self.name)
        gpus = self.share.fraction() if self.share else plan.worker_gpus
        chosen = walk(asked_of(trial), self.study.space)
        run = resolve(compose(self.study, chosen, number), store, self.manifest)
        objective, latent = getattr(run.method, "objective", None), getattr(run.method, "latent", None)
        name = [f"{number:03d}", run.encoder.kind, getattr(run.encoder, "block", None), run.method.kind]
        name += [objective and objective.kind, latent and f"d{latent}"]
        about = {
            "number": number,
            "name": "-".join(filter(None, name)),
            "params": dict(trial.params),
            "distributions": {k: optuna.distributions.distribution_to_json(d) for k, d in trial.distributions.items()},
            "resources": {"cpus": plan.cpus_per_trial, "gpus": max(plan.workers, 1) * gpus, "workers": plan.workers},
        }
        job = Job(run, self.store_uri, trial_store(folder, run.signature()).uri, about).on_device(gpus)
        head = {"device": "none yet", "parameters": 0, **about}
        spec = view_of(self.manifest, run.data, store).manifest.data_spec
        RunFolder(Store(job.folder_uri)).start(job.run, run.model_spec(spec), head)
        threads = run.execution.threads or max(1, int(search.cpus_per_worker))
        search = search.model_copy(update={"storage": None})  # of no use to a trial, and it may hold a password
        return TrialSetup(job, search, gpus, threads, folder.child("ray").uri, self.stream_bytes)
