"""Who suggests and who prunes, without Ray's loop: samplers, points, grids, warm starts, budgets, and resumes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from test_progress import trial

from atose_ray.config import ConfigError, RunConfig, SearchConfig, StudyConfig
from atose_ray.runtime.schedulers import scheduler
from atose_ray.search import samplers
from atose_ray.search.budget import Budget
from atose_ray.search.events import Asked, Ended, Epoch, Event
from atose_ray.search.listeners import SESSIONS, OptunaListener, TrialLog, earlier_seconds
from atose_ray.search.parameters import asked_of
from atose_ray.search.record import TrialRecord
from atose_ray.search.samplers import arms_to_try, check_warm_start, points_to_try, sampler, warm_trials
from atose_ray.search.space import load_study, on_a_grid, walk
from atose_ray.search.study_storage import NUMBER, open_storage, rebuild
from atose_ray.storage import Store
from atose_ray.training.run import Job

SPACE = {
    "encoder": {"one_of": {"sample_cnn": {"block": {"choice": ["basic", "se"]}}, "harmonic_cnn": {}}},
    "optim": {"lr": {"range": [0.01, 1.0]}, "weight_decay": {"range": [0.0, 1.0]}},
}
METRIC = "pr_auc_macro"


def study(**search: Any) -> StudyConfig:
    space = search.pop("space", SPACE)
    return StudyConfig.model_validate({"space": space, "search": {"trials": 40, "startup_trials": 8, **search}})


def score(params: dict[str, Any]) -> float:
    return 1 - (params["optim.lr"] - 0.7) ** 2 - 0.2 * (params.get("encoder.kind") == "harmonic_cnn")


class Searching:
    """A search whose trials end at once: what Optuna is asked and told, and the records that are left."""

    def __init__(self, config: StudyConfig, folder: Store, earlier: tuple[TrialRecord, ...] = (), **more: Any) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.config, self.records = folder, config, {one.number: one for one in earlier}
        kept = open_storage(config.search, folder, "mine", Path(folder.root))
        warm = warm_trials(config, more.pop("store", folder))
        asked = rebuild(kept, config, "mine", earlier, warm, sampler(config.search, 3 + len(earlier)))
        self.log = TrialLog(folder, config.search.trials, more.pop("budget", None), earlier)
        self.optuna = OptunaListener(asked, kept, config.search.costs)
        self.study = asked

    def tell(self, event: Event) -> None:
        for listener in (self.log, self.optuna):
            listener.on_event(event)

    def configure(self, asked: optuna.Trial, number: int) -> Job:
        walk(asked_of(asked), self.config.space)
        params = dict(asked.params)
        ranges = {k: optuna.distributions.distribution_to_json(d) for k, d in asked.distributions.items()}
        about = {"name": f"{number:03d}", "number": number, "params": params, "distributions": ranges}
        job = Job(RunConfig(), "", self.folder.child(f"r{number}").uri, {**about, "resources": {"cpus": 1.0}})
        cost = int(10 * params["optim.lr"])
        head = {"parameters": cost, "started": 0.0, "device": "cpu", **job.about}
        Store(job.folder_uri).write_json("about.json", head)
        Store(job.folder_uri).write_json("config.json", {})
        record = dataclasses.replace(trial(number, "running", 0.0, 0, 1.0), params=params, distributions=ranges)
        self.records[number] = dataclasses.replace(record, parameters=cost)
        return job

    def run(self, count: int, fail: tuple[int, ...] = (), cut: tuple[int, ...] = ()) -> None:
        for _ in range(count):
            if not self.log.allows():
                return
            job = self.optuna.ask(self.configure, self.log.next_number)
            number = job.about["number"]
            self.tell(Asked(number, job))
            if number in cut:
                continue
            value, failed = score(job.about["params"]), number in fail
            ended = trial(number, "failed" if failed else "complete", 0.0, not failed, 1.0, value)
            for epoch in ended.epochs:
                self.tell(Epoch(number, job, dataclasses.replace(epoch, seconds=60.0, objective=value)))
            self.tell(Ended(number, job, ended.state, recorded=True))
            before = self.records[number]
            kept = {name: getattr(before, name) for name in ("params", "distributions", "parameters")}
            self.records[number] = dataclasses.replace(ended, **kept)

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        return tuple(self.records[number] for number in sorted(self.records))


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


@pytest.mark.parametrize("kind", ["tpe", "random", "nsga2", "cmaes"])
def test_every_sampler_searches_repeats_and_goes_on(kind: str, folder: Store) -> None:
    config = study(sampler=kind)
    first = Searching(config, folder)
    first.run(24, fail=(3,), cut=(5,))
    assert [one.number for one in first.trials] == list(range(24))
    assert [one.state for one in first.trials if one.state != "complete"] == ["failed", "running"]
    again = Searching(config, folder)
    again.run(24, fail=(3,), cut=(5,))
    assert [one.params for one in again.trials] == [one.params for one in first.trials]
    resumed = Searching(config, folder, again.trials)
    resumed.run(17)  # the one that was cut, and 16 more
    assert [one.number for one in resumed.trials] == list(range(40))
    assert resumed.trials[5].params == first.trials[5].params and resumed.trials[5].state == "complete"
    told = resumed.study.get_trials()
    assert sorted(one.user_attrs[NUMBER] for one in told) == list(range(40))
    best = max(one.value for one in resumed.trials if one.value is not None)
    assert best > 0.98


def test_generations_of_nsga2_outlive_a_restart(folder: Store) -> None:
    config = study(sampler="nsga2", costs=["params"], pruner={"kind": "none"})
    first = Searching(config, folder)
    first.run(20)
    resumed = Searching(config, folder, first.trials)
    resumed.run(20)
    key = "NSGAIISampler:generation"
    generations = [one.system_attrs[key] for one in resumed.study.get_trials()]
    assert generations == sorted(generations) and generations[-1] == 4  # 40 trials in populations of 8
    assert len(resumed.study.best_trials) > 1


def test_a_grid_is_walked_once_and_no_more(folder: Store) -> None:
    space = {"optim": {"lr": {"range": [0.0, 1.0], "step": 0.25}, "weight_decay": {"choice": [0.0, 0.1]}}}
    config = on_a_grid(StudyConfig.model_validate({"space": space, "search": {"sampler": "grid"}}))
    assert config.search.trials == 10
    first = Searching(config, folder)
    first.run(4)
    resumed = Searching(config, folder, first.trials)
    resumed.run(6)
    found = {(one.params["optim.lr"], one.params["optim.weight_decay"]) for one in resumed.trials}
    assert len(found) == len(resumed.trials) == 10
    fewer = StudyConfig.model_validate({"space": space, "search": {"sampler": "grid", "trials": 4}})
    assert on_a_grid(fewer).search.trials == 4
    with pytest.raises(ConfigError, match="continuous range"):
        on_a_grid(study(sampler="grid"))


FOUR = {
    "encoder": {"one_of": {name: {"block": {"choice": ["basic", "se"]}} for name in ("a", "b", "c", "d")}},
    "method": {"one_of": {"x": {"objective": {"one_of": {"p": {}, "q": {}}}}, "y": {}}},
    "optim": {"lr": {"range": [0.01, 1.0]}},
}


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "cmaes"])
def test_a_short_search_tries_every_arm(kind: str, tmp_path: Path) -> None:
    nested = "method[x].objective.kind"
    for seed in range(20):
        config = study(sampler=kind, space=FOUR, trials=6, startup_trials=10, seed=seed)
        runs = []
        for where in ("one", "two"):
            whole = Searching(config, Store(str(tmp_path / f"{seed}-{where}")))
            whole.run(6)
            runs.append([one.params for one in whole.trials])
            assert {one.params["encoder.kind"] for one in whole.trials} == set("abcd")
            assert {(one.params["method.kind"], one.params.get(nested)) for one in whole.trials} >= {
                ("x", "p"), ("x", "q"), ("y", None)
            }  # fmt: skip
        assert runs[0] == runs[1]
    cut = Searching(config, Store(str(tmp_path / "cut")))
    cut.run(2)
    resumed = Searching(config, Store(str(tmp_path / "cut")), cut.trials)
    resumed.run(4)
    assert {one.params["encoder.kind"] for one in resumed.trials} == set("abcd")
    assert resumed.trials[:2] == cut.trials, "what was asked stays"


def test_arms_that_points_or_earlier_trials_have_are_not_asked_for_again() -> None:
    config = study(space=FOUR, points=[{"encoder.kind": "a", "method.kind": "y"}])
    tried = [*config.search.points, *({"encoder.kind": arm} for arm in "bcd")]
    found = list(arms_to_try(config, tried))
    assert {point["method[x].objective.kind"] for point in found} == {"p", "q"}
    assert not list(arms_to_try(study(space=FOUR, startup_trials=4), tried)), (
        "a search that has narrowed goes on as it did"
    )
    assert not list(arms_to_try(study(space=FOUR, sampler="random"), []))


def test_points_come_first_and_new_ones_next(folder: Store) -> None:
    points = [{"optim.lr": 0.25}, {"encoder.kind": "sample_cnn", "encoder[sample_cnn].block": "se"}]
    first = Searching(study(points=points), folder)
    first.run(1)
    assert first.trials[0].params["optim.lr"] == 0.25
    resumed = Searching(study(points=[*points, {"optim.lr": 0.5}]), folder, first.trials)
    resumed.run(2)
    assert resumed.trials[1].params["encoder[sample_cnn].block"] == "se"
    assert resumed.trials[2].params["optim.lr"] == 0.5
    assert list(points_to_try(study(points=points), resumed.trials)) == []
    assert list(points_to_try(study(points=[points[0]] * 2), resumed.trials)) == [points[0]]


def test_the_published_configurations_are_the_first_points_of_mtat() -> None:
    points = load_study("mtat").search.points
    arms = [(point["encoder.kind"], point.get("encoder[sample_cnn].block"), point["method.kind"]) for point in points]
    encoders = [("harmonic_cnn", None), *(("sample_cnn", block) for block in ("basic", "se", "res", "rese"))]
    encoders.append(("tag_sinc_net", None))
    assert arms == [(*encoder, method) for encoder in encoders for method in ("supervised", "joint_embedding")]
    published = load_study("published_mtat").space["method"]["one_of"]["joint_embedding"]
    for point in points[1::2]:
        assert point["method[joint_embedding].latent"] == published["latent"]
        margin = point["method[joint_embedding].objective[pairwise_margin].margin"]
        assert margin == published["objective"]["margin"] and not [name for name in point if "supervised" in name]


def write_study(store: Store, name: str, metric: str, trials: tuple[TrialRecord, ...]) -> None:
    folder = store.child("studies", name)
    config = StudyConfig.model_validate({"search": {"metric": metric}}).model_dump(mode="json")
    folder.write_json("study.json", {"config": config})
    for one in trials:
        run = folder.child("trials", one.signature)
        run.write_json("config.json", {})
        names = ("number", "name", "params", "distributions", "started", "device", "parameters")
        run.write_json("about.json", {key: getattr(one, key) for key in names})
        lines = [{"event": "epoch", **dataclasses.asdict(epoch)} for epoch in one.epochs]
        lines += [{"event": "end", "state": one.state, "reason": None, "time": 1.0}]
        run.write("log.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())


def test_a_warm_start_teaches_the_sampler_and_nobody_else(folder: Store, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = Searching(study(), folder.child("elsewhere"))
    earlier.run(30, fail=(2,))
    stranger = dataclasses.replace(earlier.trials[4], params={**earlier.trials[4].params, "optim.lr": 2.0})
    trials = tuple(stranger if one.number == 4 else one for one in earlier.trials)
    write_study(folder, "before", METRIC, trials)
    warm = Searching(study(warm_start=["before"]), folder.child("here"), store=folder)
    assert "warm start: 28 of 29 finished trials of before fit this space" in capsys.readouterr().out
    warm.run(8)
    assert [one.number for one in warm.trials] == list(range(8)) and len(warm.log.trials) == 8
    cold = Searching(study(), folder.child("cold"))
    cold.run(8)
    learned, blind = (np.mean([score(one.params) for one in side.trials]) for side in (warm, cold))
    assert learned > 0.85 > blind
    write_study(folder, "other", "roc_auc_macro", ())
    with pytest.raises(ConfigError, match=r"'other' was searched for roc_auc_macro, and this one is for pr_auc_macro"):
        check_warm_start(study(warm_start=["other"]), folder)
    with pytest.raises(ConfigError, match=r"no study 'absent'.*holds: before, other"):
        check_warm_start(study(warm_start=["absent"]), folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler": "random", "warm_start": ["x"]}, "warm_start needs sampler tpe"),
        ({"sampler": "cmaes", "costs": ["params"]}, "cmaes has one objective"),
        ({"storage": "mysql://u:secret@h/d"}, "storage is sqlite:///FILE or postgresql://"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**fields)


@dataclasses.dataclass(frozen=True)
class Trial:
    trial_id: str


def test_the_median_rule_remembers_earlier_trials_and_survives_failures(folder: Store) -> None:
    config = study(pruner={"kind": "median", "grace_epochs": 2})
    told = [trial(number, "complete", 0.0, 5, 1.0, 0.5) for number in range(3)]
    told.append(trial(9, "failed", 0.0, 0, 1.0))
    rules = {name: scheduler(config, some) for name, some in (("told", told), ("fresh", []))}
    verdicts = {}
    for name, rule in rules.items():
        rule.set_search_properties(METRIC, "max")
        for kind, value in (("bad", 0.1), ("good", 0.9)):
            one = Trial(kind)
            verdicts[name, kind] = [
                rule.on_trial_result(None, one, {"epoch": epoch, METRIC: value}) for epoch in (1, 2)
            ]
        rule.on_trial_complete(None, Trial("lost"), {"done": True, "failed": "bug"})
        assert rule.on_trial_result(None, Trial("next"), {"epoch": 2, METRIC: 0.9}) == "CONTINUE"
    assert verdicts["told", "bad"] == ["CONTINUE", "STOP"] and verdicts["told", "good"] == ["CONTINUE"] * 2
    assert verdicts["fresh", "bad"] == ["CONTINUE"] * 2  # nothing to compare with, and never paused


def test_several_objectives_are_not_pruned() -> None:
    assert isinstance(scheduler(study(costs=["params"]), []), FIFOScheduler)
    assert isinstance(scheduler(study(), []), ASHAScheduler)


def test_a_budget_ends_the_search_between_trials_and_counts_earlier_sessions(folder: Store, capsys) -> None:
    config = study(trials=30)
    first = Searching(config, folder, budget=Budget(1 / 6, "cpu-h"))  # ten minutes; a trial takes one
    first.run(30)
    out = capsys.readouterr().out
    assert len(first.trials) == 10 and "budget reached: 10 of 30 trials (0.167 cpu-h)" in out
    assert "enough for about 10 of 30 trials" in out
    more = Searching(config, folder, first.trials, budget=Budget(1 / 6, "cpu-h"))
    assert not [one for one in first.trials if one.state == "running"] and more.log.allows()
    cut = dataclasses.replace(first.trials[9], state="running")
    unfinished = Searching(config, folder, (*first.trials[:9], cut), budget=Budget(1e-6, "cpu-h"))
    unfinished.run(5)
    assert len(unfinished.trials) == 10 and unfinished.trials[9].state == "complete"  # finished, and nothing begun
    assert "budget reached: 10 of 30 trials (1e-06 cpu-h)" in capsys.readouterr().out


def test_a_session_that_was_killed_ends_with_the_last_epoch(folder: Store) -> None:
    assert earlier_seconds(folder, []) == 0
    times = [("start", 100.0), ("end", 150.0), ("start", 1000.0), ("start", 5000.0)]  # a whole one, two that were cut
    for event, at in times:
        folder.append_line(SESSIONS, json.dumps({"event": event, "time": at}))
    (Path(folder.root) / SESSIONS).open("a").write('{"event": "st')  # cut short
    records = [trial(0, "complete", 1000.0, 3, 10.0), trial(1, "running", 5005.0, 2, 10.0)]
    assert earlier_seconds(folder, records) == 50 + 30 + 25
    assert earlier_seconds(folder, []) == 50
    (Path(folder.root) / SESSIONS).rename(Path(folder.root) / "sittings.jsonl")  # as the first release called it
    folder.append_line(SESSIONS, json.dumps({"event": "start", "time": 9000.0}))
    folder.append_line(SESSIONS, json.dumps({"event": "end", "time": 9007.0}))
    assert earlier_seconds(folder, []) == 50 + 7


def test_a_trial_begun_while_the_storage_went_away_is_not_lost(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atose_ray.search.listeners.PAUSES_S", (0, 0))
    searching = Searching(study(points=[{"optim.lr": 0.25}]), folder)
    whole, calls = searching.study.ask, []

    def torn() -> optuna.Trial:
        asked = whole()
        calls.append(asked.number)
        if len(calls) == 1:
            raise optuna.exceptions.StorageInternalError("the server was restarted")
        return asked

    monkeypatch.setattr(searching.study, "ask", torn)
    searching.run(3)
    assert calls == [0, 1, 2] and searching.trials[0].params["optim.lr"] == 0.25
    assert [one.state.name for one in searching.study.get_trials()] == ["COMPLETE"] * 3

    def away() -> optuna.Trial:
        raise optuna.exceptions.StorageInternalError("gone")

    monkeypatch.setattr(searching.study, "ask", away)
    with pytest.raises(optuna.exceptions.StorageInternalError):
        searching.run(1)


def test_tpe_of_a_long_study_learns_from_its_best_and_its_newest_trials(monkeypatch) -> None:
    """As Optuna's own while they are all; then from fewer, the best among them, and from all that run."""
    plain = optuna.samplers.TPESampler(seed=3, n_startup_trials=5, multivariate=True, group=True, constant_liar=True)
    settings = SearchConfig(startup_trials=5)

    def course(by: optuna.samplers.BaseSampler, trials: int) -> list[dict[str, float]]:
        study, open_ones = optuna.create_study(direction="maximize", sampler=by), []
        for _ in range(trials):
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            open_ones.append(trial)
            if len(open_ones) == 3:
                done = open_ones.pop(0)
                study.tell(done, 1 - abs(done.params["x"] - 0.3))
        return [trial.params for trial in study.trials]

    alike = course(plain, 40)
    assert course(samplers.sampler(settings, 3), 40) == alike
    monkeypatch.setattr(samplers, "NEWEST", 10)
    monkeypatch.setattr(samplers, "BEST", 2)
    assert course(samplers.sampler(settings, 3), 40) != alike

    study = optuna.create_study(direction="maximize")
    for number in range(30):
        study.add_trial(optuna.trial.create_trial(value=float(number in (4, 7)), params={}, distributions={}))
    running = [study.ask().number for _ in range(12)]
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.RUNNING)
    kept = samplers.Part(study, 99)._get_trials(deepcopy=False, states=states)
    assert [trial.number for trial in kept] == [4, 7, *range(20, 30), *running]
