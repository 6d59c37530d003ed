"""Published figures (published.yaml), each beside the protocol that it was taken with."""

import functools

from pydantic import Field, TypeAdapter

from atose_ray.types import Config, Split, package_yaml


class Figures(Config):
    """Published scores of one data set under one protocol.

    tags: how many the data set had. metrics: what we call these scores. systems: name -> scores in that order, as
    shares of 1 (d_prime as it is), None where one was not published. logs: a second training of the same systems by
    their authors, as their repository logged it. incomparable: why there are none, where there seem to be some."""

    source: str = ""
    tags: int = 0
    metrics: tuple[str, ...] = ()
    systems: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)
    logs: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)
    incomparable: str | None = None


@functools.cache
def figures() -> dict[str, dict[str, Figures]]:
    """Data set -> protocol -> figures."""
    return TypeAdapter(dict[str, dict[str, Figures]]).validate_python(package_yaml(__package__, "published.yaml"))


def published_figures(dataset: str, tags: int, split: Split, protocol: str) -> Figures | None:
    """The figures that scores of this data set may stand beside, or None: they are of test splits with all tags."""
    found = figures().get(dataset, {}).get(protocol)
    return found if found and found.systems and split == "test" and tags == found.tags else None


def no_figures(dataset: str, split: Split, protocol: str) -> str:
    """What to say where `published_figures` is None."""
    text = "no published figure for this data set and protocol"
    found = figures().get(dataset, {}).get(protocol)
    if found and found.systems:
        return f"{text} beside these scores: the published ones are of the test split with {found.tags} tags"
    return f"{text}: {found.incomparable}" if found else text
