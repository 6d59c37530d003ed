"""Search spaces: the walk, the names, and every mistake found at load with its path."""

from pathlib import Path

import optuna
import pytest

from atose_ray import tune
from atose_ray.config import ConfigError, StudyConfig
from atose_ray.search.parameters import asked_of
from atose_ray.search.space import SHIPPED, compose, find_study, identity, load_study, longest_run, probes, walk
from atose_ray.storage import Store

SPACE = {
    "encoder": {
        "one_of": {
            "harmonic_cnn": {"channels": {"choice": [64, 128]}},
            "sample_cnn": {"block": {"choice": ["basic", "se", "res", "rese"]}, "channels": 8},
        }
    },
    "optim": {"lr": {"range": ["1e-5", 1.0e-2], "log": True}},
    "data": {"batch_size": {"range": [8, 32], "step": 8}},
}


def study(space: dict, **search: object) -> StudyConfig:
    return StudyConfig.model_validate({"space": space, "search": search})


def test_walk_is_conditional_and_named_by_path() -> None:
    seen = set()
    for number in range(40):
        trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=number)).ask()
        run = compose(study(SPACE), walk(asked_of(trial), SPACE), number)
        names = set(trial.params)
        seen |= names
        assert {"encoder.kind", "optim.lr", "data.batch_size"} <= names
        assert ("encoder[sample_cnn].block" in names) == (run.encoder.kind == "sample_cnn")
        assert 1e-5 <= run.optim.lr <= 1e-2 and run.data.batch_size % 8 == 0
        if run.encoder.kind == "sample_cnn":
            assert run.encoder.channels == 8
    assert "encoder[harmonic_cnn].channels" in seen and "encoder[sample_cnn].block" in seen


def test_every_end_choice_and_arm_is_probed() -> None:
    tried = [(name, value) for name, value, _ in probes(SPACE)]
    for expected in [
        ("encoder.kind", "harmonic_cnn"),
        ("encoder[harmonic_cnn].channels", 128),
        ("encoder[sample_cnn].block", "rese"),
        ("encoder[sample_cnn].channels", 8),
        ("optim.lr", 1e-5),
        ("optim.lr", 1e-2),
        ("data.batch_size", 32),
    ]:
        assert expected in tried


def test_seeds_derive_from_study_seed_and_number() -> None:
    runs = {compose(study(SPACE, seed=s), {}, n).seed for s in (0, 1) for n in range(5)}
    assert len(runs) == 10
    assert compose(StudyConfig(base={"seed": 9}), {}, 4).seed == 9


def write(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sapce: {}", r"sapce: no such key; did you mean 'space'"),
        (
            "space: {encoder: {one_of: {sample_cnn: {blok: {choice: [se]}}}}}",
            r"encoder\[sample_cnn\]\.blok.*did you mean 'block'",
        ),
        (
            "space: {encoder: {one_of: {sample_cnn: {block: {choice: [se, ses]}}}}}",
            r"encoder\[sample_cnn\]\.block = 'ses'",
        ),
        ("space: {encoder: {one_of: {sampel_cnn: {}}}}", r"encoder\.kind = 'sampel_cnn'"),
        ("space: {optim: {lr: {range: [1.0e-3, 50], log: true}}}", r"optim\.lr = 50.*less than or equal to 10"),
        (
            "space: {optim: {lr: {range: [0, 1], log: true}}}",
            r"optim\.lr: range needs low < high, with log also low > 0",
        ),
        ("space: {optim: {lr: {range: [1, 0.1]}}}", r"optim\.lr: range needs low < high"),
        ("space: {optim: {lr: {range: [1]}}}", r"optim\.lr: range is \[low, high\]"),
        ("space: {optim: {lr: {rang: [0, 1]}}}", r"optim\.lr\.rang"),
        ("space: {optim: {lr: {range: [0.1, 1], lgo: true}}}", r"optim\.lr: expected one of range"),
        ("space: {data: {batch_size: {choice: []}}}", r"batch_size: choice is a list"),
        ("space: {data: {batch_size: {choice: [8, 8]}}}", r"names a value twice"),
        ("base: {optim: {lr: fast}}", r"base: .*optim\.adam\.lr"),
        ("base: {metric: accuracy}", r"set search\.metric"),
        ("search: {metric: f2}", r"metric is one of pr_auc_macro"),
        ("search: {trials: 0}", r"search\.trials: .*greater than or equal to 1, but got 0"),
        ("[1, 2]", r"parts base, space and search"),
        ("base: {", r"is not YAML"),
    ],
)
def test_mistakes_are_found_at_load(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_study(write(tmp_path, text))


def test_unknown_study_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown study 'mtta'; known: .*mtat"):
        find_study("mtta")
    with pytest.raises(ConfigError, match=r"no study file nowhere\.yaml"):
        find_study("nowhere.yaml")


SHIPPED_STUDIES = sorted({file.stem for folder in SHIPPED for file in folder.glob("*.yaml")})


@pytest.mark.parametrize("name", SHIPPED_STUDIES)
def test_shipped_studies_load_and_search_what_the_mission_names(name: str) -> None:
    loaded = load_study(name)
    names = {parameter for parameter, _, _ in probes(loaded.space)}
    if name == "published_zero_shot":  # one encoder, one method: its three trainings
        assert names >= {"data.tracks", "method[zero_shot].margin"} and longest_run(loaded) == 20
        return
    if "coala" in name:
        assert "method[coala].audio_weight" in names and longest_run(loaded) >= 20
        return
    if name == "audioset_frames":  # stored features: one method, whose parts are searched
        assert names >= {"encoder.context", "method.levels", "method.width", "method.pooling", "optim.lr"}
        return
    assert {"encoder.kind", "encoder[sample_cnn].block", "method.kind", "method[joint_embedding].latent"} <= names
    if not name.startswith("published_"):  # a recipe fixes the rest
        assert {"optim.lr", "method[joint_embedding].objective.kind"} <= names
    assert longest_run(loaded) >= 2
    if loaded.search.pruner.kind == "asha":
        assert loaded.search.pruner.grace_epochs < longest_run(loaded)


def test_epochs_scale_every_trial_and_make_another_study(tmp_path: Path) -> None:
    def shares(total: int, *epochs: int) -> list[int]:
        stages = [{"name": "classify", "epochs": count} for count in epochs]
        study = StudyConfig.model_validate({"base": {"method": {"stages": stages}}, "search": {"epochs": total}})
        return [stage.epochs for stage in compose(study, {}).method.stages]

    assert shares(4, 8, 8) == [2, 2] and shares(3, 10, 1, 10) == [1, 1, 1] and shares(5, 100, 1, 1) == [3, 1, 1]
    assert shares(40, 8, 8) == [20, 20] and shares(7, 7) == [7]
    for total in range(3, 40):
        assert sum(found := shares(total, 5, 11, 3)) == total and min(found) >= 1
    quick, whole = load_study("demo", ("search.epochs=3",)), load_study("demo")
    assert {compose(quick, partial).method.epochs for _, _, partial in probes(quick.space)} == {3}
    assert longest_run(quick) < longest_run(whole) and identity(quick) != identity(whole)
    with pytest.raises(ConfigError, match=r"method\.kind = 'joint_embedding'.*--epochs.*less than the 2 stages"):
        load_study("demo", ("search.epochs=1",))
    options = tune.arguments().parse_args(["demo", "--epochs", "3"])
    assert tune.wanted(options, Store(str(tmp_path))) == quick
    assert "scaled in proportion" in tune.arguments().format_help()


def test_overrides_reach_search_and_base() -> None:
    loaded = load_study("mtat", ("search.trials=4", "base.data.batch_size=32"))
    assert loaded.search.trials == 4 and compose(loaded, {}).data.batch_size == 32
