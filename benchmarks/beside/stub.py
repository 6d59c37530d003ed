"""Ours with the stub of benchmarks/overhead.py for a training: `python -m benchmarks.beside.stub STORE NAME TRIALS`."""

from __future__ import annotations

import sys

from benchmarks import overhead
from benchmarks.beside.run import HERE, STUB_S


def main(store_uri: str, name: str, trials: str) -> None:
    """A search of ours.yaml's space; its trials write the log that others read."""
    from ray import tune

    from atose_ray.data.shards import load_manifest
    from atose_ray.runtime import search as searching
    from atose_ray.runtime.cluster import cluster, cluster_nodes
    from atose_ray.search.plan import make_plan
    from atose_ray.search.record import study_store
    from atose_ray.search.session import Session
    from atose_ray.search.space import load_study
    from atose_ray.search.trials import Space
    from atose_ray.storage import Store

    overhead.WORK_S = STUB_S
    store = Store(store_uri)
    study = load_study(str(HERE / "ours.yaml"), (f"search.trials={trials}", "search.concurrency=2"))
    vars(searching)["trainable"] = lambda plan, shared: tune.with_resources(overhead.stub_trial(), {"CPU": 1})
    with cluster(cpus=2):
        plan = make_plan(study.search, False, cluster_nodes())
        space = Space(study, name, store.uri, load_manifest(store, "beside"), plan)
        with Session(study_store(store, name)) as session:
            searching.search(space, session, ())


if __name__ == "__main__":
    main(*sys.argv[1:])
