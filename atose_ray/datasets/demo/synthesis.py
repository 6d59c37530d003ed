"""The instruments of the demo data: numbers -> sound, by the classical synthesis methods, in numpy.

Every instrument is one function `(pitch_hz, samples, force, timbre, rng) -> [samples]`: one note, at about unit level,
where `force` (0 softest, 1 hardest) changes the colour as it does on the real instrument, not only the level. Sources:

    plucked    K. Karplus, A. Strong, "Digital synthesis of plucked-string and drum timbres", CMJ 7(2), 1983, with the
               fractional delay and the plucking position of D. Jaffe, J. Smith, "Extensions of the Karplus-Strong
               plucked-string algorithm", same issue
    struck     modal synthesis with the stiff-string partials of H. Fletcher, JASA 36, 1964: f_k = k f sqrt(1 + B k^2)
    bowed      Helmholtz motion is close to a saw-tooth; the body is a few fixed resonances
    sung       source and filter: G. Fant, "Acoustic theory of speech production", 1960; formants of men after
               G. Peterson, H. Barney, JASA 24, 1952
    saw-tooth  V. Valimaki, A. Huovilainen, "Antialiasing oscillators in subtractive synthesis", IEEE Signal Processing
               Magazine 24(2), 2007 (polyBLEP)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from atose_ray.types import package_yaml

RATE_HZ = 16000
Samples = NDArray[np.float64]
Rng = np.random.Generator
VOWELS_HZ: list[list[float]] = package_yaml(__package__, "genres.yaml")["vowels"]


class Timbre(NamedTuple):
    """How one artist's instrument differs from the next artist's. All are drawn once per artist and instrument."""

    bright: float  # 0 dull .. 1 bright
    ring: float  # factor on decay times
    attack: float  # factor on attack times
    vibrato_hz: float
    vibrato: float  # depth, relative to the pitch
    size: float  # factor on the frequencies of fixed resonances (small bodies and heads are above 1)
    detune: float  # spread of several voices, relative to the pitch
    noise: float  # factor on breath, bow and finger noise

    @classmethod
    def draw(cls, rng: Rng) -> "Timbre":
        """One artist's instrument."""
        low = (0.1, 0.6, 0.6, 4.6, 0.003, 0.9, 0.002, 0.4)
        high = (0.9, 1.7, 1.7, 6.8, 0.012, 1.12, 0.008, 1.8)
        return cls(*(float(value) for value in rng.uniform(low, high)))


def envelope(samples: int, attack_s: float, release_s: float) -> Samples:
    """Rises in `attack_s`, stands, falls in `release_s` before the end; both as half a cosine."""
    rise = min(samples // 2, max(1, int(attack_s * RATE_HZ)))
    fall = min(samples // 2, max(1, int(release_s * RATE_HZ)))
    level = np.ones(samples)
    level[:rise] = 0.5 - 0.5 * np.cos(np.pi * np.arange(rise) / rise)
    level[samples - fall :] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(fall) / fall)
    return level


def vibrato_phase(pitch_hz: float, samples: int, timbre: Timbre, depth: float, rng: Rng) -> Samples:
    """Phase in cycles of a tone whose vibrato sets in after about 0.15 s."""
    seconds = np.arange(samples) / RATE_HZ
    wobble = np.sin(2 * np.pi * (timbre.vibrato_hz * seconds + rng.random())) * np.minimum(1.0, seconds / 0.15)
    return np.cumsum(pitch_hz / RATE_HZ * (1 + depth * timbre.vibrato * wobble)) + rng.random()


def saw(phase: Samples, step: float) -> Samples:
    """Saw-tooth from a phase in cycles; the jump is smoothed over one sample each side against aliasing (polyBLEP)."""
    turn = phase % 1.0
    wave: Samples = 2 * turn - 1
    early, late = turn < step, turn > 1 - step
    ahead = turn[early] / step
    behind = (turn[late] - 1) / step
    wave[early] -= 2 * ahead - ahead * ahead - 1
    wave[late] -= behind * behind + 2 * behind + 1
    return wave


def fft_size(samples: int) -> int:
    """A size at or a little above `samples` that the FFT is fast for: 8 to 16 times a power of two."""
    unit = 1 << max(0, samples.bit_length() - 4)
    return -(-samples // unit) * unit


def shape(audio_T: Samples, peaks: Sequence[tuple[float, float, float]], floor: float, lowpass_hz: float) -> Samples:
    """Filters by a magnitude response: `floor` plus resonances (hz, width_hz, gain), and a second-order low-pass."""
    size = fft_size(len(audio_T) + 256)
    hz = np.fft.rfftfreq(size, 1 / RATE_HZ)
    response = np.full(len(hz), floor)
    for centre_hz, width_hz, gain in peaks:
        response += gain / (1 + ((hz - centre_hz) / (0.5 * width_hz)) ** 2)
    response /= 1 + (hz / lowpass_hz) ** 4
    return np.fft.irfft(np.fft.rfft(audio_T, size) * response, size)[: len(audio_T)]


def ringing(partials_hz: Samples, t60_s: Samples, levels: Samples, samples: int) -> Samples:
    """Sum of decaying sines; `exp(a (iB + j)) = exp(a i B) exp(a j)` makes it one small product. By einsum and not by
    BLAS, whose threads would make it slow on a busy machine."""
    block = 256
    power = (-np.log(1000) / t60_s + 2j * np.pi * partials_hz) / RATE_HZ
    coarse = levels[:, None] * np.exp(power[:, None] * (block * np.arange(-(-samples // block))))
    fine = np.exp(power[:, None] * np.arange(block))
    waves: Samples = np.einsum("ki,kj->ij", coarse.real, fine.imag) + np.einsum("ki,kj->ij", coarse.imag, fine.real)
    return waves.reshape(-1)[:samples]


# Instruments with strings, hammers and skins


def pluck(
    pitch_hz: float, samples: int, force: float, timbre: Timbre, rng: Rng, t60_s: float = 1.6, soft: float = 0.5
) -> Samples:
    """Karplus-Strong: a noise burst in a loop of one period with a two-point average; `soft` 0 is bright, 1 dull.

    Solved in the frequency domain on a circle outside the unit circle (so that the ringing does not wrap around),
    which gives fractional periods for free. Those ring before their time too: hence the fade-out below the Nyquist
    frequency, which keeps that short, and the padding, which takes it up."""
    size = fft_size(samples + 400)
    radius = 10 ** (3 / size)
    period = RATE_HZ / pitch_hz
    burst = rng.uniform(-1, 1, max(2, round(period)))
    delay = np.log(radius) + 2j * np.pi * np.fft.rfftfreq(size)  # z^-d = exp(-d delay)
    one = np.exp(-delay)
    average = float(np.clip(0.5 * soft + 0.25 * (1 - timbre.bright), 0.05, 0.5))
    loop = (
        10 ** (-3 / (t60_s * timbre.ring * pitch_hz))
        * np.exp(-(period - average) * delay)
        * (1 - average + average * one)
    )
    dull = float(np.clip(0.9 - 0.5 * timbre.bright - 0.5 * force + 0.4 * soft, 0.0, 0.95))  # less force: a duller burst
    excitation = np.fft.rfft(burst * radius ** -np.arange(len(burst)), size) * (1 - dull) / (1 - dull * one)
    plucked_at = 0.1 + 0.5 * abs(timbre.size - 1)  # of the string's length
    excitation *= 1 - 0.9 * np.exp(-plucked_at * period * delay)
    excitation *= 0.5 + 0.5 * np.cos(np.pi * np.clip(np.fft.rfftfreq(size, 1 / RATE_HZ) / 1000 - 7, 0, 1))
    note = np.fft.irfft(excitation / (1 - loop), size)[:samples] * radius ** np.arange(samples)
    return note * envelope(samples, 0.0005, 0.03) * (2.0 / (1 + 2 * (1 - dull)))


def sitar(pitch_hz: float, samples: int, force: float, timbre: Timbre, rng: Rng) -> Samples:
    """A plucked string on a wide bridge: the buzz (jawari) is a bend of the wave that grows with its height."""
    note = pluck(pitch_hz, samples, 0.6 + 0.4 * force, timbre, rng, t60_s=2.2, soft=0.1)
    note /= np.abs(note).max() + 1e-9
    buzz = np.sin((3 + 3 * timbre.bright) * np.pi * note) * np.abs(note)
    return note + (0.3 + 0.4 * force) * buzz


def strike(
    pitch_hz: float, samples: int, force: float, timbre: Timbre, rng: Rng, t60_s: float = 3.0, slope: float = 1.3
) -> Samples:
    """A stiff string under a hammer: inharmonic partials, high ones decay faster; two slightly detuned strings beat."""
    stiffness = 2e-4 * (pitch_hz / 260) ** 1.3 * timbre.size**4
    order = np.arange(1, 25)
    partials_hz = order * pitch_hz * np.sqrt(1 + stiffness * order**2)
    order, partials_hz = order[partials_hz < 7600], partials_hz[partials_hz < 7600]
    tilt = slope + 0.9 * (1 - force) + 0.6 * (0.5 - timbre.bright)
    levels = order**-tilt * np.abs(np.sin(np.pi * order / 7.5))
    t60 = t60_s * timbre.ring * np.sqrt(260 / pitch_hz) / (1 + 0.25 * (order - 1))
    beat_hz = pitch_hz * timbre.detune * 0.15 * rng.uniform(0.5, 1.0)
    note = ringing(np.concatenate((partials_hz, partials_hz + beat_hz)), np.tile(t60, 2), np.tile(levels, 2), samples)
    thump = rng.standard_normal(samples) * np.exp(-np.arange(samples) / (0.006 * RATE_HZ)) * 0.08 * force
    return (note + thump) * envelope(samples, 0.002, 0.05)


def bow(pitch_hz: float, samples: int, force: float, timbre: Timbre, rng: Rng, attack_s: float = 0.07) -> Samples:
    """A bowed string before its body: saw-tooth with vibrato, bow noise, a slow attack."""
    wave = saw(vibrato_phase(pitch_hz, samples, timbre, 1.0, rng), pitch_hz / RATE_HZ)
    scratch = rng.standard_normal(samples) * (0.03 + 0.05 * force) * timbre.noise
    return (wave + scratch) * envelope(samples, attack_s * timbre.attack * (1.5 - force), 0.06)


def section(pitch_hz: float, samples: int, force: float, timbre: Timbre, rng: Rng) -> Samples:
    """Three desks of bowed strings, each a little out of tune and time."""
    desks = [
        bow(pitch_hz * (1 + timbre.detune * offset), samples, force, timbre, rng, attack_s=0.18)
        for offset in (-1.0, 0.2, 1.0)
    ]
    return np.asarray(np.sum(desks, axis=0) * 0.6)


# Wind and voice


def blow(pitch_hz: float, samples: int, force: float, timbre: Timbre, rng: Rng) -> Samples:
    """A flute: few harmonics, more of them when blown harder, breath noise around the tone, the level trembles too."""
    phase = 2 * np.pi * vibrato_phase(pitch_hz, samples, timbre, 0.6, rng)
    second = 0.15 + 0.35 * force * (0.5 + timbre.bright)
    wave = (
        np.sin(phase) + second * np.sin(2 * phase) + 0.4 * second * np.sin(3 * phase) + 0.1 * second * np.sin(4 * phase)
    )
    breath = shape(
        rng.standard_normal(samples), [(pitch_hz, pitch_hz, 1.0), (2.5 * pitch_hz, pitch_hz, 0.5)], 0.05, 6500.0
    )
    tremble = 1 + 0.15 * np.sin(2 * np.pi * timbre.vibrato_hz * np.arange(samples) / RATE_HZ + rng.uniform(0, 6.28))
    return (0.7 * wave * tremble + 0.25 * timbre.noise * breath) * envelope(samples, 0.05 * timbre.attack, 0.05)


def sing(
    pitch_hz: float, samples: int, force: float, timbre: Timbre, rng: Rng, head: float = 1.0, voices: int = 1
) -> Samples:
    """Glottal pulses through formants that glide from vowel to vowel; `head` scales them (men 1, women 1.17)."""
    source = np.zeros(samples)
    for _ in range(voices):
        off = 1 + timbre.detune * rng.uniform(-1.5, 1.5) * (voices > 1)
        source += saw(vibrato_phase(pitch_hz * off, samples, timbre, 2.2, rng), pitch_hz / RATE_HZ)
    source = source / np.sqrt(voices) + 0.06 * timbre.noise * rng.standard_normal(samples)
    glide = np.linspace(0, 1, samples) ** 2
    first, second = rng.integers(len(VOWELS_HZ), size=2)
    sung = np.zeros(samples)
    for vowel, weight in ((first, 1 - glide), (second, glide)):
        formants_hz = [formant_hz * head * timbre.size for formant_hz in VOWELS_HZ[vowel]] + [3400.0 * head]
        gains = (1.0, 0.6, 0.3 + 0.3 * force, 0.2 * force)
        peaks = list(zip(formants_hz, (90.0, 110.0, 170.0, 400.0), gains, strict=True))
        sung += weight * shape(source, peaks, 0.02, 2500.0 + 3000.0 * timbre.bright)
    sung *= envelope(samples, (0.05 if voices == 1 else 0.2) * timbre.attack, 0.07)
    return 1.6 * sung


# Synthesisers


def pad(pitch_hz: float, samples: int, force: float, timbre: Timbre, rng: Rng) -> Samples:
    """Two detuned saw-tooths behind a closed filter, faded in and out."""
    wave = np.zeros(samples)
    for side in (-1, 1):
        step = pitch_hz / RATE_HZ * (1 + side * timbre.detune)
        wave += saw(rng.random() + step * np.arange(samples, dtype=np.float64), step)
    soft = shape(wave, [], 1.0, 300.0 + 1200.0 * timbre.bright * (0.4 + force))
    return soft * envelope(samples, 0.5 * timbre.attack, 0.4)


def lead(pitch_hz: float, samples: int, force: float, timbre: Timbre, rng: Rng) -> Samples:
    """A pulse wave (two saw-tooths) behind a resonant filter that closes after the attack."""
    step = pitch_hz / RATE_HZ
    phase: Samples = rng.random() + step * np.arange(samples, dtype=np.float64)
    wave = saw(phase, step) - saw(phase + 0.3 + 0.2 * timbre.bright, step)
    cutoff_hz = (500.0 + 2500.0 * timbre.bright) * timbre.size * (0.6 + 0.8 * force)
    closed = shape(wave, [(cutoff_hz, 0.25 * cutoff_hz, 1.5)], 1.0, cutoff_hz)
    opened = np.exp(-np.arange(samples) / (0.08 * timbre.ring * RATE_HZ)) * (0.3 + force)
    return (closed + opened * wave) * 0.5 * envelope(samples, 0.003, 0.03)


def membrane(pitch_hz: float, samples: int, drop: float, t60_s: float) -> Samples:
    """A skin whose pitch falls from (1 + drop) times `pitch_hz`: kick, tom, the low hand of a tabla."""
    seconds = np.arange(samples) / RATE_HZ
    phase = np.cumsum(pitch_hz * (1 + drop * np.exp(-seconds / 0.03))) / RATE_HZ
    return np.sin(2 * np.pi * phase) * 10 ** (-3 * seconds / t60_s) * envelope(samples, 0.001, 0.01)


def rattle(low_hz: float, width_hz: float, samples: int, t60_s: float, rng: Rng) -> Samples:
    """Decaying noise around `low_hz`: snare wires, hi-hats, claps."""
    noise = rng.standard_normal(samples) * 10 ** (-3 * np.arange(samples) / RATE_HZ / t60_s)
    return shape(noise, [(low_hz, width_hz, 1.0)], 0.0, 9000.0)


def tabla(pitch_hz: float, samples: int, t60_s: float) -> Samples:
    """The right hand of a tabla: a loaded skin, whose partials are nearly harmonic (C. V. Raman, 1934)."""
    order = np.array([1.0, 2.0, 3.01, 4.01, 5.03])
    return ringing(order * pitch_hz, t60_s / np.sqrt(order), 0.5 / order, samples)
