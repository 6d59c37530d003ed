"""Configurations that are tried as they stand, named as the sampler names its parameters: points of a study file, the
points of a grid, and the best trials of an earlier study."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atose_ray.config import ConfigError
from atose_ray.search.parameters import Choice, OneOf, Range, parse
from atose_ray.search.space import walk

Point = dict[str, Any]
MAX_GRID = 100_000


class _OpenError(Exception):
    """A parameter that a point leaves open, and what it may be."""

    def __init__(self, name: str, values: Sequence[Any]) -> None:
        super().__init__(name)
        self.name, self.values = name, values


def _in_range(name: str, node: Range, value: Any) -> Any:
    """A value of a range. Raises ConfigError for one that is not in it."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not node.low <= value <= node.high or (node.whole and value != int(value)):
        kind = "a whole number" if node.whole else "a number"
        raise ConfigError(f"{name} is {kind} of {node.low:g} to {node.high:g}, but got {value!r}")
    step = node.step or (1 if node.whole and not node.log else None)
    if step is not None and abs((value - node.low) / step - round((value - node.low) / step)) > 1e-9:
        raise ConfigError(f"{name} goes from {node.low:g} in steps of {step:g}, but got {value!r}")
    return value


def _asked(point: Mapping[str, Any], space: Mapping[str, Any]) -> set[str]:
    """The parameters under the arms that a point chooses; one that it leaves open takes its first arm or end.

    Raises ConfigError for a value that its parameter cannot have.
    """
    asked = set[str]()

    def choose(name: str, node: Range | Choice) -> Any:
        asked.add(name)
        value = point.get(name, node.ends()[0])
        if isinstance(node, Range):
            return _in_range(name, node, value)
        if not any(value == choice and type(value) is type(choice) for choice in node.values):
            raise ConfigError(f"{name} is one of {', '.join(map(repr, node.values))}, but got {value!r}")
        return value

    walk(choose, space)
    return asked


def check_points(points: Iterable[Mapping[str, Any]], space: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError for a point that names what is not in the space, or a value that its parameter cannot have."""
    for number, point in enumerate(points):
        try:
            asked = _asked(point, space)
        except ConfigError as error:
            raise ConfigError(f"{where}[{number}]: {error}") from error
        unknown = sorted(set(point) - asked)
        if unknown:
            raise ConfigError(
                f"{where}[{number}]: {', '.join(unknown)}: no such parameter under the arms that this point chooses; "
                f"expected some of {', '.join(sorted(asked))}"
            )


def grid_points(space: Mapping[str, Any]) -> list[Point]:
    """Every combination of the space, arm by arm, the last parameter changing fastest.

    Raises ConfigError for a range without steps, which has no grid, and for more than MAX_GRID combinations.
    """
    points: list[Point] = []
    waiting: list[Point] = [{}]
    while waiting:
        point = waiting.pop()

        def choose(name: str, node: Range | Choice, point: Point = point) -> Any:
            if name not in point:
                raise _OpenError(name, node.values)
            return point[name]

        try:
            walk(choose, space)
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


def arm_points(space: Mapping[str, Any], path: str = "") -> list[Point]:
    """As few points as name every arm of every `one_of` at least once, and nothing else: the arms of one take turns
    beside those of another."""
    parts: list[list[Point]] = []
    for key, value in space.items():
        here = f"{path}.{key}" if path else key
        node = parse(value, here)
        if isinstance(node, OneOf):
            arms = [(kind, arm_points(arm, f"{here}[{kind}]") or [{}]) for kind, arm in node.arms.items()]
            parts.append([{f"{here}.kind": kind, **rest} for kind, below in arms for rest in below])
        elif isinstance(node, Mapping):
            parts.append(arm_points(node, here))
    parts = [part for part in parts if part]
    count = max(map(len, parts), default=0)
    return [{name: arm for part in parts for name, arm in part[i % len(part)].items()} for i in range(count)]


def fits(point: Mapping[str, Any], space: Mapping[str, Any]) -> bool:
    """Whether the parameters of an earlier study are a point of this space, every parameter of it named."""
    try:
        return _asked(point, space) == set(point)
    except ConfigError:
        return False
