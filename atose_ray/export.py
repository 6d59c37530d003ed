"""`python -m atose_ray.export MODEL --to onnx`: a model for other runtimes, from audio to scores in one graph."""

import argparse
from typing import TYPE_CHECKING

from atose_ray import cli

if TYPE_CHECKING:
    from atose_ray.training.checkpoint import Model
    from atose_ray.types import Array

FORMATS = ("onnx", "torch_export")


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "export",
        "Write a model as one graph: crops of audio at its sample rate in, scores and embedding out, any number at a\n"
        "time; sample rate, tags and thresholds are in its metadata. What was written is run beside the model, and\n"
        "refused where it differs by more than 1e-4. The model card goes with it.",
        "  python -m atose_ray.export atose_store/studies/demo/best --to onnx\n"
        "  python -m atose_ray.export MODEL --to onnx torch_export --out exported --sound song.mp3",
        store=False,
    )
    parser.add_argument("model", help="a model folder, a run folder, or a study, by path, URI or name")
    text = "onnx (needs the extra onnx), torch_export, or both"
    parser.add_argument("--to", nargs="+", choices=FORMATS, required=True, metavar="FORMAT", help=text)
    parser.add_argument("--out", metavar="FOLDER", help="where to (default: the model's folder)")
    parser.add_argument("--sound", metavar="FILE", help="compare on crops of this recording (default: tones and noise)")
    parser.add_argument("--trial", type=int, metavar="NUMBER", help="of a study: this trial instead of its best one")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Export, compare, write. Raises ValueError where a graph does not give the model's numbers."""
    options = arguments().parse_args(argv)
    from atose_ray.apps.graph import EXPORTS, TOLERANCE, difference
    from atose_ray.apps.model import load_model
    from atose_ray.evaluation.card import CARD, model_card
    from atose_ray.storage import Store

    model = load_model(options.model, trial=options.trial)
    trained, store = model.trained, Store(options.out or model.uri)
    store.check_writable()
    inputs = crops(trained, options.sound)
    for kind in dict.fromkeys(options.to):
        name, make = EXPORTS[kind]
        content = make(trained)
        off = difference(trained, content, kind, inputs)
        if not off <= TOLERANCE:
            raise ValueError(
                f"the {kind} graph differs from the model by {off:.1e} (at most {TOLERANCE:g}); not written"
            )
        store.write(name, content)
        print(f"{store.uri_of(name)}: {len(content) / 1e6:.1f} MB, within {off:.1e} of the model", flush=True)
    if not store.exists(CARD):
        store.write(CARD, model_card(trained.run, trained.spec, trained.metrics).encode())


def crops(trained: "Model", sound: str | None) -> "Array":
    """What a graph is tried on: [B, T] crops of a recording, or tones and noise; frames are noise."""
    import numpy as np

    from atose_ray.apps.predict import crops_of
    from atose_ray.audio.io import decode

    spec, rng = trained.spec, np.random.default_rng(0)
    if spec.input.kind == "frames":
        if sound is not None:
            raise ValueError("--sound is for models of audio, but this one takes frames; leave it out")
        return rng.uniform(0, 255, (3, *spec.input.shape)).round().astype(np.float32)
    rate, length = spec.audio.sample_rate_hz, spec.input.length
    if sound is not None:
        return crops_of(trained, decode(sound, sample_rate_hz=rate).audio_T, 3)
    time_T = np.arange(length) / rate
    tone_T = 0.5 * np.sin(2 * np.pi * 0.05 * rate * time_T) * (1 + np.sin(2 * np.pi * 3 * time_T)) / 2
    noise_T = 0.1 * rng.standard_normal(length)  # below each tone too: decibels of nothing but rounding say nothing
    return np.stack([tone_T + 0.1 * noise_T, noise_T, 0.1 * tone_T + noise_T]).astype(np.float32)


if __name__ == "__main__":
    cli.run(main)
