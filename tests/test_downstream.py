"""The downstream probe as a score of an epoch: what it measures, when, what a search makes of it, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.distributed as dist
import yaml
from conftest import RATE, tiny_tree
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from test_probe import ALIKE, prepare_in_folds
from test_resume import After, same_end

from atose_ray import status, tune
from atose_ray.config import ConfigError, RunConfig, StudyConfig, run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import load_manifest
from atose_ray.datasets import dataset_config
from atose_ray.evaluation.significance import wilson
from atose_ray.ranks import RankLeftError
from atose_ray.search.ranking import RANKED, RUNG, Ranking
from atose_ray.search.record import load_study_record, study_store
from atose_ray.search.samplers import check_warm_start
from atose_ray.search.space import check, with_its_probe
from atose_ray.storage import Store, StoreError
from atose_ray.training.checkpoint import best_model
from atose_ray.training.downstream import Downstream
from atose_ray.training.folds import begin, finish
from atose_ray.training.loop import fit, to_the_end
from atose_ray.training.notice import Ask, Notice, StoppedError
from atose_ray.training.record import EpochRecord
from atose_ray.training.run import Job, OpenRun, batches_in, finish_run, open_run, resolve, view_for
from atose_ray.training.sync_norm import ddp

STAGES = {"kind": "joint_embedding", "head": {"kind": "linear"}, "latent": 4}
PROBED = {"probe": {"dataset": "three_folds"}, "metric": "probe_accuracy"}
Build = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def store(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny set, and beside it one in folds whose clips are high or low."""
    folder = tmp_path_factory.mktemp("probed")
    shutil.copytree(Path(tiny_store.root) / "data", folder / "data")
    prepare_in_folds(tmp_path_factory.mktemp("folds"), Store(str(folder)), pitches=ALIKE)
    return Store(str(folder))


@pytest.fixture(scope="module")
def build(store: Store) -> Build:
    """Changes of the tiny run -> it, resolved."""

    def build(**changes: Any) -> RunConfig:
        return resolve(run_config({**tiny_tree(), **changes}), store, load_manifest(store, "folder"))

    return build


def opened_in(folder: Path, run: RunConfig, store: Store) -> OpenRun:
    return open_run(Job(run, store.uri, str(folder), {}))


def train(opened: OpenRun, notice: Notice | None = None) -> OpenRun:
    fit(opened.run, opened.method, opened.batches, opened.folder, notice=notice, probe=opened.probe)
    return opened


def counted(opened: OpenRun, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of epochs on record at every probe of its own."""
    measured, scores = list[int](), Downstream.scores

    def counting(self: Downstream, *arguments: Any) -> dict[str, float]:
        measured.append(len(opened.folder.epochs()) + 1)
        return scores(self, *arguments)

    monkeypatch.setattr(Downstream, "scores", counting)
    return measured


def test_the_score_is_a_classifiers_on_valid_and_once_on_test(build: Build, store: Store, tmp_path: Path) -> None:
    """Against scikit-learn by hand; the epoch with the best score is kept, and test is read after the training only."""
    run = build(**PROBED)
    assert run.probe is not None and run.probe.fold == 0
    assert run.probe.content_hash == load_manifest(store, "three_folds").content_hash
    opened = train(opened_in(tmp_path / "run", run, store))
    assert opened.probe is not None
    with pytest.raises(StoreError, match="cannot read the test split"):
        next(opened.probe.batches.evaluate("test"))
    records = opened.folder.epochs()
    values = [record.valid["probe_accuracy"] for record in records]
    assert [record.objective for record in records] == np.maximum.accumulate(values).tolist()
    model = best_model(opened.folder)
    assert model.metrics["epoch"] == values.index(max(values)) + 1
    metrics = finish_run(Job(run, store.uri, str(tmp_path / "run"), {}), Store(str(tmp_path / "best")))
    assert metrics["test_scorings"][0]["value"] == metrics["test"]["probe_accuracy"]

    change = {"dataset": "three_folds", "fold": 0, "content_hash": run.probe.content_hash}
    of_set = run.model_copy(update={"data": run.data.model_copy(update=change)})
    batches = batches_in(view_for(of_set, store), of_set, store.uri)
    sets = {}
    for split in ("train", "valid", "test"):
        found: dict[int, list[tuple[torch.Tensor, int]]] = {}
        for batch in batches.evaluate(split):
            with torch.no_grad():
                embed_BE = model.method.eval().encoder(batch.inputs)
            for row, tags, clip in zip(embed_BE, batch.tags_BC, batch.clip_id_B.tolist(), strict=True):
                found.setdefault(clip, []).append((row, int(tags.argmax())))
        x = np.stack([torch.stack([row for row, _ in rows]).double().mean(dim=0).numpy() for rows in found.values()])
        sets[split] = x, np.array([rows[0][1] for rows in found.values()])
    scaler = StandardScaler().fit(sets["train"][0])
    fitted = LogisticRegression(max_iter=1000).fit(scaler.transform(sets["train"][0]), sets["train"][1])
    wanted = {split: fitted.score(scaler.transform(x), y) for split, (x, y) in sets.items()}
    assert max(values) == wanted["valid"] and metrics["test"]["probe_accuracy"] == wanted["test"]
    assert len(sets["train"][1]) == len(sets["valid"][1]) == 12 and wanted["valid"] < 1
    low, high = metrics["test_intervals"]["probe_accuracy"]
    assert low < wanted["test"] < high and [low, high] == wilson(round(12 * wanted["test"]), 12)


def test_a_run_goes_on_to_the_same_scores(build: Build, store: Store, tmp_path: Path) -> None:
    """Stopped in the middle of the fourth epoch; every other epoch has a probe of its own, and the rest what stands."""
    stages = [{"name": "classify", "epochs": 5}]
    method = {"kind": "supervised", "head": {"kind": "linear"}, "stages": stages}
    probe = {"dataset": "folder", "classifier": "mlp", "seeds": 2, "every": 2}
    run = build(probe=probe, metric="pr_auc_macro", method=method)
    whole = opened_in(tmp_path / "whole", run, store)
    train(whole)
    halves = opened_in(tmp_path / "halves", run, store)
    with pytest.raises(StoppedError):
        train(halves, After(3 * (halves.batches.steps() - 1) + 2, Ask.STOP))  # it asks before each but the last
    assert len(halves.folder.epochs()) == 3
    same_end(whole, train(opened_in(tmp_path / "halves", run, store)))
    scores = [record.valid["probe_pr_auc_macro"] for record in whole.folder.epochs()]
    assert scores[1] == scores[0] != scores[2] == scores[3]


def test_what_rests_is_not_measured_again(build: Build, store: Store, tmp_path: Path, monkeypatch) -> None:
    """Of three epochs that train the encoder, every third and the last have a probe, and of a head's none."""
    method = {**STAGES, "stages": [{"name": "embed", "epochs": 3}, {"name": "classify", "epochs": 2}]}
    run = build(method=method, probe={**PROBED["probe"], "every": 100}, metric="probe_accuracy")
    opened = opened_in(tmp_path, run, store)
    measured = counted(opened, monkeypatch)
    train(opened)
    assert measured == [1, 3]
    scores = [record.valid["probe_accuracy"] for record in opened.folder.epochs()]
    assert len(scores) == 5 and scores[0] == scores[1] and scores[2:] == [scores[2]] * 3


def test_several_tags_and_its_place_in_the_identity(build: Build, store: Store, tmp_path: Path) -> None:
    run = build(probe={"dataset": "folder"}, metric="probe_roc_auc_macro")
    assert run.probe is not None
    opened = train(opened_in(tmp_path, run, store))
    record = opened.folder.epochs()[-1]
    assert {"probe_pr_auc_macro", "probe_roc_auc_macro"} <= set(record.valid) and "probe_accuracy" not in record.valid
    plain = build()
    assert "probe" not in json.dumps({**plain.model_dump(mode="json"), "probe": None}).replace('"probe": null', "")
    others = [
        plain.model_copy(update={"probe": run.probe.model_copy(update=change)})
        for change in ({}, {"every": 2}, {"classifier": "mlp"}, {"seeds": 3}, {"fold": 1}, {"content_hash": "other"})
    ]
    signatures = [one.signature() for one in (plain, *others)]
    assert len(set(signatures)) == len(signatures)


def test_all_folds_have_one(store: Store, tmp_path: Path) -> None:
    """The score of a run of all folds is the mean of theirs, on the same other set."""
    tree = tiny_tree(probe={"dataset": "folder"}, metric="probe_roc_auc_macro")
    tree["data"] |= {"dataset": "three_folds", "fold": "all"}
    tree["method"]["stages"] = [{"name": "classify", "epochs": 1}]
    job = Job(resolve(run_config(tree), store, load_manifest(store, "three_folds")), store.uri, str(tmp_path / "run"))
    result = to_the_end(*begin(job))
    found = finish(job, Store(str(tmp_path / "best")))
    for split in ("valid", "test"):
        values = [row[split]["probe_roc_auc_macro"] for row in found["folds"]]
        assert len(set(values)) == 3 and found[split]["probe_roc_auc_macro"] == pytest.approx(np.mean(values))
    assert result.objective == found["valid"]["probe_roc_auc_macro"]


def on_rank(rank: int, job: Job, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    opened = open_run(job, rank=rank, world=2)
    assert opened.probe is not None
    clips = sum(len(batch.clip_id_B) for batch in opened.probe.batches.evaluate("train"))
    fits: list[int] = []
    import atose_ray.training.downstream as room

    repeated = room.repeated
    room.repeated = lambda *rest: fits.append(1) or repeated(*rest)  # type: ignore[assignment,func-returns-value]
    scores = opened.probe.scores(opened.method, torch.device("cpu"))
    wrap, records = ddp(torch.device("cpu"), 2), list[EpochRecord]()
    fit(opened.run, opened.method, opened.batches, opened.folder, report=records.append, wrap=wrap, probe=opened.probe)
    trained = [record.valid["probe_accuracy"] for record in records]
    with torch.no_grad():
        next(opened.method.encoder.parameters()).fill_(float("nan"))
    try:
        opened.probe.scores(opened.method, torch.device("cpu"))
        error = ""
    except (ValueError, RankLeftError) as raised:
        error = str(raised)
    (folder / f"{rank}.json").write_text(json.dumps([scores, clips, len(fits), error, trained]))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_share_the_clips_and_agree(build: Build, store: Store, tmp_path: Path) -> None:
    """One fits; both have its scores, which are those of one process; both see a clip whose embedding is NaN."""
    job = Job(build(**PROBED), store.uri, str(tmp_path / "run"), {})
    alone = opened_in(tmp_path / "alone", job.run, store)
    assert alone.probe is not None
    wanted = alone.probe.scores(alone.method, torch.device("cpu"))
    torch.multiprocessing.spawn(on_rank, (job, tmp_path), nprocs=2)
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert [one[0] for one in found] == [wanted, wanted]
    windows = sum(len(batch.clip_id_B) for batch in alone.probe.batches.evaluate("train"))
    assert sum(one[1] for one in found) == windows and [one[2] for one in found] == [4, 0]
    assert found[0][4] == found[1][4] and len(found[0][4]) == 3
    assert all("12 of 12 clips of the probe's set 'three_folds' have NaN" in one[3] for one in found)


def test_every_epoch_of_it_is_ranked_beside_other_methods(build: Build) -> None:
    """The decoder of a first stage has no part in it, as it has in the scores of the validation split."""
    method = {**STAGES, "stages": [{"name": "embed", "epochs": 2}, {"name": "classify", "epochs": 2}]}
    record = SimpleNamespace(epoch=1, objective=0.5, valid={"probe_accuracy": 0.5, "pr_auc_macro": 0.25})
    assert Ranking(build(method=method)).rank(record) == {RUNG: 0}
    assert Ranking(build(method=method, **PROBED)).rank(record) == {RUNG: 1, RANKED: 0.5}


def other_sets(folder: Path, store: Store) -> None:
    """One at another rate, and one without validation clips: those of it have no tag."""
    for name, rate, valid in (("bare", RATE, ""), ("faster", 2 * RATE, "x")):
        tags = {"train": ("x", "y"), "valid": (valid, valid), "test": ("x", "y")}
        rows = [(f"{split}{index}.wav", split, tag) for split, of in tags.items() for index, tag in enumerate(of)]
        for path, _, _ in rows:
            soundfile.write(folder / path, 0.1 * np.sin(np.arange(rate)), rate)
        (folder / "tags.csv").write_text("\n".join(["path,split,tags", *(",".join(row) for row in rows)]))
        prepare(dataset_config("folder", source=str(folder), sample_rate_hz=rate), store, name=name)


def test_what_cannot_be_is_refused_before_anything_is_trained(build: Build, store: Store, tmp_path: Path) -> None:
    other_sets(tmp_path, store)
    attention = {"kind": "multi_level_attention", "stages": [{"name": "attend", "epochs": 1}]}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"metric": "probe_accuracy"}, "is of another prepared set: name it by probe.dataset"),
        ({"probe": {"dataset": "nowhere"}}, "no prepared data set 'nowhere'"),
        ({"probe": {"dataset": "faster"}}, "takes audio, 4000 Hz, but 'faster' holds audio, 8000 Hz; prepare it so"),
        ({"probe": {"dataset": "bare"}}, "has 0 clips with 0 tags in its valid split"),
        ({"probe": {"dataset": "folder"}, "metric": "probe_accuracy"}, "several tags; take probe_pr_auc_macro or"),
        ({"probe": {"dataset": "three_folds"}, "metric": "probe_pr_auc_macro"}, "one tag each; take probe_accuracy"),
        ({"probe": {"dataset": "three_folds", "fold": 7}}, "data.fold is one of 0, 1, 2, but got 7"),
        ({"probe": {"dataset": "three_folds", "seeds": 2}}, "a linear classifier has one solution"),
        ({"probe": {"dataset": "three_folds"}, "method": attention}, "one vector of a clip, which method multi_level"),
    ]
    for changes, words in bad:
        with pytest.raises((ConfigError, StoreError, ValueError), match=words):
            build(**changes)


def test_a_probe_of_the_trainings_own_folds_is_of_the_same_fold(store: Store) -> None:
    """Else it would be tested on clips that were trained on."""

    def of(fold: int | str, probe: int | None = None) -> int | None:
        tree = tiny_tree(probe={"dataset": "three_folds", "fold": probe})
        tree["data"] |= {"dataset": "three_folds", "fold": fold}
        run = resolve(run_config(tree), store, load_manifest(store, "three_folds"))
        assert run.probe is not None
        return run.probe.fold

    assert (of(2), of(0), of(1, 1)) == (2, 0, 1)
    for fold, probe in ((2, 0), ("all", None)):
        with pytest.raises(ConfigError, match="is the training's own, so its clips of other folds"):
            of(fold, probe)


def study(probe: dict[str, Any], space: dict[str, Any] | None = None) -> StudyConfig:
    tree = {**tiny_tree(), "probe": probe}
    settings = {"metric": "probe_accuracy", "trials": 2}
    return StudyConfig.model_validate({"base": tree, "space": space or {}, "search": settings})


def test_all_trials_of_a_study_are_measured_alike(build: Build, store: Store, tmp_path: Path) -> None:
    """One probe, of the content that the study began with; and what it learned teaches no search for another."""
    place = Store(str(tmp_path))
    shutil.copytree(Path(store.root) / "data", tmp_path / "data")
    manifest, asked = load_manifest(place, "folder"), study(PROBED["probe"])
    with pytest.raises(ConfigError, match=r"set base.probe instead of space.probe"):
        check(study(PROBED["probe"], {"probe": {"every": {"choice": [1, 2]}}}), "here", place, manifest)
    with pytest.raises(ConfigError, match="here, base: no prepared"):
        check(study({"dataset": "nowhere"}), "here", place, manifest)
    folder = study_store(place, "one")
    begun = with_its_probe(asked, folder, place)
    first = load_manifest(place, "three_folds").content_hash
    assert begun.base["probe"] == {"dataset": "three_folds", "content_hash": first}
    folder.write_json("study.json", {"config": begun.model_dump(mode="json")})
    run = check(begun, "here", place, manifest)
    assert run.probe is not None and run.probe.content_hash == first

    (tmp_path / "again").mkdir()
    prepare_in_folds(tmp_path / "again", place, clips=30)
    assert load_manifest(place, "three_folds").content_hash != first
    assert with_its_probe(asked, folder, place) == begun
    fresh = with_its_probe(asked, study_store(place, "two"), place)
    assert fresh.base["probe"]["content_hash"] not in (None, first)
    warm = fresh.model_copy(update={"search": fresh.search.model_copy(update={"warm_start": ("one",)})})
    with pytest.raises(ConfigError, match=r"searched for probe_accuracy of the probe .* cannot be compared"):
        check_warm_start(warm, place)
    spelt = {**begun.base, "probe": {**begun.base["probe"], "classifier": "linear"}}
    check_warm_start(warm.model_copy(update={"base": spelt}), place)


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_for_it(ray_cluster, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the first trial to the report and the status, and on with more trials."""
    place = Store(str(tmp_path))
    shutil.copytree(Path(store.root) / "data", tmp_path / "data")
    methods = {
        "supervised": {"head": {"kind": "linear"}, "stages": [{"name": "classify", "epochs": 6, "patience": 1}]},
        "joint_embedding": {**STAGES, "stages": [{"name": "embed", "epochs": 1}, {"name": "classify", "epochs": 1}]},
    }
    base = {key: value for key, value in tiny_tree().items() if key != "method"}
    space = {"method": {"one_of": methods}, "optim": {"lr": {"range": [1e-3, 1e-2], "log": True}}}
    search = {"metric": "probe_accuracy", "pruner": {"kind": "none"}}
    tree = {"base": {**base, "probe": PROBED["probe"]}, "space": space, "search": search}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(tree))
    command = [str(tmp_path / "other.yaml"), "--store", place.uri]
    tune.main([*command, "--trials", "2"])
    out = capsys.readouterr().out
    record = load_study_record(place, "other")
    assert record.best is not None and record.metric == "probe_accuracy"
    valid, test = (record.best.metrics[split]["probe_accuracy"] for split in ("valid", "test"))
    line = f"valid probe_accuracy {valid:.4f}, test {test:.4f} (95 % "
    assert line in out and ", Wilson) [clip] of three_folds\n" in out
    assert valid == max(trial.value or 0 for trial in record.trials)
    assert all(trial.state == "complete" for trial in record.trials)
    assert any(len(trial.epochs) < 6 for trial in record.trials if trial.config["method"]["kind"] == "supervised")
    status.main(["other", "--store", place.uri, "--json"])
    assert json.loads(capsys.readouterr().out)["best"]["probe_accuracy"] == pytest.approx(valid)
    assert "probe_accuracy" in (tmp_path / "studies" / "other" / "report.html").read_text()
    tune.main([*command, "--trials", "3"])
    assert {trial.config["probe"]["content_hash"] for trial in load_study_record(place, "other").trials} == {
        load_manifest(place, "three_folds").content_hash
    }
