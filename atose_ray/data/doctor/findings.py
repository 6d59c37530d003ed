"""What a check of the doctor gives: a finding, and the clips it is about."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from atose_ray.data.shards import Manifest
from atose_ray.types import Split

OWN_SPLITS = ("folder", "frames", "demo")  # elsewhere the publisher fixed the split: another one ends all comparison


@dataclass(frozen=True)
class Flag:
    """A clip at fault. clip_id is None where the shards do not hold it."""

    name: str
    split: Split
    detail: str
    clip_id: int | None = None


@dataclass(frozen=True)
class Finding:
    """what: a sentence with the numbers. hint: what to do. flags: the clips at fault, where they are single clips.
    quarantine: the flagged clips belong into quarantine.csv."""

    severity: Literal["error", "warning", "note"]
    kind: str
    what: str
    hint: str
    flags: tuple[Flag, ...] = ()
    quarantine: bool = True

    def as_json(self) -> dict[str, Any]:
        """The finding as JSON types."""
        tree = asdict(self)
        tree["clips"] = [{key: one[key] for key in ("name", "split", "detail")} for one in tree.pop("flags")]
        del tree["quarantine"]
        return tree


def kind_of(manifest: Manifest) -> str:
    """Which adapter listed the data set."""
    return str(manifest.dataset.get("kind", "?"))


def counted(count: int, noun: str, verb: str = "") -> str:
    """`1 clip is`, `3 clips are`."""
    one = {"are": "is", "have": "has", "carry": "carries"}
    words = (str(count), noun if count == 1 else noun + "s", one.get(verb, verb) if count == 1 else verb)
    return " ".join(word for word in words if word)


def share(part: int, whole: int) -> str:
    """`3 of 60 (5 %)`."""
    return f"{part} of {whole} ({part / max(whole, 1):.0%})"


def first_few(texts: Sequence[str], count: int, mark: str = ", ") -> str:
    """The first few, and how many more there are."""
    more = f"{mark}and {len(texts) - count} more" if len(texts) > count else ""
    return mark.join(texts[:count]) + more
