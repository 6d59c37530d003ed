"""TagSincNet's fused sinc front end against its two-convolution form, and its training step against SampleCNN's.

    python -m benchmarks.sinc_front_end [--append] [--rounds 7] [--batch 4] [--threads 1] [--device cpu]

Both sides run in this process, in turns; a ratio is the median over the rounds of (slow / fast) of one round, with its
range. Published size: 256 filters of 2501 taps, 128 channels, crops of 59049 samples, float32, eager.
`--append` adds one JSON line to benchmarks/results/sinc_front_end.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from atose_ray.audio.sinc import PUBLISHED_RATE_HZ, SincBank, sinc_stem
from atose_ray.encoders import EncoderConfig, SampleCNNConfig, TagSincNetConfig
from atose_ray.types import AudioInput, DataSpec
from benchmarks.timing import Timed, append, arguments, in_turns, noise, seconds, show, training_step

FILTERS, LENGTH, CHANNELS, SAMPLES = 256, 2501, 128, 59049


def two_convolutions(audio_BT: torch.Tensor, bank_SL: torch.Tensor, stem: nn.Conv1d) -> torch.Tensor:
    """The published form: zeros on both sides, the bank without change of length, the stem."""
    half = bank_SL.shape[1] // 2
    padded_BT = functional.pad(audio_BT, (half, half))
    out_BCF: torch.Tensor = stem(functional.conv1d(padded_BT[:, None], bank_SL[:, None], padding=half))
    return out_BCF


def front_end(form: Callable[..., torch.Tensor], audio_BT: torch.Tensor) -> Timed:
    """One run of bank and stem: seconds of the forward pass, and of forward and backward."""
    torch.manual_seed(0)
    device = audio_BT.device.type
    bank = SincBank(FILTERS, LENGTH, PUBLISHED_RATE_HZ, published=True).to(device)
    stem = nn.Conv1d(FILTERS, CHANNELS, 3, stride=3).to(device)
    cotangent = torch.randn(len(audio_BT), CHANNELS, (SAMPLES + LENGTH - 1) // 3).to(device)

    def run() -> tuple[float, ...]:
        start = seconds(device)
        out_BCF = form(audio_BT, bank(), stem)
        heard = seconds(device)
        torch.autograd.backward(out_BCF, cotangent)
        return heard - start, seconds(device) - start

    return run


def step_of(config: EncoderConfig, audio_BT: torch.Tensor) -> Timed:
    """One run of forward, backward and Adam: its seconds."""
    torch.manual_seed(0)
    spec = DataSpec(input=AudioInput(sample_rate_hz=16000, clip_samples=SAMPLES), tags=("tag",), exclusive=False)
    encoder = config.build(spec).to(audio_BT.device)
    return training_step(encoder, torch.optim.Adam(encoder.parameters(), lr=1e-4), audio_BT)


def main() -> None:
    """Measure, print, and append when asked."""
    args = arguments(__doc__, rounds=7, batch=4, threads=1).parse_args()
    torch.set_num_threads(args.threads)
    audio_BT = noise(args.batch, SAMPLES, args.device)

    forward, both = in_turns(front_end(two_convolutions, audio_BT), front_end(sinc_stem, audio_BT), args.rounds)
    sinc, sample = TagSincNetConfig(), SampleCNNConfig(block="rese")
    (step,) = in_turns(step_of(sinc, audio_BT), step_of(sample, audio_BT), args.rounds)
    results = {
        "front end forward: two convolutions / fused": forward,
        "front end forward and backward: two convolutions / fused": both,
        "training step: tag_sinc_net / sample_cnn rese": step,
    }
    for name, row in results.items():
        show(name, row, args.rounds)
    if args.append:
        append("sinc_front_end", args, results)


if __name__ == "__main__":
    main()
