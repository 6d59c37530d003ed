"""What a run is and what a study is: types, limits and defaults, composed from the parts' own configs.

A run's identity is `RunConfig.signature()`: the hash of everything that can change its result."""

import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import torch
import yaml
from pydantic import BaseModel, Field, ValidationError, field_serializer, model_validator

from atose_ray.data.config import DataConfig as DataConfig
from atose_ray.data.downstream import OF_PROBE, DownstreamConfig
from atose_ray.encoders import AnyEncoderConfig, SampleCNNConfig
from atose_ray.execution import ExecutionConfig as ExecutionConfig
from atose_ray.methods import AnyMethodConfig, Method, SupervisedConfig
from atose_ray.optim import AdamConfig, OptimizerConfigs
from atose_ray.tags.vectors import AnyTagVectorsConfig
from atose_ray.types import ByKind, Config, DataSpec, TagSet

SPEED: dict[str, Any] = {"execution": True, "data": {"residency": True}}  # how fast a run is; see RunConfig.signature
OF_CLIPS = ("pr_auc_macro", "roc_auc_macro", "pr_auc_micro", "f1_macro_at_0.5", "accuracy")  # evaluation/metrics.py
OF_UNSEEN = tuple(  # evaluation/ranking.py, of the tags that a tag split holds out for validation
    f"{group}_{way}_{metric}"
    for group in ("unseen", "harmonic", "seen")
    for way in ("retrieval", "annotation")
    for metric in ("roc_auc", "map")
)
OBJECTIVES = (*OF_CLIPS, *OF_UNSEEN, *OF_PROBE)

SINCE = (
    ("", "init_from"), ("", "tag_vectors"), ("data", "fold"), ("data", "tag_split"), ("data", "tracks"),
    ("data", "sampling"), ("data", "track_split"), ("data", "noise"), ("", "probe"), ("data", "augment"),
    ("encoder", "spec_augment"), ("method", "tagging"),
)  # fmt: skip


class ConfigError(ValueError):
    """A configuration that cannot be: the message names the path, what was expected and what came."""


class InitFrom(Config):
    """Weights that a training begins with; which parts then train is for the method's stages to say.

    uri: a model folder, or a file of tensors (.safetensors, .pt without other objects, .npz), such as a published
    checkpoint; several of a folder as `*.pt`. parts: the method's, of the folder. prefix: what stands before the names
    in the file. sha256: of what is read; filled in when a run is resolved, so that other weights are another run."""

    uri: str = Field(min_length=1)
    parts: tuple[str, ...] = ("encoder",)
    prefix: str = ""
    sha256: str | None = None


class RunConfig(Config):
    """One training, whole: what `train` takes and what a trial of a search is.

    tag_vectors: for methods that read them; others leave them alone. probe: scores of every epoch beside those of the
    validation split. metric: validation metric that picks the best epoch (a search sets it to its own)."""

    data: DataConfig = DataConfig()
    encoder: AnyEncoderConfig = SampleCNNConfig()
    init_from: InitFrom | None = None
    method: AnyMethodConfig = SupervisedConfig()
    tag_vectors: AnyTagVectorsConfig | None = None
    optim: OptimizerConfigs = AdamConfig()
    probe: DownstreamConfig | None = None
    metric: Literal[OBJECTIVES] = "pr_auc_macro"  # type: ignore[valid-type]
    seed: int = Field(default=0, ge=0, lt=2**31)
    execution: ExecutionConfig = ExecutionConfig()

    @model_validator(mode="after")
    def _parts_fit(self) -> "RunConfig":
        if self.execution.ingest == "ray_data" and self.data.residency in ("host", "device"):
            raise ValueError(
                f"data.residency={self.data.residency} keeps the clips in memory, but execution.ingest=ray_data "
                "streams them; set execution.ingest=local, or data.residency=stream"
            )
        if self.data.augment is not None and self.data.augment.softens_tags and not self.method.takes_soft_tags:
            raise ValueError(
                "data.augment.mixup and .label_smoothing make tags between 0 and 1, which method "
                f"{self.method.kind} with these settings cannot take; set both to 0, or take supervised"
            )
        self.method.check_encoder(self.encoder.kind)
        cached = any(self.method.cached_crops(index) for index in range(len(self.method.stages)))
        if self.data.sampling == "class_queue" and (self.data.crops_per_clip > 1 or cached):
            raise ValueError(
                "data.sampling=class_queue draws single crops in batches of its own: leave data.crops_per_clip at 1, "
                "and set `cache: off` where the encoder rests, or take class_balanced"
            )
        if self.method.reads_vectors and self.tag_vectors is None:
            raise ValueError(f"method {self.method.kind} reads tag vectors: set tag_vectors.kind (in a study's base)")
        if self.metric in OF_PROBE and self.probe is None:
            raise ValueError(
                f"metric {self.metric} is of another prepared set: name it by probe.dataset (in a study's base)"
            )
        if self.probe is not None and not self.method.EMBEDS_CLIPS:
            raise ValueError(f"probe needs one vector of a clip, which method {self.method.kind} has not; leave it out")
        holds_out = self.data.tag_split is not None and self.data.tag_split.holds_out
        if self.metric in OF_UNSEEN and not holds_out:
            raise ValueError(f"metric {self.metric} is of held-out tags: set data.tag_split.valid_share or .held_out")
        if holds_out and not self.method.scores_unseen:
            raise ValueError(
                f"data.tag_split holds out tags for validation, but method {self.method.kind} cannot score a tag "
                "that it was not trained on; leave valid_share out, or take a method with tag vectors"
            )
        if holds_out and self.tag_vectors is not None and self.tag_vectors.CLOSED:
            raise ValueError(
                f"tag_vectors {self.tag_vectors.kind} are made of the training clips' tags, so a held-out tag would be "
                "known; take vectors of words (glove, table, sentence)"
            )
        return self

    def signature(self, workers: int = 0, halved: bool = False) -> str:
        """12 hexadecimal digits of the SHA-256 of what decides a run's result: the resolved config without what changes
        only its speed, and of its execution what is not as it was before it counted.

        A precision that is named counts; `auto` is what each machine resolves it to, and about.json says which it was.
        workers: where they are several, whose sums round in another order. halved: whether memory ran out, so that
        batches went in two halves (training/step.py)."""
        identity = self.model_dump(mode="json", exclude=SPEED)
        named = {"precision": self.execution.precision, "workers": workers, "halved": halved}
        usual = {"precision": ("auto",), "workers": (0, 1), "halved": (False,)}
        identity |= {key: value for key, value in named.items() if value not in usual[key]}
        for part, since in SINCE:  # where they are not used, a run is what it was before they existed
            branch = identity[part] if part else identity
            if branch.get(since) in (None, "uniform", "all"):
                branch.pop(since, None)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    def model_spec(self, spec: DataSpec) -> DataSpec:
        """The facts the model is built from: those of the data, with the crop as clip length.

        Raises ConfigError when the encoder cannot be built for them."""
        crop = self.data.crop_seconds
        if not isinstance(crop, float):
            raise ConfigError("data.crop_seconds is not resolved yet: training.run.resolve the run first")
        of_crop = spec.model_copy(update={"input": spec.input.of_length(round(crop * spec.input.rate_hz))})
        try:
            self.encoder.check(of_crop)
        except ValueError as error:
            raise ConfigError(f"encoder {self.encoder.kind} with data.crop_seconds={crop}: {error}") from error
        return of_crop

    def build(self, spec: DataSpec, tags: TagSet | None = None) -> Method:
        """The method around its encoder, freshly initialised from torch's current random state.

        tags: with the vectors that the method reads; None leaves room for them, to be filled by loading weights.
        Raises ConfigError when the encoder cannot be built."""
        model_spec = self.model_spec(spec)
        if tags is None:
            width = self.tag_vectors.width if self.tag_vectors else None
            tags = TagSet(spec.tags, torch.zeros(len(spec.tags), width) if width else None)
        return self.method.build(self.encoder.build(model_spec), model_spec, tags)


class PrunerConfig(Config):
    """When a trial is given up, by its best value so far at the same epoch count. Only epochs of stages whose scores
    may be ranked against other methods' count and are compared: not those that a decoder scores (search/ranking.py).

    asha: asynchronous successive halving (Li et al. 2020): at epochs grace_epochs * reduction_factor^k a trial goes on
    only if it is in the best 1/reduction_factor so far. median: after grace_epochs, a trial goes on while not below
    the median of the others' running means at that epoch (Golovin et al. 2017). none: every trial is finished."""

    kind: Literal["asha", "median", "none"] = "asha"
    grace_epochs: int = Field(default=2, ge=1)
    reduction_factor: float = Field(default=2, gt=1)


class SearchConfig(Config):
    """How a space is searched.

    metric: validation metric to maximise. costs: what to minimise beside it (search/costs.py); the result is then a
    Pareto front, and nothing is pruned. In a file, `objective: [pr_auc_macro, params]` says both.
    epochs: of every trial in all, its stages scaled in proportion, for a quick look; None leaves them as they are.
    trials: how many configurations. concurrency: trials at a time; None is as many as the cluster holds.
    workers_per_trial: 0 trains inside the trial's own actor, n >= 1 in n Ray Train (DDP) workers.
    gpus_per_worker: None is one where the cluster has GPUs or may start some, else none; a fraction lets trials of one
        process share a GPU.
    sampler: Optuna's. grid takes every combination of a space of choices and stepped ranges.
    startup_trials: random trials before tpe and cmaes learn, or the population of nsga2.
    points: configurations to try first, parameter name -> value; what a point leaves open is sampled.
    warm_start: studies of the same store whose trials the sampler learns from.
    budget: 20m, 3h, 40gpu-h, 200cpu-h or $25; at the limit no further trial begins (search/budget.py).
    repeat: whether a configuration equal to one that this study has finished, seed included, is trained once more
        instead of taking its result.
    storage: Optuna's, for its dashboard: sqlite:///file or postgresql://...; None is a journal in the study's folder.
    max_failures: restarts of a trial whose process or node was lost. loggers: runtime/loggers.py."""

    metric: str = "pr_auc_macro"
    costs: tuple[Literal["params", "latency_ms", "train_seconds", "gpu_seconds"], ...] = ()
    epochs: int | None = Field(default=None, ge=1, le=100_000)
    trials: int = Field(default=50, ge=1)
    concurrency: int | None = Field(default=None, ge=1)
    workers_per_trial: int = Field(default=0, ge=0, le=1024)
    cpus_per_worker: float = Field(default=1, gt=0)
    gpus_per_worker: float | None = Field(default=None, ge=0)
    sampler: Literal["tpe", "random", "grid", "nsga2", "cmaes"] = "tpe"
    startup_trials: int = Field(default=10, ge=1)
    points: tuple[dict[str, Any], ...] = ()
    warm_start: tuple[str, ...] = ()
    pruner: PrunerConfig = PrunerConfig()
    budget: str | None = None
    repeat: bool = False
    storage: str | None = None
    seed: int = Field(default=0, ge=0, lt=2**31)
    max_failures: int = Field(default=1, ge=0)
    loggers: tuple[Literal["mlflow", "wandb"], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _metric_and_costs(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or "objective" not in tree:
            return tree
        objective = tree["objective"]
        if {"metric", "costs"} & set(tree) or not isinstance(objective, list | tuple) or not objective:
            raise ValueError(
                "objective is a list, the metric first and then what to minimise, instead of metric and costs, but got "
                f"{objective!r}"
            )
        metric, *costs = objective
        return {**{key: tree[key] for key in tree if key != "objective"}, "metric": metric, "costs": costs}

    @model_validator(mode="after")
    def _settings_fit(self) -> "SearchConfig":
        if self.metric not in OBJECTIVES:
            raise ValueError(f"metric is one of {', '.join(OBJECTIVES)}, but got {self.metric!r}")
        if len(set(self.costs)) != len(self.costs):
            raise ValueError(f"costs names one twice: {', '.join(self.costs)}")
        if self.sampler == "cmaes" and self.costs:
            raise ValueError("sampler cmaes has one objective; with costs use tpe, nsga2, random or grid")
        if self.warm_start and self.sampler != "tpe":
            raise ValueError(f"warm_start needs sampler tpe, which learns from other trials, but got {self.sampler}")
        if self.storage is not None and not re.match(r"sqlite:///.|postgresql(\+\w+)?://.", self.storage):
            raise ValueError(
                "storage is sqlite:///FILE or postgresql://USER@HOST/DATABASE, or nothing for a journal in the study's "
                f"folder, but got {public_url(self.storage)!r}"
            )
        return self

    @field_serializer("storage")
    def _without_password(self, storage: str | None) -> str | None:
        return storage and public_url(storage)


def public_url(url: str) -> str:
    """A database's URL without its password, wherever it stands and whatever is in it: as it is shown and written."""
    address, mark, query = url.partition("?")
    address = re.sub(r"^(postgres\w*(?:\+\w+)?://[^:/]*):.*@", r"\1@", address)
    kept = [part for part in query.split("&") if part and "password" not in part.partition("=")[0].lower()]
    return address + mark * bool(kept) + "&".join(kept)


class StudyConfig(Config):
    """A search: `base` (a partial RunConfig), `space` (a tree of the same shape), `search`."""

    base: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any] = Field(default_factory=dict)
    search: SearchConfig = SearchConfig()


def run_config(tree: Mapping[str, Any], where: str = "config") -> RunConfig:
    """A RunConfig from a nested mapping. Raises ConfigError with the path of every mistake."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, where)) from error


def explain(error: ValidationError, where: str, model: type[Config] = RunConfig) -> str:
    """Pydantic's errors as `path: what was expected, but got what`, with a suggestion for a misspelt key."""
    lines = []
    for item in error.errors():
        path = ".".join(str(part) for part in item["loc"]) or "(top)"
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: no such key{_suggest(item['loc'], model)}")
        elif isinstance(item["input"], (dict, list)) or item["type"] == "missing":
            lines.append(f"{path}: {item['msg']}")
        else:
            lines.append(f"{path}: {item['msg']}, but got {item['input']!r}")
    return f"{where}: " + "; ".join(lines)


def _suggest(loc: tuple[str | int, ...], model: type[Config]) -> str:
    """A hint at the known key that is nearest to a misspelt or misplaced one; of another branch with its full path."""
    key, places = str(loc[-1]), list(_places(model))
    branches = {path[:depth] for path, _ in places for depth in range(len(path))}
    here: tuple[str, ...] = ()
    for part in loc[:-1]:  # without numbers, and without the kinds that pydantic names in between
        here = (*here, str(part)) if (*here, str(part)) in branches else here
    exact = [(path, kind) for path, kind in places if path[-1] == key]
    if exact:
        path, kind = min(exact, key=lambda one: (len(one[0]) - 2 * _shared(one[0][:-1], here), len(one[0])))
        if path[:-1] == here:
            return f" here; {key} belongs to {'.'.join((*here, 'kind'))}={kind}"
        if path[:-1] in ((), ("base",)):
            return f"; did you mean {'.'.join(path)!r}?"
        return f" here; {key} belongs to {'.'.join(path[:-1])}: did you mean {'.'.join(path)}?"
    beside = sorted({path[-1] for path, _ in places if path[:-1] == here})
    if close := difflib.get_close_matches(key, beside, n=1):
        return f"; did you mean {close[0]!r}?"
    elsewhere = {path[-1]: ".".join(path) for path, _ in reversed(places)}
    close = difflib.get_close_matches(key, sorted(elsewhere), n=1)
    return f"; did you mean {elsewhere[close[0]]!r}?" if close else ""


def _shared(path: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many parts two paths begin with together."""
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(path, other, strict=False))))


def _places(
    model: type[BaseModel], path: tuple[str, ...] = (), kind: str = ""
) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path of a key, kind of the config that it stands in) for a config's fields and all that may stand in them."""
    for name, field in model.model_fields.items():
        yield (*path, name), kind
        tables = [mark.table.values() for mark in field.metadata if isinstance(mark, ByKind)]
        for below in dict.fromkeys(itertools.chain(*tables, _models_in(field.annotation))):
            its_kind = below.model_fields["kind"].default if "kind" in below.model_fields else ""
            yield from _places(below, (*path, name), str(its_kind))
    if model is StudyConfig:
        yield from _places(RunConfig, ("base",))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models_in(part)]


def apply_overrides(tree: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """`a.b=c` assignments on a nested mapping; a changed `kind` empties its branch, whose keys belong to the old kind.
    Values are YAML (`--set method.latent=64`, `--set optim.lr=1e-3`). Raises ConfigError for a malformed assignment."""
    result: dict[str, Any] = json.loads(json.dumps(tree))
    for assignment in assignments:
        path, mark, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not mark or not all(keys):
            raise ConfigError(f"an override is PATH=VALUE such as encoder.kind=sample_cnn, but got {assignment!r}")
        branch = result
        for key in keys[:-1]:
            if branch.get(key) is None:  # not there, or there is none of it so far
                branch[key] = {}
            branch = branch[key]
            if not isinstance(branch, dict):
                raise ConfigError(f"{assignment!r}: {key!r} is a value, not a branch, so {path!r} does not exist")
        value = yaml_value(text, assignment)
        if keys[-1] == "kind" and branch.get("kind") != value:
            branch.clear()
        branch[keys[-1]] = value
    return result


def yaml_value(text: str, assignment: str) -> Any:
    """The value in an assignment on the command line. Raises ConfigError when it is not YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{assignment!r}: the value {text!r} is not YAML; quote it if it is text") from error


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`change` laid over `base`, branch by branch; a branch whose `kind` changes replaces the old one whole."""
    result = dict(base)
    for key, value in change.items():
        before = result.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            changes_kind = "kind" in value and value["kind"] != before.get("kind")
            result[key] = dict(value) if changes_kind else merge(before, value)
        else:
            result[key] = value
    return result
