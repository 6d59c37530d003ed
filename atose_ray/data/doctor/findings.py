"""What a check of the doctor gives: a finding (findings.yaml has their words), and the clips it is about."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from atose_ray.data.doctor.facts import Clip
from atose_ray.data.doctor.words import Count
from atose_ray.data.shards import Manifest
from atose_ray.types import Split, package_yaml

TABLES = package_yaml(__package__, "findings.yaml")
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


def finding(name: str, flags: Sequence[Flag] = (), **words: Any) -> Finding:
    """A finding of findings.yaml, with the words that its sentences leave open."""
    about = TABLES["findings"][name]
    kind = about.get("kind", name)
    what, hint = (about[key].format(n=Count(len(flags)), kind=kind, **words) for key in ("what", "hint"))
    return Finding(about["severity"], kind, what, hint, tuple(flags), about.get("quarantine", True))


def flagged(name: str, clips: Iterable[tuple[Clip, str]], **words: Any) -> Iterator[Finding]:
    """A finding about clips and what each of them has; none where there is no clip."""
    flags = [Flag(clip.name, clip.split, detail, clip.facts.clip_id) for clip, detail in clips]
    if flags:
        yield finding(name, flags, **words)


def kind_of(manifest: Manifest) -> str:
    """Which adapter listed the data set."""
    return str(manifest.dataset.get("kind", "?"))
