"""A study's folder when its trials have run: failed ones once more, and what the best one learned."""

import dataclasses
import re

from atose_ray.config import RunConfig
from atose_ray.evaluation.scoring import has_collapsed, tag_embedding_cosine
from atose_ray.search.record import EMBEDDINGS, TagEmbeddings, TrialRecord, best_trial, load_trials, trial_store
from atose_ray.storage import Store
from atose_ray.training.checkpoint import best_model
from atose_ray.training.record import LOG, RunFolder


def retry_failed(folder: Store) -> tuple[TrialRecord, ...]:
    """All trials of a study, with those that failed made unfinished again: same number, same configuration.

    A trial's old log is kept as log.1.jsonl, log.2.jsonl, ... It goes on from its last checkpoint, which is kept where
    another try may mend what ended it (infrastructure, preemption, memory); else it begins anew.
    """
    failed = [trial for trial in load_trials(folder) if trial.state == "failed"]
    shown = []
    for trial in failed:
        epoch = reopen(trial_store(folder, trial))
        shown.append(f"{trial.name} {f'after epoch {epoch}' if epoch else 'from its beginning'}")
    if failed:
        print(f"once more: {', '.join(shown)}", flush=True)
    return load_trials(folder)


def reopen(run: Store) -> int:
    """Keep the log of a run that ended, and begin it anew without its end. Returns the epoch after which it goes on."""
    kept = len([name for name in run.names("log.") if re.fullmatch(r"log\.\d+\.jsonl", name)]) + 1
    before = run.read_lines(LOG)
    run.write_lines(f"log.{kept}.jsonl", before)
    goes_on = [line for line in before if '"event": "end"' not in line] if RunFolder(run).checkpoints() else []
    run.write_lines(LOG, goes_on)
    epochs = (event["epoch"] for event in RunFolder(run).events() if event["event"] == "epoch")
    return max(epochs, default=0)


def keep_tag_embeddings(folder: Store, trials: tuple[TrialRecord, ...]) -> None:
    """Write what the best trial that embeds tags learned of them, for the report."""
    scored = (trial for trial in trials if trial.value is not None)
    embeds = best_trial(trial for trial in scored if RunConfig.model_validate(trial.config).method.embeds_tags)
    if embeds is None:
        return
    cosine_CC = tag_embedding_cosine(best_model(RunFolder(trial_store(folder, embeds))).method)
    if cosine_CC is not None:
        learned = TagEmbeddings(embeds.number, embeds.name, cosine_CC.tolist(), has_collapsed(cosine_CC))
        folder.write_json(EMBEDDINGS, dataclasses.asdict(learned))
