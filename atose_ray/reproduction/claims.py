"""The rows: what was published, where it stands, and how it is held against ours. All of it is data, claims.yaml and
published.yaml of evaluation/, which this file reads. Needs no PyTorch.

parameters   counts of a network at its published width
recipe       a published training, value by value, beside our configuration
value        a number that follows from the published definitions, beside what was logged
vectors      numbers that the published code computed, from a folder of .npz files, beside ours for the same input
claim        what a paper says of its parts ("words help"), as a difference of small trainings on rendered sound
score        a cell row of a published table: prepare, train by the recipe, evaluate under the same protocol"""

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

import atose_ray
from atose_ray.evaluation.published import figures
from atose_ray.types import Config, package_yaml

Scale = Literal["smoke", "laptop", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "laptop", "full")


class Row(Config):
    """What all rows have. source: where the published value stands. scale: the least at which it is run. note: what
    must be known to read it: what differs on purpose, or cannot be compared."""

    name: str = Field(pattern=r"^[a-z0-9_.]+$")
    what: str
    source: str
    scale: Scale = "smoke"
    note: str = ""

    def identity(self) -> str:
        """Changes with the row and with this package: another is measured anew."""
        text = json.dumps([atose_ray.__version__, self.model_dump(mode="json")], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class ParametersRow(Row):
    """published: part of the method, or parts joined by +, or all -> trainable parameters; with running statistics
    where a second number stands. study, set: the configuration. data: of `Claims.data`."""

    kind: Literal["parameters"]
    study: str
    set: tuple[str, ...] = ()
    data: str
    published: dict[str, tuple[int] | tuple[int, int]]


class RecipeRow(Row):
    """published: a part of a RunConfig's tree, with `crop` for the units of a crop; lists are compared whole."""

    kind: Literal["recipe"]
    study: str
    set: tuple[str, ...] = ()
    published: dict[str, Any]


class ValueRow(Row):
    """compute: of `computed.VALUES`, name -> number for the options under the same names."""

    kind: Literal["value"]
    compute: str
    options: dict[str, Any]
    published: dict[str, float]
    tolerance: float
    tolerance_from: str


class VectorsRow(Row):
    """check: of `vectors.CHECKS`. files: which it reads. tolerance: of the largest difference, over the peak of what is
    wanted."""

    kind: Literal["vectors"]
    check: str
    files: tuple[str, ...]
    options: dict[str, Any] = Field(default_factory=dict)
    tolerance: float


class Runnable(Config):
    """A way to a number: commands in order, {model} being what the training before wrote, and the place of the number
    in the JSON that the last one prints, keys joined by dots."""

    run: tuple[str, ...]
    value: str


class ClaimRow(Row):
    """The first arm's number is greater than the second's, or than the constant `than`. arms: {seed} in their commands
    is 0, 1, ... below `seeds`. It holds where Student's 95 % interval of the difference lies above 0, does not where
    it lies below, and is open where 0 is in it."""

    kind: Literal["claim"]
    scale: Scale = "laptop"
    published: str
    protocol: str
    needs: dict[str, str]
    packages: dict[str, str] = Field(default_factory=dict)
    seeds: int = Field(ge=2)
    arms: dict[str, Runnable] = Field(min_length=1, max_length=2)
    than: float | None = None


class ScoreRow(Row):
    """published: metric -> value, of a data set of this kind with so many tags. tolerance: metric -> how far from it we
    may be, both ways; without one the value is shown and not judged. impossible: why it is run at no scale. hours: how
    long it takes, and whence that is known."""

    kind: Literal["score"]
    scale: Scale = "full"
    published: dict[str, float]
    dataset: str
    tags: int
    protocol: str
    needs: dict[str, str] = Field(default_factory=dict)
    way: Runnable | None = None
    configs: dict[str, dict[str, Any]] = Field(default_factory=dict)
    tolerance: dict[str, float] = Field(default_factory=dict)
    tolerance_from: str = ""
    hours: str = ""
    impossible: str = ""


class Table(Config):
    """Score rows of one table of published.yaml, one per system. figures: data set and protocol there. of: which of its
    columns. ways: system -> how it is run, over `way`; one that is not there has its reason in `without`. deviations:
    the tolerance is so many published deviations."""

    kind: Literal["table"]
    name: str
    figures: tuple[str, str]
    of: Literal["systems", "logs"] = "systems"
    needs: dict[str, str] = Field(default_factory=dict)
    run: tuple[str, ...] = ()
    value: str = "metrics"
    ways: dict[str, dict[str, Any]] = Field(default_factory=dict)
    without: str = ""
    hours: str = ""
    tolerance: dict[str, float] = Field(default_factory=dict)
    tolerance_from: str = ""
    deviations: float | None = None
    note: str = ""

    def rows(self) -> Iterator[ScoreRow]:
        """One per system."""
        dataset, protocol = self.figures
        found = figures()[dataset][protocol]
        for system, values in (found.systems if self.of == "systems" else found.logs).items():
            published = {name: value for name, value in zip(found.metrics, values, strict=True) if value is not None}
            tolerance = {name: self.tolerance[name] for name in published if name in self.tolerance}
            if self.deviations is not None:
                tolerance = {"accuracy": round(self.deviations * published.pop("accuracy_deviation"), 4)}
            change = self.ways.get(system)
            way = None if change is None else self.way(change)
            impossible = found.incomparable or ("" if way else self.without)
            yield ScoreRow(
                kind="score",
                name=f"{self.name}.{slug(system)}",
                what=f"{system} on {dataset}",
                source=found.source + (" (logs in the repository)" if self.of == "logs" and found.systems else ""),
                note=" ".join(filter(None, (self.note, str((change or {}).get("note", ""))))),
                published=published,
                dataset=dataset,
                tags=found.tags,
                protocol=protocol,
                needs={**self.needs, **(change or {}).get("needs", {})},
                way=None if found.incomparable else way,
                configs=(change or {}).get("configs", {}),
                tolerance=tolerance,
                tolerance_from=self.tolerance_from,
                hours=self.hours or str((change or {}).get("hours", "")),
                impossible=impossible,
            )

    def way(self, change: dict[str, Any]) -> Runnable:
        """The table's commands, {set} replaced by the system's own values; or its own commands."""
        text = " ".join(f"--set {one}" for one in change.get("set", ()))
        lines = tuple(line.replace("{set}", text) for line in change.get("run", self.run))
        return Runnable(run=lines, value=change.get("value", self.value))


AnyRow = Annotated[
    ParametersRow | RecipeRow | ValueRow | VectorsRow | ClaimRow | ScoreRow | Table, Field(discriminator="kind")
]
MeasuredRow = ParametersRow | RecipeRow | ValueRow | VectorsRow | ClaimRow | ScoreRow


class System(Config):
    """One published system. page: of the documentation."""

    title: str
    paper: str
    page: str
    rows: tuple[AnyRow, ...]

    def measured(self) -> list[MeasuredRow]:
        """Its rows, tables taken apart."""
        return [row for one in self.rows for row in (one.rows() if isinstance(one, Table) else [one])]


class Claims(Config):
    """data: name -> facts of a data set as published, which networks are built for. systems: by name."""

    data: dict[str, dict[str, Any]]
    arms: dict[str, Any] = Field(default_factory=dict)  # anchors of the YAML
    systems: dict[str, System]


def claims() -> Claims:
    """What claims.yaml says. Raises ValidationError where it is not well formed."""
    return TypeAdapter(Claims).validate_python(package_yaml("atose_ray.evaluation", "claims.yaml"))


def slug(text: str) -> str:
    """A system's name as part of a row's: SampleCNN + SE, JE -> samplecnn_se_je."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
