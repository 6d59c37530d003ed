"""The best trials of a search, trained again with other seeds: is the winner better, or was it lucky?

    studies/<name>/promoted/<signature>/     one run folder per trial and seed
    studies/<name>/promotion.json            what came of it, for the report

All comparisons are made on the validation split. The test split is scored last, by the winner's trainings alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray

from atose_ray.config import RunConfig, SearchConfig
from atose_ray.data.shards import load_manifest
from atose_ray.evaluation.scoring import ClipScores, score_clips
from atose_ray.evaluation.significance import paired_bootstrap, spread
from atose_ray.runtime.train import train_on_ray, with_device
from atose_ray.search.plan import Plan
from atose_ray.search.record import TrialRecord
from atose_ray.search.space import SEED_STRIDE
from atose_ray.storage import Store
from atose_ray.training.checkpoint import BEST_WEIGHTS, load_weights
from atose_ray.training.loop import fit
from atose_ray.training.precision import prepare_to_score
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, finish_run, make_batches, open_run, pick_device, use_threads


@dataclass(frozen=True)
class Candidate:
    """A trial to train again. role: winner, second, third ... or baseline; jobs: one per seed."""

    trial: TrialRecord
    role: str
    jobs: tuple[Job, ...]


def candidates(
    trials: Iterable[TrialRecord], first: int, baseline: int | None, top: int, seeds: int, folder: Store, store: Store
) -> list[Candidate]:
    """The trial `first`, the best others up to `top` in all, and the baseline where it is none of them.

    Raises ValueError for a trial that is not there or finished no epoch.
    """
    scored = {trial.number: trial for trial in trials if trial.value is not None}
    for number in (first, *(() if baseline is None else (baseline,))):
        if number not in scored:
            known = ", ".join(str(number) for number in sorted(scored)) or "none"
            raise ValueError(f"trial {number} finished no epoch, or is not in this study; trials that did: {known}")
    others = sorted(scored.values(), key=lambda trial: (-(trial.value or 0.0), trial.number))
    order = [scored[first], *(trial for trial in others if trial.number != first)][:top]
    roles = [*("winner", "second", "third"), *(f"{place}th" for place in range(4, top + 1))]
    chosen = list(zip(order, roles, strict=False))
    if baseline is not None and baseline not in [trial.number for trial in order]:
        chosen.append((scored[baseline], "baseline"))
    return [Candidate(trial, role, jobs_of(trial, seeds, folder, store)) for trial, role in chosen]


def jobs_of(trial: TrialRecord, seeds: int, folder: Store, store: Store) -> tuple[Job, ...]:
    """A trial's configuration under `seeds` other seeds, each of which depends on the trial's own alone."""
    run = RunConfig.model_validate(trial.config)
    jobs = []
    for number in range(1, seeds + 1):
        other = run.model_copy(update={"seed": (run.seed + number * SEED_STRIDE * 1009) % 2**31})
        about = {"number": trial.number, "name": f"{trial.name}-seed{number}", "params": {}, "distributions": {}}
        jobs.append(Job(other, store.uri, folder.child("promoted", other.signature()).uri, about))
    return tuple(jobs)


def train_all(jobs: list[Job], search: SearchConfig, plan: Plan) -> Iterator[Job]:
    """Train what is not trained yet, as many at a time as the plan holds; gives every job when it is done."""
    missing = [job for job in jobs if RunFolder(Store(job.folder_uri)).ending() is None]
    yield from (job for job in jobs if job not in missing)
    if search.workers_per_trial:
        for job in missing:
            here = with_device(job, plan.worker_gpus)
            train_on_ray(here, search, plan.worker_gpus, here.run.signature(), Store(job.folder_uri).child("ray").uri)
            yield job
        return
    threads = max(1, int(search.cpus_per_worker))
    task = ray.remote(num_cpus=plan.trial_cpus, num_gpus=plan.worker_gpus, max_retries=search.max_failures)(train_one)
    waiting = list(missing)
    running: dict[Any, Job] = {}
    while waiting or running:
        while waiting and len(running) < plan.concurrency:
            job = waiting.pop(0)
            running[task.remote(with_device(job, plan.worker_gpus), threads)] = job
        [done], _ = ray.wait(list(running), num_returns=1)
        ray.get(done)
        yield running.pop(done)


def train_one(job: Job, threads: int) -> None:
    """Train a job to its end in this process, from its last checkpoint if there is one."""
    use_threads(job.run.execution.threads or threads)
    opened = open_run(job)
    fit(opened.run, opened.method, opened.batches, opened.folder, device=opened.device)


def judge(chosen: list[Candidate], store: Store, metric: str, plan: Plan) -> dict[str, Any]:
    """What promotion.json holds, but for the test scores."""
    scored = {candidate.trial.number: valid_scores(candidate, plan) for candidate in chosen}
    rows = []
    for candidate in chosen:
        kept = [(job.run.seed, scores) for job, scores in scored[candidate.trial.number] if scores is not None]
        values = [best_of(job, metric) for job, scores in scored[candidate.trial.number] if scores is not None]
        rows.append(
            {
                "number": candidate.trial.number,
                "name": candidate.trial.name,
                "role": candidate.role,
                "seeds": [seed for seed, _ in kept],
                "diverged": len(candidate.jobs) - len(kept),
                "valid": values,
                **without_values(spread(values) if values else None),
            }
        )
    winner = chosen[0].trial.number
    comparisons = []
    for candidate in chosen[1:]:
        sides = [[s for _, s in scored[number] if s is not None] for number in (winner, candidate.trial.number)]
        if all(sides):
            ours, theirs = ([scores.scores_NC for scores in side] for side in sides)
            found = paired_bootstrap(ours, theirs, sides[0][0].tags_NC, metric)
            comparisons.append({"a": winner, "b": candidate.trial.number, **dataclasses.asdict(found)})
    return {"metric": metric, "split": "valid", "trials": rows, "comparisons": comparisons, "test": None}


def without_values(found: Any) -> dict[str, Any]:
    """Mean, deviation and interval; none of a trial whose trainings all diverged."""
    fields = {"mean": None, "deviation": None, "low": None, "high": None}
    return fields if found is None else {name: getattr(found, name) for name in fields}


def best_of(job: Job, metric: str) -> float:
    """The validation score of a training's best epoch."""
    return max(record.valid[metric] for record in RunFolder(Store(job.folder_uri)).epochs())


def valid_scores(candidate: Candidate, plan: Plan) -> list[tuple[Job, ClipScores | None]]:
    """Per-clip validation scores of every training of a candidate; None of one that diverged before its first epoch."""
    task = ray.remote(num_cpus=plan.trial_cpus, num_gpus=plan.worker_gpus)(score_valid)
    waiting = [task.remote(with_device(job, plan.worker_gpus)) for job in candidate.jobs]
    return list(zip(candidate.jobs, ray.get(waiting), strict=True))


def score_valid(job: Job) -> ClipScores | None:
    """Scores of the best epoch's weights on the validation split."""
    folder = RunFolder(Store(job.folder_uri))
    epochs = folder.epochs()
    if not epochs:
        return None
    best = max(epochs, key=lambda record: (record.valid[job.run.metric], -record.epoch))
    manifest = load_manifest(Store(job.store_uri), job.run.data.dataset)
    method = job.run.build(manifest.data_spec)
    load_weights(folder.store, BEST_WEIGHTS, method)
    device = pick_device(job.run)
    prepare_to_score(method, job.run.execution, device)
    batches = make_batches(job.run, manifest, job.store_uri)
    return score_clips(method.to(device), batches.evaluate("valid"), best.stage, device)


def score_test(winner: Candidate, metric: str, plan: Plan) -> dict[str, Any] | None:
    """The test split, scored once by each of the winner's trainings; a training that was scored is not scored again.

    None when all of them diverged.
    """
    task = ray.remote(num_cpus=plan.trial_cpus, num_gpus=plan.worker_gpus)(finish_run)
    values = []
    for job in winner.jobs:
        folder = RunFolder(Store(job.folder_uri))
        if not folder.epochs():
            continue
        best = folder.store.child("best")
        if not best.exists("metrics.json"):
            ray.get(task.remote(with_device(job, plan.worker_gpus), best))
        values.append(best.read_json("metrics.json")["test"][metric])
    return {"values": values, **without_values(spread(values))} if values else None
