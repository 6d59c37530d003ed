"""Every encoder at its published size: a batch through onnxruntime and through our own CPU inference, in turns.

    OMP_NUM_THREADS=1 python -m benchmarks.export_speed [--append] [--rounds 5] [--batch 4] [--threads 1] [--only NAME]

Ours is what `tag` runs, the method as `prepare_to_score` leaves it: in float32, as the ONNX graph is, and where the
machine multiplies bfloat16 faster, in that, which `tag` then takes. `ratio` is the time of onnxruntime in units of
ours: above 1 ours is faster. `off` is how far the scores are apart. `--append` adds a JSON line to
benchmarks/results/export_speed.jsonl."""

from __future__ import annotations

from typing import Any

import torch

from atose_ray.apps.graph import INPUT, onnx_export, session_of
from atose_ray.config import run_config
from atose_ray.encoders import ENCODERS
from atose_ray.training.checkpoint import Model
from atose_ray.training.precision import Precision, choose, prepare_to_score
from atose_ray.types import AudioInput, Batch, DataSpec, FrameInput, TagSet
from benchmarks.timing import append, arguments, clock, in_turns, noise, show

RATES_HZ = {"mel_cnn": 22050, "coala_cnn": 22000}  # of the others 16000
TAGS = tuple(f"tag {number}" for number in range(50))


def model_of(kind: str) -> Model:
    """An encoder as published, with a linear head on it; weights as they are drawn."""
    rate, length = RATES_HZ.get(kind, 16000), ENCODERS[kind].published_length
    audio = AudioInput(sample_rate_hz=rate, clip_samples=length)
    frames = FrameInput(frames=length, bins=128, frame_hop_seconds=1.0)
    spec = DataSpec(input=frames if kind == "frames" else audio, tags=TAGS, exclusive=False)
    encoder = {"kind": kind, **({"context": "gru"} if kind == "frames" else {})}
    run = run_config({"encoder": encoder, "method": {"kind": "supervised", "head": {"kind": "linear"}}})
    torch.manual_seed(0)
    method = run.method.build(run.encoder.build(spec), spec, TagSet(TAGS)).eval()
    return Model(method, run, spec, "classify", {})


@torch.no_grad()
def compare(model: Model, session: Any, precision: Precision, batch: int, rounds: int) -> dict[str, Any]:
    """Both times of one encoder, and how far their scores are apart."""
    execution = model.run.execution.model_copy(update={"precision": precision})
    prepare_to_score(model.method, execution, torch.device("cpu"))
    shape = model.spec.input.shape
    inputs = noise(batch, model.spec.input.length, "cpu") if len(shape) == 1 else torch.randn(batch, *shape)
    asked = Batch(inputs, torch.zeros(batch, len(TAGS)), torch.zeros(batch, dtype=torch.int64))
    array, tags, found = inputs.numpy(), TagSet(TAGS), {}

    def theirs() -> tuple[float]:
        start = clock()
        found["onnx"] = session.run(["scores", "embedding"], {INPUT: array})[0]
        return (clock() - start,)

    def ours() -> tuple[float]:
        start = clock()
        found["ours"] = model.method.score(asked, tags, model.stage).numpy()
        return (clock() - start,)

    (row,) = in_turns(theirs, ours, rounds)
    off = float(abs(found["onnx"] - found["ours"]).max())
    return {**row, "off": off, "length": model.spec.input.length}


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__, rounds=5, batch=4, threads=1)
    parser.add_argument("--only", choices=ENCODERS, help="one encoder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, Any] = {}
    for kind in [args.only] if args.only else [kind for kind in ENCODERS if kind != "pretrained"]:
        model = model_of(kind)
        session = session_of(onnx_export(model), args.threads)
        best = choose(model.run.execution, torch.device("cpu"))
        for precision in dict.fromkeys(("float32", best)):
            row = compare(model, session, precision, args.batch, args.rounds)
            results[f"{kind} {precision}"] = row
            show(f"{kind} {precision} (off {row['off']:.1e})", row, args.rounds)
    if args.append:
        append("export_speed", args, results, unit="seconds per batch; ratio is onnxruntime / ours")


if __name__ == "__main__":
    main()
