"""Ray Train's controller in the trial's own process.

A trial of a worker group is a process of Ray Tune's, which only waits for Ray Train. Left alone, Ray Train starts two
more processes beside it, the controller and a queue for reports to Tune, and every one of them imports PyTorch before
the first worker is asked for. Here the trial's process is the controller, and reports to Tune itself.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import ray
from ray import tune
from ray.train import Result, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.controller import TrainController

from atose_ray.runtime.cluster import ENVIRONMENT


class TrialTrainer(TorchTrainer):  # type: ignore[misc]
    """A TorchTrainer that runs its controller in the calling process where that is an actor, as a Tune trial is."""

    def _initialize_and_run_controller(self, **settings: Any) -> Result:
        if ray.get_runtime_context().get_actor_id() is None:  # a driver: workers need an actor to speak to
            return super()._initialize_and_run_controller(**settings)
        for name, value in ENVIRONMENT.items():  # the controller reads them; a driver's do not reach other nodes
            os.environ.setdefault(name, value)
        controller = TrainController(**settings)
        try:
            asyncio.run(controller.run())
        except BaseException:  # Tune ends a trial by SystemExit at its next report, and keeps the process
            controller._controller_callback_manager.invoke_best_effort("before_controller_abort")
            if controller._worker_group is not None:
                controller._worker_group.abort()
            raise
        return controller.get_result()


class ReportToTune(UserCallback):  # type: ignore[misc]
    """Hands the reports of rank 0 on to the Tune trial whose process the controller runs in."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        """metrics: one dict per worker."""
        tune.report(metrics[0].copy())
