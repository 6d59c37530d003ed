"""Ray Train: the same run in 1..n DDP workers. gloo on CPUs, nccl on GPUs, by what each worker was given."""

from collections.abc import Sequence
from typing import Any

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from atose_ray.config import SearchConfig
from atose_ray.runtime.cluster import cluster, cluster_nodes, ray_storage
from atose_ray.runtime.nodes import check_nodes
from atose_ray.runtime.ray_private import logs_folder, own_node_is_draining, run_controller_here
from atose_ray.runtime.shared import SharedRefs, source_of
from atose_ray.search.board import Board
from atose_ray.search.costs import FLOOR
from atose_ray.search.plan import make_plan
from atose_ray.search.ranking import Ranking
from atose_ray.storage import Store
from atose_ray.storage.lease import Lease
from atose_ray.training.folds import begin
from atose_ray.training.loop import to_the_end
from atose_ray.training.notice import Watch
from atose_ray.training.record import EpochRecord
from atose_ray.training.run import Job, trained_on, use_threads
from atose_ray.training.sync_norm import ddp


def worker_loop(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs. config: {"job": Job, "threads": int, "shared", "stream_bytes": of a search}."""
    job: Job = config["job"]
    use_threads(job.run.execution.threads or config["threads"])
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    lease = Lease(Store(job.folder_uri)).take() if rank == 0 else None
    source = source_of(job.run.execution.ingest, config["shared"], config["stream_bytes"])
    watch = Watch(own_node_is_draining)
    source |= {"rank": rank, "world": world}
    folder, training = begin(job, lambda opened: ddp(opened.device, world), watch.notice, **source)
    name, metric = str(job.about.get("name", "run")), job.run.metric
    ranking = Ranking(job.run, folder.epochs())
    board = Board(folder, name, metric, logs_folder()) if rank == 0 else None

    def report(record: EpochRecord) -> None:
        if lease is not None and board is not None:
            lease.check()
            board.add(record)
        ray.train.report(ranking.line(record))

    result = to_the_end(folder, training, report)
    watch.close()
    if lease is not None and board is not None:
        board.close("ended")
        lease.release()
    if result.objective is None:
        ray.train.report({metric: FLOOR, "epoch": 1})


def train_on_ray(
    job: Job,
    search: SearchConfig,
    gpus: float,
    name: str,
    folder_uri: str,
    callbacks: Sequence[Any] = (),
    *,
    shared: SharedRefs | None = None,
    stream_bytes: int | None = None,
) -> None:
    """Run a job in `search.workers_per_trial` workers and wait for its end. shared, stream_bytes: of `source_of`.

    A worker that dies or raises is restarted, with its group, from the run folder's last checkpoint. Raises ray.train's
    TrainingFailedError when that happens more than `search.max_failures` times.
    """
    threads = max(1, int(search.cpus_per_worker))
    given = {"job": job.on_device(gpus), "threads": threads, "shared": shared, "stream_bytes": stream_bytes}
    each = {"CPU": search.cpus_per_worker, **({"GPU": gpus} if gpus > 0 else {})}
    tries, storage = FailureConfig(max_failures=search.max_failures), ray_storage(Store(folder_uri))
    trainer = TorchTrainer(
        worker_loop,
        train_loop_config=given,
        scaling_config=ScalingConfig(num_workers=search.workers_per_trial, use_gpu=gpus > 0, resources_per_worker=each),
        torch_config=TorchConfig(backend="nccl" if gpus > 0 else "gloo"),
        run_config=RunConfig(name=name, **storage, failure_config=tries, callbacks=list(callbacks)),
    )
    if ray.get_runtime_context().get_actor_id() is not None:  # of a trial; workers need an actor to speak to
        run_controller_here(trainer)
    trainer.fit()


def train_alone(job: Job, search: SearchConfig, cpus: int | None, address: str | None) -> None:
    """Plan for one job, and run it in its workers on a cluster of its own (or that of `address`). Raises PlanError."""
    store, folder = Store(job.store_uri), Store(job.folder_uri)
    with cluster(cpus, address):
        plan = make_plan(search, job.run.execution.ingest == "ray_data", cluster_nodes(), trial_cpus=0.0)
        print("\n".join(plan.lines()), flush=True)
        check_nodes(store, folder, trained_on(job.run, store))
        train_on_ray(job, search, plan.worker_gpus, job.run.signature(), folder.child("ray").uri)
