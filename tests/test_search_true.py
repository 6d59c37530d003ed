"""What a search puts on record is what happened: whoever writes at the same time, and whatever became of a trial."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_tree
from optuna.trial import FixedTrial
from test_s3 import Bucket, bucket  # noqa: F401

from atose_ray.config import StudyConfig, run_config
from atose_ray.data.shards import load_manifest
from atose_ray.evaluation.protocols import CLIP
from atose_ray.rerun import in_its_precision
from atose_ray.runtime.schedulers import scheduler
from atose_ray.search.asking import IN_A_ROW, Asking
from atose_ray.search.costs import front
from atose_ray.search.events import Ended, Epoch
from atose_ray.search.listeners import SESSIONS, Console, Listeners, OptunaListener, TrialLog, earlier_seconds
from atose_ray.search.nodes import one_node
from atose_ray.search.parameters import asked_of
from atose_ray.search.plan import make_plan
from atose_ray.search.progress import busy_seconds, measure
from atose_ray.search.ranking import RANKED, RUNG, Ranking
from atose_ray.search.record import TrialRecord, load_trials, study_store, trial_store
from atose_ray.search.samplers import sampler
from atose_ray.search.space import compose, load_study, walk
from atose_ray.search.study import keep_tag_embeddings, retry_failed
from atose_ray.search.study_storage import open_storage, rebuild
from atose_ray.search.trials import Space, TrialSetup
from atose_ray.storage import Store
from atose_ray.training.checkpoint import best_model, epoch_of
from atose_ray.training.loop import fit, run_epochs
from atose_ray.training.record import BEST_WEIGHTS, CHECKPOINT, LOG, EpochRecord, RunFolder
from atose_ray.training.run import Job, open_run

# Two who append to one file


def append_from_two(place: str, name: str, lines: int) -> None:
    def add(who: str) -> None:
        for number in range(lines):
            Store(place).append_line(name, f"{who} {number}")

    writers = [threading.Thread(target=add, args=(who,)) for who in "ab"]
    for one in writers:
        one.start()
    for one in writers:
        one.join()


@pytest.mark.parametrize("remote", [True, False])
def test_what_two_append_at_once_all_survives(remote: bool, bucket: Bucket, tmp_path: Path) -> None:  # noqa: F811
    store = Store(bucket.uri("lab") if remote else str(tmp_path))
    append_from_two(store.uri, LOG, 40)
    lines = store.read_lines(LOG)
    assert len(lines) == 80
    for who in "ab":
        assert [line for line in lines if line[0] == who] == [f"{who} {number}" for number in range(40)]
    assert len([name for name, *_ in store.files() if name.startswith(LOG)]) == (2 if remote else 1)


def test_a_log_of_the_old_form_is_read_and_goes_on(
    bucket: Bucket,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Store(bucket.uri("lab"))
    old = {"event": "note", "cause": "x", "text": "written whole", "time": 1.0}
    store.write(LOG, (json.dumps(old) + "\n").encode())
    RunFolder(store).note("y", "by another clock")
    monkeypatch.setattr("time.time_ns", lambda: 5)  # the next writer's clock is decades behind
    thread = threading.Thread(target=RunFolder(store).end, args=("complete",))
    thread.start()
    thread.join()
    assert [event.get("text", event["event"]) for event in RunFolder(store).events()] == [
        "written whole",
        "by another clock",
        "end",
    ]
    for name, *_ in store.files():  # a copy on a disk goes on as a file of lines
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.read(name))
    copy = Store(str(tmp_path))
    copy.append_line(LOG, "{}")
    assert len((tmp_path / LOG).read_text().splitlines()) == 4 and copy.names() == [LOG]


def test_sessions_in_object_storage_add_up(bucket: Bucket) -> None:  # noqa: F811
    folder = Store(bucket.uri("lab"))
    folder.write(SESSIONS, b'{"event": "start", "time": 10.0}\n{"event": "end", "time": 15.0}\n')
    for event, at in (("start", 20.0), ("end", 27.0)):
        folder.append_line(SESSIONS, json.dumps({"event": event, "time": at}))
    assert earlier_seconds(folder, []) == 12.0


# Trials that end as they are asked for

IMPOSSIBLE = {  # a short crop goes with a sample_cnn, and a harmonic_cnn with a long one
    "data": {"crop_seconds": {"choice": [1.2, 0.1]}},
    "encoder": {"one_of": {"sample_cnn": {"channels": 4}, "harmonic_cnn": {"channels": 4}}},
}

SHORT = {**IMPOSSIBLE, "data": {"crop_seconds": 0.1}}


@pytest.fixture
def store(tiny_store: Store, tmp_path: Path) -> Store:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "data")
    return Store(str(tmp_path))


class Session:
    """A session of a search without Ray: what is asked is trained here."""

    def __init__(self, store: Store, space: dict[str, Any], seed: int | None = None, **search: Any) -> None:
        base = tiny_tree()
        base["method"]["stages"] = [{"name": "classify", "epochs": 1}]
        base |= {} if seed is None else {"seed": seed}
        settings = {"trials": 4, "sampler": "random", **search}
        config = StudyConfig.model_validate({"base": base, "space": space, "search": settings})
        self.store, self.folder, manifest = store, study_store(store, "s"), load_manifest(store, "folder")
        self.folder.write_json("study.json", {"config": config.model_dump(mode="json"), "versions": {}})
        earlier = load_trials(self.folder)
        kept = open_storage(config.search, self.folder, "s", Path(self.folder.root))
        self.study = rebuild(kept, config, "s", earlier, [], sampler(config.search, len(earlier)))
        log = TrialLog(self.folder, config.search.trials, None, earlier)
        optuna_listener = OptunaListener(self.study, kept, config.search.costs)
        self.listeners = Listeners(log, optuna_listener, Console(config.search, earlier))
        plan = make_plan(config.search, False, one_node(4))
        space_of = Space(config, "s", store.uri, manifest, plan, trials=log.trials)
        missing = config.search.trials - sum(one.state != "running" for one in earlier)
        self.asking = Asking(space_of, self.listeners, missing)

    def train(self, setup: TrialSetup) -> None:
        opened, number = open_run(setup.job), setup.job.about["number"]
        fit(opened.run, opened.method, opened.batches, opened.folder)
        ending = opened.folder.ending()
        assert ending is not None
        for record in opened.folder.epochs():
            self.tell(Epoch(number, setup.job, record))
        self.tell(Ended(number, setup.job, ending["state"], recorded=True))

    def tell(self, event: Epoch | Ended) -> None:
        for listener in self.listeners:
            listener.on_event(event)

    def run(self) -> None:
        while setup := self.asking.next():
            self.train(setup)

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        return load_trials(self.folder)


def test_an_impossible_combination_is_a_trial_that_ended_with_its_reason(store: Store, capsys) -> None:
    points = [
        {"data.crop_seconds": 0.1, "encoder.kind": "harmonic_cnn"},
        {"data.crop_seconds": 1.2, "encoder.kind": "sample_cnn"},
        {"data.crop_seconds": 0.1, "encoder.kind": "harmonic_cnn"},
    ]
    session = Session(store, IMPOSSIBLE, points=points, trials=3)
    session.run()
    first, second, third = session.trials
    assert [one.state for one in (first, second, third)] == ["infeasible", "complete", "infeasible"]
    assert "encoder harmonic_cnn with data.crop_seconds=0.1" in str(first.reason) and first.params == points[0]
    assert first.config["encoder"]["kind"] == "harmonic_cnn" and first.value is None and first.signature
    assert "infeasible 000-harmonic_cnn-supervised: encoder harmonic_cnn" in capsys.readouterr().out
    told = session.study.trials
    assert [one.value for one in told] == [0.0, second.value, 0.0], "the sampler turns away from it"
    found = measure(session.trials, 3, 0.0)
    assert found.ended == 3 and found.counts == {"infeasible": 2, "complete": 1}
    keep_tag_embeddings(session.folder, session.trials)
    assert session.asking.hopeless() is None and session.asking.next() is None

    again = Session(store, IMPOSSIBLE, points=points, trials=3)
    assert [one.value for one in again.study.trials] == [one.value for one in told] and again.asking.next() is None


def test_what_cannot_be_built_is_on_no_front(store: Store) -> None:
    session = Session(store, SHORT, costs=["params"], trials=6)
    session.run()
    states = {one.state for one in session.trials}
    assert states == {"infeasible", "complete"}
    assert {one.state for one, _ in front(session.trials, ["params"])} == {"complete"}
    assert {one.state.name for one in session.study.trials} == {"FAIL", "COMPLETE"}


def test_a_space_in_which_nothing_can_be_built_ends_with_the_last_reason(store: Store) -> None:
    space = {"data": {"crop_seconds": {"range": [0.01, 0.1]}}, "encoder": {"one_of": {"harmonic_cnn": {"channels": 4}}}}
    session = Session(store, space, trials=1000)
    assert session.asking.next() is None and len(session.trials) == IN_A_ROW
    assert str(session.trials[-1].reason) in str(session.asking.hopeless())
    assert "none of the 20 configurations" in str(session.asking.hopeless())
    few = Session(store, space, trials=IN_A_ROW + 3)
    assert few.asking.next() is None and "none of the 3 configurations" in str(few.asking.hopeless())


ONE_CHOICE = {"optim": {"kind": "adam", "lr": {"choice": [0.003]}}}


def test_an_equal_configuration_takes_the_result(store: Store, capsys) -> None:
    session = Session(store, ONE_CHOICE, seed=5, trials=3)
    session.run()
    first, *others = session.trials
    assert [one.same_as for one in session.trials] == [None, 0, 0] and len(session.folder.child("trials").names()) == 3
    assert all(one.signature == first.signature and one.epochs == first.epochs for one in others)
    assert [one.reason for one in others] == ["same as trial 0"] * 2 and {one.state for one in others} == {"complete"}
    assert [one.value for one in session.study.trials] == [first.value] * 3
    assert "001-sample_cnn-basic-supervised: same as trial 0" in capsys.readouterr().out
    assert [busy_seconds(one) > 0 for one in session.trials] == [True, False, False], "time is spent once"
    models = [best_model(RunFolder(trial_store(session.folder, one))) for one in session.trials]
    weights = [next(iter(model.method.state_dict().values())).tolist() for model in models]
    assert weights[0] == weights[1] == weights[2]


def test_equal_configurations_are_trained_apart_where_that_is_asked_for_or_one_still_runs(store: Store) -> None:
    session = Session(store, ONE_CHOICE, seed=5, trials=3, repeat=True)
    one, other = session.asking.next(), session.asking.next()  # at the same time
    assert one is not None and other is not None and one.job.folder_uri != other.job.folder_uri
    session.train(one)
    assert RunFolder(Store(other.job.folder_uri)).ending() is None
    session.train(other)
    session.run()
    assert [(trial.number, trial.state, trial.same_as) for trial in session.trials] == [
        (number, "complete", None) for number in range(3)
    ]


def test_a_study_with_folders_of_the_old_name_goes_on(store: Store) -> None:
    session = Session(store, ONE_CHOICE, seed=5, trials=2)
    setup = session.asking.next()
    assert setup is not None
    trials = Path(session.folder.child("trials").root)
    [begun] = trials.iterdir()
    begun.rename(trials / setup.job.run.signature())
    again = Session(store, ONE_CHOICE, seed=5, trials=2)
    assert again.trials[0].signature == again.trials[0].folder == setup.job.run.signature()
    again.run()
    assert [(one.number, one.state, one.same_as) for one in again.trials] == [(0, "complete", None), (1, "complete", 0)]
    assert sorted(path.name for path in trials.iterdir()) == sorted(
        [setup.job.run.signature(), f"001-{again.trials[1].signature}"]
    )


@pytest.mark.ray
def test_a_search_on_ray_goes_past_what_cannot_be_built_and_ends_where_nothing_can(ray_cluster, store: Store) -> None:
    from test_ray import run as run_on_ray

    points = [{"data.crop_seconds": 0.1, "encoder.kind": "harmonic_cnn"}, {"data.crop_seconds": 1.2}]
    tree = tiny_tree()
    tree["method"]["stages"] = [{"name": "classify", "epochs": 1}]
    settings = {"trials": 4, "sampler": "random", "pruner": {"kind": "none"}, "points": points}
    config = {"base": {**tree, "seed": 3}, "space": IMPOSSIBLE, "search": settings}
    record = run_on_ray(StudyConfig.model_validate(config), "mixed", store)
    assert [trial.number for trial in record.trials] == [0, 1, 2, 3] and record.trials[0].state == "infeasible"
    assert {trial.state for trial in record.trials[1:]} <= {"infeasible", "complete"} and record.best is not None
    study = study_store(store, "mixed")
    assert "infeasible" in study.read("report.html").decode()

    config["space"] = {"data": {"crop_seconds": {"choice": [0.001]}}}
    config["search"] = {"trials": 3, "sampler": "random", "pruner": {"kind": "none"}}
    with pytest.raises(SystemExit, match="none of the 3 configurations that were asked for can be built"):
        run_on_ray(StudyConfig.model_validate(config), "none", store)
    assert [one.state for one in load_trials(study_store(store, "none"))] == ["infeasible"] * 3


# Like is ranked with like

STAGES = {"embed": 2, "classify": 4}


@dataclasses.dataclass(frozen=True)
class Running:
    trial_id: str


def curve_of(kind: str, values: list[float]) -> list[dict[str, Any]]:
    """What Tune is told of a run: joint_embedding has its first epochs scored by a decoder."""
    stages = [{"name": name, "epochs": count} for name, count in STAGES.items()]
    method = {"kind": kind, "stages": stages if kind == "joint_embedding" else [{"name": "classify", "epochs": 6}]}
    ranking, best, lines = Ranking(run_config({"method": method})), 0.0, []
    for number, value in enumerate(values, 1):
        best = max(best, value)
        scores = {"pr_auc_macro": value}
        lines.append(ranking.line(EpochRecord(number, "", 1.0, 0.0, 0.0, scores, best, 0.0)))
    return lines


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_what_a_decoder_scores_is_ranked_with_nobody(kind: str) -> None:
    search = {"pruner": {"kind": kind, "grace_epochs": 1}}
    study = {"base": {"method": {"stages": [{"name": "classify", "epochs": 6}]}}, "search": search}
    rule = scheduler(StudyConfig.model_validate(study), [])
    for number in range(4):
        peer = Running(f"peer{number}")
        rule.on_trial_add(None, peer)
        for line in curve_of("supervised", [0.5, 0.52, 0.6, 0.6]):
            rule.on_trial_result(None, peer, line)

    def verdicts(name: str, values: list[float]) -> list[str]:
        trial = Running(name)
        rule.on_trial_add(None, trial)
        return [rule.on_trial_result(None, trial, line) for line in curve_of("joint_embedding", values)]

    assert verdicts("decodes badly", [0.1, 0.1, 0.51, 0.7]) == ["CONTINUE"] * 4
    assert verdicts("decodes well, classifies badly", [0.9, 0.9, 0.2]) == ["CONTINUE", "CONTINUE", "STOP"]


def test_stages_that_count_and_a_trial_that_goes_on() -> None:
    lines = curve_of("joint_embedding", [0.9, 0.8, 0.3, 0.2, 0.4])
    assert [line[RUNG] for line in lines] == [0, 0, 1, 2, 3]
    assert [line.get(RANKED) for line in lines] == [None, None, 0.3, 0.3, 0.4]
    assert [line["pr_auc_macro"] for line in lines] == [0.9] * 5, "Optuna is told the score of every epoch"
    run, records = run_config({"method": {"kind": "supervised"}}), [line["record"] for line in lines]
    assert Ranking(run, records[:2]).rank(records[2])[RANKED] == 0.9


def passed_the_first_rung(rows: list[dict[str, Any]], blind: bool) -> dict[str, int]:
    """The recorded runs, one after another under their study's halving: objective -> how many went on."""
    study, passed = load_study(str(Path(__file__).parents[1] / "benchmarks" / "search_quality.yaml")), Counter[str]()
    rule, metric = scheduler(study, []), study.search.metric
    first = study.search.pruner.grace_epochs
    for row in rows:
        trial, chosen = Running(str(row["number"])), walk(asked_of(FixedTrial(row["params"])), study.space)
        rule.on_trial_add(None, trial)
        ranking, best = Ranking(compose(study, chosen)), 0.0
        for number, value in enumerate(row["valid"], 1):
            best = max(best, value)
            line = ranking.line(EpochRecord(number, "", 1.0, 0.0, 0.0, {metric: value}, best, 0.0))
            rung = number if blind else line[RUNG]
            told = {"epoch": number, metric: best} if blind else line
            verdict = rule.on_trial_result(None, trial, told)
            if verdict == "STOP":
                break
            if rung == first:
                passed[row["params"].get("method[joint_embedding].objective.kind", "supervised")] += 1
                break
    return dict(passed)


def test_recorded_runs_of_joint_embedding_pass_the_first_rung() -> None:
    table = Path(__file__).parents[1] / "benchmarks" / "results" / "search_table.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    before, now = passed_the_first_rung(rows, blind=True), passed_the_first_rung(rows, blind=False)
    print(Counter(r["params"].get("method[joint_embedding].objective.kind", "supervised") for r in rows), before, now)
    assert before.get("pairwise_margin", 0) == 0 and now["pairwise_margin"] > 0


# The best weights are of an epoch on record


def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every epoch scores better than the one before."""
    scores = iter(number / 100 for number in range(1, 100))
    monkeypatch.setattr(type(CLIP), "evaluate", lambda *rest: {"pr_auc_macro": next(scores)})


def test_an_epoch_after_the_end_replaces_nothing(tiny_run, tiny_store: Store, tmp_path: Path, monkeypatch) -> None:
    rising(monkeypatch)
    opened = open_run(Job(tiny_run(), tiny_store.uri, str(tmp_path)))
    epochs = run_epochs(opened.run, opened.method, opened.batches, opened.folder)
    next(epochs)
    before = opened.folder.store.read(BEST_WEIGHTS)
    write = RunFolder.add_epoch

    def pruned_meanwhile(folder: RunFolder, *rest: Any) -> None:
        folder.end("pruned", "by successive halving at epoch 1")  # the driver is quicker than the late epoch's line
        write(folder, *rest)

    monkeypatch.setattr(RunFolder, "add_epoch", pruned_meanwhile)
    next(epochs)
    assert opened.folder.store.read(BEST_WEIGHTS) == before and epoch_of(before) == 1
    lines = opened.folder.store.read_lines(LOG)
    next(epochs)  # once more, and by now the end can be seen
    assert opened.folder.store.read_lines(LOG) == lines and best_model(opened.folder).metrics["epoch"] == 1


def test_a_run_cut_between_log_and_weights(tiny_run, tiny_store: Store, tmp_path: Path, monkeypatch) -> None:
    rising(monkeypatch)
    opened = open_run(Job(tiny_run(), tiny_store.uri, str(tmp_path)))
    epochs, store = run_epochs(opened.run, opened.method, opened.batches, opened.folder), opened.folder.store
    next(epochs)
    first = store.read(BEST_WEIGHTS)
    next(epochs)
    second = store.read(BEST_WEIGHTS)
    epochs.close()
    store.write(BEST_WEIGHTS, first)
    assert best_model(opened.folder).metrics["epoch"] == 2, "the checkpoint has them"
    again = open_run(Job(opened.run, tiny_store.uri, str(tmp_path)))
    next(run_epochs(again.run, again.method, again.batches, again.folder))
    assert store.read(BEST_WEIGHTS) == second
    store.write(BEST_WEIGHTS, first)
    store.delete(CHECKPOINT)
    assert best_model(opened.folder).metrics["epoch"] == 1, "the weights say which epoch they are of"
    store.delete(BEST_WEIGHTS)
    with pytest.raises(ValueError, match=r"best weights of the run in .* are missing"):
        best_model(opened.folder)


# A run's identity


def test_what_changes_a_result_is_part_of_the_identity() -> None:
    run = run_config({"data": {"crop_seconds": 1.0, "content_hash": "hash"}})
    assert run.signature() == run.signature(0) == run.signature(1) == "06c2be3b5839", "as it was before these counted"
    named = [run_config({**run.model_dump(), "execution": {"precision": one}}) for one in ("float32", "bfloat16")]
    all_of_them = [run.signature(), *(one.signature() for one in named), run.signature(2), run.signature(halved=True)]
    assert len(set(all_of_them)) == 5


def test_a_halved_run_is_no_answer_for_another(store: Store) -> None:
    session = Session(store, ONE_CHOICE, seed=5, trials=2)
    setup = session.asking.next()
    assert setup is not None
    RunFolder(Store(setup.job.folder_uri)).note("out_of_memory", "halved")
    session.train(setup)
    session.listeners.log.trials[0] = session.trials[0]
    assert session.trials[0].halved and session.trials[0].identity != session.trials[0].signature
    assert session.asking.next() is not None, "it is trained, as memory may suffice now"


@pytest.mark.parametrize(
    ("recorded", "named", "has", "precision", "said"),
    [
        ("float32", "auto", False, "auto", ""),
        ("float32", "auto", True, "float32", "by itself takes bfloat16: it computes in float32"),
        ("float32", "float32", True, "float32", ""),
        ("bfloat16", "auto", False, "auto", "bfloat16, which this cpu lacks: it computes in float32 now"),
        ("bfloat16", "bfloat16", False, "auto", "bfloat16, which this cpu lacks"),
        (None, "auto", True, "auto", ""),
    ],
)
def test_a_rerun_computes_as_the_record_says(
    recorded, named, has: bool, precision: str, said: str, monkeypatch
) -> None:
    monkeypatch.setattr("atose_ray.training.precision.has_bfloat16", lambda device: has)
    run, lines = in_its_precision(run_config({"execution": {"precision": named, "device": "cpu"}}), recorded)
    assert run.execution.precision == precision and said in "".join(lines) and bool(lines) == bool(said)


# Failed trials, once more


@pytest.mark.parametrize(("cause", "where"), [("infrastructure", "after epoch 1"), ("bug", "from its beginning")])
def test_a_failed_trial_goes_on_from_where_it_says(cause: Any, where: str, store: Store, capsys) -> None:
    stages = {"method": {"kind": "supervised", "stages": [{"name": "classify", "epochs": 2}]}}
    session = Session(store, {**ONE_CHOICE, **stages}, seed=5, trials=1)
    setup = session.asking.next()
    assert setup is not None
    opened = open_run(setup.job)
    record = next(run_epochs(opened.run, opened.method, opened.batches, opened.folder))
    session.tell(Epoch(0, setup.job, record))
    session.tell(Ended(0, setup.job, "failed", f"{cause}: why", cause, "trace"))
    assert opened.folder.store.exists(CHECKPOINT) == (cause == "infrastructure")
    [reopened] = retry_failed(session.folder)
    assert f"once more: {reopened.name} {where}" in capsys.readouterr().out
    again = Session(store, {**ONE_CHOICE, **stages}, seed=5, trials=1)
    again.run()
    [trial] = again.trials
    assert (trial.number, trial.state, len(trial.epochs)) == (0, "complete", 2)
    assert (trial.epochs[0] == record) == (cause == "infrastructure"), "what was trained is not trained again"
    assert not opened.folder.store.exists(CHECKPOINT)
