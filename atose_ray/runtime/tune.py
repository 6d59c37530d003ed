"""A study from its folder to its report: checks before the first trial, the search, the choice, the one test score."""

from collections.abc import Callable
from typing import Any

import ray
import torch

from atose_ray.config import RunConfig, StudyConfig
from atose_ray.data.shards import Manifest
from atose_ray.data.views import View, view_of
from atose_ray.runtime.cluster import is_only_node
from atose_ray.runtime.loggers import finish_loggers, open_loggers
from atose_ray.runtime.nodes import check_nodes
from atose_ray.runtime.search import search
from atose_ray.runtime.shared import SharedClipsLostError, SharedRefs, share_clips
from atose_ray.search.budget import Budget
from atose_ray.search.clip_plan import ClipPlan
from atose_ray.search.plan import Plan
from atose_ray.search.record import StudyRecord, best_trial, load_study_record, load_trials, study_store, trial_store
from atose_ray.search.report import render_report
from atose_ray.search.session import Session
from atose_ray.search.space import begin, compose
from atose_ray.search.study import keep_tag_embeddings, retry_failed
from atose_ray.search.trials import Space
from atose_ray.storage import Store
from atose_ray.training.examples import write_examples
from atose_ray.training.folds import finish
from atose_ray.training.run import Job, use_threads


def run_study(
    study: StudyConfig,
    name: str,
    store: Store,
    plan: Plan,
    manifest: Manifest,
    clips: ClipPlan | None = None,
    budget: Budget | None = None,
    again: bool = False,
) -> StudyRecord:
    """Run (or go on with) a study on the cluster this process has joined, choose the best, score the test split
    with it, and write the report.

    clips: where trials get their clips; None leaves it to each of them. budget: where the search ends at the latest.
    again: whether failed trials are run once more. Raises StoreError, ConfigError or PlanError, before any trial, when
    data, space, an earlier study of this name, or a node do not fit.
    """
    folder, view = study_store(store, name), view_of(manifest, compose(study, {}).data, store)
    check_nodes(store, folder, manifest)
    loggers = open_loggers(study.search.loggers, name, folder.uri)
    with Session(folder) as session:
        begin(folder, study, view, store)
        earlier = retry_failed(folder) if again else load_trials(folder)
        stream_bytes = clips.stream_bytes(plan) if clips else None
        space = Space(study, name, store.uri, manifest, plan, stream_bytes)
        if sum(trial.state != "running" for trial in earlier) < study.search.trials:
            search(space, session, earlier, share(store, view, clips), budget, loggers)
        conclude(folder, store, plan)
        record = load_study_record(store, name)
        folder.write("report.html", render_report(record).encode())
        finish_loggers(loggers, record, folder)
    return record


def share(store: Store, view: View, clips: ClipPlan | None) -> SharedRefs | None:
    """The one copy that trials share, if the plan has one."""
    if clips is None or not clips.shared:
        return None
    try:
        return share_clips(store, view, [home.node_id for home in clips.homes])
    except SharedClipsLostError as error:
        print(f"data: sharing the clips failed ({error}), so every trial reads them by itself", flush=True)
        return SharedRefs((), None, {}, str(error))  # not None: no CPU is planned for Ray Data


def conclude(folder: Store, store: Store, plan: Plan) -> None:
    """Choose the best trial and, unless it is the chosen one already, score the test split with it: once for every
    winner. Then gather its mistakes on the validation split, for the report."""
    trials = load_trials(folder)
    best = best_trial(trials)
    if best is None:
        return
    keep_tag_embeddings(folder, trials)
    chosen = folder.child("best")
    if not (chosen.exists("metrics.json") and chosen.read_json("metrics.json")["number"] == best.number):
        run = RunConfig.model_validate(best.config)
        job = Job(run, store.uri, trial_store(folder, best).uri)
        metrics = as_one_trial(plan, finish, job, chosen)
        test = metrics["test"][run.metric]
        print(f"test scored, with trial {best.number}: {run.metric} {test:.4f} [{metrics['protocol']}]")
    as_one_trial(plan, write_examples, chosen, store)


def as_one_trial(plan: Plan, work: Callable[..., Any], *given: Any) -> Any:
    """What `work` returns, with a trial's CPUs and GPUs: in a process of its own or, where this node's CPUs are all
    there is, in this one, as another would import PyTorch first (5 s of CPU time)."""
    if plan.worker_gpus or torch.cuda.is_available() or not is_only_node(plan.trial_cpus):
        there = ray.remote(num_cpus=plan.trial_cpus, num_gpus=plan.worker_gpus)(work)
        return ray.get(there.remote(*given))
    before = torch.get_num_threads()
    use_threads(max(1, int(plan.trial_cpus)))  # as Ray sets them
    try:
        return work(*given)
    finally:
        use_threads(before)
