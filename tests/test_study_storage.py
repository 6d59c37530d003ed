"""Where Optuna's study is kept: a journal here or in object storage, SQLite, a real PostgreSQL; and that no password
of it is written anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
import yaml
from processes import PATIENCE_S, wait_for
from test_ray import study
from test_study_samplers import Searching
from test_study_samplers import study as offline

from atose_ray import tune
from atose_ray.config import ConfigError, SearchConfig
from atose_ray.runtime.cluster import free_port
from atose_ray.search.record import load_trials, study_store
from atose_ray.search.study_storage import JOURNAL, open_storage
from atose_ray.storage import Store, StoreError

SECRET = "planted-p:a/s@word"


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def trials_in(storage: Any, name: str = "mine") -> list[optuna.trial.FrozenTrial]:
    return list(optuna.load_study(study_name=name, storage=storage).get_trials())


def test_sqlite_holds_the_study_and_no_other_folders(folder: Store) -> None:
    url = f"sqlite:///{folder.root}/optuna.db"
    first = Searching(offline(storage=url), folder)
    first.run(12)
    assert [one.value for one in trials_in(url)] == [one.value for one in first.trials]
    resumed = Searching(offline(storage=url), folder, first.trials)
    resumed.run(3)
    assert len(trials_in(url)) == 15
    with pytest.raises(
        ConfigError, match=rf"'mine' in search.storage is that of {folder.uri}, not of .*elsewhere.*--name"
    ):
        Searching(offline(storage=url), folder.child("elsewhere"))
    assert len(trials_in(url)) == 15


def test_a_journal_is_copied_to_object_storage_and_read_again(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = Path(folder.root) / "scratch"
    monkeypatch.setattr(Store, "local_path", None)  # as of s3://
    for expected in (8, 11):
        kept = open_storage(SearchConfig(sampler="nsga2"), folder, "mine", scratch)
        assert kept.journal == scratch / JOURNAL and len(kept.notes) == (0 if expected == 8 else 8)
        made = optuna.create_study(study_name="mine", storage=kept.storage)
        kept.keep()
        first = (Path(folder.root) / JOURNAL).read_bytes()
        for number in range(expected):
            asked = made.ask()
            asked.set_user_attr("number", number)
            asked.storage.set_trial_system_attr(asked._trial_id, "NSGAIISampler:generation", 1)
            made.tell(asked, 1.0)
            kept.keep()
        assert (Path(folder.root) / JOURNAL).read_bytes() == first  # not more often than every few seconds
        with kept:
            pass
        copy = optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(Path(folder.root) / JOURNAL))
        )
        assert len(trials_in(copy)) == expected
        shutil.rmtree(scratch)


def test_a_store_that_is_away_costs_the_copy_only(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "local_path", None)
    kept = open_storage(SearchConfig(), folder, "mine", Path(folder.root) / "scratch")
    optuna.create_study(study_name="mine", storage=kept.storage)

    def away(*args: Any) -> None:
        raise StoreError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", away)
        kept.keep(last=True)
    kept.keep(last=True)
    assert folder.exists(JOURNAL)


def test_a_torn_journal_and_a_stale_lock_are_no_obstacle(folder: Store) -> None:
    first = Searching(offline(), folder)
    first.run(3)
    path = Path(folder.root) / JOURNAL
    path.write_bytes(path.read_bytes()[:-40] + b'{"op_code": 99}\n[]\n')
    Path(f"{path}.lock").symlink_to(path)
    resumed = Searching(offline(), folder, first.trials)
    resumed.run(2)
    assert len(resumed.trials) == 5


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://ada:{SECRET}@host:5432/db", "postgresql://ada@host:5432/db"),
        (
            f"postgresql+psycopg://ada:{SECRET}@host/db?sslmode=require",
            "postgresql+psycopg://ada@host/db?sslmode=require",
        ),
        (f"postgresql://host/db?user=ada&password={SECRET}", "postgresql://host/db?user=ada"),
        ("postgresql://ada@host/db", "postgresql://ada@host/db"),
        ("sqlite:////tmp/a:b@c.db", "sqlite:////tmp/a:b@c.db"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert SearchConfig(storage=url).model_dump()["storage"] == shown


def test_a_database_that_is_not_there_is_named_without_the_password(folder: Store) -> None:
    settings = SearchConfig(storage=f"postgresql://ada:planted@127.0.0.1:{free_port()}/db")
    with pytest.raises(
        ConfigError, match=r"postgresql://ada@127.0.0.1:\d+/db cannot be opened: (?s:.*)refused"
    ) as caught:
        open_storage(settings, folder, "mine", Path(folder.root))
    assert "planted" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"needs a driver that is not installed.*pip install 'atose_ray\[postgres\]'"):
        open_storage(SearchConfig(storage="postgresql+pg8000://ada@h/d"), folder, "mine", Path(folder.root))


class Server:
    """A PostgreSQL server of a test's own, run by a user without rights, in a folder of its own."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.data, self.socket, self.port, self.programs = folder / "data", folder, free_port(), programs
        secret = folder / "secret"
        secret.write_text(SECRET)
        shutil.chown(folder, "nobody")
        shutil.chown(secret, "nobody")
        self.do("initdb", "-A", "scram-sha-256", "-U", "ada", f"--pwfile={secret}", "-N", "--locale=C", "-E", "UTF8")
        secret.unlink()
        self.url = sqlalchemy.URL.create("postgresql+psycopg", "ada", SECRET, "127.0.0.1", self.port, "postgres")

    def do(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), "-D", str(self.data), *arguments]
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.run([*user, *command], check=True, cwd=self.socket, timeout=PATIENCE_S, **quiet)

    def control(self, what: str, *more: str) -> None:
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.socket} -c fsync=off"
        log = ["-l", str(self.socket / "log"), "-o", settings] if what != "stop" else []
        self.do("pg_ctl", what, "-w", *log, *more)


@pytest.fixture
def postgres() -> Iterator[Server]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found or (os.geteuid() == 0 and shutil.which("setpriv") is None):
        pytest.skip("needs PostgreSQL's programs under /usr/lib/postgresql, and setpriv for root")
    pytest.importorskip("psycopg")
    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as folder:  # sockets: a short path
        Path(folder).chmod(0o755)
        server = Server(Path(folder), found[-1].parent)
        server.control("start")
        yield server
        server.control("stop", "-m", "immediate")


@pytest.mark.ray
@pytest.mark.slow
def test_a_search_outlives_a_restart_of_postgres(
    ray_cluster, postgres: Server, tiny_store: Store, tmp_path, capsys
) -> None:
    shutil.copytree(Path(tiny_store.root) / "data", tmp_path / "store" / "data")
    store = Store(str(tmp_path / "store"))
    arm = {"supervised": {"head": {"kind": "linear"}, "stages": [{"name": "classify", "epochs": 8}]}}
    url = postgres.url.render_as_string(hide_password=False)
    config = study(arm, trials=4, concurrency=2, pruner={"kind": "none"}, storage=url).model_dump(mode="json")
    config["search"]["storage"] = url  # a config that is written shows no password
    file = tmp_path / "inpostgres.yaml"
    file.write_text(yaml.safe_dump(config))
    folder = study_store(store, "inpostgres")

    def restart() -> None:
        wait_for("an epoch", lambda: any(one.epochs for one in load_trials(folder)))
        postgres.control("restart", "-m", "immediate")

    restarting = threading.Thread(target=restart)
    restarting.start()
    tune.main([str(file), "--store", store.uri])
    restarting.join()
    records = load_trials(folder)
    assert [(one.number, one.state) for one in records] == [(number, "complete") for number in range(4)]
    told = sorted(trials_in(url, "inpostgres"), key=lambda one: one.user_attrs["number"])
    assert [one.value for one in told] == [one.value for one in records]
    assert all(one.state == optuna.trial.TrialState.COMPLETE for one in told)
    tune.main([str(file), "--store", store.uri, "--trials", "5"])
    assert len(trials_in(url, "inpostgres")) == 5
    out = capsys.readouterr()
    time.sleep(0.5)  # Ray's last log lines
    session = Path(os.environ["RAY_TMPDIR"])
    places = [*(tmp_path / "store").rglob("*"), *(path for path in session.rglob("*") if "/logs/" in str(path))]
    secret = url.partition("ada:")[2].partition("@127")[0]
    holders = [
        str(path)
        for path in places
        if path.is_file() and any(s.encode() in path.read_bytes() for s in (SECRET, secret))
    ]
    assert not holders and SECRET not in out.out + out.err and secret not in out.out + out.err
    with pytest.raises(ConfigError, match="PGPASSWORD"):
        tune.main([str(file), "--store", store.uri, "--set", f"search.storage={url}"])
