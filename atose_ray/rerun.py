"""`python -m atose_ray.rerun STUDY TRIAL`: train a trial again and hold what comes out against what is on record."""

import argparse
from collections.abc import Sequence

from atose_ray import cli
from atose_ray.config import RunConfig
from atose_ray.data.shards import load_manifest
from atose_ray.search.progress import read_study
from atose_ray.search.promotion import train_one
from atose_ray.search.record import TrialRecord, study_store
from atose_ray.storage import Store
from atose_ray.training.precision import choose
from atose_ray.training.record import EpochRecord, RunFolder
from atose_ray.training.run import Job, pick_device

GPU_TOLERANCE = 0.02  # of a validation score, for a run whose kernels were not asked to be deterministic


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "rerun",
        "Train a trial of a study again: same configuration, same seed, same threads and workers; every epoch is\n"
        "compared with the record. On a CPU of the same kind, with the same versions, scores are the same to the last\n"
        f"bit; on a GPU within {GPU_TOLERANCE:g}, unless the study says execution.deterministic: true.",
        "  python -m atose_ray.rerun demo 11",
    )
    parser.add_argument("study", help="name of the study folder")
    parser.add_argument("trial", type=int, help="number of the trial")
    parser.add_argument("--resume", action="store_true", help="go on with the last rerun of this trial, if one was cut")
    cli.add_cluster(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Find the trial, train, compare. Exit code 1 where the scores differ."""
    options = arguments().parse_args(argv)
    store = cli.open_store(options)
    study, trials = read_study(store, options.study)
    trial = find(trials, options.trial)
    if trial.state == "infeasible":
        raise ValueError(f"trial {trial.number} was never trained, its configuration cannot be built: {trial.reason}")
    run, said = in_its_precision(RunConfig.model_validate(trial.config), trial.precision)
    load_manifest(store, run.data.dataset, run.data.content_hash)  # of other data no score could come out the same
    folder = next_folder(study_store(store, options.study), trial.number, options.resume)
    folder.check_writable()
    about = {"number": trial.number, "name": trial.name, "params": trial.params, "distributions": trial.distributions}
    job = Job(run, store.uri, folder.uri, about)
    print(f"rerun {trial.name} in {folder.uri}", flush=True)
    if trial.halved:
        said.append("on record memory ran out, and from there on batches went in two halves: the scores may differ")
    print("".join(f"{line}\n" for line in said), end="", flush=True)
    if trial.state == "pruned":
        print(f"it was pruned after {len(trial.epochs)} of {run.method.epochs} epochs; this goes on", flush=True)
    if study.search.workers_per_trial:
        from atose_ray.runtime.train import train_alone

        train_alone(job, study.search.model_copy(update={"trials": 1}), options.cpus, options.address)
    else:
        train_one(job, trial.threads or 1, lambda record: show(record, job))
    lines, same = compare(trial, RunFolder(folder))
    print("\n".join(lines))
    if not same:
        raise SystemExit(1)


def in_its_precision(run: RunConfig, recorded: str | None) -> tuple[RunConfig, list[str]]:
    """The run in the precision that is on record, as far as this machine has it, and what there is to say of that."""
    device = pick_device(run)
    auto, as_recorded = (run.execution.model_copy(update={"precision": one}) for one in ("auto", recorded))
    here = choose(auto, device)
    if recorded is None or here == recorded or run.execution.precision == recorded == "float32":
        return run, []
    try:
        choose(as_recorded, device)
    except ValueError:
        lacks = f"on record it computed in {recorded}, which this {device.type} lacks: it computes in {here} now, and "
        return run.model_copy(update={"execution": auto}), [lacks + "the scores will differ"]
    said = f"on record it computed in {recorded}, where this machine by itself takes {here}: it computes in {recorded}"
    return run.model_copy(update={"execution": as_recorded}), [said]


def find(trials: Sequence[TrialRecord], number: int) -> TrialRecord:
    """The trial of a number. Raises ValueError, naming those there are."""
    found = next((trial for trial in trials if trial.number == number), None)
    if found is None:
        known = ", ".join(str(trial.number) for trial in trials) or "none"
        raise ValueError(f"there is no trial {number} in this study; it has: {known}")
    return found


def next_folder(study: Store, number: int, resume: bool) -> Store:
    """The folder of a new rerun, or of the last one of this trial."""
    reruns = study.child("reruns")
    count = len([name for name in reruns.names(f"{number:03d}-") if name.rpartition("-")[2].isdecimal()])
    return reruns.child(f"{number:03d}-{max(0, count - 1) if resume else count}")


def show(record: EpochRecord, job: Job) -> None:
    """One line per epoch."""
    metric = job.run.metric
    print(f"epoch {record.epoch}/{job.run.method.epochs} valid {metric} {record.valid[metric]:.4f}", flush=True)


def compare(trial: TrialRecord, folder: RunFolder) -> tuple[list[str], bool]:
    """What differs between a trial's record and its rerun, over the epochs that both have."""
    metric = str(trial.config["metric"])
    again = folder.epochs()
    pairs = list(zip(trial.epochs, again, strict=False))
    if not pairs:
        return ["nothing to compare: the trial or its rerun finished no epoch"], False
    apart = [(old, new) for old, new in pairs if old.valid != new.valid or old.train_loss != new.train_loss]
    if not apart:
        value = pairs[-1][0].objective
        return [f"the same to the last bit: {len(pairs)} epochs, best valid {metric} {value:.4f}"], True
    largest = max(abs(old.valid[metric] - new.valid[metric]) for old, new in pairs)
    on_gpu = pick_device(folder.config()[0]).type == "cuda"
    if on_gpu and not folder.config()[0].execution.deterministic and largest <= GPU_TOLERANCE:
        return [
            f"the same within {GPU_TOLERANCE:g}: {len(pairs)} epochs, valid {metric} differs by {largest:.4f} at most. "
            "A GPU adds in another order every time, unless the study says execution.deterministic: true"
        ], True
    old, new = apart[0]
    device = folder.about().get("device")
    lines = [
        f"not the same from epoch {old.epoch} on: valid {metric} {old.valid[metric]:.6f} on record, "
        f"{new.valid[metric]:.6f} now; best {trial.epochs[-1].objective:.4f} on record, {again[-1].objective:.4f} now"
    ]
    precision = folder.about().get("precision")
    if trial.precision and precision != trial.precision:
        lines.append(f"it computed in {trial.precision}, now in {precision}: that alone gives other scores")
    if device != trial.device:
        lines.append(f"it ran on {trial.device}, now on {device}: other hardware rounds differently")
    return lines, False


if __name__ == "__main__":
    cli.run(main)
