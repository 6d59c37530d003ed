"""Promotion on Ray: trainings and scorings as tasks, as many at a time as the plan holds."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import ray

from atose_ray.config import SearchConfig
from atose_ray.runtime.failures import cause_of, reason_of
from atose_ray.runtime.train import train_on_ray
from atose_ray.search.plan import Plan
from atose_ray.search.promotion import Candidate, score_valid, summary, train_one
from atose_ray.storage import Store
from atose_ray.training.folds import finish
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job


def start(function: Callable[..., Any], job: Job, plan: Plan, *rest: Any, tries: int = 3) -> ray.ObjectRef:
    """Call `function(job, *rest)` in a task with the resources of a trial. tries: where its process dies."""
    task = ray.remote(num_cpus=plan.trial_cpus, num_gpus=plan.worker_gpus, max_retries=tries)(function)
    return task.remote(job.on_device(plan.worker_gpus), *rest)


def train_all(jobs: list[Job], search: SearchConfig, plan: Plan) -> Iterator[tuple[Job, str | None]]:
    """Train what is not trained yet, as many at a time as the plan holds; gives every job when it is done, with the
    reason of one that failed, which ends no other. It is tried again, from its checkpoint, by the next promotion."""
    missing = [job for job in jobs if RunFolder(Store(job.folder_uri)).ending() is None]
    yield from ((job, None) for job in jobs if job not in missing)
    if search.workers_per_trial:
        for job in missing:
            ray_uri = Store(job.folder_uri).child("ray").uri
            name = job.run.signature(search.workers_per_trial)
            train = functools.partial(train_on_ray, job, search, plan.worker_gpus, name, ray_uri)
            yield job, reason_to_fail(train)
        return
    threads = max(1, int(search.cpus_per_worker))
    running: dict[ray.ObjectRef, Job] = {}
    while missing or running:
        while missing and len(running) < plan.concurrency:
            job = missing.pop(0)
            running[start(train_one, job, plan, threads, tries=search.max_failures)] = job
        [done], _ = ray.wait(list(running), num_returns=1)
        yield running.pop(done), reason_to_fail(functools.partial(ray.get, done))


def reason_to_fail(call: Callable[[], object]) -> str | None:
    """What a call raised, in one line, or None."""
    try:
        call()
    except Exception as error:
        return f"{cause_of(error)}: {reason_of(error)}"
    return None


def valid_scores(candidate: Candidate, plan: Plan) -> list[Any]:
    """Per-clip validation scores of every training of a candidate."""
    return list(ray.get([start(score_valid, job, plan) for job in candidate.jobs]))


def score_test(winner: Candidate, metric: str, plan: Plan) -> dict[str, Any] | None:
    """The test split, scored once by each of the winner's trainings; a training that was scored is not scored again.

    None when all of them diverged.
    """
    values = []
    for job in winner.jobs:
        folder = RunFolder(Store(job.folder_uri))
        best = folder.store.child("best")
        if folder.epochs():
            if not best.exists("metrics.json"):
                ray.get(start(finish, job, plan, best))
            values.append(best.read_json("metrics.json")["test"][metric])
    return {"values": values, **summary(values)} if values else None
