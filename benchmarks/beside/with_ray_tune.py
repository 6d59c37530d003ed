"""Ray Tune with OptunaSearch and ASHA, after "How to use Tune with PyTorch" and its page on fault tolerance."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from sklearn.metrics import average_precision_score
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.beside.clips import load
from benchmarks.beside.measure import note, settings, stubbed  # measured
from benchmarks.beside.network import SAMPLES, network

GIVEN = settings()  # measured
DATA, OUT, SEED, SECONDS, EPOCHS = GIVEN.data, GIVEN.out, GIVEN.seed, GIVEN.seconds, GIVEN.epochs
SPACE = {
    "lr": tune.loguniform(3e-4, 3e-2),
    "dropout": tune.uniform(0.0, 0.6),
    "channels": tune.choice([4, 8, 16]),
    "batch_size": tune.choice([8, 16, 32]),
}


def score(model: torch.nn.Module, split: TensorDataset) -> float:
    """Macro PR-AUC."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(audio) for audio, _ in DataLoader(split, batch_size=64)])
    return float(average_precision_score(split.tensors[1].numpy(), logits.numpy(), average="macro"))


def train(config: dict[str, Any], clips: tuple[dict[str, TensorDataset], list[str]]) -> None:
    """One trial."""
    torch.set_num_threads(1)
    trial = tune.get_context().get_trial_id()  # measured
    if (stub := stubbed(OUT, trial)) is not None:  # measured
        tune.report({"score": stub, "best": stub})  # measured
        return  # measured
    splits, tags = clips
    torch.manual_seed(SEED)
    model = network(config["channels"], config["dropout"], tags)
    optimizer = torch.optim.Adam(model.parameters(), lr=config["lr"])
    start, best = 0, 0.0
    checkpoint = tune.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start, best = state["epoch"], state["best"]
    for epoch in range(start, EPOCHS):
        model.train()
        for audio, targets in DataLoader(splits["train"], batch_size=config["batch_size"], shuffle=True):
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(model(audio), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        value = score(model, splits["valid"])
        best = max(best, value)
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1, "best": best}
        with tempfile.TemporaryDirectory() as folder:
            torch.save(state, Path(folder) / "state.pt")
            note(OUT, trial, epoch + 1, value)  # measured
            tune.report({"score": value, "best": best}, checkpoint=tune.Checkpoint.from_directory(folder))


if __name__ == "__main__":
    ray.init(num_cpus=2)
    splits, tags = load(DATA, SAMPLES)
    trainable = tune.with_resources(tune.with_parameters(train, clips=(splits, tags)), {"cpu": 1})
    if tune.Tuner.can_restore(str(OUT / "tags")):
        tuner = tune.Tuner.restore(str(OUT / "tags"), trainable=trainable, param_space=SPACE, resume_errored=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=SPACE,
            tune_config=tune.TuneConfig(
                metric="best",
                mode="max",
                search_alg=OptunaSearch(seed=SEED),
                scheduler=ASHAScheduler(max_t=EPOCHS, grace_period=1, reduction_factor=4),
                num_samples=GIVEN.trials or -1,
                max_concurrent_trials=2,
                time_budget_s=SECONDS,
            ),
            run_config=tune.RunConfig(
                name="tags",
                storage_path=str(OUT),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_score_attribute="score"),
            ),
        )
    results = tuner.fit()
    if GIVEN.stub_s:  # measured
        raise SystemExit  # measured
    found = results.get_best_result(metric="best", mode="max")
    assert found.config and found.metrics and found.checkpoint
    model = network(found.config["channels"], found.config["dropout"], tags)
    with found.get_best_checkpoint("score", "max").as_directory() as folder:
        model.load_state_dict(torch.load(Path(folder) / "state.pt")["model"])
    print(f"best {found.config}: valid {found.metrics['best']:.4f}, test {score(model, splits['test']):.4f}")
