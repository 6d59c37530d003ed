"""The name of a set that is published in folds: its folds lie side by side in one store."""

from __future__ import annotations

from atose_ray.datasets.base import FoldedConfig


def name_of_folds(config: FoldedConfig) -> str:
    """`esc50` with the default folds, `esc50-fold2` with another test fold, `esc50-fold2-valid5` with both others."""
    next_fold = config.test_fold % config.folds + 1
    if config.valid_fold not in (None, next_fold):
        return f"{config.kind}-fold{config.test_fold}-valid{config.valid_fold}"
    return config.kind if config.test_fold == 1 else f"{config.kind}-fold{config.test_fold}"
