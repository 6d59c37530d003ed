"""The loop: stages move exactly their parts, runs repeat and resume bitwise, scores do not depend on batch sizes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ON_GPU

from atose_ray.data.batches import LocalBatches, StoreError, rebatch
from atose_ray.evaluation.protocols import CLIP
from atose_ray.evaluation.scoring import has_collapsed, score_clips
from atose_ray.methods import StageConfig
from atose_ray.storage import Store
from atose_ray.training.checkpoint import load_model
from atose_ray.training.loop import DivergedError, fit, run_epochs
from atose_ray.training.record import RunFolder
from atose_ray.training.resume import last_checkpoint
from atose_ray.training.run import Job, finish_run, make_batches, open_run
from atose_ray.types import TagSet

METHODS = ["supervised", "joint_embedding"]


def job(run, tiny_store: Store, folder: Path) -> Job:
    return Job(run, tiny_store.uri, str(folder), {"number": 0, "name": "test", "params": {}, "distributions": {}})


def train(run, tiny_store: Store, folder: Path):
    opened = open_run(job(run, tiny_store, folder))
    records = []
    result = fit(opened.run, opened.method, opened.batches, opened.folder, report=records.append, device=opened.device)
    return opened, records, result


def weights(method) -> dict[str, torch.Tensor]:
    return {name: value.cpu().clone() for name, value in method.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", METHODS)
def test_two_runs_are_bitwise_equal_and_another_seed_is_not(method, tiny_run, tiny_store, tmp_path) -> None:
    first, a, _ = train(tiny_run(method), tiny_store, tmp_path / "a")
    second, b, _ = train(tiny_run(method), tiny_store, tmp_path / "b")
    assert same(weights(first.method), weights(second.method))
    assert [r.train_loss for r in a] == [r.train_loss for r in b] and [r.valid for r in a] == [r.valid for r in b]
    _, c, _ = train(tiny_run(method, seed=1), tiny_store, tmp_path / "c")
    assert [r.train_loss for r in a] != [r.train_loss for r in c]


@pytest.mark.parametrize(
    ("method", "stop_after"),
    [
        ("supervised", 1),
        ("joint_embedding", 2),
        *(pytest.param("supervised", stop, marks=pytest.mark.slow) for stop in (2, 3)),
        *(pytest.param("joint_embedding", stop, marks=pytest.mark.slow) for stop in (1, 3)),
    ],
)
def test_resume_is_bitwise_the_uninterrupted_run(method, stop_after, tiny_run, tiny_store, tmp_path) -> None:
    run = tiny_run(method, optim={"kind": "adam", "lr": 3e-3, "schedule": "cosine", "warmup_steps": 4})
    whole, _, result = train(run, tiny_store, tmp_path / "whole")
    opened = open_run(job(run, tiny_store, tmp_path / "cut"))
    epochs = run_epochs(run, opened.method, opened.batches, opened.folder, device=opened.device)
    for _ in range(stop_after):
        next(epochs)
    epochs.close()
    resumed, _, again = train(run, tiny_store, tmp_path / "cut")
    assert same(weights(whole.method), weights(resumed.method)) and result == again

    def history(folder):
        return [dataclasses.replace(r, seconds=0, time=0, gpu_memory=0) for r in RunFolder(Store(str(folder))).epochs()]

    assert history(tmp_path / "whole") == history(tmp_path / "cut")


def test_a_report_lost_in_a_crash_is_made_up_for(tiny_run, tiny_store, tmp_path) -> None:
    run = tiny_run()
    _, records, _ = train(run, tiny_store, tmp_path)
    log = tmp_path / "log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:2]) + '\n{"event": "epo')  # the last epoch and the end are lost, a line is torn
    again = open_run(job(run, tiny_store, tmp_path))
    repeated = list(run_epochs(run, again.method, again.batches, again.folder, device=again.device))
    assert repeated[0] == records[1], "the last one on record, once more"
    found, wanted = (dataclasses.replace(r, seconds=0, time=0, gpu_memory=0) for r in (repeated[1], records[2]))
    assert found == wanted and len(repeated) == 2
    assert [r.epoch for r in again.folder.epochs()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("method", "stage", "trains", "moves"),
    [
        ("supervised", "classify", None, {"encoder", "classifier"}),
        ("supervised", "classify", ("classifier",), {"classifier"}),
        ("joint_embedding", "embed", None, {"encoder", "projector", "tag_encoder", "tag_decoder"}),
        ("joint_embedding", "embed", ("projector",), {"projector"}),
        ("joint_embedding", "classify", None, {"classifier"}),
        ("joint_embedding", "classify", ("encoder", "classifier"), {"encoder", "classifier"}),
    ],
)
def test_each_stage_moves_exactly_its_parts(method, stage, trains, moves, tiny_run, tiny_store, tmp_path) -> None:
    run = tiny_run(method)
    stages = (StageConfig(name=stage, epochs=1, trains=trains),)
    run = run.model_copy(update={"method": run.method.model_copy(update={"stages": stages})})
    opened = open_run(job(run, tiny_store, tmp_path))
    before = weights(opened.method)
    fit(run, opened.method, opened.batches, opened.folder, device=opened.device)
    after = weights(opened.method)
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == moves
    for part in moves:
        parameters = [name for name, _ in opened.method.named_parameters() if name.split(".")[0] == part]
        if ON_GPU:  # where a bias in front of BatchNorm gets no gradient; elsewhere it gets the rounding of one
            parameters = [name for name in parameters if not name.endswith("conv.bias")]
        still = [name for name in parameters if torch.equal(before[name], after[name])]
        assert not still, f"{still} did not move"


@pytest.mark.parametrize(
    ("objective", "head", "method"),
    [
        ("none", "linear", "supervised"),
        ("info_nce", "mlp", "joint_embedding"),
        pytest.param("cosine", "linear", "joint_embedding", marks=pytest.mark.slow),
        pytest.param("pairwise_margin", "mlp", "joint_embedding", marks=pytest.mark.slow),
    ],
)
def test_overfits_eight_clips(method, objective, head, tiny_run, tiny_store, tiny_manifest) -> None:
    extra = {"objective": {"kind": objective}, "latent": 16} if method == "joint_embedding" else {}
    run = tiny_run(method)
    tree = run.model_dump(mode="json")
    tree["method"] |= {"head": {"kind": head, "dropout": 0.0}, **extra}
    run = type(run).model_validate(tree)
    torch.manual_seed(0)
    model = run.build(tiny_manifest.data_spec)
    batch = next(iter(make_batches(run, tiny_manifest, tiny_store.uri).train(0)))
    for stage in run.method.stages:
        optimizer = torch.optim.Adam(model.train_only(run.method.trained_parts(stage)), lr=5e-3)
        for _ in range(150):
            loss = model(batch, stage.name)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.train_only(run.method.trained_parts(run.method.stages[-1]))
    with torch.no_grad():
        scores = model.score(batch, TagSet(model.spec.tags), run.method.stages[-1].name)
    agree = ((scores > 0.5).float() == batch.tags_BC).float().mean()
    assert agree > 0.9


def test_divergence_stops_before_the_update_and_keeps_the_best(tiny_run, tiny_store, tmp_path) -> None:
    run = tiny_run(optim={"kind": "sgd", "lr": 3e-3})
    opened = open_run(job(run, tiny_store, tmp_path))
    epochs = run_epochs(run, opened.method, opened.batches, opened.folder, device=opened.device)
    best = next(epochs).objective
    with torch.no_grad():
        next(opened.method.classifier.parameters()).fill_(float("nan"))
    before = weights(opened.method)
    with pytest.raises(
        DivergedError, match=r"loss is nan in stage 'classify', epoch 2, step 1 of \d+.*smaller optim\.lr"
    ):
        next(epochs)
    if opened.device.type == "cpu":  # elsewhere a look at every loss would make the host wait
        assert torch.equal(before["encoder.stem.conv.weight"], opened.method.state_dict()["encoder.stem.conv.weight"])
    assert best > 0


def test_fit_records_a_divergence(tiny_run, tiny_store, tmp_path) -> None:
    run = tiny_run()
    opened = open_run(job(run, tiny_store, tmp_path))

    class Poisoned(LocalBatches):
        def train(self, epoch, first=0):
            for number, batch in enumerate(super().train(epoch, first)):
                yield batch._replace(inputs=batch.inputs * float("nan")) if epoch == 1 and number == 2 else batch

    opened.batches.__class__ = Poisoned
    result = fit(run, opened.method, opened.batches, opened.folder, device=opened.device)
    assert result.state == "diverged" and result.epochs == 1 and result.objective is not None
    ending = opened.folder.ending()
    assert ending["state"] == "diverged" and "step 3" in ending["reason"]
    metrics = finish_run(job(run, tiny_store, tmp_path), Store(str(tmp_path / "best")))
    assert metrics["epoch"] == 1


@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_the_batch_size(method, tiny_run, tiny_store, tiny_manifest) -> None:
    torch.manual_seed(0)
    run = tiny_run(method)
    model = run.build(tiny_manifest.data_spec)
    results = []
    for size in (1, 7, 64):
        sized = run.model_copy(update={"execution": run.execution.model_copy(update={"eval_batch_size": size})})
        batches = make_batches(sized, tiny_manifest, tiny_store.uri)
        results.append(CLIP.evaluate(model, batches.evaluate("valid"), run.method.stages[0].name, torch.device("cpu")))
    for other in results[1:]:
        assert other == pytest.approx(results[0], abs=1e-6)


def test_two_readers_see_what_one_sees(tiny_run, tiny_store, tiny_manifest) -> None:
    run = tiny_run()
    whole = list(make_batches(run, tiny_manifest, tiny_store.uri).evaluate("valid"))
    parts = [
        b
        for r in (0, 1)
        for b in make_batches(run, tiny_manifest, tiny_store.uri, LocalBatches, r, 2).evaluate("valid")
    ]

    def ids(batches):
        return sorted(torch.cat([b.clip_id_B for b in batches]).tolist())

    assert ids(whole) == ids(parts)
    train_ids = [
        set(
            torch.cat(
                [b.clip_id_B for b in make_batches(run, tiny_manifest, tiny_store.uri, LocalBatches, r, 2).train(3)]
            ).tolist()
        )
        for r in (0, 1)
    ]
    assert not train_ids[0] & train_ids[1] and len(train_ids[0] | train_ids[1]) == 36


def test_clip_score_is_the_mean_of_its_crops(tiny_run, tiny_store, tiny_manifest) -> None:
    run = tiny_run()
    model = run.build(tiny_manifest.data_spec).eval()
    batches = list(make_batches(run, tiny_manifest, tiny_store.uri).evaluate("valid"))
    scores = score_clips(model, iter(batches), "classify", torch.device("cpu"))
    rows = torch.cat([b.clip_id_B for b in batches]).numpy()
    with torch.no_grad():
        crops = torch.cat([model.score(b, TagSet(model.spec.tags), "classify") for b in batches]).numpy()
    for index, clip in enumerate(scores.clip_id_N):
        assert np.allclose(scores.scores_NC[index], crops[rows == clip].astype(float).mean(axis=0))
    assert {int((rows == clip).sum()) for clip in scores.clip_id_N} == {1, 3}


def test_model_folder_scores_as_the_run_did(tiny_run, tiny_store, tiny_manifest, tmp_path) -> None:
    run = tiny_run("joint_embedding")
    _, records, result = train(run, tiny_store, tmp_path / "run")
    finish_run(job(run, tiny_store, tmp_path / "run"), Store(str(tmp_path / "best")))
    assert sorted(p.name for p in (tmp_path / "best").iterdir()) == [
        "README.md",
        "config.json",
        "data_spec.json",
        "metrics.json",
        "model.safetensors",
    ]
    model = load_model(str(tmp_path / "best"))
    assert model.metrics["valid"][run.metric] == result.objective == max(r.valid[run.metric] for r in records)
    batches = make_batches(model.run, tiny_manifest, tiny_store.uri)
    again = CLIP.evaluate(model.method, batches.evaluate("valid"), model.stage, torch.device("cpu"))
    assert again == pytest.approx(model.metrics["valid"], **({"rel": 2e-3} if ON_GPU else {"abs": 1e-9}))
    assert 0 <= model.metrics["test"]["pr_auc_macro"] <= 1 and len(model.metrics["per_tag"]) == 4
    assert np.allclose(np.diag(model.metrics["tag_embedding_cosine_CC"]), 1, atol=1e-5)
    with pytest.raises(ValueError, match=r"not a model folder: it lacks model\.safetensors"):
        load_model(str(tmp_path))
    with pytest.raises(ValueError, match="cannot score zither"):
        model.method.score(next(iter(batches.evaluate("valid"))), TagSet(("low", "zither")), model.stage)


def test_checkpoint_holds_no_pickled_objects(tiny_run, tiny_store, tmp_path) -> None:
    opened, _, _ = train(tiny_run(), tiny_store, tmp_path)
    kept = last_checkpoint(opened.folder)  # weights_only=True inside
    assert kept.position.trained == 3 and kept.optimizer["state"]
    assert json.loads((tmp_path / "about.json").read_text())["name"] == "test"


def test_epochs_after_the_end_do_not_count(tiny_run, tiny_store, tmp_path) -> None:
    opened, records, _ = train(tiny_run(), tiny_store, tmp_path)
    opened.folder.add_epoch(dataclasses.replace(records[-1], epoch=4, objective=1.0))
    assert opened.folder.ending()["state"] == "complete" and len(opened.folder.epochs()) == 3


def test_collapse_is_noticed() -> None:
    assert has_collapsed(np.full((5, 5), 0.95) + 0.05 * np.eye(5))
    assert not has_collapsed(np.eye(5))


def test_lost_rows_are_noticed(tiny_run, tiny_store, tiny_manifest) -> None:
    batches = make_batches(tiny_run(), tiny_manifest, tiny_store.uri)
    with pytest.raises(StoreError, match="the data ended in batch"):
        list(rebatch(iter([]), batches.sizes, None))


def test_batch_size_must_divide_over_workers(tiny_run, tiny_store, tiny_manifest) -> None:
    with pytest.raises(ValueError, match="multiple of the number of workers, but got 8 and 3"):
        make_batches(tiny_run(), tiny_manifest, tiny_store.uri, LocalBatches, 0, 3)


def test_a_training_runs_without_the_test_split_and_cannot_ask_for_it(
    tiny_run, tiny_store, tiny_manifest, tmp_path
) -> None:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "store" / "data")
    hidden = [shard.name for shard in tiny_manifest.shards if shard.split == "test"]
    for name in hidden:
        Path(tiny_manifest.folder(Store(str(tmp_path / "store"))).path(name)).unlink()
    opened = open_run(Job(tiny_run(), str(tmp_path / "store"), str(tmp_path / "run")))
    result = fit(opened.run, opened.method, opened.batches, opened.folder, device=opened.device)
    assert hidden and result.state == "complete"
    with pytest.raises(StoreError, match="cannot read the test split"):
        list(opened.batches.evaluate("test"))
    known = opened.batches.manifest.model_dump_json()
    assert not any(name in known for name in hidden) and '"test":' not in json.dumps(opened.batches.manifest.tag_counts)
