"""Every private name of Ray that this program uses: each in one function that says what is lost where it is missing.

A Ray without any of them runs a search with in-process trials all the same (tested). Nothing here is needed by what
only prepares, trains or tags.
"""

import asyncio
import functools
import importlib
import inspect
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNLIMITED = 10_000  # nodes of a type that nothing limits


def _find(path: str, at: Any = None) -> Any:
    """`module:name.name`, or `name.name` of the object `at`; None where this Ray has none."""
    module, _, names = path.rpartition(":")
    try:
        found = importlib.import_module(module) if module else at
        return functools.reduce(getattr, names.split("."), found)
    except (ImportError, AttributeError):
        return None


@contextmanager
def agent_on_free_port() -> Iterator[None]:
    """While a Ray is started: its agent, which serves logs and jobs to the dashboard, takes a port that is free.

    Without it a second Ray on one machine has no Logs page, as both agents want port 52365.
    """
    parameters = _find("ray._private.parameter:RayParams")
    kept = parameters and parameters.__init__
    known = kept is not None and "dashboard_agent_listen_port" in inspect.signature(kept).parameters
    if known:
        parameters.__init__ = functools.partialmethod(kept, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        if known:
            parameters.__init__ = kept


def dashboard_is_whole() -> bool:
    """Whether the packages are there that Ray's dashboard needs; of `ray` without `[default]` some are not, and a Ray
    that is told to start it then ends. Without it a Ray started here has no dashboard."""
    return _find("ray.dashboard.optional_deps:aiohttp") is not None


def logs_folder() -> Path | None:
    """Where this node's Ray writes its logs. Without it trials have no log of their own in Ray's dashboard."""
    node = _find("ray._private.worker:_global_node")
    return Path(node.get_logs_dir_path()) if node is not None else None


def own_node_is_gone() -> bool:
    """Whether the node manager that this process works with has died.

    Without it the trials that ran when the driver's node died count as failed, and are done again only when asked for.
    """
    name = _find("ray._private.worker:_global_node.raylet_socket_name")
    if not name:
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(name) != 0


def keep_keys_out_of_trials() -> None:
    """Tune does not copy the driver's AWS keys into the trials' runtime environment: they have those of their node.

    Without it Ray writes the driver's keys into its logs.
    """
    copied = _find("ray.tune.execution.class_cache:ENV_VARS_TO_PROPAGATE") or set()
    copied -= {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}


def store_figures(node: Mapping[str, Any]) -> tuple[int, int, int]:
    """Bytes of a node's object store: used, spilled, restored. node: of ray.nodes().

    Without it a store counts as empty, and nothing is said of what is spilled to disk.
    """
    stats = _find("ray._private.internal_api:node_stats")
    if stats is None:
        return 0, 0, 0
    try:
        found = stats(node["NodeManagerAddress"], node["NodeManagerPort"], False).store_stats
    except Exception:  # grpc.RpcError, mostly: it has just died, or is too busy
        return 0, 0, 0
    return found.object_store_bytes_used, found.spilled_bytes_total, found.restored_bytes_total


def free_by_node() -> Mapping[str, Mapping[str, float]]:
    """What is free on each node, by its id. Without it a trial that waits is told what nodes have, not what is free."""
    free = _find("ray._private.state:state.available_resources_per_node")
    return {} if free is None else free()


def autoscaler_report() -> dict[str, Any]:
    """What the autoscaler says of its nodes. Without it a trial that waits does not say which nodes are starting."""
    read = _find("ray.experimental.internal_kv:_internal_kv_get")
    key = _find("ray._private.ray_constants:DEBUG_AUTOSCALING_STATUS")
    text = read(key) if read and key else None
    return dict(json.loads(text).get("autoscaler_report", {})) if text else {}


def autoscaler_node_types() -> list[tuple[str, float, float, int]]:
    """Name, CPUs, GPUs and largest number of every node type that a cluster's manager has told Ray of; empty where it
    has not (the autoscaler of `ray up` does not). Without it: see `autoscaler_file`."""
    read = _find("ray._private.state:state.get_cluster_config")
    config = read() if read else None
    return [
        (group.name, float(group.resources["CPU"]), float(group.resources["GPU"]), UNLIMITED if most < 0 else most)
        for group in (config.node_group_configs if config else ())
        if (most := group.max_count) and (group.resources["CPU"] or group.resources["GPU"])
    ]


def autoscaler_file() -> Path | None:
    """The file that the autoscaler of this node's Ray was started with, by its command line: /proc has it on the head.

    Without it a plan counts the nodes that are up, and those of `--cluster`.
    """
    logs = logs_folder()
    for entry in Path("/proc").glob("[0-9]*/cmdline") if logs else ():
        try:
            words = entry.read_bytes().decode(errors="replace").split("\0")
            if f"--logs-dir={logs}" in words and any(word.endswith("/monitor.py") for word in words):
                given = [word.partition("=")[2] for word in words if word.startswith("--autoscaling-config=")]
                if given and given[0]:
                    return (entry.parent / "cwd").resolve() / given[0]
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return None


def end_with_next_report(trial: Any) -> bool:
    """Let a Tune trial end with its next report; returns whether it will. Without it a search that is asked to stop
    does not wait for the epochs that run."""
    if _find("stopping_criterion", trial) is None:
        return False
    trial.stopping_criterion = {"training_iteration": 0}
    return True


def end_trials(loop: Any) -> None:
    """End the processes of a Tune loop that was left by KeyboardInterrupt or SystemExit, and free what they hold.
    Without it they go on in a Ray that stays, and a search there that follows waits for their CPUs."""
    if end := _find("_actor_manager.cleanup", loop):
        end()


def error_of(trial: Any) -> BaseException | None:
    """What a Tune trial failed by. Without it the reason of every failed trial is that its process died."""
    read = _find("get_pickled_error", trial)
    return read() if read else None


def asked_by(trial: Any) -> list[dict[str, float]]:
    """The bundles of resources that a Tune trial asks for. Without it one that waits does not say for what."""
    return [dict(bundle) for bundle in _find("placement_group_factory.bundles", trial) or ()]


def wrapped_by(error: BaseException) -> list[BaseException | None]:
    """What an error of Ray's carries beside its `__cause__`. Without it some lost workers count as a bug."""
    return [_find(name, error) for name in ("cause", "health_check_failure", "_base_exc")]


def controller_class() -> Any:
    """Ray Train's controller, to run in the process of a Tune trial, which only waits for it.

    Without it each trial of a worker group starts three processes more (its own, which cannot serve the next one, the
    controller's and a queue's), and each of them imports PyTorch before the first worker is asked for.
    """
    known = _find("ray.train.torch:TorchTrainer._initialize_and_run_controller")
    return known and _find("ray.train.v2._internal.execution.controller:TrainController")


def run_controller_here(trainer: Any) -> None:
    """Let a TorchTrainer run its controller in this process, where it has one. Without it: see `controller_class`."""
    kind = controller_class()

    def run(**settings: Any) -> Any:
        controller = kind(**settings)
        try:
            asyncio.run(controller.run())
        except BaseException:  # Tune ends a trial by SystemExit at its next report, and keeps the process
            controller._controller_callback_manager.invoke_best_effort("before_controller_abort")
            if controller._worker_group is not None:
                controller._worker_group.abort()
            raise
        return controller.get_result()

    if kind is not None:
        trainer._initialize_and_run_controller = run


def own_node_is_draining() -> bool:
    """Whether this process's node has notice: it is a spot instance, say, that will be taken away.

    Without it a trial there is not saved at once: it loses what `execution.checkpoint_every` allows.
    """
    read, here = _find("ray._private.state:state.get_draining_nodes"), _find("ray:get_runtime_context")
    try:
        return bool(read and here and here().get_node_id() in read())
    except Exception:  # its control store is away for a moment, or it has ended with this node
        return False


def reopened(callback: Any, trial: Any, run_id: str) -> bool:
    """Let Ray's MLflow callback log a trial into a run. Without it a trial that goes on gets a second run."""
    runs = _find("_trial_runs", callback)
    if runs is not None:
        runs[trial] = run_id
    return runs is not None
