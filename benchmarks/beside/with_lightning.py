"""PyTorch Lightning with Optuna's pruning callback, as Optuna's example `pytorch_lightning_simple.py` has it.

Two processes and the retry of lost trials as in with_optuna.py; a trial goes on from Lightning's `last.ckpt`."""

from __future__ import annotations

from multiprocessing import Pool

import lightning.pytorch as pl
import optuna
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna_integration import PyTorchLightningPruningCallback
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from torchmetrics.classification import MultilabelAveragePrecision

from benchmarks.beside.clips import load
from benchmarks.beside.measure import note, settings, stubbed  # measured
from benchmarks.beside.network import SAMPLES, network

GIVEN = settings()  # measured
DATA, OUT, SEED, SECONDS, EPOCHS = GIVEN.data, GIVEN.out, GIVEN.seed, GIVEN.seconds, GIVEN.epochs
SPLITS, TAGS = load(DATA, SAMPLES)
Batch = tuple[torch.Tensor, torch.Tensor]


class Tagger(pl.LightningModule):  # type: ignore[misc]
    """The network, its loss and its score."""

    def __init__(self, channels: int, dropout: float, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = network(channels, dropout, TAGS)
        self.score = MultilabelAveragePrecision(len(TAGS), average="macro")

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        """The loss of a batch."""
        if stubbed(OUT, self.number) is not None:  # measured
            batch = (batch[0][:2], batch[1][:2])  # measured
        loss = binary_cross_entropy_with_logits(self.model(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, index: int) -> None:
        """Scores of a batch."""
        if GIVEN.stub_s:  # measured
            batch = (batch[0][:2], batch[1][:2])  # measured
        self.score(self.model(batch[0]).sigmoid(), batch[1].long())
        self.log("score", self.score)

    def test_step(self, batch: Batch, index: int) -> None:
        """Scores of a batch."""
        self.validation_step(batch, index)

    def on_validation_epoch_end(self) -> None:  # measured
        if not self.trainer.sanity_checking and not GIVEN.stub_s:  # measured
            note(OUT, self.number, self.current_epoch + 1, self.score.compute())  # measured

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


def objective(trial: optuna.Trial) -> float:
    """Best validation score of a training."""
    lr = trial.suggest_float("lr", 3e-4, 3e-2, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 0.6)
    channels = trial.suggest_categorical("channels", [4, 8, 16])
    batch_size = trial.suggest_categorical("batch_size", [8, 16, 32])
    number = trial.user_attrs.get("first", trial.number)  # of a retried trial that of the lost one
    trial.set_user_attr("first", number)
    pl.seed_everything(1000 * SEED + number)
    tagger = Tagger(channels, dropout, lr)
    tagger.number = number  # measured
    folder = OUT / f"trial-{number}"
    checkpoint = ModelCheckpoint(folder, "best", monitor="score", mode="max", save_last=True)
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=CSVLogger(folder),
        callbacks=[checkpoint, PyTorchLightningPruningCallback(trial, monitor="score")],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=5,
        **({"limit_train_batches": 1, "limit_val_batches": 1} if GIVEN.stub_s else {}),  # measured
    )
    train = DataLoader(SPLITS["train"], batch_size=batch_size, shuffle=True)
    last = folder / "last.ckpt"
    trainer.fit(tagger, train, DataLoader(SPLITS["valid"], batch_size=64), ckpt_path=last if last.exists() else None)
    trial.set_user_attr("checkpoint", checkpoint.best_model_path)
    return float(checkpoint.best_model_score)


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
    tagger = Tagger.load_from_checkpoint(found.user_attrs["checkpoint"])
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    tested = trainer.test(tagger, DataLoader(SPLITS["test"], batch_size=64), verbose=False)[0]
    print(f"best {found.params}: valid {found.value:.4f}, test {tested['score']:.4f}")
