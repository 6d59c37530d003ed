"""What every method, tag vector and protocol must do, shipped or made up: a new one joins by one line.

The same for encoders stands in test_encoders.py, for data sets in test_datasets.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import RATE, tiny_tree
from made_up import write_frames

from atose_ray import evaluate, train
from atose_ray.config import ConfigError, RunConfig, run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.data.views import view_of
from atose_ray.datasets import dataset_config
from atose_ray.encoders.pooling import PoolingConfig
from atose_ray.evaluation.protocols import PROTOCOLS
from atose_ray.evaluation.scoring import score_clips
from atose_ray.methods import METHODS
from atose_ray.storage import Store
from atose_ray.tags.vectors import VECTORS, AnyTagVectorsConfig, TagVectorsConfig
from atose_ray.training.checkpoint import load_model
from atose_ray.training.loop import fit, run_epochs
from atose_ray.training.record import RunFolder
from atose_ray.training.run import Job, finish_run, make_batches, open_run, resolve
from atose_ray.types import TagSet

CPU = torch.device("cpu")
STEPS = {"kind": "made_up_steps", "width": 8}
SMALL = {"kind": "sample_cnn", "block": "basic", "channels": 4}
PATCHES = {"kind": "coala_cnn", "channels": 2}
LINEAR = {"head": {"kind": "linear"}}
TREES: dict[str, dict[str, Any]] = {  # a method as a run has it
    "supervised": {"encoder": SMALL, "method": {"kind": "supervised", **LINEAR}},
    "joint_embedding": {"encoder": SMALL, "method": {"kind": "joint_embedding", "latent": 8, **LINEAR}},
    "joint_embedding vectors": {
        "encoder": SMALL,
        "method": {"kind": "joint_embedding", "latent": 8, "tag_side": "vectors", **LINEAR},
        "tag_vectors": {"kind": "random", "size": 8},
    },
    "probe": {"encoder": STEPS, "method": {"kind": "probe", **LINEAR}},
    "zero_shot": {
        "encoder": SMALL,
        "method": {"kind": "zero_shot", "latent": 8},
        "tag_vectors": {"kind": "random", "size": 8},
    },
    "coala": {"encoder": PATCHES, "method": {"kind": "coala", "latent": 8, "hidden": 8}},
    "coala vectors": {
        "encoder": PATCHES,
        "method": {"kind": "coala", "tag_side": "vectors", "hidden": 8, "objective": {"kind": "info_nce"}},
        "tag_vectors": {"kind": "random", "size": 8},
    },
    "multi_level_attention": {"encoder": STEPS, "method": {"kind": "multi_level_attention", "width": 12}},
    "made_up_words": {
        "encoder": STEPS,
        "method": {"kind": "made_up_words"},
        "tag_vectors": {"kind": "random", "size": 8},
    },
}
SOURCES: dict[str, dict[str, Any]] = {  # tag vectors as a run has them; capitals are files with the tiny set's tags
    "random": {"kind": "random", "size": 6},
    "co_occurrence": {"kind": "co_occurrence", "size": 3},
    "table": {"kind": "table", "file": "FILE"},
    "glove": {"kind": "glove", "file": "FILE", "context": "{tag} steady"},
    "instrument": {"kind": "instrument", "labels": "LABELS", "tracks": "TRACKS"},
    "sentence": {"kind": "sentence", "folder": "FOLDER"},
    "made_up_letters": {"kind": "made_up_letters"},
}


def test_every_method_and_source_of_vectors_is_here() -> None:
    assert {tree["method"]["kind"] for tree in TREES.values()} == set(METHODS) and set(SOURCES) == set(VECTORS)


def run_of(name: str, stages: list[dict[str, Any]], store: Store, manifest: Manifest, **changes: Any) -> RunConfig:
    tree = {**tiny_tree(), "tag_vectors": None, **TREES[name], **changes}
    tree["method"] = {**tree["method"], "stages": stages}
    return resolve(run_config(tree), store, manifest)


def stages_of(name: str, epochs: int = 1) -> list[dict[str, Any]]:
    return [{"name": stage, "epochs": epochs} for stage in METHODS[TREES[name]["method"]["kind"]].STAGES]


def values(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", TREES)
def test_each_stage_moves_exactly_its_parts(name: str, tiny_store: Store, tiny_manifest: Manifest, tmp_path) -> None:
    for stage in METHODS[TREES[name]["method"]["kind"]].STAGES:
        run = run_of(name, [{"name": stage, "epochs": 1}], tiny_store, tiny_manifest)
        opened = open_run(Job(run, tiny_store.uri, str(tmp_path / stage), {}))
        before = values(opened.method)
        fit(run, opened.method, opened.batches, opened.folder)
        after = values(opened.method)
        moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
        assert moved == set(METHODS[TREES[name]["method"]["kind"]].STAGES[stage]), stage


@pytest.mark.parametrize("name", TREES)
def test_scores_of_every_stage(name: str, tiny_store: Store, tiny_manifest: Manifest) -> None:
    """Shape, order and range; a row does not depend on its neighbours; encoded before or not, the same."""
    run = run_of(name, stages_of(name), tiny_store, tiny_manifest)
    torch.manual_seed(0)
    method = run.build(tiny_manifest.data_spec, open_tags(run, tiny_store, tiny_manifest)).eval()
    batch = next(iter(make_batches(run, tiny_manifest, tiny_store.uri).evaluate("valid")))
    tags = tiny_manifest.data_spec.tags
    assert set(METHODS[TREES[name]["method"]["kind"]].COMPARABLE) <= set(METHODS[TREES[name]["method"]["kind"]].STAGES)
    with torch.no_grad():
        for stage in METHODS[TREES[name]["method"]["kind"]].STAGES:
            scores_BC = method.score(batch, TagSet(tags), stage)
            assert scores_BC.shape == batch.tags_BC.shape and scores_BC.isfinite().all()
            assert torch.allclose(method.score(method.embed(batch), TagSet(tags), stage), scores_BC, atol=1e-6)
            turned = method.score(batch, TagSet(tags[::-1]), stage)
            assert torch.allclose(turned.flip(1), scores_BC, atol=1e-6)
            alone = method.score(type(batch)(*(part[:1] for part in batch)), TagSet(tags), stage)
            assert torch.allclose(alone, scores_BC[:1], atol=1e-5)


def open_tags(run: RunConfig, store: Store, manifest: Manifest) -> TagSet:
    from atose_ray.training.sources import tag_set

    return tag_set(manifest.data_spec.tags, run.tag_vectors, store)


@pytest.mark.parametrize("name", TREES)
def test_a_tag_it_never_saw(name: str, tiny_store: Store, tiny_manifest: Manifest) -> None:
    run = run_of(name, stages_of(name), tiny_store, tiny_manifest)
    method = run.build(tiny_manifest.data_spec, open_tags(run, tiny_store, tiny_manifest)).eval()
    batch = next(iter(make_batches(run, tiny_manifest, tiny_store.uri).evaluate("valid")))
    stage = run.method.stages[-1].name
    if run.method.scores_unseen:
        assert run.tag_vectors is not None
        vectors_CV = torch.from_numpy(run.tag_vectors.vectors(("zither", "low")))
        assert method.score(batch, TagSet(("zither", "low"), vectors_CV), stage).shape == (len(batch.inputs), 2)
    else:
        with pytest.raises(ValueError, match="zither"):
            method.score(batch, TagSet(("low", "zither")), stage)


@pytest.mark.parametrize("name", TREES)
def test_resumed_in_the_middle_it_is_the_same_run(name: str, tiny_store: Store, tiny_manifest, tmp_path) -> None:
    run = run_of(name, stages_of(name, epochs=2), tiny_store, tiny_manifest)
    whole = open_run(Job(run, tiny_store.uri, str(tmp_path / "whole"), {}))
    fit(run, whole.method, whole.batches, whole.folder)
    cut = open_run(Job(run, tiny_store.uri, str(tmp_path / "cut"), {}))
    epochs = run_epochs(run, cut.method, cut.batches, cut.folder)
    next(epochs)
    epochs.close()
    cut = open_run(Job(run, tiny_store.uri, str(tmp_path / "cut"), {}))
    fit(run, cut.method, cut.batches, cut.folder)
    one, other = values(whole.method), values(cut.method)
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny set's tags with vectors of two numbers, as CSV, npz and Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("vectors")
    names, vectors = ["loud", "low", "high", "steady", "zither"], np.arange(10).reshape(5, 2) / 4
    lines = [f"{name},{row[0]},{row[1]}" for name, row in zip(names, vectors, strict=True)]
    (folder / "words.csv").write_text("\n".join(["name,a,b", *lines]))
    np.savez(folder / "words.npz", names=np.array(names), vectors=vectors)
    pq.write_table(pa.table({"name": names, "vector": vectors.tolist()}), folder / "words.parquet")
    labels = [f"00000{at}_5,{'cello' if at % 2 else 'voice'},{0.2 + 0.15 * at}" for at in range(len(names))]
    (folder / "labels.csv").write_text("\n".join(["sample_key,instrument,relevance", *labels]))
    tracks = [f"{at},{name}" for at, name in enumerate(names)]
    (folder / "tracks.csv").write_text("\n".join(["track_id,tags", *tracks]))
    (folder / "config.json").write_text("{}")
    return folder


class Letters:
    """In the place of the package transformers: a token is a letter, its vector the cosines of multiples of it."""

    AutoTokenizer = AutoModel = SimpleNamespace(from_pretrained=lambda *_, **__: Letters())

    def __call__(self, *text: str, input_ids: torch.Tensor | None = None, **_: object) -> Any:
        if input_ids is None:
            return {"input_ids": torch.tensor([[ord(letter) for letter in text[0]]])}
        return SimpleNamespace(last_hidden_state=torch.cos(input_ids[:, :, None] * torch.arange(1.0, 5)))

    def eval(self) -> Letters:
        return self


@pytest.fixture(autouse=True)
def letters_for_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from atose_ray.tags import sentence

    both = SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: True), import_module=lambda _: Letters)
    monkeypatch.setattr(sentence, "importlib", both)


def source(name: str, table: Path) -> TagVectorsConfig:
    from pydantic import TypeAdapter

    files = {"FILE": "words.csv", "LABELS": "labels.csv", "TRACKS": "tracks.csv", "FOLDER": ""}
    tree = {key: str(table / files[value]) if value in files else value for key, value in SOURCES[name].items()}
    config: TagVectorsConfig = TypeAdapter(AnyTagVectorsConfig).validate_python(tree)
    return config


@pytest.mark.parametrize("name", SOURCES)
def test_tag_vectors(name: str, table: Path) -> None:
    """Finite, one row a name, in any order, the same twice; a closed source names what it cannot do."""
    config, names = source(name, table), ("low", "loud", "high")
    tags_NC = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 1], [1, 1, 0]], float)
    vectors_CV = config.vectors(names, tags_NC)
    assert vectors_CV.dtype == np.float32 and len(vectors_CV) == 3 and np.isfinite(vectors_CV).all()
    assert np.array_equal(config.vectors(names, tags_NC), vectors_CV)
    resolved = config.resolved(names, vectors_CV)
    assert resolved.width == vectors_CV.shape[1] and resolved.content_hash != config.content_hash
    if config.CLOSED:
        with pytest.raises(ValueError, match="zither"):
            config.vectors(("zither",))
        gram_CC, turned_CC = vectors_CV @ vectors_CV.T, config.vectors(names[::-1], tags_NC[:, ::-1])
        assert np.allclose((turned_CC @ turned_CC.T)[::-1, ::-1], gram_CC, atol=1e-5)
    else:
        assert np.array_equal(config.vectors(names[::-1]), vectors_CV[::-1])


def test_vectors_of_a_table_in_three_formats(table: Path) -> None:
    from atose_ray.tags.vectors import TableVectorsConfig

    for ending in ("csv", "npz", "parquet"):
        vectors_CV = TableVectorsConfig(file=str(table / f"words.{ending}")).vectors(("zither", "loud"))
        assert np.array_equal(vectors_CV, np.array([[2.0, 2.25], [0.0, 0.25]], np.float32))
    with pytest.raises(ValueError, match="5 names, but none of oboe"):
        TableVectorsConfig(file=str(table / "words.csv")).vectors(("low", "oboe"))
    (table / "text.csv").write_text("name,a\nlow,x\n")
    with pytest.raises(ValueError, match=r"text\.csv is not a table of names and vectors"):
        TableVectorsConfig(file=str(table / "text.csv")).vectors(("low",))


def test_vectors_are_part_of_the_identity_and_of_the_model(tiny_store, tiny_manifest, table, tmp_path) -> None:
    stages = [{"name": "align", "epochs": 1}]
    runs = {
        name: run_of("made_up_words", stages, tiny_store, tiny_manifest, tag_vectors=source(name, table).model_dump())
        for name in SOURCES
    }
    assert len({run.signature() for run in runs.values()}) == len(SOURCES)
    job = Job(runs["table"], tiny_store.uri, str(tmp_path / "run"), {})
    opened = open_run(job)
    fit(job.run, opened.method, opened.batches, opened.folder)
    finish_run(job, Store(str(tmp_path / "best")))
    alone = load_model(str(tmp_path / "best"))
    assert torch.equal(alone.method.get_buffer("vectors_CV"), opened.method.get_buffer("vectors_CV"))
    assert alone.method.get_buffer("vectors_CV").any()


def test_a_method_and_its_vectors_go_together(tiny_store: Store, tiny_manifest: Manifest) -> None:
    plain = run_of("supervised", stages_of("supervised"), tiny_store, tiny_manifest)
    vectors = {"kind": "random"}  # of a study's base, for other arms
    assert run_of("supervised", stages_of("supervised"), tiny_store, tiny_manifest, tag_vectors=vectors) == plain
    with pytest.raises(ConfigError, match="made_up_words reads tag vectors"):
        run_of("made_up_words", stages_of("made_up_words"), tiny_store, tiny_manifest, tag_vectors=None)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols(name: str, tiny_store: Store, tiny_manifest: Manifest) -> None:
    """The same for every batch size; windows lie where they should; metrics are finite and carry names of their own."""
    protocol = PROTOCOLS[name]
    assert protocol.name == name and protocol.summary
    for length in (100, 1000):
        starts = protocol.windows(length, 300, 4)
        assert starts and all(min(0, length - 300) <= start <= max(0, length - 300) for start in starts)
    found = []
    kind = "zero_shot" if protocol.unseen else "probe"
    split = {"tag_split": {"unseen": ["steady"], "held_out": ["loud", "low"]}} if protocol.unseen else {}
    for size in (3, 64):
        changes = {"execution": {"eval_batch_size": size}, "data": {**tiny_tree()["data"], **split}}
        run = run_of(kind, stages_of(kind), tiny_store, tiny_manifest, **changes)
        view = view_of(tiny_manifest, run.data, tiny_store)
        torch.manual_seed(0)
        method = run.build(view.manifest.data_spec, open_tags(run, tiny_store, view.manifest))
        batches = make_batches(run, tiny_manifest, tiny_store.uri).evaluate("valid", protocol.windows)
        found.append(protocol.evaluate(method, batches, run.method.stages[-1].name, CPU))
    assert found[0] == pytest.approx(found[1], abs=1e-6) and all(np.isfinite(list(found[0].values())))


@pytest.mark.parametrize("kind", ["mean", "max", "attention"])
def test_pooling(kind: str) -> None:
    """[B, S, E] -> [B, E]; of equal steps the step; every parameter gets a gradient."""
    pooling = PoolingConfig(kind=kind, heads=2).build(6)
    seq_BSE = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(0))
    assert pooling(seq_BSE).shape == (3, 6)
    assert torch.allclose(pooling(seq_BSE[:, :1].expand(3, 5, 6)), seq_BSE[:, 0], atol=1e-6)
    if kind == "attention":
        assert torch.allclose(pooling(seq_BSE), seq_BSE.mean(dim=1), atol=1e-6)  # as long as it has learned nothing
        pooling(seq_BSE).square().sum().backward()
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in pooling.parameters())
        assert pooling.score.weight.grad.any()
        with pytest.raises(ValueError, match=r"heads must divide .* 2 and 5"):
            PoolingConfig(kind=kind, heads=2).build(5)


@pytest.fixture(scope="module")
def frames_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    source = write_frames(tmp_path_factory.mktemp("frames"))
    store = Store(str(tmp_path_factory.mktemp("frames_store")))
    prepare(dataset_config("made_up_frames", source=str(source)), store)
    return store


FRAMES_TREE = {
    "data": {"dataset": "made_up_frames", "batch_size": 8, "eval_crops": 2, "crop_seconds": 3.0},
    "encoder": {"kind": "made_up_frame_steps", "width": 8},
    "method": {"kind": "made_up_words", "stages": [{"name": "align", "epochs": 6}]},
    "tag_vectors": {"kind": "random", "size": 8},
    "optim": {"kind": "adam", "lr": 3e-2},
}


def test_frames_with_a_time_axis_and_words_are_trained_evaluated_and_asked_for_others(
    frames_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "one.json"
    config.write_text(json.dumps(FRAMES_TREE))
    train.main([str(config), "--store", frames_store.uri])
    folder = next(Path(frames_store.root, "runs").iterdir()) / "best"
    model = load_model(str(folder))
    assert model.metrics["test"]["roc_auc_macro"] > 0.9
    encoder = model.method.encoder
    manifest = load_manifest(frames_store, "made_up_frames")
    assert encoder.hop_seconds == 0.5 and float(encoder.get_buffer("mean_M").mean()) == pytest.approx(110, abs=3)
    batches = make_batches(model.run, manifest, frames_store.uri)
    batch = next(iter(batches.evaluate("valid")))
    with torch.no_grad():
        assert encoder.sequence(encoder.front_end(batch.inputs)).shape == (len(batch.inputs), 6, 16)
    others = TagSet(("wide", "oboe"), torch.from_numpy(model.run.tag_vectors.vectors(("wide", "oboe"))))
    scores = score_clips(model.method, batches.evaluate("test"), model.stage, CPU, others)
    assert scores.scores_NC.shape == (manifest.data_spec.counts["test"], 2)
    capsys.readouterr()
    evaluate.main([str(folder), "--store", frames_store.uri, "--protocol", "made_up", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["protocol"] == "made_up" and found["metrics"]["recall_at_0.5"] > 0.5


def test_an_encoder_for_the_other_input_is_refused(frames_store: Store, tiny_store: Store, tiny_manifest) -> None:
    manifest = load_manifest(frames_store, "made_up_frames")
    with pytest.raises(ConfigError, match="sample_cnn takes audio, but the data set holds frames"):
        resolve(run_config({**FRAMES_TREE, "encoder": SMALL}), frames_store, manifest)
    tree = {**FRAMES_TREE, "data": {"dataset": "folder", "batch_size": 8}}
    with pytest.raises(ConfigError, match="made_up_frame_steps takes frames, but the data set holds audio"):
        resolve(run_config(tree), tiny_store, tiny_manifest)


def test_run_folder_of_a_probe_says_what_it_stands_on(tiny_store: Store, tiny_manifest, tmp_path) -> None:
    """encoder: pretrained takes config, crop and weights of a model; the probe leaves them as they are."""
    first = run_of("supervised", stages_of("supervised"), tiny_store, tiny_manifest)
    job = Job(first, tiny_store.uri, str(tmp_path / "first"), {})
    opened = open_run(job)
    fit(first, opened.method, opened.batches, opened.folder)
    finish_run(job, Store(str(tmp_path / "best")))
    best = load_model(str(tmp_path / "best"))
    trees = {"encoder": {"kind": "pretrained", "model": str(tmp_path / "best")}}
    run = run_of("probe", stages_of("probe"), tiny_store, tiny_manifest, data={"dataset": "folder"}, **trees)
    assert run.encoder == first.encoder and run.data.crop_seconds == first.data.crop_seconds
    assert run.init_from is not None and run.init_from.sha256
    again = open_run(Job(run, tiny_store.uri, str(tmp_path / "probe"), {}))
    fit(run, again.method, again.batches, again.folder)
    kept, now = best.method.encoder.state_dict(), again.method.encoder.state_dict()
    assert all(torch.equal(kept[key], now[key]) for key in kept)
    assert RunFolder(Store(str(tmp_path / "probe"))).best_epoch("pr_auc_macro").stage == "probe"
    (tmp_path / "best" / "model.safetensors").write_bytes((tmp_path / "first" / "best.safetensors").read_bytes()[:-4])
    with pytest.raises(ConfigError, match="holds other weights than this run was resolved with"):
        open_run(Job(run, tiny_store.uri, str(tmp_path / "later"), {}))


@pytest.mark.parametrize("ending", ["safetensors", "pt", "npz"])
def test_a_checkpoint_of_others_begins_a_run(ending: str, tiny_store: Store, tiny_manifest, tmp_path) -> None:
    run = run_of("probe", stages_of("probe"), tiny_store, tiny_manifest)
    torch.manual_seed(5)
    state = run.build(tiny_manifest.data_spec).encoder.state_dict()
    tensors = {f"net.{key}": value + 1 for key, value in state.items()}
    file = tmp_path / f"theirs.{ending}"
    if ending == "pt":
        torch.save(tensors, file)
    elif ending == "npz":
        np.savez(file, **{key: value.numpy() for key, value in tensors.items()})
    else:
        from safetensors.torch import save_file

        save_file(tensors, file)
    init = {"uri": str(file), "prefix": "net."}
    begun = run_of("probe", stages_of("probe"), tiny_store, tiny_manifest, init_from=init)
    opened = open_run(Job(begun, tiny_store.uri, str(tmp_path / "run"), {}))
    assert all(torch.equal(value, tensors[f"net.{key}"]) for key, value in opened.method.encoder.state_dict().items())
    assert begun.signature() != run.signature()
    with pytest.raises(ConfigError, match="does not fit the encoder"):
        wrong = run_of("supervised", stages_of("supervised"), tiny_store, tiny_manifest, init_from=init)
        open_run(Job(wrong, tiny_store.uri, str(tmp_path / "wrong"), {}))
    file.write_bytes(b"no tensors")
    with pytest.raises(ConfigError, match="holds other weights"):
        open_run(Job(begun, tiny_store.uri, str(tmp_path / "other"), {}))


def test_what_is_read_before_training_is_named_where_it_is_missing(tiny_store: Store, tiny_manifest, tmp_path) -> None:
    def run(**changes: Any) -> RunConfig:
        return run_of("probe", stages_of("probe"), tiny_store, tiny_manifest, **changes)

    with pytest.raises(ConfigError, match=r"init_from\.uri is a model folder or a file of tensors"):
        run(init_from={"uri": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match="is not a model folder"):
        run(encoder={"kind": "pretrained", "model": str(tmp_path / "nowhere")})
    file = tmp_path / "bad.npz"
    file.write_bytes(b"no tensors")
    broken = run(init_from={"uri": str(file)})
    with pytest.raises(ConfigError, match="is not a file of tensors"):
        open_run(Job(broken, tiny_store.uri, str(tmp_path / "run"), {}))
    assert tiny_manifest.data_spec.audio.sample_rate_hz == RATE


STUDY = """
base:
  data: {dataset: made_up_frames, batch_size: 8, eval_crops: 2, crop_seconds: 3.0}
  optim: {kind: adam, lr: 0.03}
  tag_vectors: {kind: random, size: 8}
space:
  encoder: {one_of: {made_up_frame_steps: {width: {choice: [4, 8]}, pooling: {kind: {choice: [mean, attention]}}}}}
  method: {one_of: {made_up_words: {sharpness: {range: [1.0, 9.0]}, stages: [{name: align, epochs: 3}]}}}
  tag_vectors: {one_of: {random: {size: 8}, made_up_letters: {}}}
search: {metric: roc_auc_macro, trials: 4, concurrency: 2, sampler: random, pruner: {kind: none}}
"""


@pytest.mark.ray
def test_made_up_parts_are_searched_and_reported(ray_cluster, frames_store: Store, tmp_path: Path, capsys) -> None:
    from atose_ray import tune
    from atose_ray.search.record import load_study_record

    (tmp_path / "made_up.yaml").write_text(STUDY)
    tune.main([str(tmp_path / "made_up.yaml"), "--store", frames_store.uri])
    record = load_study_record(frames_store, "made_up")
    assert [trial.state for trial in record.trials] == ["complete"] * 4 and record.best is not None
    assert {trial.config["tag_vectors"]["kind"] for trial in record.trials} == {"random", "made_up_letters"}
    assert record.best.metrics["test"]["roc_auc_macro"] > 0.8
    report = frames_store.child("studies", "made_up").read("report.html").decode()
    assert "frames of 5 bins, one every 0.5 s" in report and "made_up_words" in report
    capsys.readouterr()
