"""What may stand in a search space, as it is read from a study's YAML and asked of Optuna:

range: [low, high]            with `log: true` or `step: n`; integers when both ends are integers
choice: [a, b, ...]
one_of: {kind: subtree, ...}  picks a kind, then walks only that arm
anything else                 a plain value
"""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from atose_ray.config import ConfigError


@dataclass(frozen=True)
class Range:
    """`range`: all numbers from low to high."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether it is one of integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def values(self) -> tuple[Any, ...]:
        """All its values; none where they cannot be counted."""
        step = self.step or (1 if self.whole and not self.log else None)
        count = math.floor((self.high - self.low) / step + 1e-9) + 1 if step else 0
        numbers = (self.low + number * (step or 0) for number in range(count))
        return tuple(int(number) if self.whole else float(number) for number in numbers)

    def ends(self) -> list[Any]:
        """The values that must be valid."""
        return [self.low, self.high]

    def ask(self, trial: Any, name: str) -> Any:
        """The value that Optuna gives this parameter."""
        if self.whole:
            return trial.suggest_int(name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Choice:
    """`choice`: one of a list."""

    values: tuple[Any, ...]

    def ends(self) -> list[Any]:
        """The values that must be valid."""
        return list(self.values)

    def ask(self, trial: Any, name: str) -> Any:
        """The value that Optuna gives this parameter."""
        return trial.suggest_categorical(name, list(self.values))


@dataclass(frozen=True)
class OneOf:
    """`one_of`: a kind, and the subtree of that kind."""

    arms: dict[str, Mapping[str, Any]]


def asked_of(trial: Any) -> Callable[[str, Range | Choice], Any]:
    """Optuna's trial as what chooses the value of a parameter."""
    return lambda name, node: node.ask(trial, name)


def parse(value: Any, path: str) -> Any:
    """A Range, Choice or OneOf, a subtree, or a plain value. Raises ConfigError for a malformed one."""
    if not isinstance(value, Mapping):
        return value
    words = {"range", "choice", "one_of"} & set(value)
    if not words:
        return value
    if len(words) > 1 or set(value) - words - ({"log", "step"} if "range" in words else set()):
        raise ConfigError(
            f"space {path}: expected one of range (with log, step), choice, one_of, but got the keys {sorted(value)}"
        )
    if "range" in words:
        return _range(value, path)
    return _choice(value["choice"], path) if "choice" in words else _one_of(value["one_of"], path)


def _range(value: Mapping[str, Any], path: str) -> Range:
    ends = value["range"]
    if not (isinstance(ends, list) and len(ends) == 2):
        raise ConfigError(f"space {path}: range is [low, high], but got {ends!r}")
    low, high = (_number(end, path) for end in ends)
    log, step = bool(value.get("log", False)), value.get("step")
    if not low < high or (log and low <= 0) or (log and step is not None):
        raise ConfigError(
            f"space {path}: range needs low < high, with log also low > 0 and no step, but got {dict(value)!r}"
        )
    if not (isinstance(low, int) and isinstance(high, int)):
        low, high = float(low), float(high)
    return Range(low, high, log, None if step is None else _number(step, path))


def _number(value: Any, path: str) -> Any:
    """YAML 1.1 reads 1e-5 as text; here it is the number that was meant."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"space {path}: a range is made of finite numbers, but got {value!r}")
    return value


def _choice(options: Any, path: str) -> Choice:
    if not isinstance(options, list) or not options or any(isinstance(o, (list, dict)) for o in options):
        raise ConfigError(f"space {path}: choice is a list of plain values, but got {options!r}")
    if len({repr(option) for option in options}) != len(options):
        raise ConfigError(f"space {path}: choice names a value twice: {options!r}")
    return Choice(tuple(options))


def _one_of(arms: Any, path: str) -> OneOf:
    if not isinstance(arms, Mapping) or not arms or not all(isinstance(a, Mapping) or a is None for a in arms.values()):
        raise ConfigError(f"space {path}: one_of maps each kind to its subtree (or to nothing), but got {arms!r}")
    return OneOf({str(kind): arm or {} for kind, arm in arms.items()})
