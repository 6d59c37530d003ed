"""Weights of a run, and the model folder that comes out at the end. Nothing here unpickles objects."""

from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from atose_ray.config import RunConfig, explain
from atose_ray.methods import Method
from atose_ray.storage import Store
from atose_ray.training.precision import prepare_to_score
from atose_ray.training.record import RunFolder
from atose_ray.types import DataSpec

BEST_WEIGHTS = "best.safetensors"
WEIGHTS = "model.safetensors"  # of a model folder


def save_weights(store: Store, name: str, method: Method) -> None:
    """Write a method's weights as safetensors."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in method.state_dict().items()}
    store.write(name, save_tensors(tensors))


def load_weights(store: Store, name: str, method: Method) -> None:
    """Load weights into a method of the same config. Raises RuntimeError where the shapes differ."""
    method.load_state_dict(load_tensors(store.read(name)))


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
    chosen = folder.best_epoch(run.metric)
    head = {"metric": run.metric, "stage": chosen.stage, "epoch": chosen.epoch, "valid": chosen.valid}
    return _model(folder.store, BEST_WEIGHTS, run, spec, {**head, "number": folder.about().get("number", 0)})


def save_model(store: Store, method: Method, run: RunConfig, spec: DataSpec, metrics: dict[str, Any]) -> None:
    """Write a model folder: model.safetensors, config.json, data_spec.json, metrics.json."""
    save_weights(store, WEIGHTS, method)
    RunFolder(store).start(run, spec)
    store.write_json("metrics.json", metrics)


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
    return _model(store, WEIGHTS, run, spec, store.read_json("metrics.json"))


def _model(store: Store, weights: str, run: RunConfig, spec: DataSpec, metrics: dict[str, Any]) -> Model:
    method = run.build(spec)
    load_weights(store, weights, method)
    prepare_to_score(method, run.execution, torch.device("cpu"))
    return Model(method.eval(), run, spec, metrics["stage"], metrics)
