"""A prepare that was killed goes on where it was, and leaves what an undisturbed one leaves, byte for byte."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import RATE, render_tiny
from processes import environment

from atose_ray.data import shard_job as module
from atose_ray.data.prepare import PREPARING, prepare, run_here
from atose_ray.data.shard_job import PARTS
from atose_ray.data.shards import load_manifest
from atose_ray.datasets import dataset_config
from atose_ray.storage import Store

CLIPS = 240
SLOW = """
import sys, time
from atose_ray.data import shard_job as module
from atose_ray.data.prepare import prepare
from atose_ray.storage import Store
from atose_ray.datasets import dataset_config
decode = module.decode_parts
def slowly(*args, **kwargs):
    time.sleep(0.02)
    return decode(*args, **kwargs)
module.decode_parts = slowly
print("begins", flush=True)
prepare(dataset_config("folder", source=sys.argv[1], sample_rate_hz=int(sys.argv[2])), Store(sys.argv[3]))
"""


def config(source: Path):
    return dataset_config("folder", source=str(source), sample_rate_hz=RATE)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render_tiny(tmp_path_factory.mktemp("source"), CLIPS)


@pytest.fixture(scope="module")
def undisturbed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("whole")
    prepare(config(source), Store(str(store)))
    return content(store)


def test_nothing_of_the_way_is_left(undisturbed) -> None:
    names = {name.rpartition("/")[2].partition("-")[0] for name in undisturbed}
    assert names == {"manifest.json", "facts.jsonl", "train", "valid", "test", "current.json"}
    assert len({name.rpartition("/")[0] for name in undisturbed}) == 2  # the set's folder, and that of its content


def test_only_the_missing_shards_are_written(source, undisturbed, tmp_path, monkeypatch) -> None:
    class Killed(Exception):
        pass

    def three_then_dead(jobs):
        for number, result in enumerate(run_here(jobs)):
            if number == 3:
                raise Killed
            yield result

    store = Store(str(tmp_path))
    with pytest.raises(Killed):
        prepare(config(source), store, three_then_dead)
    place = store.child("data", "folder")
    (work,) = place.names()
    folder = place.child(work)
    assert work.startswith(PREPARING) and not folder.exists("manifest.json")
    parts = folder.child(PARTS).names()
    assert len(parts) == 4
    decoded = []
    decode = module.decode_parts
    monkeypatch.setattr(
        module, "decode_parts", lambda *args, **kwargs: decoded.append(kwargs["name"]) or decode(*args, **kwargs)
    )
    folder.delete(parts[0].replace(".json", ".parquet"))  # a shard that went missing is written again
    manifest, written = prepare(config(source), store)
    here = sum(
        sum(shard.row_groups) for shard in manifest.shards if shard.name.replace(".parquet", ".json") in parts[1:]
    )
    assert written and len(decoded) == CLIPS - here > 0
    assert content(tmp_path) == undisturbed


def test_other_inputs_are_prepared_beside_what_was_begun(source, tmp_path) -> None:
    store = Store(str(tmp_path))

    def dead(jobs):
        list(run_here(jobs[:2]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(config(source), store, dead)
    other = dataset_config("folder", source=str(source), sample_rate_hz=2 * RATE)
    manifest, _ = prepare(other, store)
    assert manifest.data_spec.audio.sample_rate_hz == 2 * RATE
    assert load_manifest(store, "folder").content_hash == manifest.content_hash
    fresh = tmp_path / "fresh"
    assert prepare(other, Store(str(fresh)))[0].content_hash == manifest.content_hash


@pytest.mark.slow
def test_killed_at_ten_random_moments(source, undisturbed, tmp_path) -> None:
    moments = random.Random(5)
    arguments = [sys.executable, "-c", SLOW, str(source), str(RATE), str(tmp_path)]
    killed = 0
    for _ in range(10):
        process = subprocess.Popen(arguments, env=environment(), stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"begins\n"
        time.sleep(moments.uniform(0.05, 0.4))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        process.stdout.close()
    assert killed == 10 and not list((tmp_path / "data" / "folder").rglob("manifest.json"))
    prepare(config(source), Store(str(tmp_path)))
    assert content(tmp_path) == undisturbed
