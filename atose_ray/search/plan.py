"""The plan of a search, before its first trial: how many trials run at a time, what each takes, and where the clips
come from.

Ray does not refuse what can never be placed: it waits in silence. So the arithmetic is done, and shown, first.

Clips that `auto` leaves open are shared, one copy per node, when train and valid need at most STORE_PART of what the
fullest store of a node that may train has free; otherwise each trial keeps its clips in memory itself or streams them
(data/memory.py, Ray Data).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from atose_ray.config import RunConfig, SearchConfig
from atose_ray.data.shards import Manifest
from atose_ray.types import Split

TRIAL_CPUS = 0.01
DATA_CPUS = 0.5
SPLITS: tuple[Split, ...] = ("train", "valid")
STORE_PART = 1 / 2
BLOCKS = 4  # of Ray Data's: one read, one waiting, one in the training process, and one that is late


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


def read_cluster_file(path: str) -> Mapping[str, Any]:
    """The tree of a `ray up` file or a KubeRay manifest. Raises PlanError."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(f"the cluster file {path} cannot be read: {error}") from error
    if not isinstance(tree, Mapping):
        raise PlanError(f"{path} is not a `ray up` file: it has no available_node_types")
    return tree


def yaml_resources(path: str) -> Resources:
    """The most that a `ray up` file, or the manifest of a RayCluster or RayJob, lets its autoscaler start. Raises
    PlanError where no node type states its `resources`, nor a container its limits (rayStartParams count more)."""
    tree = read_cluster_file(path)
    nodes: list[tuple[float, float, int]] = []
    if str(tree.get("apiVersion", "")).startswith("ray.io/"):
        spec = tree.get("spec") or {}
        spec = spec.get("rayClusterSpec", spec)
        groups = [
            (group, group.get("maxReplicas", group.get("replicas", 0))) for group in spec.get("workerGroupSpecs", [])
        ]
        for group, count in [(spec.get("headGroupSpec") or {}, 1), *groups]:
            container = (group.get("template", {}).get("spec", {}).get("containers") or [{}])[0]
            limits = container.get("resources", {}).get("limits") or {}
            started = group.get("rayStartParams") or {}
            cpus = _quantity(started.get("num-cpus", limits.get("cpu", 0)))
            nodes.append((cpus, _quantity(started.get("num-gpus", limits.get("nvidia.com/gpu", 0))), int(count)))
    else:
        for name, kind in tree.get("available_node_types", {}).items():
            has, most = kind.get("resources") or {}, tree.get("max_workers")
            count = 1 if name == tree.get("head_node_type") else kind.get("max_workers", 0)
            nodes.append((has.get("CPU", 0), has.get("GPU", 0), min(count, most or count)))
    if not any(cpus * count for cpus, _, count in nodes):
        raise PlanError(
            f"{path} states no CPU (available_node_types.*.resources, or a container's resources.limits), so nothing "
            "can be planned from it"
        )
    return resources_of(nodes)


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
        """The sum, as a person would write it, and what processes share."""
        each, available = self.gpus_per_trial, self.available
        text = (
            f"{self.concurrency} x ({self.trial_cpus:g} trial + {self.workers} x {self.worker_cpus:g} worker + "
            f"{self.data_cpus:g} data) = {self.concurrency * self.cpus_per_trial:g} of {available.cpus:g} CPUs; "
            f"{self.concurrency} x {each:g} = {self.concurrency * each:g} of {available.gpus:g} GPUs"
        )
        if 0 < self.worker_gpus < 1:
            who = "trials" if self.workers <= 1 else "workers"
            text += f"; up to {int(1 / self.worker_gpus + 1e-9)} {who} share a GPU, fewer if the first ones show that "
            text += "its memory does not hold so many"
        return text


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


@dataclass(frozen=True)
class NodeStore:
    """One node: what it can run, and the bytes of its object store. spilled, restored: since the node started."""

    node_id: str
    address: str
    cpus: float
    gpus: float
    total: int
    used: int
    spilled: int
    restored: int

    @property
    def free(self) -> int:
        """Bytes that nothing lies in."""
        return max(0, self.total - self.used)


def size(count: float) -> str:
    """Bytes for a person."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


@dataclass(frozen=True)
class ClipPlan:
    """Where the trials of a search get their clips.

    shared: one copy per node. streams: else through Ray Data. need: bytes of train and valid. homes: the nodes that
    may train. block: bytes of what one Ray Data task gives. epoch: bytes of the crops of an epoch. why: for a person.
    """

    shared: bool
    streams: bool
    need: int
    homes: tuple[NodeStore, ...]
    block: int
    epoch: int
    why: str

    def stream_bytes(self, plan: Plan) -> int | None:
        """What one process may have in the object store at a time, of Ray Data; None where nothing streams."""
        if not self.streams or not self.homes:
            return None
        room = int(STORE_PART * min(home.free for home in self.homes)) // self.readers_per_node(plan)
        return max(room, BLOCKS * self.block)

    def readers_per_node(self, plan: Plan) -> int:
        """Processes on the fullest node that read for themselves."""
        return math.ceil(plan.concurrency * max(plan.workers, 1) / max(len(self.homes), 1))

    def line(self, plan: Plan) -> str:
        """For the plan that is printed: where clips will be, and what that needs of what there is."""
        limit = self.stream_bytes(plan)
        if limit is None:
            return f"data: {self.why}"
        readers, smallest = self.readers_per_node(plan), min(self.homes, key=lambda home: home.free)
        each = min(limit, max(self.epoch, self.block))
        text = (
            f"data: {self.why}; streamed by Ray Data, per node {readers} x {size(each)} of crops in flight = "
            f"{size(readers * each)} of {size(smallest.free)} free in the object store of {smallest.address}"
        )
        if readers * each > smallest.free:
            text += (
                ". That does not fit and will spill to disk: lower search.concurrency, data.shuffle_row_groups or "
                "data.crops_per_clip, give a larger --object-store, or read without it (execution.ingest=local)"
            )
        return text


def plan_clips(
    base: RunConfig, search: SearchConfig, manifest: Manifest, available: Resources, stores: Sequence[NodeStore]
) -> ClipPlan:
    """Decide by the nodes as they are now. base: what the trials have in common, resolved."""
    gpus = available.gpus_each(search.gpus_per_worker)
    homes = tuple(s for s in stores if s.cpus >= search.cpus_per_worker and s.gpus >= gpus)
    need = sum(shard.bytes for shard in manifest.shards if shard.split in SPLITS)
    shared, why = _decide(base.data.residency, need, homes)
    streams = base.execution.ingest == "ray_data" and not shared
    samples = base.model_spec(manifest.data_spec).input.length
    crop = (2 * samples + len(manifest.data_spec.tags) + 12) * base.data.crops_per_clip
    clips = sorted((group.clips for group in manifest.row_groups("train")), reverse=True)
    block, epoch = sum(clips[: base.data.shuffle_row_groups]) * crop, sum(clips) * crop
    return ClipPlan(shared, streams, need, homes, block, epoch, why)


def _decide(wanted: str, need: int, homes: tuple[NodeStore, ...]) -> tuple[bool, str]:
    if wanted != "auto":
        return False, f"{wanted}, as data.residency says"
    if not homes:
        return False, "not shared, as no node that can train is up yet"
    smallest = min(homes, key=lambda home: home.free)
    if need <= STORE_PART * smallest.free:
        return True, (
            f"shared: {size(need)} of clips once in the object store of each of {len(homes)} node(s), where at least "
            f"{size(smallest.free)} are free ({smallest.address})"
        )
    enough = math.ceil(2 * need / 2**30) + 1  # whole GiB, with room for a part of Ray's own
    return False, (
        f"not shared, each trial for itself: the clips need {size(need)}, more than half of the {size(smallest.free)} "
        f"that the object store of {smallest.address} has free (to share: --object-store {enough}, in GiB)"
    )
