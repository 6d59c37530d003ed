"""What a cluster's file says of its node types: a `ray up` file (which its autoscaler reads too), or a manifest of
KubeRay."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from atose_ray.search.nodes import NodeKind, Nodes, UpNode, joined


class PlanError(ValueError):
    """The cluster cannot run this search: the message holds the arithmetic and a hint."""


@dataclass(frozen=True)
class NodeTypes:
    """What an autoscaler may start. kinds: with how many of each there may be, beside the head. head: the one node that
    does not come and go, where it is known. max_workers: nodes of all types together, beside the head; None is no such
    limit."""

    kinds: tuple[NodeKind, ...]
    head: NodeKind | None = None
    max_workers: int | None = None

    def beside(self, up: tuple[UpNode, ...] = ()) -> Nodes:
        """A cluster of these types on which these nodes run; its head always does."""
        if self.head and not any(node.head for node in up):
            up = (UpNode(self.head.cpus, self.head.gpus, head=True), *up)
        return joined(up, self.kinds, self.head.name if self.head else "", self.max_workers)


def read_cluster_file(path: str) -> Mapping[str, Any]:
    """The tree of a `ray up` file or a KubeRay manifest. Raises PlanError."""
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise PlanError(f"the cluster file {path} cannot be read: {error}") from error
    if not isinstance(tree, Mapping):
        raise PlanError(f"{path} is not a `ray up` file: it has no available_node_types")
    return tree


def node_types(path: str) -> NodeTypes:
    """The node types of a file. Raises PlanError where none states its `resources`, nor a container its limits
    (rayStartParams count more)."""
    tree = read_cluster_file(path)
    found = _of_kuberay(tree) if str(tree.get("apiVersion", "")).startswith("ray.io/") else _of_ray_up(tree)
    if not any(kind.cpus * kind.most for kind in (*found.kinds, *filter(None, [found.head]))):
        raise PlanError(
            f"{path} states no CPU (available_node_types.*.resources, or a container's resources.limits), so nothing "
            "can be planned from it"
        )
    return found


def _of_ray_up(tree: Mapping[str, Any]) -> NodeTypes:
    name_of_head, most = tree.get("head_node_type"), int(tree.get("max_workers", 2))  # Ray's own default
    kinds, head = [], None
    for name, kind in (tree.get("available_node_types") or {}).items():
        has, is_head = kind.get("resources") or {}, name == name_of_head
        found = NodeKind(str(name), float(has.get("CPU", 0)), float(has.get("GPU", 0)))
        head = found if is_head else head
        count = int(kind.get("max_workers", 0 if is_head else most))  # Ray's too
        kinds += [dataclasses.replace(found, up=0, most=count)] if count else []
    return NodeTypes(tuple(kinds), head, most)


def _of_kuberay(tree: Mapping[str, Any]) -> NodeTypes:
    spec = tree.get("spec") or {}
    spec = spec.get("rayClusterSpec", spec)
    kinds = []
    for group in spec.get("workerGroupSpecs", []):
        count = int(group.get("maxReplicas", group.get("replicas", 0)))
        kinds.append(dataclasses.replace(_of_group(group, group.get("groupName", "workers")), up=0, most=count))
    return NodeTypes(tuple(kinds), _of_group(spec.get("headGroupSpec") or {}, "head"))


def _of_group(group: Mapping[str, Any], name: str) -> NodeKind:
    container = (group.get("template", {}).get("spec", {}).get("containers") or [{}])[0]
    limits = container.get("resources", {}).get("limits") or {}
    started = group.get("rayStartParams") or {}
    gpus = started.get("num-gpus", limits.get("nvidia.com/gpu", 0))
    return NodeKind(name, quantity(started.get("num-cpus", limits.get("cpu", 0))), quantity(gpus))


def quantity(value: str | float) -> float:
    """A Kubernetes quantity of CPUs or devices: 4, "4", "500m"."""
    text = str(value)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
