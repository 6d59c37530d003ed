"""From Optuna's trial to the run that is executed: where a search composes and resolves configurations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import optuna

from atose_ray.config import SearchConfig, StudyConfig
from atose_ray.data.batches import share_of_batch
from atose_ray.data.shards import Manifest
from atose_ray.data.views import view_of
from atose_ray.search.events import Settled
from atose_ray.search.gpu_share import GpuShare
from atose_ray.search.parameters import asked_of
from atose_ray.search.plan import Plan
from atose_ray.search.record import TrialRecord, folder_name, study_store, trial_store
from atose_ray.search.settled import equal_trial, record_infeasible, record_repeat, signature_of
from atose_ray.search.space import compose, tree_of, walk
from atose_ray.storage import Store, StoreError
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

    stream_bytes: as in TrialSetup. share: GPUs of a process, where the plan's are not the last word. trials: of this
    study, by number, as they stand: an unfinished one keeps its folder, the result of a finished one is taken over.
    """

    study: StudyConfig
    name: str
    store_uri: str
    manifest: Manifest
    plan: Plan
    stream_bytes: int | None = None
    share: GpuShare | None = None
    trials: Mapping[int, TrialRecord] = field(default_factory=dict)

    def __call__(self, trial: optuna.Trial, number: int) -> TrialSetup | Settled:
        """The run of one trial. Its run folder is begun here, so that a trial whose process never comes up is on record
        too. Settled: there is nothing to run, as its values do not go together or an equal trial has run."""
        plan, search, store = self.plan, self.study.search, Store(self.store_uri)
        study, known = study_store(store, self.name), self.trials.get(number)
        chosen = walk(asked_of(trial), self.study.space)
        tree = tree_of(self.study, chosen, number)
        about: dict[str, Any] = {
            "number": number,
            "name": name_of(number, tree),
            "params": dict(trial.params),
            "distributions": {k: optuna.distributions.distribution_to_json(d) for k, d in trial.distributions.items()},
            "resources": {"cpus": plan.cpus_per_trial, "gpus": plan.gpus_per_trial, "workers": plan.workers},
        }
        try:
            run = resolve(compose(self.study, chosen, number), store, self.manifest)
            share_of_batch(run.data.batch_size, max(plan.workers, 1))
        except StoreError:
            raise  # the storage is away, whatever the configuration
        except ValueError as error:
            folder = self.folder(study, number, signature_of(tree))
            return record_infeasible(folder, tree, about, error)
        about["name"] = name_of(number, run.model_dump(mode="json"))
        signature = run.signature(plan.workers)
        folder = self.folder(study, number, signature)
        equal = None if search.repeat or known else equal_trial(self.trials.values(), signature)
        if equal is not None:
            return record_repeat(folder, equal, trial_store(study, equal), about)
        gpus = self.share.fraction(run.model_dump(mode="json")) if self.share else plan.worker_gpus
        about["resources"]["gpus"] = max(plan.workers, 1) * gpus
        job = Job(run, self.store_uri, folder.uri, about).on_device(gpus)
        head = {"device": "none yet", "parameters": 0, **about}
        spec = view_of(self.manifest, run.data, store).manifest.data_spec
        RunFolder(folder).start(job.run, run.model_spec(spec), head)
        threads = run.execution.threads or max(1, int(search.cpus_per_worker))
        search = search.model_copy(update={"storage": None})  # of no use to a trial, and it may hold a password
        return TrialSetup(job, search, gpus, threads, study.child("ray").uri, self.stream_bytes)

    def folder(self, study: Store, number: int, signature: str) -> Store:
        """The run folder of a trial: of one that was begun earlier the one it has."""
        known = self.trials.get(number)
        return trial_store(study, known) if known else study.child("trials", folder_name(number, signature))


def name_of(number: int, tree: Mapping[str, Any]) -> str:
    """What a trial is called: its number and what mostly tells it from others."""
    encoder, method = tree.get("encoder") or {}, tree.get("method") or {}
    latent = method.get("latent")
    parts = [f"{number:03d}", encoder.get("kind"), encoder.get("block"), method.get("kind")]
    parts += [(method.get("objective") or {}).get("kind"), latent and f"d{latent}"]
    return "-".join(str(part) for part in parts if part)
