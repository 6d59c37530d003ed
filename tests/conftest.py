"""Fixtures: the shared material (skips where absent), a small prepared data set, a Ray cluster of the session's own."""

from __future__ import annotations

import ast
import contextlib
import csv
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from atose_ray.config import RunConfig, run_config
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.datasets import dataset_config
from atose_ray.storage import Store
from atose_ray.training.run import resolve
from atose_ray.types import DataSpec

TESTS = str(Path(__file__).parent)  # where Ray's workers find made_up.py
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [TESTS, os.environ.get("PYTHONPATH")]))
SHARED = Path(__file__).resolve().parents[2] / "shared"
RATE = 4000
ON_GPU = {"precision": "float32"} if torch.cuda.is_available() else {}
TINY_TAGS = ("low", "high", "loud", "steady")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs Ray comes first, and of that first what shares a cluster."""
    for item in items:
        if "ray_cluster" in fixtures_of(item):
            item.add_marker("ray")
    on_ray = [item for item in items if item.get_closest_marker("ray")]
    unread = [
        item.nodeid for item in on_ray if item.name.partition("[")[0] not in tests_on_ray(f"tests/{item.path.name}")
    ]
    assert not unread, "tests_on_ray must find these, or they run beside another Ray"
    items.sort(key=lambda item: (item.get_closest_marker("ray") is None, "ray_cluster" not in fixtures_of(item)))


@functools.cache
def tests_on_ray(path: str) -> frozenset[str]:
    """The tests of a file that need Ray, by its text: pytest-xdist deals out tests by their names alone."""
    tree = ast.parse((Path(__file__).parents[1] / path).read_text())
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    marks = [
        node for node in tree.body if isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node.targets[0])
    ]
    whole = any("mark.ray" in ast.unparse(node) for node in marks)
    shared = {test.name for test in tests if "ray_cluster" in {argument.arg for argument in test.args.args}}
    marked = {test.name for test in tests if any("mark.ray" in ast.unparse(one) for one in test.decorator_list)}
    return frozenset({test.name for test in tests} if whole else shared | marked)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile: a file to a worker, but all that needs Ray to one, so that one Ray runs at a time."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneRay(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path, _, name = nodeid.partition("::")
            return "ray" if name.partition("[")[0] in tests_on_ray(path) else path

    return OneRay(config, log)


def fixtures_of(item: pytest.Item) -> tuple[str, ...]:
    return tuple(getattr(item, "fixturenames", ()))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test with a Ray of its own does not run beside the one that others share."""
    if item.get_closest_marker("ray") and "ray_cluster" not in fixtures_of(item):
        SHARED_RAY.close()


@pytest.fixture(scope="session", autouse=True)
def few_threads():
    """Two cores are shared by everything."""
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: they would wait for the other test worker


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the shared material beside the checkout")
    return SHARED


def render_tiny(folder: Path, clips: int = 60) -> Path:
    """One-second tones whose pitch, level and tremolo are their tags; clips of 0.5 to 1.5 s."""
    rng = np.random.default_rng(7)
    rows = []
    for index in range(clips):
        high, loud, steady = index % 2, (index // 2) % 2, (index // 4) % 2
        time = np.arange(int(RATE * (0.5 + 0.1 * (index % 11)))) / RATE
        tone = np.sin(2 * np.pi * (rng.uniform(700, 1200) if high else rng.uniform(120, 250)) * time)
        shape = 1.0 if steady else 0.5 + 0.5 * np.sin(2 * np.pi * 8 * time)
        audio = (0.8 if loud else 0.2) * tone * shape + 0.01 * rng.standard_normal(len(time))
        name = f"clip_{index:03d}.wav"
        soundfile.write(folder / name, audio.astype(np.float32), RATE, subtype="FLOAT")
        tags = ["high" if high else "low", *(["loud"] if loud else []), *(["steady"] if steady else [])]
        split = "train" if index < clips * 0.6 else "valid" if index < clips * 0.8 else "test"
        rows.append((name, split, "|".join(tags)))
    with (folder / "tags.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("path", "split", "tags"))
        writer.writerows(rows)
    return folder


def render_folds(folder: Path, clips: int) -> Path:
    """The same in three folds instead of splits."""
    table = render_tiny(folder, clips) / "tags.csv"
    header, *lines = table.read_text().splitlines()
    at = header.split(",").index("tags")
    rows = [f"{line.split(',')[0]},{number // 4 % 3},{line.split(',')[at]}" for number, line in enumerate(lines)]
    table.write_text("\n".join(["path,fold,tags", *rows]) + "\n")
    return folder


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_store(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with the data set `folder` prepared; tests must not write into it outside `runs` and `studies`."""
    store = Store(str(tmp_path_factory.mktemp("store")))
    prepare(dataset_config("folder", source=str(tiny_source), sample_rate_hz=RATE), store)
    return store


@pytest.fixture(scope="session")
def tiny_manifest(tiny_store: Store) -> Manifest:
    return load_manifest(tiny_store, "folder")


def tiny_tree(method: str = "supervised", **changes: object) -> dict:
    stages = {
        "supervised": [{"name": "classify", "epochs": 3}],
        "joint_embedding": [{"name": "embed", "epochs": 2}, {"name": "classify", "epochs": 2}],
    }
    return {
        "data": {"dataset": "folder", "crop_seconds": 0.6, "batch_size": 8, "eval_crops": 3},
        "encoder": {"kind": "sample_cnn", "block": "basic", "channels": 4, "se_ratio": 1},
        "method": {"kind": method, "head": {"kind": "mlp", "hidden": 8}, "stages": stages[method]},
        "optim": {"kind": "adam", "lr": 3e-3},
        "execution": {"deterministic": True, **ON_GPU},  # of what is equal on a CPU, equal on a GPU too
        **changes,
    }


def resolved(run: RunConfig, spec: DataSpec, content_hash: str = "hash") -> RunConfig:
    """The run on data of which nothing but the facts is there."""
    return resolve(run, Store("nowhere"), SimpleNamespace(data_spec=spec, content_hash=content_hash, folds=()))


@pytest.fixture
def tiny_run(tiny_store: Store, tiny_manifest: Manifest):
    """A function: method name and changes -> resolved RunConfig."""

    def build(method: str = "supervised", **changes: object) -> RunConfig:
        run = run_config(tiny_tree(method, **changes))
        return resolve(run, tiny_store, tiny_manifest)

    return build


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tiny_store: Store, tiny_manifest: Manifest) -> str:
    """A model folder with weights as they are drawn: what is asked of it is that it always says the same."""
    from atose_ray.training.checkpoint import save_model
    from atose_ray.training.run import Job, open_run

    place = tmp_path_factory.mktemp("model")
    run = resolve(run_config(tiny_tree()), tiny_store, tiny_manifest)
    opened = open_run(Job(run, tiny_store.uri, str(place / "run")))
    method = opened.method.eval()
    metrics = {"stage": "classify", "epoch": 1, "number": 0}
    save_model(Store(str(place / "best")), method, run, method.spec, metrics)
    return str(place / "best")


SHARED_RAY = contextlib.ExitStack()


@pytest.fixture(scope="session")
def shared_ray() -> Iterator[contextlib.ExitStack]:
    with SHARED_RAY:
        yield SHARED_RAY


@pytest.fixture
def ray_cluster(shared_ray: contextlib.ExitStack) -> None:
    """The Ray that tests share: own temp dir, own ports, 4 logical CPUs. Ended with the session or before another."""
    from atose_ray.runtime.cluster import cluster

    if "RAY_TMPDIR" in os.environ:
        return  # it is up
    with contextlib.ExitStack() as starting:
        folder = tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True)  # sockets need a short path
        os.environ["RAY_TMPDIR"] = starting.enter_context(folder)
        starting.callback(os.environ.pop, "RAY_TMPDIR", None)
        starting.enter_context(cluster(cpus=4, metadata={"study": "those of these tests"}))
        shared_ray.push(starting.pop_all())
