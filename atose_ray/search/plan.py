"""The plan of a search, before its first trial: how many trials run at a time, what each takes, and which nodes are to
be started for it. (Where the clips come from: search/clip_plan.py.)

Ray does not refuse what can never be placed: it waits in silence. So first fit is tried, and shown, first.
"""

import dataclasses
from dataclasses import dataclass

from atose_ray.config import SearchConfig
from atose_ray.search.cluster_file import PlanError
from atose_ray.search.nodes import Bundle, Nodes, Placement, times

TRIAL_CPUS = 0.01
DATA_CPUS = 0.5
NODE_WAIT_S = 900.0  # for nodes of one type, before a search goes on without them: GPU machines take minutes to start


@dataclass(frozen=True)
class Plan:
    """How many trials run at a time, and what each takes.

    workers: 0 is training inside the trial's own actor. data_cpus: kept free for one Ray Data task per trial.
    available: nodes that run and that may be started.
    """

    concurrency: int
    workers: int
    trial_cpus: float
    worker_cpus: float
    worker_gpus: float
    data_cpus: float
    available: Nodes

    @property
    def cpus_per_trial(self) -> float:
        """CPUs of one trial with all its processes."""
        return self.trial_cpus + self.workers * self.worker_cpus + self.data_cpus

    @property
    def gpus_per_trial(self) -> float:
        """GPUs of one trial."""
        return max(self.workers, 1) * self.worker_gpus

    @property
    def trains(self) -> Bundle:
        """What each process that trains asks for."""
        return Bundle(max(self.workers, 1), self.worker_cpus if self.workers else self.trial_cpus, self.worker_gpus)

    @property
    def bundles(self) -> tuple[Bundle, ...]:
        """What the processes of one trial ask for, those that train first. Ray Data's task may be on any node."""
        above = self.trial_cpus if self.workers else 0.0
        return self.trains, *(Bundle(1, cpus) for cpus in (self.data_cpus, above) if cpus)

    def placed(self) -> Placement | None:
        """Where first fit puts as many trials as run at a time; None where it cannot."""
        return self.available.first_fit(times(self.concurrency, self.bundles))

    def arithmetic(self) -> str:
        """The sum, as a person would write it, and what processes share."""
        each, available = self.gpus_per_trial, self.available
        text = (
            f"{self.concurrency} x ({self.trial_cpus:g} trial + {self.workers} x {self.worker_cpus:g} worker + "
            f"{self.data_cpus:g} data) = {self.concurrency * self.cpus_per_trial:g} of {available.cpus:g} CPUs; "
            f"{self.concurrency} x {each:g} = {self.concurrency * each:g} of {available.gpus:g} GPUs"
        )
        if 0 < self.worker_gpus < 1:
            text += f"; up to {int(1 / self.worker_gpus + 1e-9)} trials share a GPU, fewer where models of their size "
            text += "were seen to need more of its memory; the first of a size has one alone"
        return text

    def to_start(self) -> dict[int, int]:
        """How many nodes of each kind (by index) have to be started for it."""
        placed = self.placed()
        return dict(placed.started) if placed else {}

    def lines(self) -> list[str]:
        """For the console: the sum, and the nodes where there are several or some are to be started."""
        lines, started = [f"plan: {self.arithmetic()}"], self.to_start()
        if started:
            kinds = [f"{count} x {self.available.kinds[index].text()}" for index, count in started.items()]
            lines.append(
                f"nodes: {self.available.text()}. For this plan {' and '.join(kinds)} are started; a type that has not "
                f"come after {NODE_WAIT_S / 60:g} min is named, and the search goes on with what is there"
            )
        elif sum(kind.up for kind in self.available.kinds) > 1:
            lines.append(f"nodes: {self.available.text()}")
        return lines


def make_plan(search: SearchConfig, streams: bool, available: Nodes, trial_cpus: float = TRIAL_CPUS) -> Plan:
    """The largest (or the asked) number of concurrent trials that first fit places.

    streams: whether trials read through Ray Data. trial_cpus: of the process above a worker group (Tune's; `train` has
    none). Raises PlanError, with the sum and the nodes, when not even one trial fits.
    """
    inline = search.workers_per_trial == 0
    one = Plan(
        concurrency=1,
        workers=search.workers_per_trial,
        trial_cpus=search.cpus_per_worker if inline else trial_cpus,
        worker_cpus=search.cpus_per_worker,
        worker_gpus=available.gpus_each(search.gpus_per_worker),
        data_cpus=DATA_CPUS if streams else 0.0,
        available=available,
    )
    check_gpus(one)
    if not available.holds(one.trains):
        raise PlanError(
            f"a worker needs {one.trains.text()} on one node, but no node has that: {available.text()}; lower "
            "search.cpus_per_worker or search.gpus_per_worker, or use larger nodes"
        )
    most = available.most_trials(one.bundles, search.concurrency or search.trials)
    asked = search.concurrency or max(most, 1)
    plan = dataclasses.replace(one, concurrency=min(asked, search.trials))
    if most < plan.concurrency:
        raise PlanError(
            f"the cluster cannot run this search: {plan.arithmetic()}, on nodes {available.text()}, where a process is "
            f"on one node. At most {most} trial(s) fit at a time: lower search.concurrency, workers_per_trial, "
            "cpus_per_worker or gpus_per_worker (train: --workers), or add nodes"
        )
    return plan


def check_gpus(plan: Plan) -> None:
    """Raises PlanError for a number of GPUs that no process can have."""
    gpus = plan.worker_gpus
    if gpus > 1 and gpus != int(gpus):
        raise PlanError(f"search.gpus_per_worker is a part of one GPU, or whole ones, but got {gpus:g}")
    if 0 < gpus < 1 and plan.workers > 1:
        raise PlanError(
            f"search.gpus_per_worker={gpus:g} with search.workers_per_trial={plan.workers}: the workers of a trial "
            "could share a GPU, and NCCL refuses two ranks on one device. Use whole GPUs, or workers_per_trial=0, "
            "where several trials share one"
        )
