"""The rows as one page that opens offline. Python decides what is shown, assets/reproduce.js draws it."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from atose_ray.data.pages import offline_page
from atose_ray.reproduction.claims import MeasuredRow, System
from atose_ray.reproduction.record import Result

MODULE = "python -m atose_ray."


def render(
    scale: str,
    systems: Mapping[str, System],
    rows: Mapping[str, Sequence[MeasuredRow]],
    results: Mapping[str, Result | None],
) -> str:
    """The whole page. results: by row; None of what was not asked for."""
    told = []
    for name, system in systems.items():
        shown = [row_of(name, row, results[row.name]) for row in rows[name]]
        told.append({"name": name, **system.model_dump(include={"title", "paper"}), "rows": shown})
    ran = [one for one in results.values() if one is not None and one.status != "NOT RUN"]
    about = max((one.about for one in ran), key=lambda one: float(one["time"]), default={})
    data = {"scale": scale, "systems": told, "about": about, "seconds": sum(one.seconds for one in ran)}
    return offline_page("atose_ray.reproduction", "reproduce.html", "Published and ours", ["reproduce.js"], data)


def row_of(system: str, row: MeasuredRow, result: Result | None) -> dict[str, Any]:
    """What the page shows of a row."""
    result = result or Result("NOT RUN", reason="not asked for", commands=(f"reproduce {system}",))
    told: dict[str, Any] = row.model_dump(include={"name", "kind", "what", "source", "note"})
    told |= {name: getattr(row, name, "") for name in ("protocol", "tolerance_from", "hours")}
    told |= {
        "table": row.name.rpartition(".")[0],
        "needs": [*getattr(row, "needs", ())],
        "status": result.status,
        "reason": result.reason,
    }
    told["commands"] = [
        line if line.startswith("#") else MODULE + line.replace("{system}", system) for line in result.commands
    ]
    told["figures"] = [dataclasses.asdict(figure) for figure in result.figures]
    ran = result.status != "NOT RUN"
    return {**told, "seconds": result.seconds, "time": result.about.get("time") if ran else None}
