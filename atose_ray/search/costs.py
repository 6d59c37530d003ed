"""What a trial costs, beside what it scores: the further objectives of a search (`search.costs`), all minimised.

    params         parameters of the model
    latency_ms     median wall time of scoring one crop alone, on the trial's device with the trial's threads, after
                   warm-up, measured when the trial has ended; other trials may be at work on the same machine
    train_seconds  seconds that the trial trained and scored, without its start and without interruptions
    gpu_seconds    the same, times the GPUs that the trial held

They follow from the run folder alone, so that a search that goes on knows them again.
"""

import statistics
import time
from collections.abc import Sequence

import torch

from atose_ray.methods import Method
from atose_ray.search.record import TrialRecord
from atose_ray.storage import Store
from atose_ray.training.checkpoint import best_model
from atose_ray.training.precision import prepare_to_score
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, pick_device, use_threads
from atose_ray.types import Batch, TagSet, untagged

FLOOR = 0.0  # what the sampler is told of a trial that diverged before its first epoch ended, or cannot be built
WARM_UP, MEASURED = 5, 30


def costs_of(trial: TrialRecord, names: Sequence[str]) -> dict[str, float] | None:
    """Name -> cost; None where one is not on record, as of a trial that did not come to its end."""
    seconds = sum(epoch.seconds for epoch in trial.epochs)
    known = {
        "params": float(trial.parameters),
        "latency_ms": trial.latency_ms,
        "train_seconds": seconds,
        "gpu_seconds": seconds * trial.resources.get("gpus", 0.0),
    }
    found = {name: value for name in names if (value := known[name]) is not None}
    return found if len(found) == len(names) else None


def values_of(trial: TrialRecord, names: Sequence[str]) -> tuple[float, ...] | None:
    """The objective, then the costs; None for a trial that failed. One that diverged at once has FLOOR, and so has one
    that cannot be built, unless it is asked for costs that it does not have."""
    costs = None if names and trial.state == "infeasible" else costs_of(trial, names)
    valueless = trial.value is None and trial.state not in ("diverged", "infeasible")
    if trial.state == "failed" or costs is None or valueless:
        return None
    return (FLOOR if trial.value is None else trial.value, *(costs[name] for name in names))


def front(trials: Sequence[TrialRecord], names: Sequence[str]) -> list[tuple[TrialRecord, tuple[float, ...]]]:
    """The trials that no other one beats (as good in every objective, better in one), best objective first."""
    known = [(trial, values_of(trial, names)) for trial in trials if trial.state != "running"]
    scored = [(trial, values) for trial, values in known if values is not None]

    def beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
        gains = [one[0] - other[0], *(b - a for a, b in zip(one[1:], other[1:], strict=True))]
        return min(gains) >= 0 and max(gains) > 0

    kept = [(trial, values) for trial, values in scored if not any(beats(other, values) for _, other in scored)]
    return sorted(kept, key=lambda pair: -pair[1][0])


def latency_ms(method: Method, stage: str, device: torch.device) -> float:
    """Median milliseconds of scoring one crop alone, on `device`, with as many threads as this process has."""
    method.to(device).eval()
    spec = method.spec
    noise = 0.1 * torch.randn(1, *spec.input.shape, generator=torch.Generator().manual_seed(0))
    batch = untagged(Batch, noise, len(spec.tags)).to(device)
    seconds = []
    with torch.inference_mode():
        for _ in range(WARM_UP + MEASURED):
            began = time.perf_counter()
            method.score(batch, TagSet(spec.tags), stage).cpu()  # the copy waits for the device
            seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[WARM_UP:])


def note_latency(job: Job, threads: int) -> None:
    """Measure a run's model in this process and write it into about.json. A run without a finished epoch has none; one
    whose measurement failed gets a note: a cost that is missing is no trial that failed."""
    folder = RunFolder(Store(job.folder_uri))
    epochs = folder.epochs()
    if not epochs:
        return
    use_threads(threads)
    try:
        method = best_model(folder).method
        device = pick_device(job.run)
        prepare_to_score(method, job.run.execution, device)
        measured = round(latency_ms(method, epochs[-1].stage, device), 4)
    except (RuntimeError, ValueError, OSError) as error:
        folder.note("latency", f"latency could not be measured: {error}")
        return
    folder.store.write_json("about.json", {**folder.about(), "latency_ms": measured})
