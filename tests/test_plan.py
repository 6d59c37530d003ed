"""The resource plan: what provably fits is planned, what cannot is refused with the arithmetic."""

from pathlib import Path

import pytest

from atose_ray.config import SearchConfig
from atose_ray.search.plan import PlanError, Resources, make_plan, yaml_resources

LAPTOP = Resources(cpus=2, gpus=0, node_cpus=2, node_gpus=0)
GPUS = Resources(cpus=64, gpus=8, node_cpus=16, node_gpus=2)


def search(**fields: object) -> SearchConfig:
    return SearchConfig.model_validate(fields)


@pytest.mark.parametrize("available", [LAPTOP, GPUS, Resources(5, 0, 5, 0)])
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("streams", [False, True])
def test_every_plan_fits(available: Resources, workers: int, streams: bool) -> None:
    try:
        plan = make_plan(search(workers_per_trial=workers, trials=100), streams, available)
    except PlanError:
        assert available is LAPTOP and (workers == 2 or streams)
        return
    assert plan.concurrency >= 1
    assert plan.concurrency * plan.cpus_per_trial <= available.cpus
    assert plan.concurrency * plan.gpus_per_trial <= available.gpus
    more = plan.concurrency + 1
    assert more * plan.cpus_per_trial > available.cpus or more * plan.gpus_per_trial > available.gpus


def test_gpus_are_used_where_there_are_some() -> None:
    assert make_plan(search(), False, GPUS).worker_gpus == 1
    assert make_plan(search(workers_per_trial=2, trials=9), False, GPUS).concurrency == 4
    assert make_plan(search(), False, LAPTOP).worker_gpus == 0
    assert make_plan(search(gpus_per_worker=0.5), False, GPUS).concurrency == 16


@pytest.mark.parametrize(
    ("fields", "available", "message"),
    [
        (
            {"workers_per_trial": 2},
            LAPTOP,
            r"1 x \(0\.01 trial \+ 2 x 1 worker \+ 0 data\) = 2\.01 of 2 CPUs.*At most 0 trial",
        ),
        ({"concurrency": 3}, LAPTOP, r"3 x .* = 3 of 2 CPUs.*At most 2 trial.*search\.concurrency"),
        ({"cpus_per_worker": 4}, LAPTOP, r"a worker needs 4 CPUs and 0 GPUs on one node.*largest node has 2 CPUs"),
        ({"gpus_per_worker": 1}, LAPTOP, r"needs 1 CPUs and 1 GPUs on one node.*0 GPUs"),
        ({"workers_per_trial": 16, "gpus_per_worker": 1}, GPUS, r"1 x 16 = 16 of 8 GPUs"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_sum(fields: dict, available: Resources, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make_plan(search(**fields), False, available)


def test_autoscaling_cluster_is_planned_on_its_maxima(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "max_workers: 4\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 4}}\n  gpu: {max_workers: 4, resources: {CPU: 8, GPU: 1}}\n"
    )
    assert yaml_resources(str(path)) == Resources(cpus=36, gpus=4, node_cpus=8, node_gpus=1)
    path.write_text("available_node_types: {head: {}}")
    with pytest.raises(PlanError, match="states no CPU"):
        yaml_resources(str(path))


@pytest.mark.parametrize("name", ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "gpu.yaml"])
def test_the_maxima_of_every_shipped_cluster_file_are_read(name: str) -> None:
    found = yaml_resources(str(Path(__file__).resolve().parents[1] / "cluster" / name))
    assert (found.node_gpus, found.gpus, found.node_cpus) == (1, 4, 8)


def test_a_manifest_without_cpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text("apiVersion: ray.io/v1\nkind: RayCluster\nspec: {headGroupSpec: {}}\n")
    with pytest.raises(PlanError, match="states no CPU"):
        yaml_resources(str(tmp_path / "none.yaml"))
