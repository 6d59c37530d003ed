"""What a row gave, as JSON in the store: reproduce/<scale>/<row>.json. Needs no PyTorch."""

import dataclasses
import os
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, get_args

import atose_ray
from atose_ray.reproduction.claims import MeasuredRow
from atose_ray.storage import Store

Status = Literal["PASS", "FAIL", "OPEN", "NOT RUN"]
STATUSES: tuple[Status, ...] = get_args(Status)
FOLDER = "reproduce"


@dataclass(frozen=True)
class Figure:
    """One value of a row beside ours. ok: None where it is shown and not judged."""

    name: str
    published: Any
    ours: Any = None
    tolerance: float | None = None
    ok: bool | None = None


@dataclass(frozen=True)
class Result:
    """status: OPEN is a claim that so small a measurement shows neither way. reason: why a row is not run, or what to
    say of a failure. commands: what ran, or what would. row: its identity, so that a row that was changed is measured
    anew. about: when, where, with which versions."""

    status: Status
    figures: tuple[Figure, ...] = ()
    reason: str = ""
    commands: tuple[str, ...] = ()
    row: str = ""
    seconds: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)


def judged(figures: list[Figure], reason: str = "", commands: tuple[str, ...] = ()) -> Result:
    """PASS where every figure that is judged is as wanted. Raises ValueError where none is: such a row cannot fail."""
    found = [figure.ok for figure in figures if figure.ok is not None]
    if not found:
        raise ValueError("no figure of this row is judged, so it could not fail")
    return Result("PASS" if all(found) else "FAIL", tuple(figures), reason, commands)


def near(name: str, published: float, ours: float, tolerance: float | None) -> Figure:
    """A figure that may be so far from the published one, both ways; None judges nothing. NaN is never near."""
    ok = None if tolerance is None else bool(abs(ours - published) <= tolerance + 1e-12)
    return Figure(name, published, ours, tolerance, ok)


def about() -> dict[str, Any]:
    """Time, machine and versions."""
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    versions = {"atose_ray": atose_ray.__version__, "python": platform.python_version(), "torch": version("torch")}
    return {"time": time.time(), "machine": machine, "versions": versions}


def place_of(store: Store, scale: str) -> Store:
    """The folder of a scale's results."""
    return store.child(FOLDER, scale)


def read(folder: Store, row: MeasuredRow) -> Result | None:
    """The result on file, unless the row, or this package, is another since."""
    name = f"{row.name}.json"
    if not folder.exists(name):
        return None
    tree = folder.read_json(name)
    if tree.get("row") != row.identity():
        return None
    return Result(
        **{**tree, "figures": tuple(Figure(**one) for one in tree["figures"]), "commands": tuple(tree["commands"])}
    )


def write(folder: Store, row: MeasuredRow, result: Result, seconds: float) -> Result:
    """The result with what else is known of it, written."""
    whole = dataclasses.replace(result, row=row.identity(), seconds=round(seconds, 3), about=about())
    folder.write_json(f"{row.name}.json", dataclasses.asdict(whole))
    return whole
