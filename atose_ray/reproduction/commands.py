"""Rows that train: the commands that they show are what is run, and what anyone can give by hand. Each ends in a number
of the JSON that its last command prints. Trainings go on where they were cut short, as those commands do."""

import hashlib
import importlib.util
import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from atose_ray.data.shards import load_manifest
from atose_ray.evaluation.significance import spread
from atose_ray.reproduction.claims import ClaimRow, Runnable, Scale, ScoreRow
from atose_ray.reproduction.record import Figure, Result, judged, near, place_of
from atose_ray.storage import Store, StoreError

Tell = Callable[[list[str]], str]  # a command of this package and its words -> what it printed
FULL = "reproduce {system} --scale full  # or, by hand:"
MODEL = "model: "  # how `train` begins the line that says where its model is


class Commands:
    """Commands on one store, each run once. tell: runs one. scale: what may run, and below whose folder the
    configurations are written that a command reads."""

    def __init__(self, store: Store, tell: Tell, scale: Scale) -> None:
        self.store, self.tell, self.scale = store, tell, scale
        self.told: dict[str, str] = {}

    def printed(self, line: str, *more: str) -> str:
        """What `python -m atose_ray.<line>` prints, on this store."""
        if line not in self.told:
            self.told[line] = self.tell([*shlex.split(line), *more, "--store", self.store.uri])
        return self.told[line]

    def json_of(self, way: Runnable, configs: dict[str, dict[str, Any]], **names: Any) -> dict[str, Any]:
        """What the last command of a way prints as JSON. names: what stands in braces; {model} is what the training
        before wrote, and that of a configuration the file that it is written to."""
        known = {name: str(value) for name, value in names.items()}
        for line in way.run[:-1]:
            lines = self.printed(filled(line, known), "--resume").splitlines()
            known["model"] = next(one for one in reversed(lines) if one.startswith(MODEL)).removeprefix(MODEL)
        for name, tree in configs.items():
            content = filled(json.dumps(tree), known).encode()
            file, folder = f"{name}-{hashlib.sha256(content).hexdigest()[:8]}.json", place_of(self.store, self.scale)
            folder.child("configs").write(file, content)
            known[name] = folder.child("configs").uri_of(file)
        return dict(json.loads(self.printed(filled(way.run[-1], known), "--json")))

    def lacking(self, needs: dict[str, str]) -> dict[str, str]:
        """Of the prepared sets those that the store has not, and how to get them. One whose sound is rendered is
        prepared here."""
        found = {}
        for name, line in needs.items():
            try:
                load_manifest(self.store, name)
            except StoreError:
                if "--source" in line:
                    found[name] = line
                else:
                    self.printed(line)
        return found

    def incomparable(self, row: ScoreRow) -> str:
        """Why a score on the prepared set cannot stand beside the published one, before anything is trained on it; or
        nothing. Raises StoreError where the store has not what the row needs."""
        for manifest in (load_manifest(self.store, name) for name in row.needs):
            of = manifest.data_spec.tags
            if manifest.dataset.get("kind") == row.dataset:
                return (
                    "" if len(of) == row.tags else f"{manifest.name} has {len(of)} tags, the published one {row.tags}"
                )
        return f"none of {', '.join(row.needs)} was prepared as {row.dataset}"


def filled(text: str, names: dict[str, str]) -> str:
    """The text with {name} replaced; other braces stay."""
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def by_hand(ways: Iterable[Runnable], configs: Mapping[str, dict[str, Any]]) -> tuple[str, ...]:
    """The commands of these ways as a person would give them: of the first seed, MODEL for what a training wrote, and
    the files that they read."""
    names = {"seed": "0", "model": "MODEL", **{name: f"{name}.json" for name in configs}}
    files = (f"# {name}.json: {filled(json.dumps(tree), names)}" for name, tree in configs.items())
    return tuple(dict.fromkeys([*files, *(filled(line, names) for way in ways for line in way.run)]))


def number_at(tree: Any, place: str) -> float:
    """The number at keys joined by dots. Raises ValueError where there is none."""
    for key in place.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    if not isinstance(tree, (int, float)):
        raise ValueError(f"the command printed no number at {place}")
    return float(tree)


def claim(row: ClaimRow, commands: Commands) -> Result:
    """Every arm with every seed: the difference's mean and its interval. OPEN where that holds 0."""
    shown = by_hand(row.arms.values(), {})
    if commands.scale == "smoke":
        reason = f"{row.seeds} seeds of small trainings on rendered sound, a minute or two: --scale laptop"
        return Result("NOT RUN", reason=reason, commands=shown)
    if missing := [how for name, how in row.packages.items() if importlib.util.find_spec(name) is None]:
        return Result("NOT RUN", reason=f"needs a package: {', '.join(missing)}", commands=shown)
    commands.lacking(row.needs)
    values = {
        name: [number_at(commands.json_of(way, {}, seed=seed), way.value) for seed in range(row.seeds)]
        for name, way in row.arms.items()
    }
    (name, first), *second = values.items()
    other, against = second[0] if second else (f"{row.than:g}", [float(row.than or 0)] * row.seeds)
    difference = spread([one - two for one, two in zip(first, against, strict=True)])
    ours = f"{difference.mean:+.4f} (95 % {difference.low:+.4f} to {difference.high:+.4f}, {row.seeds} seeds)"
    figures = [Figure(arm, None, f"{spread(of).mean:.4f}") for arm, of in values.items()]
    figures.append(Figure(f"{name} minus {other}", row.published, ours, None, difference.low > 0))
    if difference.low <= 0 <= difference.high:
        return Result("OPEN", tuple(figures), "not shown: the interval holds 0", shown)
    return judged(figures, "" if difference.low > 0 else "the other way round", shown)


def score(row: ScoreRow, commands: Commands) -> Result:
    """Train by the recipe, take the score; every metric beside the published one."""
    published = tuple(Figure(name, value, None, row.tolerance.get(name)) for name, value in row.published.items())
    if row.way is None or row.impossible:
        return Result("NOT RUN", published, row.impossible)
    shown = by_hand([row.way], row.configs)
    if lacking := commands.lacking(row.needs):
        reason = f"data not at hand: {', '.join(lacking)}"
        return Result("NOT RUN", published, reason, (*lacking.values(), FULL, *shown))
    if why := commands.incomparable(row):
        return Result("NOT RUN", published, f"not comparable: {why}", shown)
    if commands.scale != "full":
        return Result("NOT RUN", published, "the data is at hand: --scale full trains it", (FULL, *shown))
    found = commands.json_of(row.way, row.configs)
    one_number = row.way.value.endswith(".mean")
    figures = []
    for name, value in row.published.items():
        place = row.way.value if one_number else f"{row.way.value}.{name}"
        figures.append(near(name, value, number_at(found, place), row.tolerance.get(name)))
    off = [f"{one.name} {one.ours - one.published:+.4f}" for one in figures if one.ok is False]
    return judged(figures, f"beyond the tolerance: {', '.join(off)}" if off else "", shown)
