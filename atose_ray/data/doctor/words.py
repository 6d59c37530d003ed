"""Numbers and lists as the doctor's sentences say them."""

from collections.abc import Sequence


class Count(int):
    """A number that a sentence counts with: `{clips:clip|are}` is `1 clip is`, `3 clips are`."""

    def __format__(self, words: str) -> str:
        return counted(self, *words.split("|")) if words else str(int(self))


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
