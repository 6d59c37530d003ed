"""Words that records and closing lines need: known without PyTorch."""

from collections.abc import Mapping, Sequence

CLIP_NAME = "clip"


def interval_words(name: str, bounds: Mapping[str, Sequence[float]], folds: int = 0) -> str:
    """The interval of a score and how it was made, for a person; nothing where it has none. folds: of how many the
    score is the mean."""
    if name not in bounds:
        return ""
    low, high = bounds[name]
    return f"95 % {low:.4f} to {high:.4f}, {f'Student over {folds} folds' if folds else interval_maker(name)}"


def interval_maker(name: str) -> str:
    """How `score_intervals` makes the interval of a score."""
    return "Wilson" if name in ("accuracy", "probe_accuracy") else "bootstrap over clips"
