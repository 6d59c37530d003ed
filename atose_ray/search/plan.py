"""The resource plan of a search: how many trials run at a time, and what each takes, before the first one starts.

Ray does not refuse what can never be placed: it waits in silence. So the arithmetic is done, and shown, first.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from atose_ray.config import SearchConfig

TRIAL_CPUS = 0.01
DATA_CPUS = 0.5


class PlanError(ValueError):
    """The cluster cannot run this search: the message holds the arithmetic and a hint."""


@dataclass(frozen=True)
class Resources:
    """What a cluster has: in all, and on its largest node."""

    cpus: float
    gpus: float
    node_cpus: float
    node_gpus: float

    def gpus_each(self, asked: float | None) -> float:
        """GPUs of a process that trains: what is asked for; where nothing is, one on a cluster that has GPUs."""
        return asked if asked is not None else float(self.gpus > 0)


def yaml_resources(path: str) -> Resources:
    """The most that a `ray up` file, or a KubeRay manifest, lets its autoscaler start. Node types must state their
    `resources`. Raises PlanError when none does.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(f"the cluster file {path} cannot be read: {error}") from error
    if not isinstance(tree, Mapping):
        raise PlanError(f"{path} is not a `ray up` file: it has no available_node_types")
    on_kubernetes = str(tree.get("apiVersion", "")).startswith("ray.io/")
    nodes = _kuberay_nodes(tree) if on_kubernetes else _ray_up_nodes(tree)
    if not any(cpus * count for cpus, _, count in nodes):
        raise PlanError(
            f"{path} states no CPU (available_node_types.*.resources, or a container's resources.limits), so nothing "
            "can be planned from it"
        )
    return resources_of(nodes)


def _ray_up_nodes(tree: Mapping[str, Any]) -> list[tuple[float, float, int]]:
    """CPUs, GPUs and the largest number of each node type."""
    nodes = []
    for name, kind in tree.get("available_node_types", {}).items():
        stated = kind.get("resources") or {}
        count = 1 if name == tree.get("head_node_type") else kind.get("max_workers", 0)
        nodes.append((stated.get("CPU", 0), stated.get("GPU", 0), min(count, tree.get("max_workers", count) or count)))
    return nodes


def _kuberay_nodes(tree: Mapping[str, Any]) -> list[tuple[float, float, int]]:
    """The same of a RayCluster, or of the cluster of a RayJob. What rayStartParams say counts more than the limits."""
    spec = tree.get("spec") or {}
    spec = spec.get("rayClusterSpec", spec)
    groups = [(spec.get("headGroupSpec") or {}, 1)]
    groups += [
        (group, int(group.get("maxReplicas", group.get("replicas", 0)))) for group in spec.get("workerGroupSpecs", [])
    ]
    nodes = []
    for group, count in groups:
        container = (group.get("template", {}).get("spec", {}).get("containers") or [{}])[0]
        limits = container.get("resources", {}).get("limits") or {}
        started = group.get("rayStartParams") or {}
        cpus = started.get("num-cpus", limits.get("cpu", 0))
        gpus = started.get("num-gpus", limits.get("nvidia.com/gpu", 0))
        nodes.append((_quantity(cpus), _quantity(gpus), count))
    return nodes


def _quantity(value: str | float) -> float:
    """A Kubernetes quantity of CPUs or devices: 4, "4", "500m"."""
    text = str(value)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def resources_of(nodes: list[tuple[float, float, int]]) -> Resources:
    """CPUs, GPUs and the largest number of each node type -> what they have together."""
    return Resources(
        cpus=sum(cpus * count for cpus, _, count in nodes),
        gpus=sum(gpus * count for _, gpus, count in nodes),
        node_cpus=max((cpus for cpus, _, count in nodes if count), default=0),
        node_gpus=max((gpus for _, gpus, count in nodes if count), default=0),
    )


@dataclass(frozen=True)
class Plan:
    """How many trials run at a time, and what each takes.

    workers: 0 is training inside the trial's own actor. data_cpus: kept free for one Ray Data task per trial.
    """

    concurrency: int
    workers: int
    trial_cpus: float
    worker_cpus: float
    worker_gpus: float
    data_cpus: float
    available: Resources

    @property
    def cpus_per_trial(self) -> float:
        """CPUs of one trial with all its processes."""
        return self.trial_cpus + self.workers * self.worker_cpus + self.data_cpus

    @property
    def gpus_per_trial(self) -> float:
        """GPUs of one trial."""
        return max(self.workers, 1) * self.worker_gpus

    def arithmetic(self) -> str:
        """The sum, as a person would write it."""
        cpus = f"{self.concurrency} x ({self.trial_cpus:g} trial + {self.workers} x {self.worker_cpus:g} worker"
        cpus += (
            f" + {self.data_cpus:g} data) = {self.concurrency * self.cpus_per_trial:g} of {self.available.cpus:g} CPUs"
        )
        gpus = f"{self.concurrency} x {self.gpus_per_trial:g} = {self.concurrency * self.gpus_per_trial:g}"
        return f"{cpus}; {gpus} of {self.available.gpus:g} GPUs"


def make_plan(search: SearchConfig, streams: bool, available: Resources, trial_cpus: float = TRIAL_CPUS) -> Plan:
    """The largest (or the asked) number of concurrent trials that provably fits.

    streams: whether trials read through Ray Data. trial_cpus: of the process above a worker group (Tune's; `train` has
    none). Raises PlanError, with the sum, when not even one trial fits.
    """
    inline = search.workers_per_trial == 0
    gpus = available.gpus_each(search.gpus_per_worker)
    one = Plan(
        concurrency=1,
        workers=search.workers_per_trial,
        trial_cpus=search.cpus_per_worker if inline else trial_cpus,
        worker_cpus=search.cpus_per_worker,
        worker_gpus=gpus,
        data_cpus=DATA_CPUS if streams else 0.0,
        available=available,
    )
    if search.cpus_per_worker > available.node_cpus or gpus > available.node_gpus:
        raise PlanError(
            f"a worker needs {search.cpus_per_worker:g} CPUs and {gpus:g} GPUs on one node, but the "
            f"largest node has {available.node_cpus:g} CPUs and {available.node_gpus:g} GPUs; lower "
            "search.cpus_per_worker or search.gpus_per_worker, or use larger nodes"
        )
    most = int(available.cpus / one.cpus_per_trial + 1e-9)
    if one.gpus_per_trial > 0:
        most = min(most, int(available.gpus / one.gpus_per_trial + 1e-9))
    asked = search.concurrency or max(most, 1)
    plan = dataclasses.replace(one, concurrency=min(asked, search.trials))
    if most < plan.concurrency:
        raise PlanError(
            f"the cluster cannot run this search: {plan.arithmetic()}. At most {most} trial(s) fit at a time: lower "
            "search.concurrency, workers_per_trial, cpus_per_worker or gpus_per_worker (train: --workers), or add nodes"
        )
    return plan


def table(plan: Plan) -> str:
    """What each part of a trial takes, what all take together, and what there is."""
    inline = plan.workers == 0
    gpus = 0.0 if not inline else plan.worker_gpus
    rows = [("", "per trial", "CPUs", "GPUs")]
    rows.append(("trial process" + " (trains)" * inline, "1", f"{plan.trial_cpus:g}", f"{gpus:g}"))
    if plan.workers:
        cpus, gpus = plan.workers * plan.worker_cpus, plan.workers * plan.worker_gpus
        rows.append(("workers (train)", f"{plan.workers}", f"{cpus:g}", f"{gpus:g}"))
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
