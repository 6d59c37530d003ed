"""Configurations that are tried as they stand, named as the sampler names its parameters: points of a study file, the
points of a grid, and the best trials of an earlier study."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atose_ray.config import ConfigError
from atose_ray.search.space import suggest

Point = dict[str, Any]
MAX_GRID = 100_000


class _OpenError(Exception):
    """A parameter that a point leaves open, and what it may be."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        super().__init__(name)
        self.name, self.values = name, values


class _Replay:
    """Optuna's trial, answered from a point; stops at the first parameter that the point does not name."""

    def __init__(self, point: Mapping[str, Any]) -> None:
        self.point, self.asked = point, set[str]()

    def _answer(self, name: str, values: Sequence[Any]) -> Any:
        self.asked.add(name)
        if name not in self.point:
            raise _OpenError(name, values)
        return self.point[name]

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._answer(name, () if log else range(low, high + 1, step)))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        count = 0 if step is None else math.floor((high - low) / step + 1e-9) + 1
        return float(self._answer(name, [low + number * (step or 0.0) for number in range(count)]))

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        return self._answer(name, choices)


class _Checked(_Replay):
    """Optuna's trial for a point that may leave parameters open: refuses values that are not in the space."""

    def _answer(self, name: str, values: Sequence[Any]) -> Any:
        self.asked.add(name)
        return self.point.get(name, values[0])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return int(self._number(name, low, high, step, whole=True))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._number(name, low, high, step, whole=False)

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        value = self._answer(name, choices)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            raise ConfigError(f"{name} is one of {', '.join(map(repr, choices))}, but got {value!r}")
        return value

    def _number(self, name: str, low: float, high: float, step: float | None, whole: bool) -> float:
        value = self._answer(name, [low])
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high or (whole and value != int(value)):
            kind = "a whole number" if whole else "a number"
            raise ConfigError(f"{name} is {kind} of {low:g} to {high:g}, but got {value!r}")
        if step is not None and abs((value - low) / step - round((value - low) / step)) > 1e-9:
            raise ConfigError(f"{name} goes from {low:g} in steps of {step:g}, but got {value!r}")
        return float(value)


def check_points(points: Iterable[Mapping[str, Any]], space: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for a point that names what is not in the space, or a value that its parameter cannot have."""
    for number, point in enumerate(points):
        trial = _Checked(point)
        try:
            suggest(trial, space)
        except ConfigError as error:
            raise ConfigError(f"{where}[{number}]: {error}") from error
        unknown = sorted(set(point) - trial.asked)
        if unknown:
            raise ConfigError(
                f"{where}[{number}]: {', '.join(unknown)}: no such parameter under the arms that this point chooses; "
                f"expected some of {', '.join(sorted(trial.asked))}"
            )


def grid_points(space: Mapping[str, Any]) -> list[Point]:
    """Every combination of the space, arm by arm, the last parameter changing fastest.

    Raises ConfigError for a range without steps, which has no grid, and for more than MAX_GRID combinations.
    """
    points: list[Point] = []
    waiting: list[Point] = [{}]
    while waiting:
        point = waiting.pop()
        try:
            suggest(_Replay(point), space)
        except _OpenError as open_at:
            if not open_at.values:
                raise ConfigError(
                    f"a grid needs choices, or ranges with a step, but {open_at.name} is a continuous range: give it "
                    "a step, make it a choice, or use another search.sampler"
                ) from None
            waiting += [{**point, open_at.name: value} for value in reversed(open_at.values)]
            continue
        points.append(point)
        if len(points) > MAX_GRID:
            raise ConfigError(f"this space has more than {MAX_GRID} combinations; use search.sampler=random or tpe")
    return points


def fitting(points: Iterable[tuple[Point, float]], space: Mapping[str, Any]) -> list[tuple[Point, float]]:
    """Of an earlier study's (parameters, value), those that are points of this space, every parameter of it named."""
    kept = []
    for point, value in points:
        trial = _Checked(point)
        try:
            suggest(trial, space)
        except ConfigError:
            continue
        if trial.asked == set(point):
            kept.append((point, value))
    return kept
