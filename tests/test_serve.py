"""The service: the same numbers as the Python API's, its limits, its locks, and what strangers send."""

from __future__ import annotations

import concurrent.futures
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE
from hostile import BOUNDARY, form, hostile_uploads, sound_bytes

import atose_ray
from atose_ray import find as find_command
from atose_ray import serve
from atose_ray.apps.index import Rows, open_index
from atose_ray.apps.model import load_model
from atose_ray.apps.retrieve import Term, find
from atose_ray.apps.service import search, worker
from atose_ray.apps.service.access import Rate, from_this_machine
from atose_ray.apps.service.batching import Together
from atose_ray.apps.service.config import ServiceConfig
from atose_ray.apps.service.upload import plain_name
from atose_ray.apps.service.worker import Task, Worker
from atose_ray.apps.writers import WRITERS
from atose_ray.config import ConfigError
from atose_ray.storage import Store
from atose_ray.types import Batch, TagSet

pytest.importorskip("fastapi", reason="needs the extra `serve`")
from fastapi.testclient import TestClient

from atose_ray.apps.service.app import LocalBackend, create_app

HERE = "http://127.0.0.1"
SOUND = sound_bytes()


def client_of(model_folder: str, token: str | None = None, **limits) -> TestClient:
    config = ServiceConfig(**limits)
    models = {"tones": load_model(model_folder), "again": load_model(model_folder)}
    return TestClient(create_app(LocalBackend(Worker(models, config)), config, token), base_url=HERE)


@pytest.fixture(scope="module")
def client(model_folder: str) -> Iterator[TestClient]:
    with client_of(model_folder, max_mib=1, max_seconds=20, max_open=8, per_minute=100_000) as client:
        yield client


def post(client: TestClient, path: str, name: str = "a song.wav", content: bytes = SOUND, **asked):
    return client.post(path, params=asked, files={"file": (name, content)})


# ---- answers


def test_the_answers_are_those_of_the_python_api(client: TestClient, model_folder: str) -> None:
    model = load_model(model_folder)
    tagged = post(client, "/tag").json()
    wanted = model.tag(SOUND)
    assert tagged.keys() == {"file", "model", "seconds", "scores"} and tagged["seconds"] == wanted.seconds
    assert (tagged["file"], tagged["model"]) == ("a song.wav", "tones")
    assert tagged["scores"] == pytest.approx(dict(wanted.scores), abs=1e-5)
    assert list(tagged["scores"]) == [tag for tag, _ in wanted.scores]
    assert list(post(client, "/tag", top=1, model="again").json()["scores"]) == [wanted.scores[0][0]]
    assert list(post(client, "/tag", tags="low, high").json()["scores"].keys() ^ {"low", "high"}) == []
    whole, hops = post(client, "/embed").json(), post(client, "/embed", hop_s=0.5).json()
    assert whole["scene"] == pytest.approx(model.embed(SOUND).scene_E.tolist(), abs=1e-4)
    assert np.allclose(hops["vectors"], model.embed(SOUND, hop_s=0.5).vectors_SE, atol=1e-4)
    assert hops["start_s"] == [0.0, 0.5, 1.0, 1.5]
    timeline = post(client, "/timeline", hop_s=0.5, threshold="0").json()
    same = model.timeline(SOUND, hop_s=0.5, threshold=0.0)
    assert np.allclose(timeline["scores"], same.scores_SC, atol=1e-5)
    assert [event["tag"] for event in timeline["events"]] == [event.tag for event in same.events]
    strict = json.dumps({"threshold": 0.999, "smoothing_s": 1})
    assert post(client, "/timeline", settings=strict).json()["events"] == []


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_of_a_timeline(client: TestClient, kind: str) -> None:
    response = post(client, "/timeline", name="../../été.wav", format=kind, threshold="0")
    assert response.status_code == 200 and response.content
    file = response.headers["content-disposition"]
    assert file == f"attachment; filename*=UTF-8''%C3%A9t%C3%A9{WRITERS[kind].suffix}"
    assert str(Path.cwd()).encode() not in response.content


def test_a_name_opens_nothing_on_this_machine(client: TestClient, tmp_path: Path, monkeypatch) -> None:
    """The page of a timeline holds its sound where it is found by name: a client's name must not find one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "song.wav").write_bytes(b"secret" * 100)
    page = post(client, "/timeline", name="song.wav", format="html").text
    assert '"sound":null' in page and "c2VjcmV0" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["song.wav"]


def test_pages_and_health(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok", "models": ["tones", "again"]}
    assert client.get("/models").json()[0]["tags"] == ["high", "loud", "low", "steady"]
    assert {"/tag", "/embed", "/timeline"} <= client.get("/openapi.json").json()["paths"].keys()
    for path in ("/", "/docs"):
        page = client.get(path)
        assert page.headers["content-security-policy"].startswith("default-src 'none'")
        assert not [
            part for part in page.text.split('"') if part.startswith(("http:", "https:")) and "w3.org" not in part
        ]
    post(client, "/tag")
    metrics = client.get("/metrics").text
    assert 'atose_requests_total{path="/tag",status="200"}' in metrics and "atose_request_seconds_bucket" in metrics
    assert 'atose_audio_seconds_total{model="tones"}' in metrics
    client.get("/nothing/here/1")
    assert 'path="other",status="404"' in client.get("/metrics").text


# ---- locks


def test_with_a_token_nothing_is_answered_without_it(model_folder: str) -> None:
    with client_of(model_folder, token="right") as client:
        for path in ("/tag", "/embed", "/timeline"):
            assert post(client, path).status_code == 401
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "right"},
            {"authorization": "Basic right"},
        ):
            refused = client.get("/models", headers=headers)
            assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics").status_code == 401
        assert client.get("/healthz").status_code == client.get("/").status_code == 200
        client.headers["authorization"] = "Bearer right"
        assert post(client, "/tag").status_code == client.get("/metrics").status_code == 200


def test_without_a_token_only_this_machine_and_this_page_are_answered(client: TestClient) -> None:
    assert client.get("/models", headers={"host": "evil.example"}).status_code == 403
    refused = client.post("/tag", files={"file": ("a.wav", SOUND)}, headers={"origin": "https://evil.example"})
    assert refused.status_code == 403
    assert from_this_machine("[::1]:8000", "http://[::1]:8000") and not from_this_machine(
        "127.0.0.1.evil.example", None
    )


def test_a_token_is_made_beyond_this_machine(monkeypatch, capsys) -> None:
    monkeypatch.delenv("ATOSE_SERVE_TOKEN", raising=False)
    assert serve.token_for("127.0.0.1") is None
    token = serve.token_for("0.0.0.0")
    assert token is not None and len(token) >= 32 and token in capsys.readouterr().out
    monkeypatch.setenv("ATOSE_SERVE_TOKEN", "mine")
    assert serve.token_for("0.0.0.0") == serve.token_for("localhost") == "mine"


def test_the_command_line() -> None:
    assert serve.named_models(["runs/birds/best", "rain=s3://b/x", "./a=b/best"]) == {
        "birds": "runs/birds/best",
        "rain": "s3://b/x",
        "a=b": "./a=b/best",
    }
    with pytest.raises(ValueError, match="two models are called 'birds'"):
        serve.named_models(["a/birds/best", "b/birds"])
    assert serve.config_of(["max_seconds=60", "replicas=2"]).replicas == 2
    with pytest.raises(ConfigError, match="max_secs"):
        serve.config_of(["max_secs=60"])


# ---- limits


def test_limits(client: TestClient, monkeypatch) -> None:
    long = sound_bytes(21.0)
    cases = [
        (413, "longer than 20 s", {"content": long}),
        (413, "larger than 1 MiB", {"content": bytes(1 << 20) + b"x"}),
        (422, "at most 60 s", {"path": "/timeline", "left_s": 61}),
        (422, "at most 500 hops", {"path": "/timeline", "settings": '{"smoothing_s": 600}'}),
        (422, "format is one of", {"path": "/timeline", "format": "exe"}),
        (422, "smothing_s", {"path": "/timeline", "settings": '{"smothing_s": 1}'}),
        (422, "scores the 4 tags", {"tags": "zither"}),
        (422, "at most 200 words", {"tags": ",".join(map(str, range(201)))}),
        (404, "there is no model 'x'; there are tones, again", {"model": "x"}),
    ]
    for status, why, given in cases:
        response = post(client, given.pop("path", "/tag"), **given)
        assert response.status_code == status and why in response.json()["error"], response.text
    monkeypatch.setattr(worker, "MOST_HOPS", 100)
    many = post(client, "/timeline", hop_s=0.01)
    assert many.status_code == 413 and "2.0 s make more than 100 hops" in many.json()["error"]
    for wrong in ({"hop_s": 0}, {"hop_s": "nan"}, {"left_s": -1}, {"hop_s": "x"}):
        assert post(client, "/timeline", **wrong).status_code == 422


def test_time_is_limited_and_the_service_goes_on(model_folder: str) -> None:
    with client_of(model_folder, request_s=1e-6) as client:
        slow = post(client, "/tag")
        assert slow.status_code == 503 and "took longer" in slow.json()["error"]
        assert client.get("/healthz").status_code == 200


def test_the_rate_is_limited_by_client(model_folder: str) -> None:
    rate = Rate(60)
    assert [rate.wait_s("a", 0.0) for _ in range(60)] == [0.0] * 60
    assert rate.wait_s("a", 0.0) == pytest.approx(1.0) and rate.wait_s("b", 0.0) == 0.0
    assert rate.wait_s("a", 1.01) == 0.0 and rate.wait_s("a", 1.01) > 0.9
    with client_of(model_folder, per_minute=2) as client:
        assert [post(client, "/tag").status_code for _ in range(3)] == [200, 200, 429]
        refused = post(client, "/tag")
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 30


def test_stored_sounds_are_named_below_their_folder_only(model_folder: str, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    (sounds / "birds").mkdir(parents=True)
    (sounds / "birds" / "wren.wav").write_bytes(SOUND)
    (tmp_path / "secret.wav").write_bytes(SOUND)
    (sounds / "link.wav").symlink_to(tmp_path / "secret.wav")
    with client_of(model_folder, sounds=str(sounds), max_mib=0.5) as client:
        for name in ("birds/wren.wav", f"file://{sounds}/birds/wren.wav"):
            assert client.post("/tag", params={"uri": name}).json()["scores"] == post(client, "/tag").json()["scores"]
        outside = ["../secret.wav", "link.wav", "/etc/passwd", f"{tmp_path}/secret.wav", "http://127.0.0.1/x.wav"]
        outside += ["s3://bucket/x.wav", "file:///etc/passwd", "birds/../../secret.wav", "birds//wren.wav", "a\x00b"]
        for name in (*outside, f"file://{sounds}/../secret.wav", "..\\secret.wav", "fsspec+http://x/y"):
            assert client.post("/tag", params={"uri": name}).status_code == 403, name
        assert client.post("/tag", params={"uri": "birds/none.wav"}).status_code == 404
        (sounds / "large.wav").write_bytes(bytes(1 << 20))
        assert client.post("/tag", params={"uri": "large.wav"}).status_code == 413
    with client_of(model_folder) as client:
        assert client.post("/tag", params={"uri": "birds/wren.wav"}).status_code == 403


# ---- batches


def test_crops_of_several_requests_are_computed_together(model_folder: str) -> None:
    trained = load_model(model_folder).trained
    sizes: list[int] = []
    whole = trained.method.score
    trained.method.score = lambda batch, tags, stage: (sizes.append(len(batch.inputs)), whole(batch, tags, stage))[1]
    together, tags = Together(trained.method, most=8, wait_s=30.0), TagSet(trained.spec.tags)
    together.open = 5
    inputs = [torch.randn(1 + number % 2, trained.spec.input.length) for number in range(5)]
    gate = threading.Barrier(5)

    def ask(audio_BT: torch.Tensor) -> torch.Tensor:
        gate.wait()
        empty = torch.zeros(len(audio_BT), 4), torch.zeros(len(audio_BT), dtype=torch.int64)
        return together.score(Batch(audio_BT, *empty), tags, trained.stage)

    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        found = list(pool.map(ask, inputs))
    assert sizes == [7], "five requests with seven crops"
    for audio_BT, scores_BC in zip(inputs, found, strict=True):
        alone_BC = Together(trained.method, 0, 0.0).score(
            Batch(audio_BT, torch.zeros(len(audio_BT), 4), torch.zeros(len(audio_BT), dtype=torch.int64)),
            tags,
            trained.stage,
        )
        assert torch.allclose(scores_BC, alone_BC, atol=1e-5)


def test_a_failing_batch_fails_its_requests_and_no_other(model_folder: str) -> None:
    model = load_model(model_folder)
    one = Worker({"tones": model}, ServiceConfig())
    method, whole = one.together["tones"].method, one.together["tones"].method.score
    method.score = lambda *given: (_ for _ in ()).throw(RuntimeError("out of memory"))
    task = Task("tag", "tones", "a.wav", SOUND, None, {})
    refused = one.answer(task)
    assert refused.status == 500 and b"out of memory" not in refused.body
    method.score = whole
    assert one.answer(task).status == 200 and one.together["tones"].open == 0


def test_many_at_once_hear_what_one_hears(client: TestClient) -> None:
    sounds = [sound_bytes(0.4 + 0.1 * number) for number in range(16)]
    alone = [post(client, "/tag", content=one).json()["scores"] for one in sounds]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda one: post(client, "/tag", content=one).json()["scores"], sounds))
    assert all(one == pytest.approx(other, abs=1e-5) for one, other in zip(together, alone, strict=True))


# ---- what strangers send


def test_hostile_uploads_are_refused_and_leave_nothing(client: TestClient, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    uploads = hostile_uploads(40)
    for what, headers, body in uploads:
        response = client.post("/tag", content=body, headers=headers)
        assert 400 <= response.status_code < 500, (what, response.status_code, response.text)
        assert response.json()["error"], what
    assert list(tmp_path.iterdir()) == [] and post(client, "/tag").status_code == 200


def test_names_lose_their_folders() -> None:
    assert [plain_name(name) for name in ("../../etc/passwd", "C:\\x\\a.wav", "..", "", "a\r\nb\x00.wav", "x/")] == [
        *("passwd", "a.wav", "sound", "sound", "ab.wav", "sound")
    ]
    assert len(plain_name("a" * 5000)) == 100


def test_parts_of_a_form(client: TestClient) -> None:
    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    good = form([('form-data; name="note"', b"x"), ('form-data; name="file"; filename="a.wav"', SOUND)])
    assert client.post("/tag", content=good, headers=headers).json()["file"] == "a.wav"

    def slowly() -> Iterator[bytes]:
        for at in range(0, len(good), 997):
            yield good[at : at + 997]

    assert client.post("/tag", content=slowly(), headers=headers).json()["file"] == "a.wav"


def test_loading_reports_what_is_no_model(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    with pytest.raises(ValueError, match="model"):
        atose_ray.load_model(tmp_path)


# ---- an index


@pytest.fixture(scope="module")
def collection(model_folder: str, tmp_path_factory) -> tuple[str, Path]:
    """An index and the folder of its sounds: six tones, one with a name that wants to be markup."""
    folder = tmp_path_factory.mktemp("collection")
    (folder / "sounds" / "deep").mkdir(parents=True)
    for number in range(6):
        name = "<b>&amp; what?.wav" if number == 3 else f"tone{number}.wav"
        place = folder / "sounds" / ("deep" if number % 2 else "") / name
        place.write_bytes(sound_bytes(0.8 + 0.3 * number))
    find_command.main(["index", model_folder, str(folder / "sounds"), str(folder / "index")])
    return str(folder / "index"), folder / "sounds"


def look(client: TestClient, content: bytes | None = None, **asked):
    return client.post("/find", params=asked, files=None if content is None else {"file": ("like.wav", content)})


def test_an_index_is_searched_as_the_command_does(model_folder: str, collection: tuple[str, Path]) -> None:
    index, sounds = collection
    store, _, model = open_index(index)
    tag, other = model.spec.tags[:2]
    with client_of(model_folder, index=index) as client:
        assert [about["finds"] for about in client.get("/models").json()] == [True, False]
        answer = look(client, words=f"{tag}, -{other}:0.5", top=4).json()
        wanted = find(store, model, [Term(tag), Term(other, -0.5)], top=4)
        assert answer["files"] == 6 and answer["model"] == "tones"
        assert [one["path"] for one in answer["found"]] == [one.path for one in wanted]
        assert [one["score"] for one in answer["found"]] == pytest.approx([one.score for one in wanted], abs=1e-5)
        like = (sounds / "deep" / "tone5.wav").read_bytes()
        nearest = look(client, like, top=1).json()["found"][0]
        assert nearest["path"] == "deep/tone5.wav" and nearest["terms"] == {"like": pytest.approx(1.0, abs=1e-5)}
        assert set(look(client, like, words=tag).json()["found"][0]["terms"]) == {tag, "like"}


def test_what_cannot_be_searched_says_why(model_folder: str, collection: tuple[str, Path], tmp_path: Path) -> None:
    index, _ = collection
    with client_of(model_folder, index=index) as client:
        for status, why, asked in (
            (422, "does not know zither, lute; it knows high, loud, low, steady", {"words": "zither, low, lute"}),
            (422, "must be a number", {"words": "low:much"}),
            (422, "expected words to look for", {}),
            (422, "at most 50 words", {"words": ",".join(["low"] * 51)}),
            (422, "cannot be decoded", {"content": b"no sound" * 50}),
            (413, "larger than", {"content": bytes(33 << 20)}),
        ):
            refused = look(client, **asked)
            assert refused.status_code == status and why in refused.json()["error"], refused.text
        assert client.post("/find", content=b"words=low").status_code == 415
    with client_of(model_folder) as client:
        for response in (look(client, words="low"), client.get("/sound", params={"path": "tone0.wav"})):
            assert response.status_code == 404 and "start it with --set index=FOLDER" in response.json()["error"]
    other = load_model(model_folder)
    next(other.trained.method.parameters()).data.add_(1)
    with pytest.raises(ValueError, match=r"made by another model than other: serve its own, .*/index/model"):
        Worker({"other": other}, ServiceConfig(index=index))
    with pytest.raises(ValueError, match="is not an index"):
        Worker({"other": other}, ServiceConfig(index=str(tmp_path)))


def test_the_locks_and_limits_hold_for_the_index_too(model_folder: str, collection: tuple[str, Path]) -> None:
    index, _ = collection
    with client_of(model_folder, token="right", index=index) as client:
        assert look(client, words="low").status_code == 401
        assert client.get("/sound", params={"path": "tone0.wav"}).status_code == 401
    with client_of(model_folder, index=index, per_minute=2) as client:
        statuses = [look(client, words="low").status_code for _ in range(2)]
        statuses.append(client.get("/sound", params={"path": "tone0.wav"}).status_code)
        assert statuses == [200, 200, 429]
    with client_of(model_folder, index=index, request_s=1e-6) as client:
        assert look(client, words="low").status_code == 503
    with client_of(model_folder, index=index) as client:
        refused = client.get("/sound", params={"path": "tone0.wav"}, headers={"host": "evil.example"})
        assert refused.status_code == 403
        assert client.get("/healthz").headers["cross-origin-resource-policy"] == "same-origin"


def test_sounds_of_the_index_and_no_others_are_sent(model_folder: str, tmp_path: Path) -> None:
    sounds, index = tmp_path / "sounds", str(tmp_path / "index")
    (sounds / "birds").mkdir(parents=True)
    for name in ("birds/what? <b>é.wav", "gone.wav", "large.wav", "link.wav"):
        (sounds / name).write_bytes(SOUND)
    find_command.main(["index", model_folder, str(sounds), index])
    (sounds / "later.wav").write_bytes(SOUND)
    (tmp_path / "secret.wav").write_bytes(b"secret")
    (sounds / "notes.txt").write_text("secret")
    (sounds / "gone.wav").unlink()
    (sounds / "large.wav").write_bytes(bytes(1 << 20))
    (sounds / "link.wav").unlink()
    (sounds / "link.wav").symlink_to(tmp_path / "secret.wav")

    def ask(path: str):
        return client.get("/sound", params={"path": path})

    with client_of(model_folder, index=index, max_mib=0.5) as client:
        sent = ask("birds/what? <b>é.wav")
        assert sent.status_code == 200 and sent.content == SOUND
        assert sent.headers["content-type"].startswith("audio/") and sent.headers["x-content-type-options"] == "nosniff"
        assert sent.headers["content-disposition"] == "attachment; filename*=UTF-8''what%3F%20%3Cb%3E%C3%A9.wav"
        hostile = ["../secret.wav", "birds/../../secret.wav", str(tmp_path / "secret.wav"), "/etc/passwd", "link.wav"]
        hostile += [
            "file:///etc/passwd",
            "s3://bucket/x.wav",
            "notes.txt",
            "later.wav",
            "birds",
            "",
            ".",
            "birds//../x",
        ]
        hostile += ["birds\\what? <b>é.wav", "gone.wav\0", "./gone.wav", "birds%2Fwren.wav", "BIRDS/what? <b>é.wav"]
        for path in hostile:
            refused = ask(path)
            assert refused.status_code == 404 and "has no sound" in refused.json()["error"], path
        gone = ask("gone.wav")
        assert gone.status_code == 404 and "is in the index, but its sound is not at hand" in gone.json()["error"]
        assert ask("large.wav").status_code == 413
        find_command.main(["index", model_folder, str(sounds), index])
        assert ask("later.wav").content == SOUND, "what find index adds is there at once"
        shutil.move(sounds, tmp_path / "elsewhere")
        assert "not at hand" in ask("later.wav").json()["error"] and look(client, words="low").status_code == 200


def test_an_index_that_names_what_is_outside_gives_nothing_away(model_folder: str, tmp_path: Path, monkeypatch) -> None:
    """An index may be a stranger's, too."""
    sounds, index = tmp_path / "sounds", str(tmp_path / "index")
    sounds.mkdir()
    (sounds / "a.wav").write_bytes(SOUND)
    (tmp_path / "secret.wav").write_bytes(b"secret")
    find_command.main(["index", model_folder, str(sounds), index])
    paths = ["../secret.wav", str(tmp_path / "secret.wav"), "a\0.wav", "x/../../secret.wav", ""]
    read = search.read_rows
    for path in paths:

        def named(store: Store, path: str = path) -> list[Rows]:
            return [rows._replace(paths=[path] * len(rows.paths)) for rows in read(store)]

        monkeypatch.setattr(search, "read_rows", named)
        with client_of(model_folder, index=index) as client:
            assert look(client, words="low").json()["found"][0]["path"] == path
            refused = client.get("/sound", params={"path": path})
            assert refused.status_code == 404 and "has no sound" in refused.json()["error"], path


# ---- what is counted


def counted(client: TestClient, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize("batch", [0, 32])
def test_metrics_count_clips_and_requests_of_forward_passes(model_folder: str, batch: int) -> None:
    config = ServiceConfig(batch=batch, batch_wait_ms=2000)
    asked = Worker({"tones": load_model(model_folder), "again": load_model(model_folder)}, config)
    with TestClient(create_app(LocalBackend(asked), config, None), base_url=HERE) as client:
        post(client, "/tag")  # 2 s by a model of 0.6 s: four clips
        tones = '{model="tones"}'
        assert counted(client, f"atose_batch_clips_sum{tones}") == 4
        assert counted(client, f"atose_batch_clips_count{tones}") == counted(client, f"atose_batch_requests_sum{tones}")
        together = threading.Barrier(3)
        model = asked.models["tones"]
        decoded = model.tag
        model.tag = lambda *given, **more: (together.wait(), decoded(*given, **more))[1]
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            assert [one.status_code for one in pool.map(lambda _: post(client, "/tag"), range(3))] == [200] * 3
        assert counted(client, f"atose_batch_clips_sum{tones}") == 16
        assert counted(client, f"atose_batch_requests_sum{tones}") == 4
        assert counted(client, f"atose_batch_requests_count{tones}") == (2 if batch else 4)
        assert counted(client, 'atose_batch_clips_count{model="again"}') == 0
