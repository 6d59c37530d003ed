"""What must hold on every node before the first trial: it sees the store, and may write to it."""

import os
import uuid

import ray
from ray.exceptions import GetTimeoutError, RayTaskError, WorkerCrashedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.search.cluster_file import PlanError
from atose_ray.storage import Store, StoreError

ANSWER_S = 120.0


def check_nodes(store: Store, folder: Store, manifest: Manifest) -> None:
    """Ask every node that has CPUs for the data set and for a file that this process writes into `folder`.

    Raises PlanError, naming the node, when one sees another store, or may not write. A node that dies meanwhile is
    none; where there is but one node, nothing is asked.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) > 0]
    here = ray.get_runtime_context().get_node_id()
    if all(node["NodeID"] == here for node in nodes):
        return
    which = (manifest.name, manifest.content_hash)
    name, token = f".nodes-{uuid.uuid4().hex[:8]}", os.urandom(16)
    folder.write(name, token)
    try:
        # no CPU: trials of another search may hold them all
        look = ray.remote(num_cpus=0, max_retries=0)(_look)
        at = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        asked = [look.options(scheduling_strategy=there).remote(store, folder, which, name, token) for there in at]
        for node, answer in zip(nodes, asked, strict=True):
            problem = _answer(answer)
            if problem:
                raise PlanError(
                    f"the Ray node {node['NodeManagerAddress']} ({node['NodeID'][:8]}) cannot work with the store "
                    f"{store.uri}: {problem}. All nodes must see one store: mount the folder on every node under this "
                    "very path, or keep it in object storage (--store s3://bucket/prefix, credentials in the nodes' "
                    "environment or role)"
                )
    finally:
        folder.delete(name)


def _answer(answer: ray.ObjectRef) -> str | None:
    try:
        problem: str | None = ray.get(answer, timeout=ANSWER_S)
        return problem
    except GetTimeoutError:
        return f"it did not answer within {ANSWER_S:g} s"
    except RayTaskError as error:  # atose_ray of another version, or none
        return str(error.cause)
    except (WorkerCrashedError, ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
        return None


def _look(store: Store, folder: Store, which: tuple[str, str], name: str, token: bytes) -> str | None:
    try:
        load_manifest(store, *which)
        if folder.read(name) == token:
            folder.check_writable()
            return None
    except StoreError as error:
        return str(error)
    except FileNotFoundError:
        pass
    return "another store lies there under the same name"
