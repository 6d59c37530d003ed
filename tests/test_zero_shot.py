"""Zero-shot end to end: trained on some tags, chosen by others, tested on the rest, and asked for words of anyone's."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_TAGS, tiny_tree

from atose_ray import evaluate, tag, train
from atose_ray.config import OF_UNSEEN, ConfigError, run_config
from atose_ray.data.shards import load_manifest
from atose_ray.data.views import TagSplit, of_all_tags
from atose_ray.evaluation.protocols import PROTOCOLS
from atose_ray.storage import Store
from atose_ray.training.checkpoint import load_model
from atose_ray.training.record import RunFolder
from atose_ray.types import TagSet

WORDS = {"high": [1, 0, 0], "low": [-1, 0, 0.2], "loud": [0, 1, 0], "steady": [0, 0.2, 1], "shrill": [0.9, 0.3, 0]}
SPLIT = {"unseen": ["low"], "held_out": ["loud"]}
METHODS = {
    "zero_shot": {"kind": "zero_shot", "negatives": "all", "stages": [{"name": "align", "epochs": 4}]},
    "joint_embedding": {
        "kind": "joint_embedding", "latent": 8, "tag_side": "vectors", "objective": {"kind": "info_nce"},
        "stages": [{"name": "joint", "epochs": 4}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero_shot")
    shutil.copytree(Path(tiny_store.root) / "data", folder / "store" / "data")
    lines = [f"{name} {' '.join(map(str, vector))}" for name, vector in WORDS.items()]
    (folder / "words.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module", params=METHODS)
def trained(request: pytest.FixtureRequest, root: Path) -> tuple[str, str]:
    """(model folder, store), chosen by the harmonic mean of seen and held-out tags."""
    data = {**tiny_tree()["data"], "tag_split": SPLIT, "eval_crops": 2}
    tree = {**tiny_tree(), "data": data, "method": METHODS[request.param], "metric": "harmonic_retrieval_roc_auc"}
    tree["tag_vectors"] = {"kind": "glove", "file": str(root / "words.txt")}
    config = root / f"{request.param}.json"
    config.write_text(json.dumps(tree))
    before = set((root / "store" / "runs").iterdir()) if (root / "store" / "runs").exists() else set()
    train.main([str(config), "--store", str(root / "store")])
    (run,) = set((root / "store" / "runs").iterdir()) - before
    return str(run / "best"), str(root / "store")


def test_the_best_epoch_is_chosen_by_tags_that_training_did_not_see(trained: tuple[str, str]) -> None:
    model = load_model(trained[0])
    epochs = RunFolder(Store(str(Path(trained[0]).parent))).epochs()
    assert set(model.spec.tags) == set(TINY_TAGS) - {"low"} and model.spec.held_out == ("loud",)
    assert all(set(OF_UNSEEN) <= set(epoch.valid) for epoch in epochs)
    best = max(epochs, key=lambda epoch: epoch.valid["harmonic_retrieval_roc_auc"])
    assert model.metrics["valid"] == best.valid and "unseen_retrieval_map" in model.metrics["test"]


def told(capsys: pytest.CaptureFixture[str], model: str, store: str, protocol: str, *more: str) -> dict[str, Any]:
    capsys.readouterr()
    evaluate.main([model, "--store", store, "--protocol", protocol, "--json", *more])
    return json.loads(capsys.readouterr().out)


def test_protocols_of_unseen_tags(trained: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    folder, store = trained
    alone, both, choi = (told(capsys, folder, store, name) for name in ("zero_shot", "generalised_zero_shot", "choi"))
    assert set(alone["tags"]) == set(both["tags"]) == set(TINY_TAGS) - {"loud"}  # not the tag that chose the epoch
    counted = load_manifest(Store(store), "folder").data_spec.counts["test"]
    assert alone["metrics"]["tags_unseen"] == 1 and alone["metrics"]["clips"] == counted
    assert alone["metrics"]["retrieval_roc_auc"] == pytest.approx(both["metrics"]["unseen_retrieval_roc_auc"])
    assert {"seen_retrieval_map", "harmonic_annotation_map", "annotation_map"} <= set(both["metrics"])
    assert "retrieval_auc" in choi["metrics"] and set(choi["metrics"]).isdisjoint(
        {"retrieval_roc_auc", "retrieval_map"}
    )
    evaluate.main([folder, "--store", store, "--protocol", "zero_shot"])
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")]
    assert shown and all(line.endswith("[zero_shot]") for line in shown)
    assert any(re.search(r"retrieval_left_out +0  ", line) for line in shown)


def test_more_tags_are_scored_than_the_model_has(trained: tuple[str, str]) -> None:
    model, store = load_model(trained[0]), Store(trained[1])
    data = model.run.data.model_copy(update={"tag_split": TagSplit(unseen=("low",))})  # as if none had been held out
    view, unseen = of_all_tags(load_manifest(store, "folder"), data, store)
    found = evaluate.score(model, view, store, "test", PROTOCOLS["generalised_zero_shot"], unseen)["metrics"]
    assert len(view.manifest.data_spec.tags) == 4 > len(model.spec.tags) and found["tags_unseen"] == 1


def test_words_of_anyones(trained: tuple[str, str], root: Path, tiny_source: Path, capsys) -> None:
    folder, _ = trained
    file = str(next(tiny_source.glob("*.wav")))
    capsys.readouterr()
    tag.main([folder, file, "--tags", "shrill, low,  high low"])
    out, err = capsys.readouterr()
    assert {line.split("  ")[-1] for line in out.splitlines()[1:]} == {"shrill", "low", "high low"}
    assert "note: high low: the mean of high, low" in err and "shrill:" not in err
    tag.main([folder, file, "--json", "--tags", "high"])
    known = json.loads(capsys.readouterr().out)["scores"]
    assert set(known) == {"high"}
    with pytest.raises(ValueError, match=r"words\.txt lack sitar, rain"):
        tag.main([folder, file, "--tags", "sitar, high, rain"])
    with pytest.raises(ValueError, match="takes words with commas between"):
        tag.main([folder, file, "--tags", " , "])
    words = (root / "words.txt").read_text()
    try:
        (root / "words.txt").write_text(words.replace("high 1", "high 2"))
        with pytest.raises(ValueError, match="gives other vectors than this model was trained with"):
            tag.main([folder, file, "--tags", "shrill"])
        (root / "words.txt").unlink()
        with pytest.raises(ValueError, match="that this model was trained with cannot be read"):
            tag.main([folder, file, "--tags", "shrill"])
        tag.main([folder, file])  # what it knows it knows without them
    finally:
        (root / "words.txt").write_text(words)


def test_a_model_of_one_list_says_so(tiny_run, tiny_store: Store, tiny_source: Path, tmp_path: Path) -> None:
    from atose_ray.training.loop import fit
    from atose_ray.training.run import Job, finish_run, open_run

    job = Job(tiny_run(), tiny_store.uri, str(tmp_path / "run"))
    opened = open_run(job)
    fit(job.run, opened.method, opened.batches, opened.folder)
    finish_run(job, Store(str(tmp_path / "best")))
    file = str(next(tiny_source.glob("*.wav")))
    with pytest.raises(ValueError, match=r"a supervised model scores the 4 tags .* not sitar; train method zero_shot"):
        tag.main([str(tmp_path / "best"), file, "--tags", "low, sitar"])
    with pytest.raises(ValueError, match=r"trained with a tag split: set data.tag_split"):
        evaluate.main([str(tmp_path / "best"), "--store", tiny_store.uri, "--protocol", "zero_shot"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "unseen_retrieval_map"}, r"of held-out tags: set data\.tag_split\.valid_share"),
        ({"data": {"tag_split": SPLIT}}, "method supervised cannot score a tag that it was not trained on"),
        (
            {"data": {"tag_split": SPLIT}, "method": {"kind": "zero_shot"}, "tag_vectors": {"kind": "co_occurrence"}},
            "made of the training clips' tags, so a held-out tag would be known",
        ),
    ],
)
def test_what_cannot_be_held_out(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_config(changes)


def test_held_out_tags_do_not_reach_a_joint_embedding(tiny_manifest) -> None:
    """Neither their labels nor their vectors change a loss."""
    spec = tiny_manifest.data_spec.model_copy(update={"held_out": ("loud",)})
    tree = {**tiny_tree(), "method": METHODS["joint_embedding"], "tag_vectors": {"kind": "random", "width": 3}}
    tree["data"]["crop_seconds"] = 0.5
    torch.manual_seed(0)
    method = run_config(tree).build(spec, TagSet(spec.tags, torch.randn(4, 3))).eval()
    at, embed_BE = spec.tags.index("loud"), torch.randn(4, method.encoder.embed_dim)
    tags_BC = torch.eye(4)
    first = method.embedding_losses(embed_BE, tags_BC, "joint")["loss"]
    changed = tags_BC.clone()
    changed[:, at] = 1 - changed[:, at]
    with torch.no_grad():
        method.vectors_CV[at] += 1
    assert torch.equal(method.embedding_losses(embed_BE, changed, "joint")["loss"], first)


STUDY = """
base:
  data: {dataset: folder, crop_seconds: 0.8, batch_size: 8, eval_crops: 1, tag_split: {unseen: [low], held_out: [loud]}}
  encoder: {kind: mel_cnn, channels: 4, embedding: 8, mels: 12}
  method: {kind: zero_shot}
  tag_vectors: {kind: random, size: 8}
space:
  method:
    one_of:
      zero_shot: {negatives: {choice: [1, all]}, stages: [{name: align, epochs: 2}]}
      joint_embedding: {tag_side: vectors, latent: 8, stages: [{name: joint, epochs: 2}]}
search: {metric: harmonic_annotation_map, trials: 3, concurrency: 2, sampler: random, pruner: {kind: none}}
"""


@pytest.mark.ray
def test_a_score_of_held_out_tags_is_searched_for(ray_cluster, root: Path, tmp_path: Path, capsys) -> None:
    from atose_ray import tune
    from atose_ray.search.record import load_study_record

    (tmp_path / "unseen.yaml").write_text(STUDY)
    store = str(root / "store")
    tune.main([str(tmp_path / "unseen.yaml"), "--store", store])
    record = load_study_record(Store(store), "unseen")
    assert [trial.state for trial in record.trials] == ["complete"] * 3 and record.best is not None
    best = max(trial.epochs[-1].objective for trial in record.trials)
    assert record.best.metrics["valid"]["harmonic_annotation_map"] == best and 0 < best <= 1
    assert "harmonic_annotation_map" in Path(store, "studies", "unseen", "report.html").read_text()
    found = told(capsys, f"{store}/studies/unseen/best", store, "zero_shot")
    assert found["metrics"]["tags_unseen"] == 1
