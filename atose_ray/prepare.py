"""`python -m atose_ray.prepare NAME`: raw audio and annotations -> Parquet shards and manifest.json."""

import argparse

from pydantic import ValidationError

from atose_ray import cli
from atose_ray.config import ConfigError, explain, yaml_value
from atose_ray.data.doctor.checks import examine
from atose_ray.data.doctor.checks import summary as examined
from atose_ray.data.doctor.page import PAGE, write_examination
from atose_ray.data.prepare import prepare
from atose_ray.data.shards import Manifest, data_store
from atose_ray.datasets import KINDS, dataset_config
from atose_ray.storage import Store, StoreError
from atose_ray.types import SPLITS, AudioInput, Input


def arguments() -> argparse.ArgumentParser:
    """The command line of this command."""
    parser = cli.parser(
        "prepare",
        "Decode a data set once, into shards that every training reads. The same inputs again: nothing is done.",
        "  python -m atose_ray.prepare demo\n  python -m atose_ray.prepare mtat --source /data/MagnaTagATune --store s3://bucket/atose",
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
    parser.add_argument("--workers", type=cli.at_least_one, help="files decoded at a time (default: one per CPU)")
    cli.add_cluster(parser)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Parse, list, write, examine, summarise."""
    options = arguments().parse_args(argv)
    store = cli.open_store(options)
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

    manifest, written = prepare(config, store, on_ray)
    print(summary(manifest, store, written))
    if not written:
        return
    found = examine(store, manifest.name)
    try:
        write_examination(store, found)
    except StoreError as error:
        print(f"{examined(found)}. The shards are whole, but {PAGE} could not be written: {error}")
        return
    print(f"{examined(found)}. More in {data_store(store, manifest.name).child(PAGE).uri}")


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
    folder = data_store(store, manifest.name).uri
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
