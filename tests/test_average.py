"""The last epochs that a run keeps, and the mean of their probabilities."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import tiny_tree

from atose_ray import evaluate
from atose_ray.config import run_config
from atose_ray.evaluation.metrics import clip_metrics
from atose_ray.evaluation.protocols import CLIP
from atose_ray.evaluation.scoring import ClipScores, mean_of_models
from atose_ray.storage import Store
from atose_ray.training import loop
from atose_ray.training.checkpoint import last_epochs, load_model
from atose_ray.training.loop import fit
from atose_ray.training.record import RunFolder
from atose_ray.training.resume import kept_epochs
from atose_ray.training.run import Job, finish_run, open_run, resolve, score_split, view_for

STAGES = [{"name": "embed", "epochs": 2}, {"name": "classify", "epochs": 3}]


def job_of(store: Store, manifest, folder: Store, keep: int, **changes: object) -> Job:
    tree = tiny_tree("joint_embedding", execution={"keep_epochs": keep}, **changes)
    tree["method"]["stages"] = STAGES
    return Job(resolve(run_config(tree), store, manifest), store.uri, folder.uri)


def train(job: Job):
    opened = open_run(job)
    return fit(opened.run, opened.method, opened.batches, opened.folder)


def test_the_mean_of_the_last_epochs(tiny_store, tiny_manifest, tmp_path, capsys) -> None:
    folder = Store(str(tmp_path / "run"))
    job = job_of(tiny_store, tiny_manifest, folder, 4)
    seen: dict[int, dict[str, torch.Tensor]] = {}
    opened = open_run(job)
    for record in loop.run_epochs(opened.run, opened.method, opened.batches, opened.folder):
        seen[record.epoch] = {key: value.clone() for key, value in opened.method.state_dict().items()}
    opened.folder.end("complete")
    assert kept_epochs(folder) == [2, 3, 4, 5]  # so many, whatever their stage
    best = folder.child("best")
    metrics = finish_run(job, best)
    kept = [3, 4, 5] if metrics["stage"] == "classify" else [2]
    assert metrics["kept_epochs"] == kept_epochs(best) == kept  # of the stage that scores

    model, scores = load_model(best), []
    for one, epoch in zip(last_epochs(best.uri, model, len(kept)), kept, strict=True):
        assert one.metrics["epoch"] == epoch
        assert all(torch.equal(value, seen[epoch][key]) for key, value in one.method.state_dict().items())
        scores.append(score_split(one, view_for(job.run, tiny_store), tiny_store.uri, "test", CLIP.windows))
    expected = clip_metrics(np.mean([one.scores_NC for one in scores], axis=0), scores[0].tags_NC, model.spec.exclusive)
    words = [best.uri, "--store", tiny_store.uri]
    evaluate.main([*words, "--average", str(len(kept)), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["epochs"] == kept and found["metrics"] == pytest.approx(expected)
    evaluate.main([*words, "--average", str(len(kept))])
    assert f"the mean of the scores of epochs {', '.join(map(str, kept))}" in capsys.readouterr().out
    evaluate.main([*words, "--json"])
    assert json.loads(capsys.readouterr().out)["epochs"] == [metrics["epoch"]]
    with pytest.raises(
        ValueError, match=rf"keeps the weights of {len(kept)} epochs, so 9 cannot be averaged; train wi"
    ):
        evaluate.main([*words, "--average", "9"])


def test_a_run_that_was_cut_keeps_the_same(tiny_store, tiny_manifest, tmp_path, monkeypatch) -> None:
    """Killed between the weights of an epoch and its line in the log."""
    whole, cut = Store(str(tmp_path / "whole")), Store(str(tmp_path / "cut"))
    train(job_of(tiny_store, tiny_manifest, whole, 2))
    add_epoch = RunFolder.add_epoch

    def killed(folder, record):
        if record.epoch == 4:
            raise KeyboardInterrupt
        add_epoch(folder, record)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "add_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            train(job_of(tiny_store, tiny_manifest, cut, 2))
    assert kept_epochs(cut) == [3, 4]
    train(job_of(tiny_store, tiny_manifest, cut, 2))
    assert kept_epochs(cut) == kept_epochs(whole) == [4, 5]
    for name in whole.names():
        if name.startswith("epoch-"):
            assert cut.read(name) == whole.read(name)


def test_a_winner_after_another_leaves_none_of_its_epochs(tiny_store, tiny_manifest, tmp_path) -> None:
    best = Store(str(tmp_path / "best"))
    for number, keep in enumerate((5, 0)):
        job = job_of(tiny_store, tiny_manifest, Store(str(tmp_path / str(number))), keep, seed=number)
        train(job)
        metrics = finish_run(job, best)
        assert ("kept_epochs" in metrics) == (keep > 0) == bool(kept_epochs(best))


def test_means_hold_one_model_at_a_time() -> None:
    ids, tags = np.arange(3), np.eye(3)

    def scores():
        for value in (1.0, 2.0, 6.0):
            yield ClipScores(ids, np.full((3, 3), value), tags, windows_RC=np.full((6, 3), value), clip_R=np.arange(6))

    mean = mean_of_models(scores())
    assert np.array_equal(mean.scores_NC, np.full((3, 3), 3.0)) and np.array_equal(mean.windows_RC, np.full((6, 3), 3))
    assert mean.tags_NC is tags
