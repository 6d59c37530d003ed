"""Which part of a file is asked for, and whether the file has it."""

from typing import NamedTuple

from atose_ray.audio.guard import AudioError

LONGEST_S = 24 * 3600  # of a part: more is a header that lies
TOLERANCE_S = 0.1  # annotations are rounded: an end may lie this far behind the file's end


class Part(NamedTuple):
    """Seconds of a file; `end_s=None` is its end."""

    name: str
    start_s: float
    end_s: float | None

    def __str__(self) -> str:
        return f"from {self.start_s:g} s to {'its end' if self.end_s is None else f'{self.end_s:g} s'}"

    def check(self) -> None:
        """Raises AudioError for a part that no file can have."""
        if not self.start_s >= 0 or (self.end_s is not None and not self.end_s > self.start_s):
            raise AudioError(
                f"{self.name}: a part must have 0 <= start_s < end_s, but it goes {self}; correct the annotation"
            )

    def window(self, total: int, rate_hz: int) -> tuple[int, int]:
        """First sample and last sample + 1 of the part. Raises AudioError when it is not inside the file."""
        if total <= 0:
            raise AudioError(f"{self.name}: holds no samples; fetch or record it again, or leave it out")
        seconds = total / rate_hz
        if self.start_s >= seconds or (self.end_s is not None and self.end_s > seconds + TOLERANCE_S):
            raise AudioError(
                f"{self.name}: the part {self} was asked for, but the file is {seconds:.2f} s long; "
                "correct the annotation, or fetch the whole file"
            )
        first = round(self.start_s * rate_hz)
        last = total if self.end_s is None else min(round(self.end_s * rate_hz), total)
        if last <= first:
            raise AudioError(
                f"{self.name}: the part {self} is shorter than one sample at {rate_hz} Hz; correct the annotation"
            )
        self.check_length(last - first, rate_hz)
        return first, last

    def check_length(self, samples: int, rate_hz: int) -> None:
        """Raises AudioError for more samples than anybody records in one go."""
        if samples > LONGEST_S * rate_hz:
            raise AudioError(
                f"{self.name}: {samples / rate_hz / 3600:.0f} h of audio are declared, more than the "
                f"{LONGEST_S // 3600} h that are read at a time: the header is damaged, or give start_s and end_s"
            )
