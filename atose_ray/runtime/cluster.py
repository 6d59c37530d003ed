"""Joining a Ray cluster, or starting one on this machine."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
import ray.data
from ray.exceptions import RayError
from ray.job_config import JobConfig

from atose_ray.runtime.ray_private import agent_on_free_port, autoscaler_file, autoscaler_node_types, dashboard_is_whole
from atose_ray.search.cluster_file import NodeTypes, PlanError, node_types
from atose_ray.search.nodes import NodeKind, Nodes, UpNode
from atose_ray.storage import Store

# Train's controller polls every 2 s otherwise; Data's progress bars and Tune's tables garble our own lines; Tune's own
# handler of Ctrl-C would return from a search cut short as if it were done, and the test split would be scored early.
# A pruned trial's worker group may take seconds to end, before its process serves the next trial. Tune's own state of a
# search, which goes on from its run folders, need not be written every 10 s, as it grows with every trial. A Ray that
# begins would start a process for every CPU, which trials were seen not to use (0.9 s of CPU time each).
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "10",
    "TUNE_GLOBAL_CHECKPOINT_S": "1e9",
    "RAY_prestart_worker_first_driver": "0",
}


HEAD = "node:__internal_head__"  # a resource that Ray gives the head
ANSWER_S = 60.0
START_TRIES = 3
TOO_SLOW = ("timed out during startup", "Failed to start the dashboard")  # of Ray's parts, for each other


@contextmanager
def cluster(
    cpus: int | None = None,
    address: str | None = None,
    object_store_bytes: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Join the cluster of `address` or RAY_ADDRESS, else start one on this machine; leave (or end) it afterwards.

    cpus: logical CPUs of a cluster started here; None is the machine's. object_store_bytes: of one started here; None
    is Ray's choice (30 % of the memory). metadata: of the job, for Ray's dashboard and API. A Ray that this process
    joined before stays.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    address = address or os.environ.get("RAY_ADDRESS")
    loud = bool(os.environ.get("ATOSE_RAY_LOGS"))
    quiet: dict[str, Any] = {"log_to_driver": loud, "logging_level": "INFO" if loud else "ERROR"}
    quiet["job_config"] = JobConfig(metadata=dict(metadata or {}))
    if address:
        join(address, quiet)
    else:
        start({"num_cpus": cpus, "object_store_memory": object_store_bytes, **quiet})
    if not loud:
        hush()
    try:
        yield
    finally:
        ray.shutdown()
        if not address:
            os.environ.pop("RAY_API_SERVER_ADDRESS", None)


def start(options: Mapping[str, Any]) -> None:
    """Start Ray on this machine. Its parts wait 30 and 60 s for each other, which on a busy machine may be too short:
    then it is tried again, on other ports. Where packages of its dashboard are missing it starts without. Raises what
    the last of START_TRIES raised."""
    dashboard = dashboard_is_whole() or None  # None: what can be started of it
    for tries_left in reversed(range(START_TRIES)):
        port = free_port()
        # Ray's state API (it also cleans up after pruned trials) must find this cluster, whatever else runs here.
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        try:
            with agent_on_free_port():
                ray.init(address="local", include_dashboard=dashboard, dashboard_port=port, **options)
            return
        except Exception as error:  # Ray has no type of its own for these
            if not tries_left or not any(words in str(error) for words in TOO_SLOW):
                raise
            ray.shutdown()


def join(address: str, options: Mapping[str, Any]) -> None:
    """Join a running cluster. Raises PlanError when nothing answers there (Ray itself would try for minutes)."""
    host, mark, port = address.rpartition("://")[2].rpartition(":")
    try:
        if mark and port.isdecimal():
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, **options)
    except (OSError, OverflowError) as error:  # Ray's ConnectionError is one
        raise PlanError(
            f"no Ray cluster answers at {address!r}: {error}. Check --address and RAY_ADDRESS, or leave both out to "
            "start one on this machine"
        ) from error


def hush() -> None:
    """Keep Ray's own log lines and progress bars out of this process's output: our console says what happens."""
    for name, level in (("ray.data", logging.ERROR), ("ray.tune", logging.CRITICAL), ("ray.train", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    ray.data.DataContext.get_current().enable_progress_bars = False


def ray_storage(folder: Store) -> dict[str, Any]:
    """Where Ray Tune and Ray Train keep their own state, as their RunConfig takes it: by our file system, so that one
    setting serves all (no key is pickled with it: each process takes those of its environment)."""
    if folder.local_path is not None:
        return {"storage_path": str(folder.local_path)}
    return {"storage_path": folder.root, "storage_filesystem": folder.fs}


def free_port() -> int:
    """A TCP port on the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def up_nodes() -> tuple[UpNode, ...]:
    """The nodes of the cluster this process has joined."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return tuple(UpNode(has.get("CPU", 0.0), has.get("GPU", 0.0), HEAD in has) for has in nodes)


def cluster_nodes(file: str | None = None) -> Nodes:
    """The nodes of the cluster this process has joined, and those that its autoscaler may start.

    file: what the user says of those; None reads the autoscaler's own word. Raises PlanError as `node_types`.
    """
    return (node_types(file) if file else startable()).beside(up_nodes())


def startable() -> NodeTypes:
    """What the cluster's autoscaler may start: as its manager tells Ray, else as its file on the head says; nothing
    where neither can be read (that of KubeRay is in a container of its own: `--cluster` names its manifest)."""
    heads = [node for node in ray.nodes() if node["Alive"] and HEAD in node["Resources"]]
    has = heads[0]["Resources"] if heads else {}
    if told := autoscaler_node_types():
        of_head = (has.get("CPU", 0.0), has.get("GPU", 0.0), 1)  # it is among them, and does not come and go
        kinds = (NodeKind(name, cpus, gpus, 0, most) for name, cpus, gpus, most in told)
        return NodeTypes(tuple(kind for kind in kinds if (kind.cpus, kind.gpus, kind.most) != of_head))
    try:
        if not heads or heads[0]["NodeID"] == own_node():
            return types_of_this_node()
        ask = ray.remote(num_cpus=0, resources={HEAD: 0.001}, max_retries=0)(types_of_this_node)
        found: NodeTypes = ray.get(ask.remote(), timeout=ANSWER_S)
        return found
    except (RayError, PlanError):  # a head without this program, or a file without resources
        return NodeTypes(())


def own_node() -> str:
    """The id of the node that this process works with."""
    return str(ray.get_runtime_context().get_node_id())


def is_only_node(cpus: float) -> bool:
    """Whether the node that this process works with is the whole cluster, and has that many CPUs for work (a head often
    has none)."""
    up = [node for node in ray.nodes() if node["Alive"]]
    return [node["NodeID"] for node in up] == [own_node()] and up[0]["Resources"].get("CPU", 0.0) >= cpus


def types_of_this_node() -> NodeTypes:
    """What the autoscaler that runs on this node was told that it may start."""
    path = autoscaler_file()
    return node_types(str(path)) if path else NodeTypes(())
