"""cluster/gpu.yaml holds against Ray's own schema, and a search can be planned from it."""

from pathlib import Path

import pytest
import yaml

from atose_ray.config import SearchConfig
from atose_ray.runtime.cluster import make_plan, yaml_resources

GPU_YAML = Path(__file__).resolve().parents[1] / "cluster" / "gpu.yaml"


def test_gpu_yaml_is_valid_for_ray_up() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    tree = yaml.safe_load(GPU_YAML.read_text())
    validate_config(prepare_config(dict(tree)))
    with pytest.raises(Exception, match="idel_timeout"):
        validate_config(prepare_config({**tree, "idel_timeout_minutes": 1}))
    assert all(kind.get("max_workers", 0) <= tree["max_workers"] for kind in tree["available_node_types"].values())
    assert "0.0.0.0" not in GPU_YAML.read_text()


def test_a_search_fits_its_maxima() -> None:
    available = yaml_resources(str(GPU_YAML))
    assert available.gpus == 4
    plan = make_plan(SearchConfig(workers_per_trial=2), True, available)
    assert plan.concurrency == 2 and plan.worker_gpus == 1
