"""A study from its file to the head of its folder: its space, a YAML tree in the shape of RunConfig that one function
walks; the runs that it composes; the checks of both before the first trial.

A parameter is named by its config path with the arm in brackets: `encoder.kind`, `encoder[sample_cnn].block`.
"""

import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

import atose_ray
from atose_ray.config import SPEED, ConfigError, RunConfig, StudyConfig, apply_overrides, explain, merge, run_config
from atose_ray.data.batches import check_trainable, share_of_batch
from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.data.tag_statistics import tag_correlation
from atose_ray.data.views import View, view_of
from atose_ray.search.finished import SHIPPED as SHIPPED
from atose_ray.search.finished import study_file
from atose_ray.search.parameters import Choice, OneOf, Range, parse
from atose_ray.storage import Store, read_uri
from atose_ray.training.run import resolve

SEED_STRIDE = 100_003
OPEN = object()  # chosen for a parameter, it leaves this one out


def walk(choose: Callable[[str, Range | Choice], Any], tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """A partial RunConfig as a nested dict, `choose` giving every open value by its name, or OPEN."""
    chosen: dict[str, Any] = {}
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        node = parse(value, here)
        if isinstance(node, OneOf):
            kind = choose(f"{here}.kind", Choice(tuple(node.arms)))
            arm = OPEN if kind is OPEN else {"kind": kind, **walk(choose, node.arms[kind], f"{here}[{kind}]")}
        elif isinstance(node, (Range, Choice)):
            arm = choose(here, node)
        else:
            arm = (walk(choose, node, here) or OPEN) if isinstance(node, Mapping) and node else node
        if arm is not OPEN:
            chosen[key] = arm
    return chosen


def probes(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(parameter, value, partial RunConfig) for every range end, every choice, every arm and the plain values."""
    fixed = walk(leave_open, tree, path)
    for key, value in tree.items():
        here = f"{path}.{key}" if path else key
        node = parse(value, here)
        if isinstance(node, OneOf):
            for kind, arm in node.arms.items():
                yield f"{here}.kind", kind, {**fixed, key: {"kind": kind, **walk(leave_open, arm, f"{here}[{kind}]")}}
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


def leave_open(name: str, node: Range | Choice) -> Any:
    """Chooses nothing: what is left of a tree is its plain values."""
    return OPEN


def compose(study: StudyConfig, chosen: Mapping[str, Any], number: int = 0) -> RunConfig:
    """The RunConfig of a trial: defaults, then the study's base, then what was chosen.

    A seed that neither sets derives from (study seed, trial number). Raises ConfigError.
    """
    run = run_config(tree_of(study, chosen, number))
    return run if study.search.epochs is None else of_epochs(run, study.search.epochs)


def tree_of(study: StudyConfig, chosen: Mapping[str, Any], number: int = 0) -> dict[str, Any]:
    """What `compose` makes a RunConfig of, which may be impossible."""
    tree = merge(merge(RunConfig().model_dump(mode="json"), study.base), chosen)
    if "seed" not in study.base and "seed" not in chosen:
        tree["seed"] = (study.search.seed * SEED_STRIDE + number) % 2**31
    return {**tree, "metric": study.search.metric}


def of_epochs(run: RunConfig, total: int) -> RunConfig:
    """The run with `total` epochs, shared out over its stages in proportion, at least one each. Raises ConfigError for
    fewer epochs than stages."""
    stages, before = run.method.stages, run.method.epochs
    if total < len(stages):
        raise ConfigError(
            f"search.epochs={total} (--epochs) is less than the {len(stages)} stages of {run.method.kind}, each of "
            f"which takes at least one epoch: give {len(stages)} or more"
        )
    exact = [total * stage.epochs / before for stage in stages]
    share = [max(1, int(part)) for part in exact]
    for _ in range(abs(total - sum(share))):
        step = 1 if sum(share) < total else -1
        open_ones = [i for i, count in enumerate(share) if count + step >= 1]
        share[max(open_ones, key=lambda i: step * (exact[i] - share[i]))] += step
    scaled = tuple(stage.model_copy(update={"epochs": count}) for stage, count in zip(stages, share, strict=True))
    return run.model_copy(update={"method": run.method.model_copy(update={"stages": scaled})})


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
            arm: dict[str, Any] = {"kind": kind, **walk(leave_open, arms.arms[kind], path)}
            for key in reversed(branches):
                arm = {key: arm}
            chosen = merge(chosen, arm)
    return chosen


def load_tree(source: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The whole config tree that overrides are laid over: of a study its base, and the plain values of the arms of its
    space that the overrides pick; or the tree in a config.json, by path or URI. Raises ConfigError."""
    if not source.partition("?")[0].endswith(".json"):
        study = load_study(source)
        return compose(study, chosen_arms(study, overrides)).model_dump(mode="json")
    try:
        read = json.loads(read_uri(source).decode())
    except FileNotFoundError as error:
        raise ConfigError(f"there is no config file {source}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not JSON: {error}") from error
    if not isinstance(read, dict):
        raise ConfigError(f"{source}: a config has the parts {', '.join(RunConfig.model_fields)}, but this is not one")
    tree = run_config(merge(RunConfig().model_dump(mode="json"), read), source).model_dump(mode="json")
    for part in filter(None, (tree["data"], tree["probe"])):
        part["content_hash"] = None
    return tree


def check(study: StudyConfig, where: str, store: Store | None = None, manifest: Manifest | None = None) -> RunConfig:
    """The base. It, every end, choice and arm of the space, and the points are checked against RunConfig; with the data
    also its splits and what resolves a run. Each stands beside the defaults or, where these do not go with it (an
    encoder of audio on a set of frames), beside the first value of all that is open.

    Raises ConfigError that names the parameter, the value and what was expected; StoreError.
    """
    if "metric" in study.base:
        raise ConfigError(f"{where}: set search.metric instead of base.metric; the trials take it from there")
    if "probe" in study.space:
        raise ConfigError(f"{where}: set base.probe instead of space.probe; all trials are measured by the same one")
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


def begin(folder: Store, study: StudyConfig, view: View, store: Store) -> None:
    """Write the head of the study folder, or check that this is the study that stands there, as `check_same` does."""
    if folder.exists("study.json"):
        check_same(folder, study, view.manifest.content_hash)
    else:
        folder.write_json("data.json", data_facts(view, store))
    folder.write_json("study.json", {"config": study.model_dump(mode="json"), "versions": versions()})


def with_its_probe(study: StudyConfig, folder: Store, store: Store) -> StudyConfig:
    """The study with the content of its probe's set, so that all its trials are measured alike: of one that goes on
    that which it began with, whatever the set's name means now. Raises StoreError where there is no such set."""
    probe = compose(study, {}).probe
    if probe is None or probe.content_hash is not None:
        return study
    before = folder.read_json("study.json")["config"]["base"].get("probe") if folder.exists("study.json") else None
    known = before["content_hash"] if before and before["dataset"] == probe.dataset else None
    pinned = {"content_hash": known or load_manifest(store, probe.dataset).content_hash}
    return study.model_copy(update={"base": merge(study.base, {"probe": pinned})})


def check_same(folder: Store, study: StudyConfig, content_hash: str) -> None:
    """Check that this is the study that stands in `folder`. More trials and other resources are fine.

    Raises ConfigError for another space, base or sampler, or other data."""
    before = StudyConfig.model_validate(folder.read_json("study.json")["config"])
    same_data, tried = folder.read_json("data.json")["content_hash"] == content_hash, before.search.points
    if identity(before) != identity(study) or not same_data:
        what = "other data" if not same_data else "another base, space or search"
        raise ConfigError(
            f"the study in {folder.uri} was begun with {what}; give this one its own --name, or delete that folder"
        )
    if study.search.points[: len(tried)] != tried:
        raise ConfigError(
            f"the study in {folder.uri} was begun with other search.points; new ones are added at the end of the "
            "list, or give this one its own --name"
        )


def identity(study: StudyConfig) -> dict[str, Any]:
    """What makes two studies the same: base, space, what is optimised, sampler, pruner and seed.

    Not how many trials there are, the budget, the resources, where clips are kept, Optuna's storage, who is told, or
    whether equal configurations are trained again: they change no trial. Nor points and studies to learn from, which
    change only what is tried next (`begin` checks the points).
    """
    execution = {"trials", "concurrency", "workers_per_trial", "cpus_per_worker", "gpus_per_worker", "max_failures"}
    course = {"budget", "storage", "points", "warm_start", "repeat", "loggers"}
    return study.model_dump(mode="json", exclude={"base": SPEED, "search": execution | course})


def data_facts(view: View, store: Store) -> dict[str, Any]:
    """What data.json holds; reads the tags of the train split."""
    manifest = view.manifest
    return {
        "data_spec": manifest.data_spec.model_dump(mode="json"),
        "tag_counts": manifest.tag_counts,
        "tag_correlation_CC": tag_correlation(view.tags(store, "train")),
        "skipped": [[clip.name, clip.reason] for clip in manifest.skipped],
        "content_hash": manifest.content_hash,
    }


def versions() -> dict[str, str]:
    """What ran the study."""
    libraries = {name: version(name) for name in ("ray", "optuna", "torch", "pyarrow")}
    return {"atose_ray": atose_ray.__version__, "python": platform.python_version(), **libraries}


def find_study(name: str) -> Path:
    """The file of a study. Raises ConfigError that lists the shipped ones."""
    if file := study_file(name):
        return file
    if name.endswith((".yaml", ".yml")):
        raise ConfigError(f"there is no study file {name}")
    known = sorted({file.stem for folder in SHIPPED for file in folder.glob("*.yaml")})
    raise ConfigError(f"unknown study {name!r}; known: {', '.join(known)}; or give the path of a YAML file")
