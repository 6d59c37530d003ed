"""Where Optuna's study is kept while a search runs: a journal, SQLite or PostgreSQL, for its dashboard.

The trials' run folders are the truth. At every start the stored study is thrown away and built again from them; only
what samplers note about their own trials (generations of nsga2, the state of cmaes) is taken over from the one before.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend

from atose_ray.config import ConfigError, SearchConfig, StudyConfig, public_url
from atose_ray.search.costs import values_of
from atose_ray.search.record import TrialRecord
from atose_ray.search.samplers import arms_to_try, frozen, points_to_try
from atose_ray.storage import Store, StoreError

JOURNAL = "optuna.journal"
NUMBER = "number"  # user attribute of an Optuna trial: its number in the study folder
OWNER = "study_folder"  # user attribute of an Optuna study: the URI of the folder it is built from
EVERY_S, MOST = 5.0, 0.05  # between copies of a journal to object storage, and the share of the time they may take
Notes = dict[int, dict[str, Any]]


@dataclass
class StudyStorage:
    """Optuna's storage. notes: what samplers noted, by trial number. journal: on this machine, to be copied into
    `folder`; None: nothing is."""

    storage: optuna.storages.BaseStorage
    folder: Store
    notes: Notes = field(default_factory=dict)
    journal: Path | None = None
    next_copy: float = 0.0

    def __enter__(self) -> StudyStorage:
        return self

    def __exit__(self, *error: object) -> None:
        self.keep(last=True)

    def keep(self, last: bool = False) -> None:
        """Copy the journal, if it is time. A store that is away costs the copy, not the search."""
        began = time.monotonic()
        if self.journal is None or not self.journal.exists() or (began < self.next_copy and not last):
            return
        with contextlib.suppress(StoreError):
            self.folder.write(JOURNAL, self.journal.read_bytes())
        now = time.monotonic()
        self.next_copy = now + max(EVERY_S, (now - began) / MOST)


def open_storage(search: SearchConfig, folder: Store, name: str, scratch: Path) -> StudyStorage:
    """The storage of `search.storage`, without the study `name`: a journal in the study folder (below `scratch` where
    that is in object storage), or a database.

    Raises ConfigError, without the password, when a database cannot be opened or holds another folder's `name`.
    """
    if search.storage is None:
        return _fresh_journal(folder, name, scratch)
    from sqlalchemy.exc import SQLAlchemyError

    shown = public_url(search.storage)
    try:
        url = re.sub(r"^postgresql://", "postgresql+psycopg://", search.storage)
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        raise ConfigError(
            f"search.storage {shown} needs a driver that is not installed here ({error}): "
            "pip install 'atose_ray[postgres]', or pip install 'psycopg[binary]'"
        ) from None
    except (SQLAlchemyError, ValueError) as error:
        reason = str(getattr(error, "orig", error)).strip().replace(url, shown)
        raise ConfigError(f"search.storage {shown} cannot be opened: {reason}") from None
    if name not in optuna.get_all_study_names(storage):
        return StudyStorage(storage, folder)
    before = optuna.load_study(study_name=name, storage=storage)
    owner = before.user_attrs.get(OWNER)
    if owner != folder.uri:
        what = f"is that of {owner}" if owner else "was not made by a search of this program"
        raise ConfigError(
            f"the study {name!r} in search.storage {what}, not of {folder.uri}: give this one its own --name, or "
            "another database"
        )
    notes = _notes(before)
    optuna.delete_study(study_name=name, storage=storage)
    return StudyStorage(storage, folder, notes)


def _fresh_journal(folder: Store, name: str, scratch: Path) -> StudyStorage:
    path = (folder.local_path or scratch) / JOURNAL
    path.parent.mkdir(parents=True, exist_ok=True)
    if folder.local_path is None and folder.exists(JOURNAL):
        path.write_bytes(folder.read(JOURNAL))
    notes: Notes = {}
    if path.exists():
        Path(f"{path}.lock").unlink(missing_ok=True)  # of a search that was killed
        with contextlib.suppress(ValueError, KeyError, TypeError, AssertionError):  # cut short, or of another version
            notes = _notes(optuna.load_study(study_name=name, storage=_journal(path)))
        path.unlink()
    return StudyStorage(_journal(path), folder, notes, None if folder.local_path else path)


class QuickJournal(JournalFileBackend):  # type: ignore[misc]
    """A journal that waits for neither a lock nor the disk: one process writes it, and it can be built again."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add lines to the file."""
        with open(self._file_path, "ab") as file:
            file.write("".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode())


def _journal(path: Path) -> optuna.storages.BaseStorage:
    return optuna.storages.JournalStorage(QuickJournal(str(path)))


def _notes(study: optuna.Study) -> Notes:
    """Generations only: cmaes also leaves pickles, and what lies in a shared place must not be unpickled. It is told
    its generations again instead, one with every trial."""
    found = {}
    for trial in study.get_trials(deepcopy=False):
        kept = {key: value for key, value in trial.system_attrs.items() if key.endswith("generation")}
        if kept and NUMBER in trial.user_attrs:
            found[int(trial.user_attrs[NUMBER])] = kept
    return found


def rebuild(
    kept: StudyStorage,
    study: StudyConfig,
    name: str,
    earlier: Sequence[TrialRecord],
    warm: Iterable[optuna.trial.FrozenTrial],
    sampler: optuna.samplers.BaseSampler,
) -> optuna.Study:
    """Optuna's study `name`, anew: the trials that ended, those of other studies, then the queue: trials to go on with,
    points to try, and arms that no trial has tried."""
    directions = ["maximize"] + ["minimize"] * len(study.search.costs)
    made = optuna.create_study(storage=kept.storage, study_name=name, directions=directions, sampler=sampler)
    made.set_user_attr(OWNER, kept.folder.uri)
    for trial in earlier:
        if trial.state != "running":
            ranges = {k: optuna.distributions.json_to_distribution(d) for k, d in trial.distributions.items()}
            values, notes = values_of(trial, study.search.costs), kept.notes.get(trial.number)
            made.add_trial(frozen(trial.params, ranges, values, {NUMBER: trial.number}, notes))
    tried = [trial.params for trial in earlier]
    for one in warm:
        made.add_trial(one)
        tried.append(one.params)
    for trial in earlier:
        if trial.state == "running":
            made.enqueue_trial(trial.params, user_attrs={NUMBER: trial.number})
    points = list(points_to_try(study, earlier))
    points += arms_to_try(study, [*tried, *points])
    for point in points[: max(0, study.search.trials - len(earlier))]:
        made.enqueue_trial(point)
    return made
