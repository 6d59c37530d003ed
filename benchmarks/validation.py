"""What a validation costs behind the encoder: MTAT's 1,525 clips of 16 crops, from cached embeddings, on a CPU.

    python -m benchmarks.validation [--append] [--rounds 5] [--threads 1] [--clips 1525]

Both sides score the same head (published size) in turns, in this process. The slow one sums a clip's windows with
`np.add.at` and compares every pair of clips in the joint space, as was done until 2026-11-28. A GPU's step is fast
enough for this to be what an epoch of the cached stage waits for.
"""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch

from atose_ray.config import apply_overrides, run_config
from atose_ray.evaluation import protocols, scoring
from atose_ray.methods import Method
from atose_ray.search.space import load_tree
from atose_ray.tags.vectors import unit_rows
from atose_ray.types import Array, AudioInput, DataSpec, EmbeddedBatch
from benchmarks.timing import Timed, append, arguments, in_turns, seconds, show

TAGS, CROPS, BATCH = 50, 16, 64
CPU = torch.device("cpu")


def head() -> Method:
    """The published joint embedding, HarmonicCNN behind crops of 4 s."""
    overrides = ["data.crop_seconds=4.0", "method.kind=joint_embedding", "encoder.kind=harmonic_cnn"]
    run = run_config(apply_overrides(load_tree("published_mtat", overrides), overrides))
    audio = AudioInput(sample_rate_hz=16000, clip_samples=465_600)
    names = tuple(f"tag{number}" for number in range(TAGS))
    return run.build(DataSpec(input=audio, tags=names, exclusive=False)).eval()


def embeddings(clips: int, width: int) -> list[EmbeddedBatch]:
    """Noise, every crop of a clip with its tags."""
    torch.manual_seed(0)
    tags_NC = (torch.rand(clips, TAGS) < 0.07).float()
    rows = torch.randn(clips * CROPS, width), tags_NC.repeat_interleave(CROPS, 0), torch.arange(clips)
    columns = (rows[0], rows[1], rows[2].repeat_interleave(CROPS))
    return [EmbeddedBatch(*some) for some in zip(*(torch.split(column, BATCH) for column in columns), strict=True)]


def add_at(clip_R: Array, values_RX: Array) -> Array:
    """`mean_over_windows` as it was."""
    windows_N = np.bincount(clip_R)
    total_NX = np.zeros((len(windows_N), values_RX.shape[1]))
    np.add.at(total_NX, clip_R, values_RX)
    return np.asarray(total_NX / windows_N[:, None])


def pairwise(audio_ND: Array, tag_ND: Array, tags_NC: Array) -> dict[str, float]:
    """`joint_space_metrics` as it was."""
    audio, tag = unit_rows(audio_ND), unit_rows(tag_ND)
    _, distinct, tag_set_N = np.unique(tags_NC, axis=0, return_index=True, return_inverse=True)
    cosine_NN = audio @ tag.T
    other_NN = tag_set_N.ravel()[:, None] != tag_set_N.ravel()[None]
    named = {"paired_cosine": float(np.trace(cosine_NN) / len(audio))}
    named["unpaired_cosine"] = float(cosine_NN[other_NN].mean())
    for name, vectors in (("audio_uniformity", audio), ("tag_uniformity", tag[distinct])):
        kernel = np.exp(4 * (vectors @ vectors.T - 1))
        named[name] = float(np.log((kernel.sum() - np.trace(kernel)) / (len(vectors) * (len(vectors) - 1))))
    return named


def main() -> None:
    """Both sides, in turns."""
    parser = arguments(__doc__, rounds=5, batch=BATCH, threads=1)
    parser.add_argument("--clips", type=int, default=1525)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    method = head()
    batches = embeddings(args.clips, method.encoder.embed_dim)
    scores: dict[str, dict[str, float]] = {}

    def side(name: str) -> Timed:
        def run() -> tuple[float, ...]:
            start = seconds("cpu")
            scores[name] = protocols.CLIP.evaluate(method, iter(batches), "classify", CPU)
            return (seconds("cpu") - start,)

        return run

    def before() -> tuple[float, ...]:
        sums = mock.patch.object(scoring, "mean_over_windows", add_at)
        with sums, mock.patch.object(protocols, "joint_space_metrics", pairwise):
            return side("before")()

    results = in_turns(before, side("now"), args.rounds)
    assert all(abs(scores["before"][name] - value) < 1e-12 for name, value in scores["now"].items())
    show("a validation from cached embeddings, before / now", results[0], args.rounds)
    if args.append:
        append("validation", args, {"validation": results[0]}, clips=args.clips)


if __name__ == "__main__":
    main()
