"""The best weights of a run, and the model folder that comes out at the end. Nothing here unpickles objects."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors

from atose_ray.config import RunConfig, explain
from atose_ray.methods import Method
from atose_ray.storage import Store
from atose_ray.training.precision import prepare_to_score
from atose_ray.training.record import BEST_WEIGHTS, EpochRecord, RunFolder
from atose_ray.training.resume import (
    Tensors,
    about_weights,
    as_bytes,
    epoch_file,
    epoch_of,
    frozen_weights,
    kept_epochs,
    last_checkpoint,
)
from atose_ray.types import DataSpec

WEIGHTS = "model.safetensors"  # of a model folder


def best_weights(folder: RunFolder, metric: str) -> tuple[EpochRecord, Tensors]:
    """The best epoch that is on record with its weights. A run that was cut between the two has those of its last epoch
    in the checkpoint; without that, the weights decide which epoch it is. Raises ValueError where there is none."""
    epochs, store = folder.epochs(), folder.store
    chosen = folder.best_epoch(metric, epochs)
    content = store.read(BEST_WEIGHTS) if store.exists(BEST_WEIGHTS) else None
    of = None if content is None else epoch_of(content)
    if content is None or of not in (None, chosen.epoch):
        kept = last_checkpoint(folder)
        if kept is not None and kept.position.trained == chosen.epoch:
            return chosen, kept.scored
        known = {record.epoch: record for record in epochs}
        if content is None or of not in known:
            has = "are missing" if content is None else f"are of epoch {of}, which is not on record"
            raise ValueError(f"the best weights of the run in {store.uri} {has}, so it has no model; train it again")
        chosen = known[of]
    return chosen, {**frozen_weights(store, about_weights(content)[1]), **load_tensors(content)}


@dataclass(frozen=True)
class Model:
    """A trained model with everything needed to use it. stage: whose scores were best on the validation split."""

    method: Method
    run: RunConfig
    spec: DataSpec
    stage: str
    metrics: dict[str, Any]


def best_model(folder: RunFolder) -> Model:
    """A run's best epoch, in eval mode, on the CPU; of a run of all folds that of the first one. Raises ValueError when
    the run has no finished epoch."""
    if not folder.about():
        raise ValueError(f"no run began in {folder.store.uri}, so it has no finished epoch and no model")
    run, spec = folder.config()
    if run.data.fold == "all":
        folds = folder.store.child("folds")
        return best_model(RunFolder(folds.child(min(folds.names(), key=int, default="0"))))
    chosen, weights = best_weights(folder, run.metric)
    head = {"metric": run.metric, "stage": chosen.stage, "epoch": chosen.epoch, "valid": chosen.valid}
    return _model(weights, run, spec, {**head, "number": folder.about().get("number", 0)})


def save_model(store: Store, method: Method, run: RunConfig, spec: DataSpec, metrics: dict[str, Any]) -> None:
    """Write a model folder: model.safetensors, config.json, data_spec.json, metrics.json."""
    store.write(WEIGHTS, as_bytes(dict(method.state_dict())))
    RunFolder(store).start(run, spec)
    store.write_json("metrics.json", metrics)


def copy_kept(folder: RunFolder, stage: str, place: Store) -> list[int]:
    """Write the kept epochs of a stage into a model folder, each whole; returns their numbers. Others go from there."""
    store, of_stage = folder.store, {record.epoch for record in folder.epochs() if record.stage == stage}
    epochs = [epoch for epoch in kept_epochs(store) if epoch in of_stage]
    for epoch in epochs:
        content = store.read(epoch_file(epoch))
        weights = {**frozen_weights(store, about_weights(content)[1]), **load_tensors(content)}
        place.write(epoch_file(epoch), as_bytes(weights, epoch))
    for epoch in set(kept_epochs(place)) - set(epochs):
        place.delete(epoch_file(epoch))
    return epochs


def last_epochs(folder: str, model: Model, count: int) -> Iterator[Model]:
    """The models of the last `count` epochs that a model folder keeps, one in memory at a time. Raises ValueError where
    it keeps fewer."""
    kept, store = model.metrics.get("kept_epochs", []), Store(folder)
    if len(kept) < count:
        raise ValueError(
            f"{folder} keeps the weights of {len(kept)} epochs, so {count} cannot be averaged; train with "
            f"--set execution.keep_epochs={count}"
        )
    for epoch in kept[-count:]:
        weights = load_tensors(store.read(epoch_file(epoch)))
        yield _model(weights, model.run, model.spec, {**model.metrics, "epoch": epoch})


def load_model(folder: str | Store) -> Model:
    """The model in `best/` of a study or of a run, in eval mode, on the CPU. Raises ValueError when it is none."""
    store = folder if isinstance(folder, Store) else Store(folder)
    missing = [name for name in (WEIGHTS, "config.json", "data_spec.json", "metrics.json") if not store.exists(name)]
    if missing:
        raise ValueError(
            f"{store.uri} is not a model folder: it lacks {', '.join(missing)}. Expected the folder `best` that "
            "tune or train wrote"
        )
    try:
        run, spec = RunFolder(store).config()
    except ValidationError as error:
        raise ValueError(f"{store.uri} was written by another version: {explain(error, 'config.json')}") from error
    return _model(load_tensors(store.read(WEIGHTS)), run, spec, store.read_json("metrics.json"))


def _model(weights: dict[str, torch.Tensor], run: RunConfig, spec: DataSpec, metrics: dict[str, Any]) -> Model:
    method = run.build(spec)
    method.load_state_dict(weights)
    prepare_to_score(method, run.execution, torch.device("cpu"))
    return Model(method.eval(), run, spec, metrics["stage"], metrics)
