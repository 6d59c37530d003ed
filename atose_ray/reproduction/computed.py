"""Rows that need nothing but this package: parameter counts, recipes value by value, what follows from a formula."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from atose_ray.config import RunConfig, apply_overrides, run_config
from atose_ray.methods import Method
from atose_ray.objectives import PairwiseMarginConfig
from atose_ray.reproduction.claims import ParametersRow, RecipeRow, ValueRow, claims
from atose_ray.reproduction.record import Figure, Result, judged, near
from atose_ray.search.space import load_tree
from atose_ray.types import DataSpec, TagSet

ALL = "all"


def configured(study: str, overrides: tuple[str, ...]) -> RunConfig:
    """What `train STUDY --set ...` would train."""
    return run_config(apply_overrides(load_tree(study, overrides), overrides), study)


def parameters(row: ParametersRow) -> Result:
    """Build the network as published, and count."""
    facts = claims().data[row.data]
    names = tuple(f"tag {number}" for number in range(facts["tags"]))
    run = configured(row.study, row.set)
    spec = DataSpec(input=facts["input"], tags=names, exclusive=facts.get("exclusive", False))
    crop = min(run.encoder.published_length, spec.input.length)
    spec = spec.model_copy(update={"input": spec.input.of_length(crop)})
    vectors_CV = torch.zeros(len(names), facts["vector"]) if "vector" in facts else None
    method = run.method.build(run.encoder.build(spec), spec, TagSet(names, vectors_CV))
    figures = []
    for part, (trainable, *total) in row.published.items():
        ours = counted(method, part)
        for name, published, found in zip(("trainable", "with statistics"), (trainable, *total), ours, strict=False):
            figures.append(Figure(f"{part}, {name}", published, found, 0, found == published))
    return judged(figures)


def counted(method: Method, part: str) -> tuple[int, int]:
    """Trainable numbers of parts joined by +, and those with running statistics."""
    modules = [method] if part == ALL else [method.get_submodule(name) for name in part.split("+")]
    trainable = sum(one.numel() for module in modules for one in module.parameters())
    running = (one for module in modules for name, one in module.named_buffers() if ".running_" in name)
    return trainable, trainable + sum(one.numel() for one in running)


def recipe(row: RecipeRow) -> Result:
    """Every published value beside ours."""
    run = configured(row.study, row.set)
    crop = run.encoder.published_length if run.data.crop_seconds in ("published", None) else None
    return judged(list(compared(row.published, {**run.model_dump(mode="json"), "crop": crop}, "")))


def compared(published: Any, ours: Any, path: str) -> Iterator[Figure]:
    """The leaves of the published tree, each beside ours."""
    if isinstance(published, dict):
        for key, value in published.items():
            inner = ours.get(key) if isinstance(ours, dict) else None
            yield from compared(value, inner, f"{path}.{key}" if path else key)
    elif isinstance(published, list) and published and isinstance(published[0], dict):
        theirs = ours if isinstance(ours, (list, tuple)) else ()
        yield Figure(f"{path}, how many", len(published), len(theirs), 0, len(published) == len(theirs))
        for number, value in enumerate(published):
            yield from compared(value, theirs[number] if number < len(theirs) else None, f"{path}.{number}")
    else:
        same = list(published) == list(ours or ()) if isinstance(published, list) else published == ours
        yield Figure(path, published, ours, 0, same)


def value(row: ValueRow) -> Result:
    """Every logged number beside ours."""
    compute = VALUES[row.compute]
    return judged([near(name, one, compute(row.options[name]), row.tolerance) for name, one in row.published.items()])


def pairwise_floor(latent: int) -> float:
    """The published loss of stage 1 where audio and tags are one uniform unit vector of so many numbers."""
    uniform_BD = torch.full((1, latent), latent**-0.5)
    return float(PairwiseMarginConfig(margin=0.4).loss(uniform_BD, uniform_BD, torch.zeros(1, 1)))


VALUES: dict[str, Callable[[Any], float]] = {"pairwise_floor": pairwise_floor}
