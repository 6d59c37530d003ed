"""`python -m atose_ray.prepare NAME`: raw audio and annotations -> Parquet shards and manifest.json."""

import argparse
import re
import sys

from pydantic import ValidationError

from atose_ray import cli
from atose_ray.config import ConfigError, explain, yaml_value
from atose_ray.data.doctor.checks import examine
from atose_ray.data.doctor.checks import summary as examined
from atose_ray.data.doctor.page import PAGE, write_examination
from atose_ray.data.prepare import prepare
from atose_ray.data.prepared import old_contents, remove
from atose_ray.data.shards import Manifest
from atose_ray.datasets import KINDS, dataset_config
from atose_ray.storage import Store, StoreError
from atose_ray.types import SPLITS, AudioInput, Input


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "prepare",
        "Decode a data set once, into shards that every training reads. The same inputs again: nothing is done.\n"
        "Other inputs: the name means the new content, and the old one stays for the runs that use it.",
        "  python -m atose_ray.prepare demo\n"
        "  python -m atose_ray.prepare folder --source recordings --name loops\n"
        "  python -m atose_ray.prepare mtat --source /data/MagnaTagATune --store s3://bucket/atose\n"
        "  python -m atose_ray.prepare loops --remove-old",
    )
    parser.add_argument("dataset", help=", ".join(KINDS))
    parser.add_argument(
        "--source", help="folder of the raw audio or matrices and their annotations (demo renders its own)"
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a field of the data set's config, e.g. sample_rate_hz=16000",
    )
    parser.add_argument("--name", help="what to call the prepared set: data.dataset=NAME (default: its kind)")
    text = "list what DATASET, a prepared set's name, meant before, ask, and delete it; nothing is prepared"
    parser.add_argument("--remove-old", action="store_true", help=text)
    parser.add_argument("--yes", action="store_true", help="with --remove-old: delete without asking")
    parser.add_argument("--workers", type=cli.at_least_one, help="files decoded at a time (default: one per CPU)")
    cli.add_cluster(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, list, write, examine, summarise."""
    options = arguments().parse_args(argv)
    store = cli.open_store(options)
    if options.remove_old:
        remove_old(store, options.dataset, options.yes)
        return
    if options.name is not None and not re.fullmatch(r"\w[\w.-]*", options.name):
        raise ConfigError(f"--name is a folder name of letters, digits, '.', '-' and '_', but got {options.name!r}")
    try:
        chosen = dataset_options(options.option, options.source, options.dataset, store)
        config = dataset_config(options.dataset, **chosen)
    except ValidationError as error:
        raise ConfigError(explain(error, f"options of {options.dataset}", KINDS[options.dataset])) from error
    store.check_writable()
    print(
        f"prepare {config.kind}: listing {config.source or ''}{' (rendered first)' if config.kind == 'demo' else ''}",
        flush=True,
    )

    from atose_ray.runtime.cluster import cluster
    from atose_ray.runtime.prepare import run_on_ray

    def on_ray(jobs):  # type: ignore[no-untyped-def]
        with cluster(options.cpus, options.address):
            yield from run_on_ray(jobs, options.workers)

    manifest, written = prepare(config, store, on_ray, options.name)
    print(summary(manifest, store, written))
    if not written:
        return
    old = old_contents(store, manifest.name)
    if old:
        print(
            f"{manifest.name} means this from now on; what it was before stays for runs that use it ({len(old)} old: "
            f"python -m atose_ray.prepare {manifest.name} --remove-old)"
        )
    found = examine(store, manifest.name)
    try:
        write_examination(store, found)
    except StoreError as error:
        print(f"{examined(found)}. The shards are whole, but {PAGE} could not be written: {error}")
        return
    print(f"{examined(found)}. More in {manifest.folder(store).child(PAGE).uri}")


def remove_old(store: Store, dataset: str, sure: bool) -> None:
    """List the old contents of a set, and delete them where the person says so. Raises ValueError where nobody can be
    asked."""
    old = old_contents(store, dataset)
    if not old:
        print(f"{dataset}: nothing but what the name means")
        return
    print("\n".join([f"{dataset} also holds:", *(f"  {one.line()}" for one in old)]), flush=True)
    if not sure and not sys.stdin.isatty():
        raise ValueError("nothing is deleted without a yes: answer it on a terminal, or give --yes")
    if not sure and input("delete all of these? runs that use them cannot be scored again [y/N] ").lower() != "y":
        print("nothing was deleted")
        return
    for one in old:
        remove(store, dataset, one)
        print(f"deleted {one.folder or 'the old layout'}", flush=True)


def dataset_options(pairs: list[str], source: str | None, dataset: str, store: Store) -> dict[str, object]:
    """Options of a data set's config from the command line. Raises ValueError for a malformed one."""
    options: dict[str, object] = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark:
            raise ValueError(f"--option is NAME=VALUE, but got {pair!r}")
        options[name] = yaml_value(value, pair)
    if source is not None:
        options["source"] = source
    elif dataset == "demo":
        options["source"] = str((store.local_path or Store("atose_store").local_path) / "raw" / "demo")  # type: ignore[operator]
    return options


def _rate(about: Input) -> str:
    if isinstance(about, AudioInput):
        return f"{about.sample_rate_hz} Hz"
    return f"{about.bins} bins of {about.dtype}, {about.rate_hz:g} frames a second"


def summary(manifest: Manifest, store: Store, written: bool) -> str:
    """What was made, for a person: clips per split, what was left out, what was skipped and why."""
    spec = manifest.data_spec
    folder = manifest.folder(store).uri
    size = sum(shard.bytes for shard in manifest.shards) / 1e6
    splits = ", ".join(f"{spec.counts.get(split, 0)} {split}" for split in SPLITS)
    lines = [
        f"{'wrote' if written else 'nothing to do:'} {folder}",
        f"  clips: {splits}; {len(spec.tags)} {'exclusive ' if spec.exclusive else ''}tags; "
        f"{_rate(spec.input)}, longest {spec.input.length / spec.input.rate_hz:.1f} s; "
        f"{len(manifest.shards)} shards, {size:.1f} MB",
    ]
    lines += [f"  left out: {count} clips: {reason}" for reason, count in manifest.left_out.items()]
    if manifest.skipped:
        lines.append(f"  skipped {len(manifest.skipped)} files that cannot be read (all in manifest.json):")
        lines += [f"    {clip.name}: {clip.reason}" for clip in manifest.skipped[:5]]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
