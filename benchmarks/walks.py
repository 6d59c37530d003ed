"""The two walks of a search, counted: `PYTHONPATH=. python -m benchmarks.walks STORE`.

The configuration goes from the study's file to the encoder (what the encoder is then used for is not walked); a score
from the end of an epoch to Optuna. Both are walked here in one process, without Ray's loop: the pieces are called as
Ray calls them. sys.setprofile counts

    functions   of this package that were given the configuration (a StudyConfig, a RunConfig or a part of one, a Job or
                what holds one, or such a tree as a dict), or the score (in an object that names the trial or the epoch)
    files       in which they stand
    returns     ways (from one file into another) by which a file is entered again that the walk had left

Left out, on both trees alike, is what runs inside pydantic: a config's validators and what they call are its
definition, and hand it on to nobody.

STORE holds the prepared data set `demo`. Works on this tree and on that of commit 9f007c4.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import optuna

CONFIG_KEYS = {"encoder", "method", "optim", "data", "base", "space", "job"}
CONFIGS = ("Config", "Job", "TrialSetup", "Configs")
FACTS = {"DataSpec", "Manifest", "AudioConfig", "AudioInput", "FrameInput", "ShardFile"}  # of the data, not choices
LAST = "sample_cnn.py:SampleCNN.__init__"  # the encoder, where the configuration's walk ends
SCORES = ("EpochRecord", "Epoch", "Ended")
STUDY = {
    "base": {
        "data": {"dataset": "demo", "crop_seconds": 1.0, "batch_size": 8, "train_share": 0.2, "residency": "host"},
        "encoder": {"kind": "sample_cnn", "channels": 4},
        "method": {"kind": "supervised", "stages": [{"name": "classify", "epochs": 1}]},
    },
    "space": {"optim": {"lr": {"range": [1e-3, 1e-2], "log": True}}},
    "search": {"trials": 2, "pruner": {"kind": "none"}},
}


def is_config(value: Any) -> bool:
    """Whether an argument is the configuration, a part of it, or holds it."""
    kinds = {one.__name__ for one in type(value).__mro__}
    if any(name.endswith(CONFIGS) for name in kinds) and type(value).__module__.startswith("atose_ray"):
        return not kinds & FACTS
    return isinstance(value, Mapping) and bool(CONFIG_KEYS & {str(key) for key in value} or "atose" in value)


def is_score(value: Any) -> bool:
    """Whether an argument is what an epoch reported, or what came of a trial."""
    if type(value).__name__ in SCORES:
        return True
    if hasattr(type(value), "is_tunes"):
        return bool(value.last_result)
    return isinstance(value, Mapping) and "pr_auc_macro" in value and "epoch" in value


def inside_pydantic(frame: FrameType | None) -> bool:
    """Whether pydantic is among the callers of a frame."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == "pydantic":
            return True
        frame = frame.f_back
    return False


class Walk:
    """What was counted."""

    def __init__(self, wanted: Callable[[Any], bool]) -> None:
        self.wanted, self.functions, self.files, self.returns = wanted, dict[str, int](), list[str](), set[Any]()
        self.last, self.ended = "", False
        self.root = str(Path(importlib.import_module("atose_ray").__file__ or "").parent)

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if self.ended or event != "call" or not code.co_filename.startswith(self.root) or code.co_name.startswith("<"):
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 12)]
        if not any(self.wanted(frame.f_locals.get(name)) for name in names) or inside_pydantic(frame):
            return
        file = code.co_filename[len(self.root) + 1 :]
        if file in self.files[:-1] and self.files[-1] != file:
            self.returns.add((self.files[-1], file))
        if not self.files or self.files[-1] != file:
            self.files.append(file)
        name = f"{file}:{code.co_qualname if sys.version_info >= (3, 11) else code.co_name}"
        self.functions[name] = self.functions.get(name, 0) + 1
        self.ended = name.endswith(self.last) if self.last else False

    def figures(self) -> dict[str, int]:
        """What is compared."""
        return {"functions": len(self.functions), "files": len(set(self.files)), "returns": len(self.returns)}


@contextmanager
def counted(walk: Walk) -> Iterator[None]:
    """Count in this block."""
    sys.setprofile(walk)
    try:
        yield
    finally:
        sys.setprofile(None)


def main() -> None:
    """Walk both, and print what was counted."""
    store_uri = str(Path(sys.argv[1]).absolute())
    is_new = importlib.util.find_spec("atose_ray.search.trials") is not None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch) / "store"
        place.mkdir()
        (place / "data").symlink_to(Path(store_uri) / "data")
        file = Path(scratch) / "walk.yaml"
        file.write_text(json.dumps(STUDY))
        walk = new_walk if is_new else old_walk
        for name, found in walk(str(place), str(file)).items():
            print(json.dumps({"walk": name, **found.figures()}))
            for function, count in found.functions.items():
                print(f"    {count:>4} x {function}")


def new_walk(store_uri: str, file: str) -> dict[str, Walk]:
    """This tree."""
    module = importlib.import_module
    space_of, plans, trials = (
        module("atose_ray.search.space"),
        module("atose_ray.search.plan"),
        module("atose_ray.search.trials"),
    )
    storage, shards = module("atose_ray.storage"), module("atose_ray.data.shards")
    records, events = module("atose_ray.search.record"), module("atose_ray.search.events")
    heard, storages = module("atose_ray.search.listeners"), module("atose_ray.search.study_storage")
    trial_of = module("atose_ray.runtime.trial")
    views = module("atose_ray.data.views")
    store = storage.Store(store_uri)
    configuration, score = Walk(is_config), Walk(is_score)
    with counted(configuration):
        study = space_of.load_study(file)
        manifest = shards.load_manifest(store, study.base["data"]["dataset"])
        base = space_of.check(study, "", store, manifest)
        available = module("atose_ray.search.nodes").one_node(4)
        plan_clips = module("atose_ray.search.clip_plan").plan_clips(base, study.search, manifest, available, [])
        plan = plans.make_plan(study.search, plan_clips.streams, available)
        folder = records.study_store(store, "walk")
        space_of.begin(folder, study, views.view_of(manifest, base.data, store), store)
        space = trials.Space(study, "walk", store.uri, manifest, plan)
        asked = optuna.create_study(direction="maximize")
        kept = storages.StudyStorage(asked._storage, folder)
        optuna_study = heard.OptunaListener(asked, kept)
        setup = optuna_study.ask(space, 0)
        actor = object.__new__(trial_of.ActorTrial)
        configuration.last = LAST
        actor.setup({trial_of.KEY: setup})
    job = setup.job
    log, shown = heard.TrialLog(folder, 2, None, ()), heard.Console(study.search, ())
    log.on_event(events.Asked(0, job))
    searching = module("atose_ray.runtime.search")
    vars(searching)["Spilling"] = type("Spilling", (), {"line": lambda self, last=False: None})
    hooks, trial = (
        searching.Hooks(space, None, heard.Listeners(log, optuna_study, shown)),
        tunes_trial({trial_of.KEY: setup}),
    )
    with counted(score):
        line = actor.step()
        hooks.on_trial_result(1, [trial], trial, line)
        trial.last_result = line
        hooks.on_trial_complete(1, [trial], trial)
    actor.cleanup()
    return {"configuration": configuration, "score": score}


def tunes_trial(config: Any) -> Any:
    """What stands for a trial of Ray Tune's in its hooks."""
    fields = {"trial_id": "t0", "config": config, "last_result": None, "status": "RUNNING", "is_tunes": True}
    return type("Trial", (), fields)()


def old_walk(store_uri: str, file: str) -> dict[str, Walk]:
    """The tree of commit 9f007c4."""
    module = importlib.import_module
    space_of, plans, searching = (
        module("atose_ray.search.space"),
        module("atose_ray.runtime.cluster"),
        module("atose_ray.runtime.search"),
    )
    storage, shards, shared = (
        module("atose_ray.store"),
        module("atose_ray.data.shards"),
        module("atose_ray.runtime.shared"),
    )
    tuning, records, trial_of = (
        module("atose_ray.runtime.tune"),
        module("atose_ray.search.record"),
        module("atose_ray.runtime.trial"),
    )
    ledger_of, study_search = module("atose_ray.runtime.ledger"), module("atose_ray.runtime.study_search")
    consoles, storages = module("atose_ray.runtime.console"), module("atose_ray.runtime.storage")
    share_of, costs = module("atose_ray.runtime.gpu_share"), module("atose_ray.runtime.costs")
    store = storage.Store(store_uri)
    configuration, score = Walk(is_config), Walk(is_score)
    with counted(configuration):
        study = space_of.load_study(file)
        base = space_of.compose(study, {})
        manifest = shards.load_manifest(store, base.data.dataset)
        space_of.check_on_data(study, manifest)
        available = plans.Resources(4, 0, 4, 0)
        clips = shared.plan_clips(base, study.search, manifest, available, [])
        plan = plans.make_plan(study.search, clips.streams, available)
        folder = records.study_store(store, "walk")
        space_of.compose(study, {})  # run_study does
        tuning.begin(folder, study, manifest, shards.data_store(store, base.data.dataset))
        space = searching.Space(study, "walk", store.uri, manifest.data_spec, manifest.content_hash, plan)
        asked = optuna.create_study(direction="maximize")
        kept = storages.StudyStorage(asked._storage, folder)
        ledger = ledger_of.Ledger(folder, study.search.metric, 2, None, ())
        share = share_of.GpuShare(plan, ())
        searcher = study_search.StudySearch(
            asked, study.search.metric, space, space.values, ledger, kept, lambda: True, share
        )
        costs.trainable(study.search.costs, plan, None)
        config = searcher.suggest("t0")
        actor = object.__new__(trial_of.ActorTrial)
        configuration.last = LAST
        actor.setup(config)
    session = module("atose_ray.runtime.sitting").Sitting(folder)
    spilling = type("Spilling", (), {"line": lambda self, last=False: None})()
    module("atose_ray.runtime.gauges")
    shown = consoles.Console(study.search, (), spilling, session)
    trial = tunes_trial(config)
    with counted(score):
        line = actor.step()
        searcher.on_trial_result("t0", line)
        shown.on_trial_result(1, [trial], trial, line)
        trial.last_result = line
        searcher.on_trial_complete("t0", line)
        shown.on_trial_complete(1, [trial], trial)
    session.end()
    return {"configuration": configuration, "score": score}


if __name__ == "__main__":
    main()
