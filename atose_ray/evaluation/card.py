"""A model card: what a model folder holds, for who finds it. README.md beside the weights, in Markdown.

The head follows the model cards of Hugging Face's hub (YAML), the parts Mitchell et al., "Model Cards for Model
Reporting", 2019 (arXiv:1810.03993), as far as a training knows of them. What it does not know it leaves open by name:
the licence, and every use that was not tested."""

from collections.abc import Mapping
from typing import Any

from atose_ray.config import RunConfig
from atose_ray.evaluation.metrics import shown
from atose_ray.evaluation.names import interval_words
from atose_ray.types import AudioInput, DataSpec

CARD = "README.md"
HEAD = """---
license: unknown  # set it before you publish: the terms of the data, and yours
library_name: atose_ray
pipeline_tag: audio-classification
tags: [audio-tagging]
---"""
USE = """## Use

    import atose_ray
    model = atose_ray.load_model("FOLDER")
    model.tag("song.mp3").scores

or `python -m atose_ray.tag FOLDER song.mp3`."""


def model_card(run: RunConfig, spec: DataSpec, metrics: Mapping[str, Any]) -> str:
    """Markdown. metrics: metrics.json of the model folder, as far as it goes."""
    title = f"# {run.encoder.kind}, {run.method.kind}: {len(spec.tags)} tags of {run.data.dataset}"
    parts = [title, "", USE, *data_lines(run, spec), *score_lines(run, metrics)]
    parts += [*tag_lines(spec, metrics), *open_lines(run, spec, metrics)]
    return "\n".join([HEAD, "", *parts, ""])


def data_lines(run: RunConfig, spec: DataSpec) -> list[str]:
    """What it was trained on, and what it takes."""
    counts = ", ".join(f"{count} {split}" for split, count in spec.counts.items()) or "not on record"
    seconds = spec.input.length / spec.input.rate_hz
    takes = f"{spec.input}, crops of {seconds:.3g} s" + (", each recording at one level" if spec.peak_normalize else "")
    kind = "exactly one tag a clip" if spec.exclusive else "any number of tags a clip"
    fold = f", fold {run.data.fold}" if run.data.fold is not None else ""
    return [
        "\n## Data\n",
        f"- Set: `{run.data.dataset}`, content `{run.data.content_hash}`{fold}; clips: {counts}",
        f"- Takes: {takes}; {kind}",
        f"- Training: encoder `{run.encoder.kind}`, method `{run.method.kind}`, seed {run.seed} (config.json)",
        *([f"- Tags held out of training: {', '.join(spec.held_out)}"] if spec.held_out else []),
        *([f"- Began with the weights of {run.init_from.uri}"] if run.init_from is not None else []),
    ]


def score_lines(run: RunConfig, metrics: Mapping[str, Any]) -> list[str]:
    """The scores with their protocol and intervals."""
    test, valid = metrics.get("test") or {}, metrics.get("valid") or {}
    if not (test or valid):
        return ["\n## Scores\n\nNone: this model was not evaluated."]
    bounds, folds = metrics.get("test_intervals") or {}, len(metrics.get("folds") or ())
    over = f", means over {folds} folds, of which this is the model of one" if folds else ""
    lines = [
        f"\n## Scores\n\nProtocol `{metrics.get('protocol', 'clip')}`{over}. Chosen by `{run.metric}` on validation.\n"
    ]
    lines += ["| metric | test | 95 % | validation |", "|---|---|---|---|"]
    for name in dict.fromkeys([*test, *valid]):
        scores = [shown(name, one[name]) if name in one else "" for one in (test, valid)]
        sure = interval_words(name, bounds, folds).removeprefix("95 % ")
        lines.append(f"| {name} | {scores[0]} | {sure} | {scores[1]} |")
    if metrics.get("test_prevalence_mean") is not None:
        lines.append(f"\nA score by chance: pr_auc_macro {metrics['test_prevalence_mean']:.4f} (mean tag prevalence).")
    scored = len(metrics.get("test_scorings") or ())
    if scored:
        lines.append(f"\nThe test split was scored {'once' if scored == 1 else f'{scored} times'} on the way to it.")
    return lines


def tag_lines(spec: DataSpec, metrics: Mapping[str, Any]) -> list[str]:
    """The tags, with what is known of each on the test split."""
    rows = metrics.get("per_tag") or []
    if not rows:
        return ["\n## Tags\n", ", ".join(spec.tags)]
    lines = [
        "\n## Tags, on the test split\n",
        "| tag | average precision | ROC AUC | positives | clips |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        scores = ("" if row[name] is None else f"{row[name]:.4f}" for name in ("average_precision", "roc_auc"))
        lines.append(f"| {row['tag']} | {' | '.join(scores)} | {row['positives']} | {row['clips']} |")
    return lines


def open_lines(run: RunConfig, spec: DataSpec, metrics: Mapping[str, Any]) -> list[str]:
    """What no number above speaks of."""
    absent = [row["tag"] for row in metrics.get("per_tag") or () if not row["positives"]]
    rate = f" Recordings are resampled to {spec.audio.sample_rate_hz} Hz." if isinstance(spec.input, AudioInput) else ""
    lines = [
        "\n## What it was not tested on\n",
        f"- Any recording that is not of `{run.data.dataset}`: other genres, microphones, rooms, codecs, noise.{rate}",
        "- Groups of people, languages or cultures apart: the scores are means over all clips of the split.",
        "- Scores as probabilities: they are ranked, not calibrated; thresholds were fitted on validation, if at all.",
        "- Events in time: a timeline of it was not scored against annotated onsets, unless an evaluation says so.",
    ]
    if absent:
        lines.append(f"- Tags without a positive test clip: {', '.join(absent)}")
    return lines
