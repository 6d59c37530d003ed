"""Everything on object storage: the same verbs with an s3:// store, endpoint from the environment or from the URI."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import s3fs
import yaml
from conftest import RATE, TINY_TAGS, tiny_tree
from processes import verb
from test_dataset_adapters import make_esc50
from test_ray import study

import atose_ray
from atose_ray import embed, report, tag, tune
from atose_ray import prepare as prepare_verb
from atose_ray import train as train_verb
from atose_ray.data.prepare import prepare
from atose_ray.datasets import dataset_config
from atose_ray.datasets.base import DatasetError
from atose_ray.datasets.remote import list_source, source_store
from atose_ray.search.record import load_study_record, study_store
from atose_ray.storage import Store, StoreError
from atose_ray.training.checkpoint import load_model

KEY, SECRET = "AKIAATOSERAYTEST", "do-not-write-this-secret-anywhere"
BUCKET = "atose-ray-test"


@dataclass(frozen=True)
class Bucket:
    """An emulated bucket of one test's own."""

    endpoint: str

    def uri(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}"

    def uri_with_endpoint(self, prefix: str) -> str:
        address = self.endpoint.removeprefix("http://").replace(":", "%3A")
        return f"{self.uri(prefix)}?endpoint_override={address}&region=us-east-1&scheme=http"

    def objects(self) -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def all_that_was_ever_written(self) -> Iterator[tuple[str, bytes]]:
        """Every version of every object, those deleted since included."""
        client = self.client()
        for page in client.get_paginator("list_object_versions").paginate(Bucket=BUCKET):
            for item in page.get("Versions", []):
                answer = client.get_object(Bucket=BUCKET, Key=item["Key"], VersionId=item["VersionId"])
                yield item["Key"], answer["Body"].read()

    def client(self):  # type: ignore[no-untyped-def]
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    credentials = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in credentials.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    result = Bucket(f"http://{host}:{port}")
    urllib.request.urlopen(f"{result.endpoint}/moto-api/reset", data=b"").close()  # its state outlives the server
    result.client().create_bucket(Bucket=BUCKET)
    s3fs.S3FileSystem.clear_instance_cache()  # a process keeps its clients, here with the endpoint of the test before
    source_store.cache_clear()
    yield result
    server.stop()


def place(form: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of one place, its endpoint given in one way or in another, or s3fs as the client."""
    if form == "s3fs":
        return f"fsspec+{bucket.uri('lab')}"
    if form == "query":
        monkeypatch.delenv("AWS_ENDPOINT_URL")
        return bucket.uri_with_endpoint("lab")
    if form == "environment of S3":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", bucket.endpoint)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # of other services
    return bucket.uri("lab")


@pytest.fixture(params=[pytest.param("environment", marks=pytest.mark.slow), "environment of S3", "query", "s3fs"])
def store(bucket: Bucket, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The same place in every form."""
    return Store(place(request.param, bucket, monkeypatch))


LONG = pytest.mark.skipif("ATOSE_CHAOS" not in os.environ, reason="takes a minute: run it with ATOSE_CHAOS=1")


def prepare_tiny(source: Path, store: Store) -> None:
    prepare(dataset_config("folder", source=str(source), sample_rate_hz=RATE), store)


def write_study(folder: Path, trials: int, **search: object) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(study(trials=trials, **search).model_dump(mode="json")))
    return path


def test_store_reads_writes_appends_and_deletes(store: Store, bucket: Bucket) -> None:
    store.check_writable()
    assert store.names() == [] and not store.exists("a.txt")
    with pytest.raises(FileNotFoundError):
        store.read("a.txt")
    for line in ("one", "two", "three"):
        store.append_line("deep/log.jsonl", line)
    assert store.read_lines("deep/log.jsonl") == ["one", "two", "three"] and store.read_lines("none.jsonl") == []
    store.write_json("deep/b.json", {"x": 1})
    assert store.child("deep").names() == ["b.json", "log.jsonl.d"] and store.child("deep").exists("b.json")
    assert store.child("deep").read_json("b.json") == {"x": 1}
    store.delete("deep")
    store.delete("deep")
    assert not store.exists("deep/b.json")
    strange = store.child("ä folder, with 50 % #1")
    strange.write("ü b.txt", b"x")
    [stamp] = Store(store.uri).files()
    assert (stamp.name, stamp.size, Store(strange.uri).read("ü b.txt")) == ("ä folder, with 50 % #1/ü b.txt", 1, b"x")
    assert abs(stamp.mtime_ns / 1e9 - time.time()) < 600, "prepare knows a changed file by its time"
    store.delete("ä folder, with 50 % #1")
    assert not [key for key in bucket.objects() if not key.endswith("/")]


def test_prepare_train_and_tag(store: Store, bucket: Bucket, tiny_source: Path, tmp_path: Path, capsys) -> None:
    prepare_tiny(tiny_source, store)
    assert not prepare(dataset_config("folder", source=str(tiny_source), sample_rate_hz=RATE), store)[1]
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_tree()))
    train_verb.main([str(config), "--store", store.uri])
    out = capsys.readouterr().out
    assert "epoch 3/3 classify" in out and "test, scored with" in out
    best = re.search(r"model: (\S+)", out)[1]
    assert (
        best.startswith(store.uri.partition("?")[0] + "/runs/")
        and best.partition("?")[2] == store.uri.partition("?")[2]
    )
    assert set(load_model(best).spec.tags) == set(TINY_TAGS)
    tag.main([best, str(tiny_source / "clip_001.wav"), "--top", "1"])
    assert re.search(r"clip_001\.wav .*\n  0\.\d+  \w+\n$", capsys.readouterr().out)
    run = Store(best.replace("/best", ""))
    log = run.read_lines("log.jsonl")
    assert len(log) == 4 and '"complete"' in log[-1]

    model = Store(best).child("config.json").uri  # the command that repeats a run takes its config from the store too
    train_verb.main([model, "--store", store.uri, "--resume"])
    assert "test, scored with the best epoch" in capsys.readouterr().out
    assert run.read_lines("log.jsonl") == log


def test_a_model_and_a_sound_in_a_bucket_for_python(store: Store, model_folder: str, tiny_source: Path) -> None:
    here, best, clip = Store(model_folder), store.child("best"), tiny_source / "clip_001.wav"
    for name in here.names():
        best.write(name, here.read(name))
    store.write("clip.wav", clip.read_bytes())
    wanted = atose_ray.load_model(model_folder).tag(clip).scores
    assert atose_ray.load_model(best.uri).tag(store.uri_of("clip.wav")).scores == wanted
    out = store.uri_of("scenes.parquet")
    for _ in range(2):  # begun, and gone on with
        embed.main([best.uri, str(clip), "--out", out])
    with store.reading("scenes.parquet") as file:
        assert pq.read_table(file)["path"].to_pylist() == [str(clip)]
    assert {name for name in store.names() if "scenes" in name} == {"scenes.parquet"}


def test_raw_audio_in_a_bucket_gives_the_shards_of_a_folder(
    store: Store, bucket: Bucket, tiny_manifest, tiny_source: Path, tmp_path: Path
) -> None:
    raw = store.child("raw, with ü #1?")
    for path in sorted(tiny_source.iterdir()):
        raw.write(path.name, path.read_bytes())
    config = dataset_config("folder", source=raw.uri, sample_rate_hz=RATE)
    manifest, written = prepare(config, Store(str(tmp_path)))
    assert written and manifest.content_hash == tiny_manifest.content_hash
    assert not prepare(config, Store(str(tmp_path)))[1], "the same objects: nothing to do"
    raw.write("clip_000.wav", (tiny_source / "clip_001.wav").read_bytes())
    assert prepare(config, Store(str(tmp_path)))[1], "another object: prepared again"
    raw.delete("clip_000.wav")
    lost, _ = prepare(config, Store(str(tmp_path)))
    assert [(clip.name, "no such file" in clip.reason) for clip in lost.skipped] == [("clip_000.wav", True)]


def test_a_bucket_without_a_table_or_without_the_files_is_refused(store: Store, tiny_source: Path) -> None:
    config = dataset_config("folder", source=store.child("raw").uri, sample_rate_hz=RATE)
    with pytest.raises(DatasetError, match=r"s3://.*raw/tags.csv does not exist, and .*s3://.*raw holds no audio"):
        list_source(config)
    store.write("raw/tags.csv", (tiny_source / "tags.csv").read_bytes())
    with pytest.raises(DatasetError, match=r"none of the files named in tags.csv is in .*s3://.*clip_000.wav"):
        list_source(config)


def test_a_published_set_in_a_bucket_gives_the_shards_of_a_folder(bucket: Bucket, tmp_path: Path) -> None:
    config, raw = make_esc50(tmp_path), Store(bucket.uri("raw/esc50"))
    here, _ = prepare(config, Store(str(tmp_path / "here")))
    for path in (tmp_path / "esc50").rglob("*.*"):
        raw.write(path.relative_to(tmp_path / "esc50").as_posix(), path.read_bytes())
    there, _ = prepare(config.model_copy(update={"source": raw.uri}), Store(bucket.uri("lab")))
    assert there.content_hash == here.content_hash and not there.skipped


@pytest.mark.slow  # it is tried for seconds
def test_an_endpoint_that_does_not_answer_is_named(bucket: Bucket, tiny_source: Path) -> None:
    nobody = f"s3://{BUCKET}/lab?endpoint_override=127.0.0.1%3A9&region=us-east-1&scheme=http"
    nowhere = f"s3://{BUCKET}/lab?endpoint_override=no-such-host.invalid&region=us-east-1&scheme=http"
    with pytest.raises(StoreError, match=rf"cannot read the store s3://{BUCKET}/lab.*connect.*Check the address"):
        tune.main(["demo", "--store", nobody])
    with pytest.raises(StoreError, match=r"cannot write .* in the store.*resolve host.*--store"):
        prepare_verb.main(["folder", "--source", str(tiny_source), "--store", nowhere])


def test_a_bucket_that_is_not_there_is_named(bucket: Bucket, tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"bucket 'no-such-bucket'.*does not exist"):
        prepare_verb.main(["folder", "--source", str(tiny_source), "--store", "s3://no-such-bucket/lab"])
    done = verb("tune", "demo", "--store", "s3://no-such-bucket/lab", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "error: no prepared data set 'demo' in the store s3://no-such-bucket/lab" in done.stderr
    with pytest.raises(StoreError, match=r"cannot be opened.*Expected a path"):
        prepare_verb.main(["folder", "--source", str(tiny_source), "--store", "s4://bucket/lab"])


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("fsspec+nosuch://b/lab", "Protocol not known: nosuch"),
        ("fsspec+s3://b/lab?region=1", "FSSPEC_<PROTOCOL>_<OPTION> in the environment"),
        ("s3://key:secret@b/lab", "keys do not belong into a store's URI"),
        ("fsspec+s3://key:secret@b/lab", "keys do not belong into a store's URI"),
    ],
)
def test_a_uri_that_cannot_be_opened_says_why(uri: str, said: str) -> None:
    with pytest.raises(StoreError, match=re.escape(said)):
        Store(uri)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "workers"),
    [("environment", 0), *(pytest.param(form, 1, marks=LONG) for form in ("query", "environment of S3", "s3fs"))],
)
def test_a_search_lives_on_object_storage(
    form: str, workers: int, bucket: Bucket, tiny_source: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    """In a process of its own: Ray's workers take the credentials from the environment that Ray was started in."""
    uri = place(form, bucket, monkeypatch)
    store = Store(uri)
    prepare_tiny(tiny_source, store)
    bucket.client().put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    trials = 1 if workers else 2  # a worker group takes long to start
    path = write_study(tmp_path, trials, workers_per_trial=workers, concurrency=1)
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:  # sockets: a short path
        variables = {"RAY_TMPDIR": scratch, "RAY_AUTH_MODE": "disabled"}
        done = verb("tune", str(path), "--cpus", "2", "--store", uri, cwd=tmp_path, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    record = load_study_record(store, "tiny")
    assert [trial.number for trial in record.trials] == list(range(trials)) and record.best is not None
    folder = study_store(store, "tiny")
    assert f"report: {folder.child('report.html').uri}\n" in done.stdout
    assert b"<html" in folder.read("report.html") and not [key for key in bucket.objects() if "/ray/" in key]
    assert load_model(folder.child("best")).metrics["number"] == record.best.number
    report.main(["tiny", "--store", uri])
    assert capsys.readouterr().out.strip() == folder.child("report.html").uri

    words = done.stdout.split("again:  python -m atose_ray.rerun ")[1].splitlines()[0].replace("'", "").split()
    best = record.best.metrics["valid"]["pr_auc_macro"]
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        variables = {"RAY_TMPDIR": scratch, "RAY_AUTH_MODE": "disabled"}
        again = verb("rerun", *words, *(["--cpus", "2"] if workers else []), cwd=tmp_path, **variables)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"best valid pr_auc_macro {best:.4f}" in again.stdout

    secrets = (SECRET.encode(), KEY.encode())
    written = list(bucket.all_that_was_ever_written())
    assert any("/ray/" in key for key, _ in written)  # Ray's own state, deleted at the end
    assert not [key for key, content in written if any(secret in content for secret in secrets)]
