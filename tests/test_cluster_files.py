"""cluster/: every file holds against the schema of the program that reads it, opens no port and holds no secret."""

from __future__ import annotations

import copy
import importlib
import json
import logging
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml
from kuberay_fields import faults
from processes import ROOT

from atose_ray.config import SearchConfig
from atose_ray.search.cluster_file import node_types
from atose_ray.search.plan import make_plan

CLUSTER = ROOT / "cluster"
RAY_UP = sorted(CLUSTER.glob("g*.yaml"))
KUBERAY = sorted((CLUSTER / "kuberay").glob("*.yaml"))
TEXTS = [path for path in sorted(CLUSTER.rglob("*")) if path.is_file()]
SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|ASIA[0-9A-Z]{16}|-----BEGIN|aws_secret_access_key\s*[:=]|\bya29\.|[0-9a-f]{64}|password\s*[:=]",
    re.IGNORECASE,
)


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def ray_up_cluster(tree: dict) -> dict:
    """A `ray up` file as Ray completes it. Raises what Ray raises."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    complete = prepare_config(copy.deepcopy(tree))
    validate_config(complete)
    return complete


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_ray_up_takes_it(path: Path) -> None:
    tree = load(path)
    complete = ray_up_cluster(tree)
    json.dumps(complete)  # so it travels to the head
    for wrong in ({"idel_timeout_minutes": 1}, {"max_workers": 1.5}, {"head_node_type": "haed"}):
        with pytest.raises(Exception, match=str(next(iter(wrong.values()))) + "|" + next(iter(wrong))):
            ray_up_cluster({**tree, **wrong})
    assert complete["idle_timeout_minutes"] <= 15
    workers = {name: kind for name, kind in tree["available_node_types"].items() if name != tree["head_node_type"]}
    assert all(kind["min_workers"] == 0 and kind["max_workers"] <= tree["max_workers"] for kind in workers.values())
    commands = [line for name, lines in complete.items() if name.endswith("_commands") for line in lines]
    assert commands == [*tree["head_start_ray_commands"], *tree["worker_start_ray_commands"]]  # none of Ray's defaults


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_nobody_gets_in_without_a_key_and_the_token(path: Path) -> None:
    tree = load(path)
    spoken = re.sub(r"#.*", "", path.read_text())
    assert "0.0.0.0" not in spoken and "security_group" not in tree["provider"]
    assert tree["provider"]["use_internal_ips"] and tree["auth"]["ssh_proxy_use_node_id"]
    assert all("--dashboard-host=127.0.0.1" in line for line in tree["head_start_ray_commands"] if "--head" in line)
    assert "--env RAY_AUTH_MODE=token" in tree["docker"]["run_options"]
    assert tree["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    for name, kind in tree["available_node_types"].items():
        node = kind["node_config"]
        spot = node.get("InstanceMarketOptions", {}).get("MarketType") or node.get("scheduling", {}).get(
            "provisioningModel"
        )
        assert (spot or "").lower() == ("" if name == tree["head_node_type"] else "spot")
        assert node.get("SecurityGroupIds") or all("accessConfigs" not in port for port in node["networkInterfaces"])


def test_ray_launches_the_aws_nodes_and_makes_no_security_group(tmp_path: Path, monkeypatch) -> None:
    """Ray's own launcher, on moto: what it sends to EC2 is checked by AWS's model of the call."""
    import boto3
    from moto import mock_aws

    monkeypatch.setenv("HOME", str(tmp_path))  # for the key pair
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with mock_aws():
        from ray.autoscaler._private.aws.config import bootstrap_aws
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        text = (CLUSTER / "gpu.yaml").read_text()
        region = yaml.safe_load(text)["provider"]["region"]
        ec2, iam = boto3.client("ec2", region_name=region), boto3.client("iam", region_name=region)
        network = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
        ours = ec2.create_security_group(GroupName="atose", Description="atose", VpcId=network)
        for profile in ("atose-head", "atose-worker"):
            iam.create_instance_profile(InstanceProfileName=profile)
        text = text.replace("sg-YOUR-GROUP", ours["GroupId"])
        text = text.replace("ami-YOUR-IMAGE", ec2.describe_images()["Images"][0]["ImageId"])
        before = ec2.describe_security_groups()["SecurityGroups"]
        complete = bootstrap_aws(ray_up_cluster(yaml.safe_load(text)))
        assert ec2.describe_security_groups()["SecurityGroups"] == before
        assert not iam.list_roles()["Roles"]  # Ray's own would have rights to all of EC2 and S3
        on_the_head = tmp_path / "ray_bootstrap_config.yaml"  # where `ray up` leaves it, for `tune --cluster`
        on_the_head.write_text(json.dumps(complete))
        assert node_types(str(on_the_head)) == node_types(str(CLUSTER / "gpu.yaml"))

        provider = AWSNodeProvider(complete["provider"], complete["cluster_name"])
        for name, kind in complete["available_node_types"].items():
            tags = {"ray-node-type": "head" if name == "head" else "worker", "ray-node-name": name}
            provider.create_node(kind["node_config"], tags, 1)
        nodes = [node for group in ec2.describe_instances()["Reservations"] for node in group["Instances"]]
    assert sorted((node["InstanceType"], node.get("InstanceLifecycle")) for node in nodes) == [
        ("g5.2xlarge", "spot"),
        ("m6i.xlarge", None),
    ]
    for node in nodes:
        assert [group["GroupId"] for group in node["SecurityGroups"]] == [ours["GroupId"]]
        assert node["MetadataOptions"]["HttpTokens"] == "required"


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.name)
def test_prices_are_known_with_their_source_or_are_null(path: Path) -> None:
    tree = load(path)
    prices, sources = tree["metadata"]["usd_per_hour"], tree["metadata"]["prices_source"]
    assert set(prices) == set(sources) == set(tree["available_node_types"])
    for name, price in prices.items():
        assert price is None or (price > 0 and sources[name].startswith("https://"))
    if any(price is not None for price in prices.values()):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", tree["metadata"]["prices_seen"]) and tree["metadata"]["prices_of"]


@pytest.mark.parametrize("path", KUBERAY, ids=lambda path: path.name)
def test_kuberay_knows_every_field(path: Path) -> None:
    tree = load(path)
    assert tree["apiVersion"] == "ray.io/v1" and faults(tree["kind"], tree, tree["kind"]) == []
    job = tree["kind"] == "RayJob"
    spec = tree["spec"].get("rayClusterSpec", tree["spec"].get("rayClusterConfig", tree["spec"]))
    assert spec["authOptions"] == {"mode": "token"} and spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert f"ray=={spec['rayVersion']}\n" in (ROOT / "requirements.lock").read_text()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        names = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= names
            assert all("valueFrom" in entry or entry["name"] == "ATOSE_STORE" for entry in container["env"])
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    if job:
        assert shlex.split(tree["spec"]["entrypoint"])[:3] == ["python", "-m", "atose_ray.tune"]
        assert tree["spec"]["shutdownAfterJobFinishes"]


def test_the_service_is_one_that_ray_serve_and_we_can_start(monkeypatch) -> None:
    pytest.importorskip("fastapi", reason="needs the extra `serve`")
    from ray.serve.schema import ServeDeploySchema

    from atose_ray import serve
    from atose_ray.apps.service.config import ServiceConfig

    tree = load(CLUSTER / "kuberay" / "rayservice.yaml")
    config = yaml.safe_load(tree["spec"]["serveConfigV2"])
    [app] = ServeDeploySchema.model_validate(config).applications
    assert app.import_path == f"{serve.application.__module__}:{serve.application.__name__}"
    settings = ServiceConfig.model_validate(app.args["config"])
    [group] = tree["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    has = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert settings.replicas * settings.gpus <= int(has["nvidia.com/gpu"]) * group["replicas"]
    assert settings.replicas * settings.cpus <= int(has["cpu"]) * group["replicas"]
    monkeypatch.delenv("ATOSE_SERVE_TOKEN", raising=False)
    with pytest.raises(ValueError, match="set ATOSE_SERVE_TOKEN"):
        serve.application(app.args)
    monkeypatch.setenv("ATOSE_SERVE_TOKEN", "right")
    assert serve.application(app.args) is not None


def test_the_field_check_finds_what_it_is_for() -> None:
    tree = load(CLUSTER / "kuberay" / "raycluster.yaml")
    tree["spec"]["workerGroupSpecs"][0]["maxReplica"] = tree["spec"]["workerGroupSpecs"][0].pop("maxReplicas")
    tree["spec"]["headGroupSpec"]["serviceType"] = "clusterIP"
    tree["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] = 4
    assert faults("RayCluster", tree, "it") == [
        "it.spec.headGroupSpec.serviceType: expected ClusterIP|NodePort|LoadBalancer, but got 'clusterIP'",
        "it.spec.headGroupSpec.template.spec.containers[0].resources.limits.cpu: expected str, but got 4",
        "it.spec.workerGroupSpecs[0].maxReplica: WorkerGroupSpec has no such field",
        "it.spec.workerGroupSpecs[0].maxReplicas: is missing",
    ]


def test_a_search_fits_the_maxima_and_all_files_offer_the_same() -> None:
    for path in RAY_UP:
        available = node_types(str(path)).beside()
        assert available.text() == "1 x head (4 CPUs); to be started up to 4 x gpu (8 CPUs, 1 GPU)"
        plan = make_plan(SearchConfig(workers_per_trial=2), True, available)
        assert plan.concurrency == 2 and plan.worker_gpus == 1 and plan.to_start() == {1: 4}
    for path in KUBERAY:
        if load(path)["kind"] == "RayService":
            continue  # no search runs there
        assert "up to 4 x" in node_types(str(path)).beside().text()
        tree = load(path)["spec"]
        spec = tree.get("rayClusterSpec", tree)
        (workers,) = spec["workerGroupSpecs"]
        pods = [group["template"]["spec"] for group in (spec["headGroupSpec"], workers)]
        head, worker = (pod["containers"][0]["resources"]["limits"] for pod in pods)
        assert int(head["cpu"]) + workers["maxReplicas"] * int(worker["cpu"]) == 36
        assert workers["maxReplicas"] * int(worker["nvidia.com/gpu"]) == 4


def test_all_files_name_the_same_image_and_no_secret() -> None:
    everything = {path: path.read_text() for path in (*TEXTS, ROOT / "Dockerfile", ROOT / ".rayignore")}
    images = {image for text in everything.values() for image in re.findall(r"\S+/atose_ray:[\w.-]+", text)}
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert version and images == {f"YOUR-REGISTRY/atose_ray:{version[1]}"}
    for path, text in everything.items():
        found = SECRET.search(text)
        assert not found, f"{path.relative_to(ROOT)}: {found and found[0]}"
    assert SECRET.search("AKIA" + "A" * 16) and SECRET.search("AWS_SECRET_ACCESS_KEY: x") and SECRET.search("0f" * 32)


def test_the_cloud_lock_agrees_with_the_lock() -> None:
    def pins(path: Path) -> dict[str, str]:
        return dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), flags=re.MULTILINE))

    cloud = pins(CLUSTER / "requirements.lock")
    ours, dev = pins(ROOT / "requirements.lock"), pins(ROOT / "requirements-dev.lock")
    assert "boto3" in cloud and "google-api-python-client" in cloud and not set(cloud) & set(ours)
    assert all(version == dev[name] for name, version in cloud.items() if name in dev)
    assert cloud["boto3"] == ours["botocore"]


def readme_commands(start: str) -> list[list[str]]:
    """Command lines of cluster/README.md that begin so, continued lines joined, comments and redirections gone."""
    text = (CLUSTER / "README.md").read_text().replace("\\\n", " ")
    lines = [line.strip().partition(" > ")[0] for line in text.splitlines() if line.startswith("    ")]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(start)]


def test_the_readme_commands_are_ones_that_ray_and_the_verbs_take() -> None:
    from ray.scripts.scripts import cli

    seen = set()
    for _, *words in readme_commands("ray "):
        command = cli
        while hasattr(command, "commands"):
            name, *words = words
            command = command.commands[name]
        context = command.make_context(name, words)
        seen.add(context.command_path)
        entry = list(context.params.get("entrypoint") or ())
        if entry:
            assert entry[:2] == ["python", "-m"] and entry[2].startswith("atose_ray.")
            importlib.import_module(entry[2]).arguments().parse_args(entry[3:])
    assert {"up", "down", "dashboard", "submit", "get-auth-token"} <= {path.split()[-1] for path in seen}


def test_the_readme_names_files_that_exist() -> None:
    text = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"\bcluster/[\w./-]+\w", text))
    assert {"cluster/gpu.yaml", "cluster/gcp.yaml", "cluster/runtime_env.yaml"} <= named
    assert all((ROOT / name).exists() for name in named), sorted(named)
    for folder in ("kuberay", "grafana"):
        assert any(name.startswith(f"cluster/{folder}/") for name in named)


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """Ours are in one list; Ray's are in its own dashboards or in what its nodes export."""
    import ray

    ours = json.loads((CLUSTER / "grafana" / "metrics.json").read_text())
    tags = ["study", "trial", "metric"]
    assert all(set(entry) == {"help", "tags"} and entry["tags"] == tags for entry in ours.values())
    dashboard = json.loads((CLUSTER / "grafana" / "dashboards" / "search.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["definition"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
    asked = {name for query in queries for name in re.findall(r"\b(?:ray|autoscaler)_\w+", query)}
    assert {f"ray_{name}" for name in ours} == {name for name in asked if name.startswith("ray_atose_")}
    modules = Path(ray.__file__).parent / "dashboard" / "modules"
    shipped = (modules / "metrics/dashboards/default_dashboard_panels.py").read_text()
    exported = (modules / "reporter/reporter_agent.py").read_text()
    for name in asked - {f"ray_{name}" for name in ours}:
        assert re.search(rf"\b{name}\b", shipped) or f'"{name.removeprefix("ray_")}"' in exported, name
    assert {label for query in queries for label in re.findall(r"(\w+)=~", query)} == set(tags)


def test_grafana_finds_the_dashboard_and_the_panels_do_not_overlap() -> None:
    dashboard = json.loads((CLUSTER / "grafana" / "dashboards" / "search.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    (provider,) = load(CLUSTER / "grafana" / "provisioning" / "dashboards" / "atose_ray.yaml")["providers"]
    (source,) = load(CLUSTER / "grafana" / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    assert f"cluster/grafana/dashboards:{provider['options']['path']}:ro" in (CLUSTER / "README.md").read_text()
    assert source["type"] == "prometheus" and source["url"].startswith("http://127.0.0.1:")


def packed(folder: Path, target: Path) -> list[str]:
    """Pack a working directory as `ray job submit --runtime-env cluster/runtime_env.yaml` does; the names in it."""
    from ray._private.runtime_env.packaging import create_package
    from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

    def upload(working_dir: str, excludes: list[str], is_file: bool = False) -> None:
        assert not is_file
        create_package(working_dir, target, include_gitignore=True, excludes=excludes)

    runtime_env = load(CLUSTER / "runtime_env.yaml")
    assert runtime_env["working_dir"] == "." and "env_vars" not in runtime_env
    upload_working_dir_if_needed({**runtime_env, "working_dir": str(folder)}, include_gitignore=True, upload_fn=upload)
    with zipfile.ZipFile(target) as archive:
        return archive.namelist()


def test_a_job_sends_the_code_and_little_else(tmp_path: Path, monkeypatch, caplog) -> None:
    folder = tmp_path / "checkout"
    leave = (".git", ".venv", "venv", "atose_store*", "__pycache__", ".*_cache", "build", "*.egg-info")
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*leave))
    for name in (".git/objects/a", ".venv/lib/b", "venv/lib/b", "atose_store/data/c", "atose_store_2/raw/d"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(bytes(2**20))
    for name in ("my_store/data/mtat/train-0.parquet", "my_store/studies/mtat/best/model.safetensors", "mine/a.flac"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(bytes(2**20))
    for name in (".env", "key.pem", "auth_token", "cluster/credentials.json"):
        (folder / name).write_text("planted")
    monkeypatch.setenv("RAY_PACKAGE_SIZE_WARNING_MIB", "1")  # the size check that the README names
    monkeypatch.setattr(logging.getLogger("ray"), "propagate", True)  # a Ray that was up in this process changed both
    caplog.set_level("WARNING", logger="ray")
    names = packed(folder, tmp_path / "package.zip")
    assert "approaching the maximum upload size" in caplog.text
    code = {
        path.relative_to(ROOT).as_posix() for path in (ROOT / "atose_ray").rglob("*") if "__pycache__" not in str(path)
    }
    code = {name for name in code if (ROOT / name).is_file()}
    assert code | {"cluster/gpu.yaml", "search_spaces/mtat.yaml", "pyproject.toml"} <= set(names)
    planted = ("objects", "lib/b", "store", "mine/a", ".env", "key.pem", "auth_token", "credentials")
    sent = [name for name in names if not name.startswith(("atose_ray/", "tests/", "docs/")) and not name.endswith("/")]
    assert [name for name in sent if any(word in name for word in planted)] == []
    assert (tmp_path / "package.zip").stat().st_size < 5 * 2**20
