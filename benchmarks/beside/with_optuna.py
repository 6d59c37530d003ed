"""Optuna with a training loop written by hand.

Two processes share a study in SQLite ("Easy Parallelization"); a trial whose process died is queued again and goes on
from its checkpoint (the example `pytorch_checkpoint.py`: heartbeat, RetryHeartbeatStaleTrialCallback)."""

from __future__ import annotations

from multiprocessing import Pool

import optuna
import torch
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sklearn.metrics import average_precision_score
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.beside.clips import load
from benchmarks.beside.measure import note, settings, stubbed  # measured
from benchmarks.beside.network import SAMPLES, network

GIVEN = settings()  # measured
DATA, OUT, SEED, SECONDS, EPOCHS = GIVEN.data, GIVEN.out, GIVEN.seed, GIVEN.seconds, GIVEN.epochs
SPLITS, TAGS = load(DATA, SAMPLES)


def score(model: torch.nn.Module, split: TensorDataset) -> float:
    """Macro PR-AUC."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(audio) for audio, _ in DataLoader(split, batch_size=64)])
    return float(average_precision_score(split.tensors[1].numpy(), logits.numpy(), average="macro"))


def objective(trial: optuna.Trial) -> float:
    """Best validation score of a training."""
    lr = trial.suggest_float("lr", 3e-4, 3e-2, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    channels = trial.suggest_categorical("channels", [4, 8, 16])
    batch_size = trial.suggest_categorical("batch_size", [8, 16, 32])
    if (stub := stubbed(OUT, trial.number)) is not None:  # measured
        return stub  # measured
    number = trial.user_attrs.get("first", trial.number)  # of a retried trial that of the lost one
    trial.set_user_attr("first", number)
    torch.manual_seed(1000 * SEED + number)
    model = network(channels, dropout, TAGS)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    checkpoint, best_weights = OUT / f"trial-{number}.pt", OUT / f"trial-{number}-best.pt"
    start, best = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, best = state["epoch"], state["best"]
    for epoch in range(start, EPOCHS):
        model.train()
        for audio, tags in DataLoader(SPLITS["train"], batch_size=batch_size, shuffle=True):
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(model(audio), tags).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        value = score(model, SPLITS["valid"])
        if value > best:
            best = value
            torch.save(model.state_dict(), best_weights)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1, "best": best}
        torch.save(state, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)
        note(OUT, number, epoch + 1, value)  # measured
        trial.report(best, epoch + 1)
        if trial.should_prune():
            raise optuna.TrialPruned
    return best


def open_study(worker: int) -> optuna.Study:
    """The study of all processes."""
    storage = RDBStorage(
        f"sqlite:///{OUT}/study.db",
        heartbeat_interval=5,
        grace_period=10,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(inherit_intermediate_values=True),
    )
    return optuna.create_study(
        storage=storage,
        study_name="tags",
        direction="maximize",
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=2 * SEED + worker, constant_liar=True),
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4),
    )


def search(worker: int) -> None:
    """One of the two processes."""
    torch.set_num_threads(1)
    open_study(worker).optimize(objective, n_trials=GIVEN.trials and GIVEN.trials // 2, timeout=SECONDS)


if __name__ == "__main__":
    open_study(0)
    with Pool(2) as pool:
        pool.map(search, range(2))
    if GIVEN.stub_s:  # measured
        raise SystemExit  # measured
    found = open_study(0).best_trial
    model = network(found.params["channels"], found.params["dropout"], TAGS)
    model.load_state_dict(torch.load(OUT / f"trial-{found.user_attrs['first']}-best.pt"))
    print(f"best {found.params}: valid {found.value:.4f}, test {score(model, SPLITS['test']):.4f}")
