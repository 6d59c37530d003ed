"""A limit on what a search may take: time, device hours or money. At the limit no further trial is launched; those that
run are finished, and what they will need is counted before another one begins."""

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from atose_ray.config import ConfigError
from atose_ray.search.progress import MIN_ENDED, Progress, busy_seconds
from atose_ray.search.record import TrialRecord

Unit = Literal["h", "gpu-h", "cpu-h", "$"]
HOURS = {"s": 1 / 3600, "m": 1 / 60, "min": 1 / 60, "h": 1.0, "d": 24.0}
EXPECTED = "a budget is a time (20m, 3h, 2d), device hours (40gpu-h, 200cpu-h) or money ($25)"
ROUNDING = 1e-9  # sums of floats differ by as much from Python 3.11 to 3.12, which sums them more exactly


@dataclass(frozen=True)
class Prices:
    """USD per hour: of what always runs (the head node), and of each GPU and CPU that a trial holds."""

    fixed: float = 0.0
    gpu: float | None = None
    cpu: float | None = None


@dataclass(frozen=True)
class Budget:
    """At most `limit` of a unit: hours of wall-clock time, GPU hours, CPU hours, or USD. minutes: whether a time is
    shown in minutes, as it was given."""

    limit: float
    unit: Unit
    prices: Prices | None = None
    minutes: bool = False

    def __str__(self) -> str:
        return self.show(self.limit)

    def show(self, amount: float) -> str:
        """An amount in the budget's unit."""
        if self.minutes:
            return f"{amount * 60:.3g} min"
        return f"${amount:.2f}" if self.unit == "$" else f"{amount:.3g} {self.unit}"

    def spent(self, trials: Sequence[TrialRecord], wall_s: float) -> float:
        """What trials took so far. wall_s: seconds that this search has run, all sessions together."""
        if self.unit == "h":
            return wall_s / 3600
        fixed = self.prices.fixed * wall_s / 3600 if self.unit == "$" and self.prices else 0.0
        return fixed + sum(self.cost(trial, busy_seconds(trial)) for trial in trials)

    def cost(self, trial: TrialRecord, seconds: float) -> float:
        """What `seconds` of a trial take. Nothing of a wall-clock budget: trials run side by side."""
        gpus, cpus = trial.resources.get("gpus", 0.0), trial.resources.get("cpus", 0.0)
        an_hour = {"gpu-h": gpus, "cpu-h": cpus, "h": 0.0}.get(self.unit)
        if an_hour is None:
            prices = self.prices or Prices()
            an_hour = gpus * (prices.gpu or 0.0) if gpus else cpus * (prices.cpu or 0.0)
        return an_hour * seconds / 3600

    def to_come(self, trials: Sequence[TrialRecord]) -> tuple[float, float]:
        """What the running trials will still take, and what one more would: by the mean of those that ended.

        (0, 0) before MIN_ENDED of them did.
        """
        ended = [trial for trial in trials if trial.state != "running"]
        if len(ended) < MIN_ENDED:
            return 0.0, 0.0
        need = statistics.fmean(busy_seconds(trial) for trial in ended)
        running = [trial for trial in trials if trial.state == "running"]
        if self.unit == "h":
            rest = max((max(0.0, need - busy_seconds(trial)) for trial in running), default=0.0)
            return rest / 3600, need / 3600
        rest = sum(self.cost(trial, max(0.0, need - busy_seconds(trial))) for trial in running)
        return rest, statistics.fmean(self.cost(trial, need) for trial in ended)

    def allows_another(self, trials: Sequence[TrialRecord], wall_s: float) -> bool:
        """Whether one more trial would, as far as is known, stay within the limit."""
        rest, one = self.to_come(trials)
        ahead = max(rest, one) if self.unit == "h" else rest + one
        spent = self.spent(trials, wall_s)
        return spent + ahead <= self.limit * (1 + ROUNDING) and spent < self.limit

    def forecast(self, found: Progress, trials: Sequence[TrialRecord], wall_s: float) -> str | None:
        """How many of the trials that are wanted the budget will hold; None before MIN_ENDED ended."""
        rest, one = self.to_come(trials)
        if found.ended < MIN_ENDED or one <= 0:
            return None
        left = self.limit - self.spent(trials, wall_s) - rest
        if self.unit == "h":
            more = int(max(0.0, self.limit - wall_s / 3600) * (found.trials_per_hour or 0.0))
        else:
            more = int(max(0.0, left) / one + ROUNDING)
        fits = min(found.wanted, len(trials) + more)
        verdict = "enough for all" if fits >= found.wanted else f"enough for about {fits} of {found.wanted}"
        return f"budget {self}: {self.show(self.spent(trials, wall_s))} spent, {verdict} trials"


def parse_budget(text: str, prices: Prices | None = None) -> Budget:
    """`20m`, `3h`, `2d`, `40gpu-h`, `200cpu-h` or `$25`. ConfigError for anything else; money needs prices."""
    plain = text.strip().lower().replace(" ", "")
    plain = re.sub(r"^\$(.*)", r"\1$", plain)  # the unit behind the number, as of the others
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|m|h|d|gpu-?h|cpu-?h|usd|\$)", plain)
    if not found:
        raise ConfigError(f"{EXPECTED}, but got {text!r}")
    limit, kind = float(found[1]) * HOURS.get(found[2], 1.0), found[2]
    unit: Unit = "h" if kind in HOURS else "gpu-h" if kind[0] == "g" else "cpu-h" if kind[0] == "c" else "$"
    if unit == "$" and prices is None:
        raise ConfigError(
            f"the budget {text!r} needs prices: give --cluster with a `ray up` file that states "
            "metadata.usd_per_hour for its node types, as cluster/gpu.yaml does"
        )
    if limit <= 0:
        raise ConfigError(f"{EXPECTED} above zero, but got {text!r}")
    return Budget(limit, unit, prices, minutes=found[2] in ("s", "m", "min"))


def prices_of(tree: Mapping[str, Any], where: str) -> Prices:
    """The prices in a `ray up` file: metadata.usd_per_hour, node type -> USD. The dearest worker counts.

    Raises ConfigError when a node type has no price.
    """
    stated = (tree.get("metadata") or {}).get("usd_per_hour") or {}
    head = tree.get("head_node_type")
    fixed, gpu, cpu = 0.0, [], []
    for name, kind in (tree.get("available_node_types") or {}).items():
        price = stated.get(name)
        if isinstance(price, bool) or not isinstance(price, (int, float)):
            raise ConfigError(
                f"{where}: metadata.usd_per_hour must state what an hour of {name!r} costs in USD, but has {price!r}"
            )
        if name == head:
            fixed = float(price)
            continue
        has = kind.get("resources") or {}
        if has.get("GPU"):
            gpu.append(price / has["GPU"])
        elif has.get("CPU"):
            cpu.append(price / has["CPU"])
    return Prices(fixed, max(gpu, default=None), max(cpu, default=None))
