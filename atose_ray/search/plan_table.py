"""The resource plan as a table, printed before the first trial."""

from __future__ import annotations

from atose_ray.search.plan import Plan


def table(plan: Plan) -> str:
    """What each part of a trial takes, what all take together, and what there is."""
    inline = plan.workers == 0
    gpus = 0.0 if not inline else plan.worker_gpus
    rows = [("", "per trial", "CPUs", "GPUs")]
    rows.append(("trial process" + " (trains)" * inline, "1", f"{plan.trial_cpus:g}", f"{gpus:g}"))
    if plan.workers:
        rows.append(
            (
                "workers (train)",
                f"{plan.workers}",
                f"{plan.workers * plan.worker_cpus:g}",
                f"{plan.workers * plan.worker_gpus:g}",
            )
        )
    if plan.data_cpus:
        rows.append(("data tasks", "1", f"{plan.data_cpus:g}", "0"))
    together = plan.concurrency * plan.cpus_per_trial, plan.concurrency * plan.gpus_per_trial
    rows.append((f"all of {plan.concurrency} at a time", "", f"{together[0]:g}", f"{together[1]:g}"))
    rows.append(("available", "", f"{plan.available.cpus:g}", f"{plan.available.gpus:g}"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for first, *cells in rows:
        numbers = "".join("  " + cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  " + first.ljust(widths[0]) + numbers)
    if 0 < plan.worker_gpus < 1:
        sharing = int(1 / plan.worker_gpus + 1e-9)
        lines.append(
            f"  up to {sharing} {'trials' if plan.workers <= 1 else 'workers'} share a GPU, fewer if the first ones "
            "show that its memory does not hold so many"
        )
    return "\n".join(line.rstrip() for line in lines)
