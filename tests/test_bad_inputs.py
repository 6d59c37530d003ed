"""What a newcomer types or brings that cannot work: each ends in a message that names the thing and the way out."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from conftest import RATE, render_tiny, tiny_tree
from processes import verb
from test_ray import study

from atose_ray import cli, crossvalidate, prepare, report, tag, train, tune
from atose_ray.data.prepare import prepare as prepare_here
from atose_ray.data.shards import data_store
from atose_ray.datasets import dataset_config
from atose_ray.storage import Store
from atose_ray.training.checkpoint import load_model

HTML = "<!DOCTYPE html><html><body>404 Not Found</body></html>"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """`prepare` without Ray."""
    monkeypatch.setattr(
        prepare, "prepare", lambda config, store, run_jobs, name: prepare_here(config, store, name=name)
    )


@pytest.fixture
def store(tiny_store: Store, tmp_path: Path) -> Store:
    """A store of this test's own with the tiny data in it."""
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "store" / "data")
    return Store(str(tmp_path / "store"))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return render_tiny(tmp_path / "raw", clips=20)


@pytest.fixture(scope="module")
def best(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(Path(tiny_store.root) / "data", folder / "store" / "data")
    (folder / "one.json").write_text(json.dumps(tiny_tree(method="supervised")))
    train.main([str(folder / "one.json"), "--store", str(folder / "store")])
    (found,) = (folder / "store" / "runs").glob("*/best")
    return str(found)


def write_study(folder: Path, change: Callable[[dict], object] = lambda tree: None) -> str:
    tree = study(trials=2).model_dump(mode="json")
    change(tree)
    (folder / "mine.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "mine.yaml")


def prepare_folder(source: Path, store: Store) -> None:
    prepare.main(["folder", "--source", str(source), "--store", store.uri, "--option", f"sample_rate_hz={RATE}"])


def rewrite(table: Path, change: Callable[[list[str]], list[str]]) -> None:
    table.write_text("\n".join(change(table.read_text().splitlines())) + "\n")


# ---------------------------------------------------------------- names and options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mtta"], r"unknown dataset 'mtta'; known: audioset, .*, urbansound8k; did you mean mtat\?"),
        (["mtat"], r"mtat needs the folder of its audio.*--source DIR"),
        (["mtat", "--source", "/no/such/folder"], r"/no/such/folder does not exist.*--source DIR"),
        (["demo", "--source", "s3://bucket/audio"], r"local folder, but got s3://bucket/audio; leave --source out"),
        (["folder", "--source", ".", "--option", "sample_rate"], r"--option is NAME=VALUE, but got 'sample_rate'"),
        (["folder", "--source", ".", "--option", "sample_rate=8000"], r"sample_rate: no such key; did you mean 'sampl"),
        (["folder", "--source", ".", "--option", "sample_rate_hz=8"], r"sample_rate_hz: .* 1000, but got 8"),
        (["folder", "--source", ".", "--option", "csv={"], r"'csv=\{': the value '\{' is not YAML"),
    ],
)
def test_prepare_refuses(arguments: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        prepare.main([*arguments, "--store", str(tmp_path / "store")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "search.trials=0"], r"search\.trials: .*greater than or equal to 1, but got 0"),
        (["--set", "optim.lr=1e-3"], r"optim: no such key; did you mean 'base\.optim'\?"),
        (["--set", "latent=64"], r"latent: no such key here; latent belongs to base\.method: .*base\.method\.latent\?"),
        (["--set", "base.optim.lr"], r"PATH=VALUE.*'base\.optim\.lr'"),
        (["--set", "base.optim.lr={"], r"'base\.optim\.lr=\{': the value '\{' is not YAML"),
        (["--set", "search.metric=pr_auc"], r"metric is one of pr_auc_macro.*but got 'pr_auc'"),
        (["--set", "base.data.dataset=mtat"], r"no prepared data set 'mtat'.*it holds: folder.*atose_ray\.prepare mt"),
        (["--name", "../elsewhere"], r"--name is a folder name.*'\.\./elsewhere'"),
        (["--address", "127.0.0.1:9"], r"no Ray cluster answers at '127\.0\.0\.1:9'.*--address"),
    ],
)
def test_tune_refuses(arguments: list[str], message: str, store: Store, tmp_path: Path, monkeypatch) -> None:
    if "--address" in arguments:
        monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ValueError, match=message):
        tune.main([write_study(tmp_path), "--store", store.uri, *arguments])
    assert not list((tmp_path / "store").glob("studies/*/trials/*"))


def misspell(tree: dict) -> None:
    arm = tree["space"]["encoder"]["one_of"]["sample_cnn"]
    arm["blok"] = arm.pop("block")


def overreach(tree: dict) -> None:
    tree["space"]["optim"]["lr"]["range"] = [1e-3, 50.0]


def unknown_choice(tree: dict) -> None:
    tree["space"]["encoder"]["one_of"]["sample_cnn"]["block"] = {"choice": ["basic", "resnet"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (misspell, r"mine\.yaml, space encoder\[sample_cnn\]\.blok.*no such key; did you mean 'block'\?"),
        (overreach, r"mine\.yaml, space optim\.lr = 50\.0: .*less than or equal to 10, but got 50"),
        (unknown_choice, r"space encoder\[sample_cnn\]\.block = 'resnet'.*'basic'"),
    ],
)
def test_a_space_with_a_mistake_is_refused(change: Callable, message: str, store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tune.main([write_study(tmp_path, change), "--store", store.uri])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"config\.json is not JSON"),
        (b"\xff\xfe", r"config\.json is not JSON"),
        (b"[1, 2]", r"has the parts data, encoder"),
        (b'{"data": "mtat"}', r"data: .*but got 'mtat'"),
        (b'{"optm": {}}', r"optm: no such key; did you mean 'optim'"),
    ],
)
def test_train_refuses_a_broken_config(content: bytes, message: str, store: Store, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        train.main([str(tmp_path / "config.json"), "--store", store.uri])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmeo"], r"unknown study 'dmeo'; known: .*demo.*or give the path of a YAML file"),
        (["nowhere.yaml"], r"there is no study file nowhere\.yaml"),
        (["nowhere.json"], r"there is no config file nowhere\.json"),
        (["demo"], r"no prepared data set 'demo'.*it holds: folder.*atose_ray\.prepare demo"),
        (["demo", "--set", "encoder.kind=cnn"], r"encoder: .*sample_cnn, harmonic_cnn"),
        (["demo", "--set", "data.dataset=folder", "--set", "execution.device=tpu"], r"device.*but got 'tpu'"),
    ],
)
def test_train_refuses(arguments: list[str], message: str, store: Store) -> None:
    with pytest.raises(ValueError, match=message):
        train.main([*arguments, "--store", store.uri])


@pytest.mark.parametrize("value", ["0", "-2", "two"])
def test_a_count_of_cpus_or_tags_is_at_least_one(value: str, best: str, capsys) -> None:
    for main, arguments in ((tune.main, ["demo", "--cpus", value]), (tag.main, [best, "a.wav", "--top", value])):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert f"must be a whole number of 1 or more, but got '{value}'" in capsys.readouterr().err


def test_a_count_of_workers_is_none_or_more(capsys) -> None:
    for main in (train.main, crossvalidate.main):
        with pytest.raises(SystemExit) as stop:
            main(["demo", "--workers", "-1"])
        assert stop.value.code == 2
        assert "must be a whole number of 0 or more, but got '-1'" in capsys.readouterr().err


def test_report_names_the_studies_there_are(store: Store) -> None:
    with pytest.raises(ValueError, match=r"no study 'demo' in the store .*it holds: none"):
        report.main(["demo", "--store", store.uri])


# ---------------------------------------------------------------- audio and annotations


@pytest.mark.usefixtures("here")
def test_a_folder_with_no_decodable_file(source: Path, tmp_path: Path) -> None:
    for path in source.glob("*.wav"):
        path.write_text(HTML)
    store = Store(str(tmp_path / "store"))
    with pytest.raises(ValueError, match=r"none of the 20 clips of .* could be decoded(.|\n)*HTML(.|\n)*--source"):
        prepare_folder(source, store)
    with pytest.raises(ValueError, match=r"no prepared data set 'folder'.*it holds: none"):
        tune.main([write_study(tmp_path), "--store", store.uri])


def damage(folder: Path) -> dict[str, str]:
    """Replace some clips; file -> what its reason must say."""
    tone = 0.5 * np.sin(np.arange(3 * RATE) / 5).astype(np.float32)
    soundfile.write(folder / "whole.mp3", np.tile(tone, 4), 16_000, format="MP3")
    content = (folder / "whole.mp3").read_bytes()
    (folder / "cut.mp3").write_bytes(content[: len(content) // 3])
    (folder / "page.mp3").write_text(HTML)
    (folder / "empty.wav").write_bytes(b"")
    soundfile.write(folder / "header.wav", np.zeros(0, np.float32), RATE)
    soundfile.write(folder / "nan.wav", np.where(np.arange(RATE) == 7, np.nan, 0.1), RATE, subtype="FLOAT")
    (folder / "notes.mp3").write_text("these are my notes\n" * 100)
    return {
        "cut.mp3": r"cut off",
        "page.mp3": r"is an HTML page, not audio.*fetch it again",
        "empty.wav": r"is empty \(0 bytes\)",
        "header.wav": r"holds no samples",
        "nan.wav": r"1 of 4000 samples are NaN.*export the file again",
        "notes.mp3": r"cannot be decoded.*not audio",
        "absent.flac": r"no such file",
    }


@pytest.mark.usefixtures("here")
def test_broken_files_are_listed_and_the_others_kept(source: Path, tmp_path: Path, capsys) -> None:
    import re

    reasons = damage(source)
    rewrite(source / "tags.csv", lambda lines: [*lines, *(f"{name},train,low" for name in (*reasons, "whole.mp3"))])
    store = Store(str(tmp_path / "store"))
    prepare_folder(source, store)
    out = capsys.readouterr().out
    assert "clips: 13 train, 4 valid, 4 test" in out and "skipped 7 files that cannot be read" in out
    manifest = data_store(store, "folder").read_json("manifest.json")
    skipped = {clip["name"]: clip["reason"] for clip in manifest["skipped"]}
    assert set(skipped) == set(reasons)
    for name, pattern in reasons.items():
        assert re.search(pattern, skipped[name]), (name, skipped[name])
        assert name in skipped[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], r"tags\.csv must begin with the header path,split,tags,group.*'clip_000\.wav,"),
        (lambda lines: [lines[0].replace("tags", "tag"), *lines[1:]], r"must begin with the header path"),
        (lambda lines: [line.replace(",", ";") for line in lines], r"header path,split,tags,group.*by commas"),
        (lambda lines: [*lines, "clip_000.wav,train,low"], r"line 22 names clip_000\.wav again \(first on line 2\)"),
        (lambda lines: [*lines, "clip_000.wav,trian,low"], r"split must be train, valid, test.*'trian'.*mean train"),
        (lambda lines: [line.replace("low", "low,deep") for line in lines], r"must have 3 cells.*join tags by \|"),
        (lambda lines: [*lines, "clip_999.wav,test,gong"], r"every tag must have a clip in train.*gong.*move a clip"),
        (lambda lines: lines[:1], r"names no clip"),
        (lambda lines: [line.replace("clip_", "clips/") for line in lines], r"none of the files named in tags\.csv"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_tags_table_with_a_mistake(change: Callable, message: str, source: Path, tmp_path: Path) -> None:
    rewrite(source / "tags.csv", change)
    with pytest.raises(ValueError, match=message):
        prepare_folder(source, Store(str(tmp_path / "store")))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (("train", "valid"), r"the test split of 'folder' has no clip.*scored.*prepare again"),
        (("train", "test"), r"the valid split of 'folder' has 0 clips.*needs at least 2"),
    ],
)
@pytest.mark.usefixtures("here")
def test_a_missing_split_is_named_before_training(kept: tuple, message: str, source: Path, tmp_path: Path) -> None:
    rewrite(source / "tags.csv", lambda lines: [lines[0], *(line for line in lines[1:] if line.split(",")[1] in kept)])
    store = Store(str(tmp_path / "store"))
    prepare_folder(source, store)
    (tmp_path / "one.json").write_text(json.dumps(tiny_tree()))
    with pytest.raises(ValueError, match=message):
        train.main([str(tmp_path / "one.json"), "--store", store.uri])


@pytest.mark.slow
@pytest.mark.usefixtures("here")
def test_mtat_with_stand_in_audio(shared: Path, tmp_path: Path, capsys) -> None:
    table = shared / "data" / "mtat" / "annotations_valid.csv"
    config = dataset_config("mtat", source=str(tmp_path), annotations=str(table))
    rows = [line.split("\t")[-1].strip().strip('"') for line in table.read_text().splitlines()[1:]]
    assert len(rows) == 1825
    (tmp_path / rows[0]).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / rows[0]).touch()
    tagged = [clip.name for clip in config.list_clips().clips]
    (tmp_path / rows[0]).unlink()
    assert len(tagged) == 1529
    chosen = tagged[:: len(tagged) // 7][:8]
    for index, name in enumerate(chosen):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tone = (0.1 * (index + 1)) * np.sin(np.arange(3 * 16_000) * 0.05 * (index + 1))
        soundfile.write(path, tone.astype(np.float32), 16_000, format="MP3")
    content = (tmp_path / chosen[6]).read_bytes()
    (tmp_path / chosen[6]).write_bytes(content[: len(content) // 2])
    (tmp_path / chosen[7]).write_text(HTML)
    store = Store(str(tmp_path / "store"))
    prepare.main(["mtat", "--source", str(tmp_path), "--option", f"annotations={table}", "--store", store.uri])
    out = capsys.readouterr().out
    assert "clips: 0 train, 6 valid, 0 test" in out
    assert "left out: 296 clips: none of the 50 most frequent tags" in out
    assert "skipped 1523 files" in out
    manifest = data_store(store, "mtat").read_json("manifest.json")
    skipped = {clip["name"]: clip["reason"] for clip in manifest["skipped"]}
    assert len(skipped) == 1523 and not set(skipped) & set(chosen[:6])
    assert "cut off" in skipped[chosen[6]] and "HTML" in skipped[chosen[7]]
    assert sum("no such file" in reason for reason in skipped.values()) == 1521


# ---------------------------------------------------------------- places


@pytest.mark.parametrize("place", ["{file}/store", "/proc/atose_store"])
def test_an_unwritable_store_is_named_before_any_work(place: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    uri = place.format(file=tmp_path / "file")
    with pytest.raises(ValueError, match=r"cannot (write|read).*store"):
        prepare.main(["folder", "--source", str(source), "--store", uri])


def test_a_store_that_became_unwritable_is_named_before_the_first_trial(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store" / "studies").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot write .*studies/mine.*Choose a writable place with --store"):
        tune.main([write_study(tmp_path), "--store", store.uri])


def test_a_store_of_an_unknown_kind(source: Path) -> None:
    with pytest.raises(ValueError, match=r"the store 'htp://x/y' cannot be opened.*Expected a path, file://, s3://"):
        prepare.main(["folder", "--source", str(source), "--store", "htp://x/y"])


# ---------------------------------------------------------------- models and files to tag


def test_tag_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not a model folder: it lacks model\.safetensors.*folder `best`"):
        tag.main([str(tmp_path), "song.mp3"])


def test_a_model_of_another_version_says_so(best: str, tmp_path: Path) -> None:
    shutil.copytree(best, tmp_path / "best")
    config = json.loads((tmp_path / "best" / "config.json").read_text())
    config["encoder"]["dilation"] = 2
    (tmp_path / "best" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"written by another version: config\.json: encoder.*dilation: no such key"):
        load_model(str(tmp_path / "best"))


def test_tag_reports_what_is_no_sound_and_goes_on(best: str, source: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "notes.txt").write_text("no sound here")
    wrong = [tmp_path / "notes.txt", tmp_path / "absent.mp3"]
    files = [source / "clip_000.wav", *wrong, source / "clip_001.wav"]
    with pytest.raises(SystemExit) as stop:
        tag.main([best, *map(str, files), "--json"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert [json.loads(line)["file"] for line in captured.out.splitlines()] == [str(files[0]), str(files[3])]
    errors = captured.err.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
    assert "notes.txt" in errors[0] and "no such file" in errors[1]


# ---------------------------------------------------------------- clusters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "search.metric=accuracy"], r"accuracy.*needs exclusive tags.*--option exclusive=true"),
        (["--set", "base.data.crop_seconds=0.001"], r"data\.crop_seconds=0\.001: .*at least"),
        (["--cluster", "nowhere.yaml"], r"cluster file nowhere\.yaml cannot be read"),
    ],
)
def test_tune_refuses_on_a_cluster(ray_cluster, arguments: list[str], message: str, store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tune.main([write_study(tmp_path), "--store", store.uri, *arguments])
    assert not list((tmp_path / "store").glob("studies/*")), "a refused search leaves no folder"


def test_what_cannot_fit_the_cluster_is_refused_before_the_first_trial(ray_cluster, store, tmp_path, capsys) -> None:
    arguments = [write_study(tmp_path), "--store", store.uri, "--set", "search.workers_per_trial=4"]
    with pytest.raises(ValueError, match=r"1 x \(0\.01 trial \+ 4 x 2 worker \+ 0 data\) = 8\.01 of 4 CPUs.*lower"):
        tune.main([*arguments, "--set", "search.cpus_per_worker=2"])
    with pytest.raises(ValueError, match=r"base: .*must be a multiple of the number of workers.*8 and 3"):
        tune.main([*arguments, "--set", "search.workers_per_trial=3"])
    with pytest.raises(ValueError, match=r"needs 1 CPU, 1 GPU on one node, but no node has that: 1 x node \(4 CPUs\)"):
        tune.main([*arguments[:3], "--set", "search.gpus_per_worker=1"])
    assert "start" not in capsys.readouterr().out
    assert not list((tmp_path / "store").glob("studies/*")), "a refused search leaves no folder"


# ---------------------------------------------------------------- as a person sees it


MISTAKES = [
    ("prepare", ["mtta"], "error: unknown dataset 'mtta'"),
    ("tune", ["demo", "--set", "search.trials=0"], "search.trials: Input should be greater than or equal to 1"),
    ("train", ["demo"], "error: no prepared data set 'demo' in the store"),
    ("tag", ["best", "song.mp3"], "best is not a model folder"),
    ("report", ["demo"], "error: there is no study 'demo' in the store"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), MISTAKES)
def test_a_mistake_ends_with_code_2_and_one_message(
    name: str, arguments: list, message: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.run(importlib.import_module(f"atose_ray.{name}").main)
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.out == ""
    assert message in said.err and len(said.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [pytest.param(*one, marks=[pytest.mark.slow] * (one[0] != "tag")) for one in MISTAKES],
)
def test_a_mistake_ends_a_process_so(name: str, arguments: list, message: str, tmp_path: Path) -> None:
    done = verb(name, *arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
