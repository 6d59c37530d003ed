"""A search space: a YAML tree in the shape of RunConfig, walked by one function with Optuna's define-by-run calls.

    range: [low, high]            with `log: true` or `step: n`; integers when both ends are integers
    choice: [a, b, ...]
    one_of: {kind: subtree, ...}  picks a kind, then walks only that arm
    anything else                 a plain value

A parameter is named by its config path with the arm in brackets: `encoder.kind`, `encoder[sample_cnn].block`.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import atose_ray
from atose_ray.config import ConfigError, RunConfig, StudyConfig, apply_overrides, explain, merge, run_config
from atose_ray.data.batches import check_trainable, share_of_batch
from atose_ray.data.shards import Manifest
from atose_ray.data.views import view_of
from atose_ray.storage import Store
from atose_ray.training.resolve import resolve

SHIPPED = tuple(Path(atose_ray.__file__).parents[depth] / "search_spaces" for depth in (0, 1))
SEED_STRIDE = 100_003


@dataclass(frozen=True)
class Range:
    """`range`: all numbers from low to high."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether it is one of integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def values(self) -> tuple[Any, ...]:
        """All its values; none where they cannot be counted."""
        step = self.step or (1 if self.whole and not self.log else None)
        count = math.floor((self.high - self.low) / step + 1e-9) + 1 if step else 0
        numbers = (self.low + number * (step or 0) for number in range(count))
        return tuple(int(number) if self.whole else float(number) for number in numbers)

    def ends(self) -> list[Any]:
        """The values that must be valid."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Choice:
    """`choice`: one of a list."""

    values: tuple[Any, ...]

    def ends(self) -> list[Any]:
        """The values that must be valid."""
        return list(self.values)


@dataclass(frozen=True)
class OneOf:
    """`one_of`: a kind, and the subtree of that kind."""

    arms: dict[str, Mapping[str, Any]]


def suggest(trial: Any, tree: Mapping[str, Any]) -> dict[str, Any]:
    """Walk the tree, asking Optuna's trial for every open value. Returns a partial RunConfig as a nested dict."""

    def ask(name: str, node: Range | Choice) -> Any:
        if isinstance(node, Choice):
            return trial.suggest_categorical(name, list(node.values))
        if node.whole:
            return trial.suggest_int(name, node.low, node.high, step=int(node.step or 1), log=node.log)
        return trial.suggest_float(name, node.low, node.high, step=node.step, log=node.log)

    return walk(ask, tree)


def walk(choose: Callable[[str, Range | Choice], Any], tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A partial RunConfig as a nested dict, `choose` giving every open value by its name."""
    chosen: dict[str, Any] = {}
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        node = parse(value, here)
        if isinstance(node, OneOf):
            kind = choose(f"{here}.kind", Choice(tuple(node.arms)))
            chosen[key] = {"kind": kind, **walk(choose, node.arms[kind], f"{here}[{kind}]")}
        elif isinstance(node, (Range, Choice)):
            chosen[key] = choose(here, node)
        else:
            chosen[key] = walk(choose, node, here) if isinstance(node, Mapping) else node
    return chosen


def probes(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(parameter, value, partial RunConfig) for every range end, every choice, every arm and the plain values."""
    fixed = plain_values(tree, path)
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        node = parse(value, here)
        if isinstance(node, OneOf):
            for kind, arm in node.arms.items():
                yield f"{here}.kind", kind, {**fixed, key: {"kind": kind}}
                for name, tried, partial in probes(arm, f"{here}[{kind}]"):
                    yield name, tried, {**fixed, key: {"kind": kind, **partial}}
        elif isinstance(node, (Range, Choice)):
            for tried in node.ends():
                yield here, tried, {**fixed, key: tried}
        elif isinstance(node, Mapping):
            for name, tried, partial in probes(node, here):
                yield name, tried, {**fixed, key: partial}
        else:
            yield here, node, fixed


def plain_values(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The part of a tree in which nothing is searched."""
    nodes = {key: parse(value, f"{path}.{key}") for key, value in tree.items()}
    branches = {key: plain_values(node, f"{path}.{key}") for key, node in nodes.items() if isinstance(node, Mapping)}
    leaves = {key: node for key, node in nodes.items() if not isinstance(node, (OneOf, Range, Choice, Mapping))}
    return {**leaves, **{key: branch for key, branch in branches.items() if branch}}


def parse(value: Any, path: str) -> Any:
    """A Range, Choice or OneOf, a subtree, or a plain value. Raises ConfigError for a malformed one."""
    if not isinstance(value, Mapping):
        return value
    words = {"range", "choice", "one_of"} & set(value)
    if not words:
        return value
    if len(words) > 1 or set(value) - words - ({"log", "step"} if "range" in words else set()):
        raise ConfigError(
            f"space {path}: expected one of range (with log, step), choice, one_of, but got the keys {sorted(value)}"
        )
    if "range" in words:
        return _range(value, path)
    return _choice(value["choice"], path) if "choice" in words else _one_of(value["one_of"], path)


def _range(value: Mapping[str, Any], path: str) -> Range:
    ends = value["range"]
    if not (isinstance(ends, list) and len(ends) == 2):
        raise ConfigError(f"space {path}: range is [low, high], but got {ends!r}")
    low, high = (_number(end, path) for end in ends)
    log, step = bool(value.get("log", False)), value.get("step")
    if not low < high or (log and low <= 0) or (log and step is not None):
        raise ConfigError(
            f"space {path}: range needs low < high, with log also low > 0 and no step, but got {dict(value)!r}"
        )
    if not (isinstance(low, int) and isinstance(high, int)):
        low, high = float(low), float(high)
    return Range(low, high, log, None if step is None else _number(step, path))


def _number(value: Any, path: str) -> Any:
    """YAML 1.1 reads 1e-5 as text; here it is the number that was meant."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"space {path}: a range is made of finite numbers, but got {value!r}")
    return value


def _choice(options: Any, path: str) -> Choice:
    if not isinstance(options, list) or not options or any(isinstance(o, (list, dict)) for o in options):
        raise ConfigError(f"space {path}: choice is a list of plain values, but got {options!r}")
    if len({repr(option) for option in options}) != len(options):
        raise ConfigError(f"space {path}: choice names a value twice: {options!r}")
    return Choice(tuple(options))


def _one_of(arms: Any, path: str) -> OneOf:
    if not isinstance(arms, Mapping) or not arms or not all(isinstance(a, Mapping) or a is None for a in arms.values()):
        raise ConfigError(f"space {path}: one_of maps each kind to its subtree (or to nothing), but got {arms!r}")
    return OneOf({str(kind): arm or {} for kind, arm in arms.items()})


def compose(study: StudyConfig, chosen: Mapping[str, Any], number: int = 0) -> RunConfig:
    """The RunConfig of a trial: defaults, then the study's base, then what was chosen.

    A seed that neither sets derives from (study seed, trial number). Raises ConfigError.
    """
    tree = merge(merge(RunConfig().model_dump(mode="json"), study.base), chosen)
    if "seed" not in study.base and "seed" not in chosen:
        tree["seed"] = (study.search.seed * SEED_STRIDE + number) % 2**31
    return run_config({**tree, "metric": study.search.metric})


def chosen_arms(study: StudyConfig, overrides: Iterable[str]) -> dict[str, Any]:
    """The plain values of every arm that an override picks: `encoder.kind=harmonic_cnn` takes that arm of the space.

    What the arm searches stays at its default.
    """
    chosen: dict[str, Any] = {}
    for assignment in overrides:
        path, _, kind = assignment.partition("=")
        *branches, leaf = path.strip().split(".")
        node: Any = study.space
        for key in branches:
            node = node.get(key) if isinstance(node, Mapping) else None
        arms = parse(node, path)
        if leaf == "kind" and isinstance(arms, OneOf) and kind in arms.arms:
            arm: dict[str, Any] = {"kind": kind, **plain_values(arms.arms[kind], path)}
            for key in reversed(branches):
                arm = {key: arm}
            chosen = merge(chosen, arm)
    return chosen


def check(study: StudyConfig, where: str, store: Store | None = None, manifest: Manifest | None = None) -> RunConfig:
    """The base. It, every end, choice and arm of the space, and the points are checked against RunConfig; with the data
    also its splits and what resolves a run. Each stands beside the defaults or, where these do not go with it (an
    encoder of audio on a set of frames), beside the first value of all that is open.

    Raises ConfigError that names the parameter, the value and what was expected; StoreError.
    """
    if "metric" in study.base:
        raise ConfigError(f"{where}: set search.metric instead of base.metric; the trials take it from there")
    ranks, runs = max(1, study.search.workers_per_trial), list[RunConfig]()
    if manifest is not None:
        check_trainable(view_of(manifest, compose(study, {}).data, store).manifest if store else manifest, ranks)
    first = walk(lambda name, node: node.ends()[0], study.space)
    for name, value, partial in [("", None, {}), *probes(study.space)]:
        failure: ValueError | None = None
        for chosen in (partial, merge(first, partial)):
            try:
                run = compose(study, chosen)
                if store is not None and manifest is not None:
                    run = resolve(run, store, manifest)
                    share_of_batch(run.data.batch_size, ranks)
                runs.append(run)
                break
            except ValueError as error:
                failure = failure or error
        else:
            what = f"space {name} = {value!r}" if name else "base"
            raise ConfigError(f"{where}, {what}: {failure}") from failure
    if study.search.points:
        from atose_ray.search.points import check_points  # which walks the space as this module does

        check_points(study.search.points, study.space, f"{where}, search.points")
    return runs[0]


def on_a_grid(study: StudyConfig) -> StudyConfig:
    """The study with as many trials as its grid has points, or fewer where it asks for fewer; others unchanged.

    Raises ConfigError for a space that has no grid.
    """
    from atose_ray.search.points import grid_points

    search = study.search
    if search.sampler != "grid":
        return study
    size = len(grid_points(study.space))
    trials = min(size, search.trials) if "trials" in search.model_fields_set else size
    return study.model_copy(update={"search": search.model_copy(update={"trials": trials})})


def longest_run(study: StudyConfig) -> int:
    """The most epochs that a trial of this study can take."""
    return max(compose(study, chosen).method.epochs for chosen in ({}, *(probe[2] for probe in probes(study.space))))


def load_study(name: str, overrides: tuple[str, ...] = ()) -> StudyConfig:
    """A study by name (`search_spaces/<name>.yaml`) or path, with `--set` overrides, checked whole.

    An override's path begins in the file: `search.trials=4`, `base.optim.lr=1e-3`. Raises ConfigError.
    """
    path = find_study(name)
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path}: a study has the parts base, space and search, but this is a {type(tree).__name__}")
    try:
        study = StudyConfig.model_validate(apply_overrides(tree, overrides) if overrides else tree)
    except ValidationError as error:
        raise ConfigError(explain(error, str(path), StudyConfig)) from error
    check(study, path.name)
    return on_a_grid(study) if study.search.sampler == "grid" else study


def find_study(name: str) -> Path:
    """The file of a study. Raises ConfigError that lists the shipped ones."""
    if name.endswith((".yaml", ".yml")):
        if Path(name).is_file():
            return Path(name)
        raise ConfigError(f"there is no study file {name}")
    for folder in SHIPPED:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    known = sorted({file.stem for folder in SHIPPED for file in folder.glob("*.yaml")})
    raise ConfigError(f"unknown study {name!r}; known: {', '.join(known)}; or give the path of a YAML file")
