"""Why a trial failed, and what follows from it.

out_of_memory    the batch was halved already (training/step.py), or the host's memory ran out: not tried again
infrastructure   a process, a node, an object or the storage was lost: tried again, `search.max_failures` times
preemption       the node was taken away with notice: tried again, and not counted (Ray keeps that count)
divergence       the loss stopped being a number: a result, not a failure; told to the sampler at the floor
bug              our code, or the configuration, raised: not tried again; equal ones end the search

A worker group is tried again by Ray Train itself, which counts every cause but preemption alike.
"""

import errno
import re
import traceback
from typing import Any

import torch
from ray import exceptions as lost
from ray.train import ControllerError, WorkerGroupError
from ray.tune import TuneError

from atose_ray.runtime.ray_private import wrapped_by
from atose_ray.search.events import Cause
from atose_ray.storage import StoreError
from atose_ray.storage.lease import LeaseError
from atose_ray.training.loop import DivergedError
from atose_ray.training.record import RunFolder
from atose_ray.training.step import NoMemoryError

RETRIED = ("infrastructure", "preemption")
LONGEST_TRACE = 8000
GONE = (lost.RayActorError, lost.WorkerCrashedError, lost.NodeDiedError, lost.LocalRayletDiedError)
PASSING: tuple[type[BaseException], ...] = (
    *(*GONE, lost.ObjectLostError, lost.ObjectStoreFullError, lost.OutOfDiskError, lost.RaySystemError),
    *(lost.RuntimeEnvSetupError, lost.GetTimeoutError, torch.distributed.DistError),
    *(ConnectionError, TimeoutError, StoreError, LeaseError),
)
NO_MEMORY = (NoMemoryError, torch.OutOfMemoryError, lost.OutOfMemoryError, MemoryError)
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE, errno.ENETDOWN, errno.ENETUNREACH}
COLLECTIVE = re.compile(r"gloo|NCCL|Connection (closed|reset) by peer|process group", re.I)  # the other's death


def cause_of(error: BaseException) -> Cause:
    """The cause of what a trial raised, looked for through everything that wraps it.

    Of several workers' errors the one that explains the others counts: when one is lost, or raises, the collective
    operations of the others fail too.
    """
    chain = _chain(error)
    if any(isinstance(one, lost.RayActorError) and one.preempted for one in chain):
        return "preemption"
    if any(isinstance(one, GONE) for one in chain):
        return "infrastructure"
    if any(isinstance(one, NO_MEMORY) for one in chain):
        return "out_of_memory"
    groups = [one for one in chain if isinstance(one, WorkerGroupError)]
    if groups:
        causes = {cause_of(failure) for failure in groups[0].worker_failures.values()}
        return "bug" if "bug" in causes else "divergence" if "divergence" in causes else "infrastructure"
    if any(_passes(one) for one in chain):
        return "infrastructure"
    return "divergence" if any(isinstance(one, DivergedError) for one in chain) else "bug"


def _passes(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in DISK:
        return True
    return isinstance(error, PASSING) or (isinstance(error, RuntimeError) and bool(COLLECTIVE.search(str(error))))


def _chain(error: BaseException) -> list[BaseException]:
    """An error, what it was raised from, and what Ray's errors carry: of a task, of workers, of a controller."""
    found: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or any(one is other for other in found):
            continue
        found.append(one)
        waiting += [one.__cause__, None if one.__suppress_context__ else one.__context__]
        waiting += wrapped_by(one)
        if isinstance(one, WorkerGroupError):
            waiting += one.worker_failures.values()
        if isinstance(one, ControllerError):
            waiting.append(one.controller_failure)
        if isinstance(one, TuneError):
            waiting += one.args
    return found


def trace_of(error: BaseException) -> str:
    """An error's traceback as text: where it was raised, in whatever process that was."""
    remote = [str(one) for one in _chain(error) if isinstance(one, (lost.RayTaskError, WorkerGroupError))]
    text = remote[0] if remote else "".join(traceback.format_exception(error))
    return plain(text).strip()[-LONGEST_TRACE:]


def reason_of(error: BaseException) -> str:
    """An error in one line: the message of what was raised first, without what wraps it."""
    wrappers = (lost.RayTaskError, WorkerGroupError, ControllerError)
    one = next((one for one in _chain(error) if not isinstance(one, wrappers)), error)
    words = " ".join(plain(str(one)).split())
    return f"{type(one).__name__}: {words}"[:500] if words else type(one).__name__


def plain(text: str) -> str:
    """Text without the colours of a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def record_failure(folder: RunFolder, error: BaseException, cause: Cause) -> dict[str, Any]:
    """End a run folder as failed, its traceback in a note; returns what Tune and the sampler are told: no value."""
    trace = trace_of(error)
    if folder.ending() is None:
        folder.note(cause, trace)
        folder.end("failed", f"{cause}: {reason_of(error)}")
    return {"done": True, "failed": cause, "trace": trace}
