"""A node that gets notice, as a spot instance does: what trains there saves itself within the epoch that runs."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from processes import environment, wait_for

from atose_ray.storage import Store
from atose_ray.training.record import RunFolder
from atose_ray.training.resume import last_checkpoint
from atose_ray.training.run import Job


def train(job: Job) -> None:
    """In an actor: a training whose steps take half a second, and that saves itself by no clock."""
    from atose_ray.runtime.ray_private import own_node_is_draining
    from atose_ray.training.folds import begin
    from atose_ray.training.loop import Step
    from atose_ray.training.notice import Watch

    real = Step.__call__

    def slow(self: Step, *given: Any) -> Any:
        time.sleep(0.5)
        return real(self, *given)

    Step.__call__ = slow
    list(begin(job, notice=Watch(own_node_is_draining).notice)[1])


@pytest.mark.ray
@pytest.mark.slow
def test_a_training_on_a_node_with_notice_saves_itself_at_once(tiny_run, tiny_store, tmp_path: Path) -> None:
    run = tiny_run(execution={"threads": 1, "checkpoint_every": "100h"})
    stages = (run.method.stages[0].model_copy(update={"epochs": 400}),)  # it must not end before the notice comes
    run = run.model_copy(update={"method": run.method.model_copy(update={"stages": stages})})
    job = Job(run, tiny_store.uri, str(tmp_path / "run"), {})
    folder = RunFolder(Store(job.folder_uri))

    def midway() -> bool:
        assert not ray.wait([running], timeout=0)[0], ray.get(running)
        kept = last_checkpoint(folder)
        return kept is not None and 0 < kept.position.step < kept.position.steps

    with tempfile.TemporaryDirectory(prefix="atr-", ignore_cleanup_errors=True) as scratch:
        began = ray.init(num_cpus=1, include_dashboard=False, _temp_dir=scratch, log_to_driver=False)
        try:
            ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
            running = ray.remote(num_cpus=1, max_retries=0)(train).remote(job)
            wait_for("the first epoch", lambda: folder.epochs())
            assert not midway()
            command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--deadline-remaining-seconds", "600"]
            command += ["--address", began.address_info["gcs_address"], "--node-id", ray.nodes()[0]["NodeID"]]
            command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a spot notice"]
            subprocess.run(command, check=True, capture_output=True, env=environment())
            wait_for("a checkpoint within an epoch", midway)
            ray.cancel(running, force=True)
        finally:
            ray.shutdown()
