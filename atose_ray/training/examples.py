"""examples.json: what a model gets wrong on the validation split, written into the folder of its study.

Never of the test split: whoever reads a list of mistakes goes on to mend something, and a test split that was looked at
clip by clip is no test of the next model."""

from typing import Any

import torch

from atose_ray.evaluation.examples import mistakes_of, shown_clips
from atose_ray.evaluation.metrics import per_tag_table
from atose_ray.evaluation.protocols import CLIP
from atose_ray.storage import Store
from atose_ray.training.checkpoint import Model, best_model, load_model
from atose_ray.training.record import EXAMPLES, RunFolder
from atose_ray.training.run import score_split, view_for


def write_examples(best: Store, store: Store, device: torch.device | None = None) -> None:
    """Score the validation split with the model folder `best` and write its examples.json, unless that is done.

    store: where the model's data set is. device: None is that of the run's config. Raises ValueError when the folder is
    no model or the data is other data, StoreError when there is none."""
    _write(load_model(best), best, EXAMPLES, store, device)


def write_trial_examples(run: Store, into: Store, name: str, store: Store, device: torch.device | None = None) -> None:
    """The same of a run's best epoch, into `into`/`name`. Raises ValueError when the run has no finished epoch."""
    _write(best_model(RunFolder(run)), into, name, store, device)


def _write(model: Model, into: Store, name: str, store: Store, device: torch.device | None) -> None:
    metrics = model.metrics
    identity = {"signature": model.run.signature(), "stage": model.stage, "epoch": metrics["epoch"], "version": 2}
    if not into.exists(name) or into.read_json(name).get("identity") != identity:  # which weights, by which rules
        found = examples_of(model, store, device)
        into.write_json(name, {"number": metrics.get("number", 0), "identity": identity, **found})


def examples_of(model: Model, store: Store, device: torch.device | None = None) -> dict[str, Any]:
    """Score the validation split: per tag, confusions, worst mistakes with excerpts; JSON types only."""
    view = view_for(model.run, store).without_test()
    scores = score_split(model, view, store.uri, "valid", CLIP.windows, device)
    exclusive, tags = model.spec.exclusive, model.spec.tags
    mistakes, shown = mistakes_of(scores, exclusive)
    return {
        "split": "valid",
        "protocol": CLIP.name,
        "exclusive": exclusive,
        "clip_count": len(scores.clip_id_N),
        "tags": list(tags),
        "metrics": CLIP.metrics(scores, exclusive),
        "per_tag": per_tag_table(scores.scores_NC, scores.tags_NC, tags, exclusive),
        **mistakes,
        "clips": shown_clips(view, store, scores, shown),
    }
