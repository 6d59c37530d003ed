"""`python -m atose_ray.evaluate MODEL [MODEL ...]`: score chosen models under a named protocol, beside published
figures and beside scores that were taken before. What was scored otherwise is refused, not compared. Or, with
--recordings, on recordings whose events are annotated with their times."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from atose_ray import cli
from atose_ray.apps.recordings import Listening, timeline_config
from atose_ray.apps.sound_events import annotated, scored, timelines_of
from atose_ray.config import DataConfig
from atose_ray.data.shards import Manifest, load_manifest
from atose_ray.data.views import View, of_all_tags, view_of
from atose_ray.evaluation.metrics import shown
from atose_ray.evaluation.names import interval_maker
from atose_ray.evaluation.protocols import ALIKE, CLIP, FORMER_NAMES, PROTOCOLS, Protocol, check_comparable, differences
from atose_ray.evaluation.published import no_figures, published_figures
from atose_ray.evaluation.scoring import ClipScores, mean_of_models
from atose_ray.evaluation.significance import score_intervals
from atose_ray.evaluation.sound_events import SUMMARIES
from atose_ray.storage import Store, StoreError
from atose_ray.training.checkpoint import Model, last_epochs, load_model
from atose_ray.training.run import score_split
from atose_ray.training.sources import tags_with_vectors
from atose_ray.types import SPLITS, Split


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "evaluate",
        "Score models on a split of their data set and print the scores with the name of their protocol.\n"
        + "".join(f"{protocol.name}: {protocol.summary}.\n" for protocol in PROTOCOLS.values())
        + "With --recordings, on annotated recordings:\n"
        + "".join(f"{name}: {summary}.\n" for name, summary in SUMMARIES.items())
        + "Scores of two protocols cannot be compared, and are not. Nothing is written.",
        "  python -m atose_ray.evaluate atose_store/studies/demo/best\n"
        "  python -m atose_ray.evaluate atose_store/studies/mtat/best --protocol jetatag --json\n"
        "  python -m atose_ray.evaluate atose_store/studies/a/best atose_store/studies/b/best --against before.json\n"
        "  python -m atose_ray.evaluate atose_store/studies/mine/best --recordings street/ --hop 0.5 --threshold f1",
    )
    parser.add_argument("model", nargs="+", help="model folders, `best` of a study or of a run; all of one data set")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which clips (default: test)")
    text = "how they are scored (default: clip; with --recordings: segment, event and frame, one after the other)"
    parser.add_argument("--protocol", choices=(*PROTOCOLS, *SUMMARIES), help=text)
    against = "a file that --json was printed into: shows the differences; refused where protocol or data differ"
    parser.add_argument("--against", metavar="FILE", help=against)
    average = (
        "score the mean of the probabilities of the last N epochs, which execution.keep_epochs keeps, not the best"
    )
    parser.add_argument("--average", type=cli.at_least_one, metavar="N", help=average)
    parser.add_argument(
        "--json", action="store_true", help="JSON: one object, or a list where there are several results"
    )
    group = parser.add_argument_group("annotated recordings")
    text = "recordings, and folders of them; their annotations lie beside them, as NAME.txt (onset, offset, label)"
    group.add_argument("--recordings", nargs="+", metavar="FILE", help=text)
    text = "a folder of such text files, or one table with the header filename,onset,offset,event_label"
    group.add_argument("--annotations", metavar="PLACE", help=text)
    cli.add_listening(group)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Load the models, read their data set from the store, check that all can be compared, score, print."""
    options = arguments().parse_args(argv)
    if options.recordings:
        on_recordings(options)
        return
    options.protocol = options.protocol or CLIP.name
    heard = (options.annotations, options.left, options.right, options.threshold, options.overrides or None)
    if options.protocol in SUMMARIES or any(one is not None for one in heard):
        raise ValueError(
            f"protocols {', '.join(SUMMARIES)}, --annotations, --left, --right, --threshold and --set are of "
            "recordings: say which, --recordings"
        )
    models, store = load_models(options.model), cli.open_store(options)
    data = models[0].run.data
    manifest = trained_on(models[0], store)
    view = view_of(manifest, data, store)
    for model in models:
        check_same_data(model, view.manifest)
    protocol = PROTOCOLS[options.protocol]
    view, unseen = of_all_tags(manifest, data, store) if protocol.unseen else (view, ())
    taken = {
        "dataset": data.dataset,
        "kind": str(manifest.dataset.get("kind", data.dataset)),
        "content_hash": manifest.content_hash,
        "tags": list(view.manifest.data_spec.tags),
        "split": options.split,
        "fold": data.fold,
        "protocol": options.protocol,
    }
    before = read_results(options.against, taken) if options.against else []
    published = beside(taken["kind"], len(taken["tags"]), options.split, options.protocol)
    results: list[dict[str, Any]] = []
    for folder, model in zip(options.model, models, strict=True):
        several = None if options.average is None else last_epochs(folder, model, options.average)
        scored = score(model, view, store, options.split, protocol, unseen, several)
        results.append({"model": folder, **taken, **scored, "published": published})
        if before:
            minus = [(old["model"], differences(scored["metrics"], old["metrics"])) for old in before]
            results[-1]["against"] = [{"file": options.against, "model": one, "difference": by} for one, by in minus]
    shown = results[0] if len(results) == 1 else results
    print(json.dumps(shown, ensure_ascii=False) if options.json else as_text(results))


def on_recordings(options: argparse.Namespace) -> None:
    """Score models on annotated recordings, and print. Raises ValueError for options of a split."""
    protocols = list(SUMMARIES) if options.protocol is None else [options.protocol]
    if options.protocol in PROTOCOLS or options.against:
        raise ValueError(
            f"--recordings are scored under {', '.join(SUMMARIES)}, without --against; leave out --recordings to score "
            "a split of the model's data set"
        )
    truth = annotated(options.recordings, options.annotations)
    results: list[dict[str, Any]] = []
    for folder in options.model:
        model = load_model(folder)
        config = timeline_config(model, None, options.threshold, options.overrides)
        listening = Listening(options.hop, options.left, options.right, config)
        lines = list(timelines_of(model, folder, truth, listening))
        facts = {"model": folder, "recordings": len(lines), "seconds": sum(line.seconds for line, _ in lines)}
        facts["settings"] = lines[0][0].settings
        results += [{**facts, "protocol": protocol, **scored(lines, protocol)} for protocol in protocols]
    shown = results[0] if len(results) == 1 else results
    print(json.dumps(shown, ensure_ascii=False) if options.json else "\n".join(map(events_as_text, results)))


def trained_on(model: Model, store: Store) -> Manifest:
    """The data set of a model: as it was trained on, or, where the store has another content now, that one."""
    try:
        return load_manifest(store, model.run.data.dataset, model.run.data.content_hash)
    except StoreError:
        return load_manifest(store, model.run.data.dataset)


def load_models(folders: list[str]) -> list[Model]:
    """The models to score. Raises ValueError where a folder is none, or they are of several data sets or tag lists."""
    models = [load_model(folder) for folder in folders]
    for folder, model in zip(folders, models, strict=True):
        pair = (models[0], model)
        ours, theirs = (place_of(one.run.data) for one in pair)
        if ours != theirs:
            raise ValueError(
                f"models side by side must be of one data set, but {folders[0]} was trained on {ours!r} and {folder} "
                f"on {theirs!r}; score them one by one"
            )
        if models[0].spec.tags != model.spec.tags:
            ours, theirs = (f"{', '.join(one.spec.tags[:5])} ({len(one.spec.tags)})" for one in pair)
            raise ValueError(
                f"models side by side must have the same tags, but {folders[0]} has {ours} and {folder} {theirs}; "
                "score each with the store it was trained from"
            )
    return models


def place_of(data: DataConfig) -> str:
    """The set, and fold of it, that a model's test clips are in."""
    return data.dataset if data.fold is None else f"{data.dataset}, fold {data.fold}"


def read_results(file: str, taken: dict[str, Any]) -> list[dict[str, Any]]:
    """What `evaluate --json` printed into a file: one object or a list of them.

    taken: how the models here are scored. Raises ValueError where the file is not such JSON, or was scored otherwise.
    """
    try:
        tree = json.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {file} of --against: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--against takes what `evaluate --json` printed, but {file} is not JSON: {error}") from error
    results = tree if isinstance(tree, list) else [tree]
    for result in results:
        lacking = [key for key in ("model", "metrics", *ALIKE) if not isinstance(result, dict) or key not in result]
        if lacking:
            raise ValueError(
                f"--against takes what `evaluate --json` printed, but {file} lacks {', '.join(lacking)}; "
                "make it again with: python -m atose_ray.evaluate MODEL --json"
            )
        result["protocol"] = FORMER_NAMES.get(result["protocol"], result["protocol"])
        check_comparable(taken, result, f"{result['model']} in {file}")
    if not results:
        raise ValueError(f"--against takes what `evaluate --json` printed, but {file} is an empty list")
    return results


def check_same_data(model: Model, manifest: Manifest) -> None:
    """Raises ValueError when the store's data set has other tags than the model; says so when its clips are others."""
    ours, theirs = model.spec.tags, manifest.data_spec.tags
    if ours != theirs:
        raise ValueError(
            f"the model was trained on other tags than {model.run.data.dataset!r} in this store has: "
            f"{', '.join(ours[:5])} against {', '.join(theirs[:5])}; "
            "give the store it was trained from with --store, or prepare the data set as it was"
        )
    if manifest.content_hash != model.run.data.content_hash:
        print("note: the shards in this store are not those that the model was trained on", file=sys.stderr)


def score(
    model: Model,
    view: View,
    store: Store,
    split: Split,
    protocol: Protocol,
    unseen: tuple[str, ...] = (),
    several: Iterator[Model] | None = None,
) -> dict[str, Any]:
    """The metrics of a split under a protocol, and, where every clip counts once, how sure they are. unseen: those of
    the view's tags that the model was not trained on. several: whose scores are averaged, instead of the model's."""
    names = view.manifest.data_spec.tags
    tags = tags_with_vectors(model, names) if unseen else None
    epochs: list[int] = []

    def of_one(one: Model) -> ClipScores:
        epochs.append(int(one.metrics.get("epoch", 0)))
        return score_split(one, view, store.uri, split, protocol.windows, None, tags, protocol.average)

    scores = of_one(model) if several is None else mean_of_models(map(of_one, several))
    if unseen:
        scores = dataclasses.replace(scores, unseen_C=np.array([name in unseen for name in names]))
    metrics = protocol.metrics(scores, model.spec.exclusive)
    bounds = score_intervals(scores.scores_NC, scores.tags_NC, metrics) if protocol is CLIP else {}
    return {"metrics": metrics, "intervals": bounds, "epochs": epochs}


def beside(kind: str, tags: int, split: Split, protocol: str) -> dict[str, Any] | None:
    """Published figures of this data set under this protocol, or None: those of another are no comparison."""
    figures = published_figures(kind, tags, split, protocol)
    if figures is None:
        return None
    named = {name: dict(zip(figures.metrics, scores, strict=True)) for name, scores in figures.systems.items()}
    rows = [{"system": name, **scores} for name, scores in named.items()]
    return {"source": figures.source, "protocol": protocol, "systems": rows}


def as_text(results: list[dict[str, Any]]) -> str:
    """Our scores, a column per model, with 95 % intervals over resampled clips; then the published figures and ours in
    one table; then what --against asks for. Every line that holds a score ends with the name of its protocol."""
    first = results[0]
    mark = f"[{first['protocol']}]"
    taken = f"{first['dataset']}, {first['split']} split, protocol {first['protocol']}"
    names, lines = ["this model"], [f"{first['model']} on {taken}"]
    if len(results) > 1:
        names = [f"model {number}" for number in range(1, len(results) + 1)]
        lines = [taken, *(f"{name}: {result['model']}" for name, result in zip(names, results, strict=True))]
        lines.append(f"  {'':<38} {' '.join(f'{name:>10}' for name in names)}  {mark}")
    lines += [averaged(result) for result in results if len(result.get("epochs", ())) > 1]
    for metric in dict.fromkeys(metric for result in results for metric in result["metrics"]):
        cells = (result["metrics"].get(metric) for result in results)
        row = " ".join(f"{'-':>10}" if cell is None else f"{shown(metric, cell):>10}" for cell in cells)
        lines.append(f"  {metric:<38} {row}  {mark}")
        bounds = [result.get("intervals", {}).get(metric) for result in results]
        if all(bounds):
            both = ", ".join(f"{low:.4f} to {high:.4f}" for low, high in bounds)
            lines.append(f"  {'':<38}   95 % ({interval_maker(metric)}): {both}  {mark}")
    return "\n".join([*lines, *published_lines(results, names, mark), *against_lines(results, names, mark)])


def averaged(result: dict[str, Any]) -> str:
    """Which epochs' scores were averaged."""
    return f"{result['model']}: the mean of the scores of epochs {', '.join(map(str, result['epochs']))}"


def events_as_text(result: dict[str, Any]) -> str:
    """A result on recordings: over all tags, of every tag, and the settings that made it."""
    mark = f"[{result['protocol']}]"
    lines = [f"{result['model']} on {result['recordings']} recordings, {result['seconds']:.1f} s, {mark}"]
    lines += [f"  {name:<38} {shown(name, value):>10}  {mark}" for name, value in result["metrics"].items()]
    columns = [name for name in result["tags"][0] if name != "tag"]
    lines.append(f"  {'':<24} {' '.join(f'{name:>10}' for name in columns)}  {mark}")
    for row in result["tags"]:
        cells = ("-" if row[name] is None else shown(name, row[name]) for name in columns)
        widths = (max(10, len(name)) for name in columns)
        line = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"  {row['tag']:<24} {line}  {mark}")
    return "\n".join([*lines, f"  settings: {json.dumps(result['settings'], ensure_ascii=False)}"])


def published_lines(results: list[dict[str, Any]], names: list[str], mark: str) -> list[str]:
    """The published figures and ours below them, or why there are none."""
    first = results[0]
    published = first["published"]
    if published is None:
        return [no_figures(first["kind"], first["split"], first["protocol"])]
    metrics = [metric for metric in published["systems"][0] if metric != "system"]
    ours = [{"system": name, **result["metrics"]} for name, result in zip(names, results, strict=True)]
    lines = [f"published: {published['source']}", f"  {'':<24} {'  '.join(metrics)}  {mark}"]
    for row in [*published["systems"], *ours]:
        numbers = ((row[metric], len(metric)) for metric in metrics)
        cells = "  ".join(f"{'-':>{width}}" if one is None else f"{one:>{width}.4f}" for one, width in numbers)
        lines.append(f"  {row['system']:<24} {cells}  {mark}")
    return lines


def against_lines(results: list[dict[str, Any]], names: list[str], mark: str) -> list[str]:
    """Every model here minus every model of the file."""
    lines = []
    for name, result in zip(names, results, strict=True):
        for old in result.get("against", ()):
            lines.append(f"{name} minus {old['model']} in {old['file']}:")
            lines += [f"  {metric:<38} {value:+10.4f}  {mark}" for metric, value in old["difference"].items()]
    return lines


if __name__ == "__main__":
    cli.run(main)
