"""AudioSet's three numbers, as the published systems on its evaluation part report them (Hershey et al. 2017, Kong et
al. 2018, Yu et al. 2018): mean average precision, mean area under the ROC curve, and d' of that mean.

Classes without a positive, or without a negative, are left out; the published code gives no number then."""

import math
from statistics import NormalDist

from atose_ray.evaluation.metrics import COUNTS, clip_metrics
from atose_ray.types import Array

CERTAIN = 1e-9  # d' is finite: an area is taken as at least this far from 0 and 1


def d_prime(roc_auc: float) -> float:
    """sqrt(2) times the quantile of the normal distribution at an area under the ROC curve; 0 for 0.5."""
    return math.sqrt(2) * NormalDist().inv_cdf(min(max(roc_auc, CERTAIN), 1 - CERTAIN))


def audioset_metrics(scores_NC: Array, tags_NC: Array) -> dict[str, float]:
    """[N, C], [N, C] -> pr_auc_macro (mAP), roc_auc_macro (AUC), and d_prime: of the mean area, not the mean of the
    classes' own. Raises as `clip_metrics`."""
    found = clip_metrics(scores_NC, tags_NC, exclusive=False)
    named = {name: found[name] for name in ("pr_auc_macro", "roc_auc_macro")}
    counts = {name: found[name] for name in COUNTS if name in found}
    return {**named, "d_prime": d_prime(named["roc_auc_macro"]), **counts}
