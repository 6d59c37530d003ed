"""The best trials of a search, trained again with other seeds: is the winner better, or was it lucky?

    studies/<name>/promoted/<signature>/     one run folder per trial and seed
    studies/<name>/promotion.json            what came of it, for the report

All comparisons are made on the validation split. The test split is scored last, by the winner's trainings alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from atose_ray.config import OF_CLIPS, ConfigError, RunConfig
from atose_ray.evaluation.protocols import CLIP
from atose_ray.evaluation.scoring import ClipScores
from atose_ray.evaluation.significance import paired_bootstrap, spread
from atose_ray.search.record import TrialRecord
from atose_ray.search.space import SEED_STRIDE
from atose_ray.storage import Store
from atose_ray.storage.lease import PROMOTION_LEASE, Lease, LeaseError
from atose_ray.training.checkpoint import best_model
from atose_ray.training.folds import begin
from atose_ray.training.loop import to_the_end
from atose_ray.training.notice import Notice
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.run import Job, score_split, use_threads, view_for

Scores = Sequence[ClipScores | None]


@dataclass(frozen=True)
class Candidate:
    """A trial to train again. role: winner, second, third ... or baseline; jobs: one per seed."""

    trial: TrialRecord
    role: str
    jobs: tuple[Job, ...]


@contextmanager
def alone(folder: Store) -> Iterator[None]:
    """Hold a study's promotion: two at once would write the same trainings. Raises ConfigError where another is at
    work."""
    try:
        lease = Lease(folder, PROMOTION_LEASE).take(give_up_s=0, say=functools.partial(print, flush=True))
    except LeaseError as error:
        raise ConfigError(f"this study is being promoted: {error}") from error
    try:
        yield
    finally:
        lease.release()


def choose(
    trials: Iterable[TrialRecord],
    first: int,
    baseline: int | None,
    top: int,
    seeds: int,
    folder: Store,
    store: Store,
    workers: int = 0,
) -> list[Candidate]:
    """The trial `first`, the best others up to `top` in all, and the baseline where it is none of them.

    Raises ValueError for a trial that is not there or finished no epoch.
    """
    scored = {trial.number: trial for trial in trials if trial.value is not None}
    numbers = {trial.identity: number for number, trial in sorted(scored.items(), reverse=True)}  # of equals the first
    for number in (first, *(() if baseline is None else (baseline,))):
        if number not in scored:
            known = ", ".join(str(number) for number in sorted(scored)) or "none"
            raise ValueError(f"trial {number} finished no epoch, or is not in this study; trials that did: {known}")
    others = sorted(scored.values(), key=lambda trial: (-(trial.value or 0.0), trial.number))
    rivals = (trial for trial in others if numbers[trial.identity] == trial.number)
    order = [scored[first], *(trial for trial in rivals if trial.identity != scored[first].identity)][:top]
    roles = [*("winner", "second", "third"), *(f"{place}th" for place in range(4, top + 1))]
    chosen = list(zip(order, roles, strict=False))
    if baseline is not None and scored[baseline].identity not in [trial.identity for trial in order]:
        chosen.append((scored[baseline], "baseline"))
    candidates = []
    for trial, role in chosen:
        run, jobs = RunConfig.model_validate(trial.config), []
        for number in range(1, seeds + 1):  # other seeds, each of which depends on the trial's own alone
            other = run.model_copy(update={"seed": (run.seed + number * SEED_STRIDE * 1009) % 2**31})
            about = {"number": trial.number, "name": f"{trial.name}-seed{number}", "params": {}, "distributions": {}}
            jobs.append(Job(other, store.uri, folder.child("promoted", other.signature(workers)).uri, about))
        candidates.append(Candidate(trial, role, tuple(jobs)))
    return candidates


def train_one(
    job: Job,
    threads: int | None,
    report: Callable[[EpochRecord], None] = lambda record: None,
    notice: Notice | None = None,
) -> None:
    """Train a job to its end in this process, from its last checkpoint if there is one. threads: where its
    configuration does not say; None leaves PyTorch's. notice: of `run_epochs`."""
    use_threads(job.run.execution.threads or threads)
    to_the_end(*begin(job, notice=notice), report)


def score_valid(job: Job) -> ClipScores | None:
    """Scores of the best epoch's weights on the validation split; None of a run that diverged in its first epoch."""
    folder = RunFolder(Store(job.folder_uri))
    if not folder.epochs():
        return None
    view = view_for(job.run, Store(job.store_uri)).without_test()
    return score_split(best_model(folder), view, job.store_uri, "valid", CLIP.windows)


def without_failed(chosen: Sequence[Candidate], failed: Mapping[str, str]) -> list[Candidate]:
    """The candidates with the trainings that came to an end. failed: run folder -> why."""
    return [
        dataclasses.replace(one, jobs=tuple(job for job in one.jobs if job.folder_uri not in failed)) for one in chosen
    ]


def failures_of(candidate: Candidate, failed: Mapping[str, str]) -> list[dict[str, Any]]:
    """[{"seed", "reason"}] of a candidate's trainings that failed, for promotion.json."""
    lost = [job for job in candidate.jobs if job.folder_uri in failed]
    return [{"seed": job.run.seed, "reason": failed[job.folder_uri]} for job in lost]


def judge(chosen: Sequence[Candidate], scores: Sequence[Scores], metric: str) -> dict[str, Any]:
    """What promotion.json holds, but for the test scores. scores: of each candidate's trainings, None if diverged. A
    training that failed is none of them."""
    rows, kept = [], [[one for one in of if one is not None] for of in scores]
    for candidate, of in zip(chosen, scores, strict=True):
        jobs = [job for job, one in zip(candidate.jobs, of, strict=True) if one is not None]
        logs = [RunFolder(Store(job.folder_uri)).epochs() for job in jobs]
        values = [max(record.valid[metric] for record in epochs) for epochs in logs]
        row = {"number": candidate.trial.number, "name": candidate.trial.name, "role": candidate.role}
        row |= {"seeds": [job.run.seed for job in jobs], "diverged": len(of) - len(jobs), "valid": values}
        rows.append({**row, **summary(values)})
    comparisons = []
    for candidate, theirs in zip(chosen[1:], kept[1:], strict=True):
        if kept[0] and theirs and metric in OF_CLIPS:  # of unseen tags there is no bootstrap: the seeds' spread stands
            ours_NC, theirs_NC = ([one.scores_NC for one in side] for side in (kept[0], theirs))
            found = paired_bootstrap(ours_NC, theirs_NC, kept[0][0].tags_NC, metric)
            pair = {"a": chosen[0].trial.number, "b": candidate.trial.number}
            comparisons.append({**pair, **dataclasses.asdict(found)})
    return {"metric": metric, "split": "valid", "trials": rows, "comparisons": comparisons, "test": None}


def summary(values: list[float]) -> dict[str, Any]:
    """Mean, deviation and interval; none of a trial whose trainings all diverged."""
    found = spread(values) if values else None
    return {name: getattr(found, name, None) for name in ("mean", "deviation", "low", "high")}
