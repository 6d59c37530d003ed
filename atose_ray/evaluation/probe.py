"""What a small classifier finds in embeddings that stay as they are: pure functions of arrays.

Source of the protocol: COALA (Favory et al. 2020), and its published code: embeddings of a clip's patches averaged,
standardised by the training clips, scikit-learn's MLPClassifier of one layer of 256 with its defaults, repeated with
other random numbers; folds count alike. The linear probe is scikit-learn's logistic regression. Controls, which the
published study lacks but for the first: MFCCs, the same encoder untrained, and the tags of the training clips permuted,
which is chance as this classifier meets it."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atose_ray.data.downstream import Classifier
from atose_ray.evaluation.metrics import clip_metrics
from atose_ray.evaluation.scoring import mean_over_windows
from atose_ray.types import Array

HIDDEN, ITERATIONS = 256, 1000
MULTI_LABEL = ("pr_auc_macro", "roc_auc_macro")


@dataclass(frozen=True)
class Embedded:
    """Clips in the order of their listing: embed_NE, tags_NC {0, 1}, clip_id_N ascending."""

    embed_NE: Array
    tags_NC: Array
    clip_id_N: Array

    def at(self, rows_N: Array) -> "Embedded":
        """Some of the clips: places, or bool."""
        return Embedded(self.embed_NE[rows_N], self.tags_NC[rows_N], self.clip_id_N[rows_N])


Pair = tuple[Embedded, Embedded]  # train, test


def pairs_of_folds(folds: Mapping[int, Embedded]) -> Iterator[Pair]:
    """Each fold once as the test split, all others in order as train."""
    for number in sorted(folds):
        others = [folds[other] for other in sorted(folds) if other != number]
        columns = ((one.embed_NE, one.tags_NC, one.clip_id_N) for one in others)
        yield Embedded(*map(np.concatenate, zip(*columns, strict=True))), folds[number]


def average_by_clip(embed_RE: Array, tags_RC: Array, clip_id_R: Array) -> Embedded:
    """Rows of windows -> rows of clips, the mean of their windows."""
    clip_id_N, first_N, clip_R = np.unique(clip_id_R, return_index=True, return_inverse=True)
    return Embedded(mean_over_windows(clip_R, embed_RE), tags_RC[first_N], clip_id_N)


def classifier(kind: Classifier, random: np.random.RandomState, exclusive: bool) -> Any:
    """A scikit-learn classifier of one class or of several tags."""
    from sklearn.linear_model import LogisticRegression  # here: a second of the start of every trial
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neural_network import MLPClassifier

    if kind == "mlp":
        return MLPClassifier((HIDDEN,), random_state=random)
    linear = LogisticRegression(max_iter=ITERATIONS, random_state=random)
    return linear if exclusive else OneVsRestClassifier(linear)


def probe(pair: Pair, kind: Classifier, random: np.random.RandomState, exclusive: bool) -> dict[str, float]:
    """One fit -> {metric: value} of its test clips: accuracy, or of clips with several tags the areas."""
    from sklearn.exceptions import ConvergenceWarning  # here: a second of the start of every trial
    from sklearn.preprocessing import StandardScaler

    train, test = pair
    scaler, model = StandardScaler().fit(train.embed_NE), classifier(kind, random, exclusive)
    x_NE, test_NE = scaler.transform(train.embed_NE), scaler.transform(test.embed_NE)
    y_N = train.tags_NC.argmax(axis=1) if exclusive else train.tags_NC
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 epochs are the published protocol's
        model.fit(x_NE, y_N)
    if exclusive:
        return {"accuracy": float(np.mean(model.predict(test_NE) == test.tags_NC.argmax(axis=1)))}
    found = clip_metrics(model.predict_proba(test_NE), test.tags_NC, exclusive=False)
    return {name: found[name] for name in MULTI_LABEL}


def repeated(
    pairs: Sequence[Pair], kind: Classifier, seeds: Sequence[int], exclusive: bool, permuted: bool = False
) -> dict[str, list[float]]:
    """Metric -> its value for every seed, the mean over the pairs. A seed's random numbers go from pair to pair.
    permuted: with the tags of the training clips dealt anew."""
    rows = []
    for seed in seeds:
        random, deal = np.random.RandomState(seed), np.random.default_rng(seed)
        scores = []
        for train, test in pairs:
            tags_NC = deal.permutation(train.tags_NC) if permuted else train.tags_NC
            train = Embedded(train.embed_NE, tags_NC, train.clip_id_N)
            scores.append(probe((train, test), kind, random, exclusive))
        rows.append({name: float(np.mean([score[name] for score in scores])) for name in scores[0]})
    return {name: [row[name] for row in rows] for name in rows[0]}


def mean_and_deviation(values: Sequence[float]) -> dict[str, Any]:
    """Over repetitions; the deviation is that of the population, as the published figures have it."""
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values)), "values": list(values)}


def without_first(clips: Embedded) -> Embedded:
    """The published code reads GTZAN's lists as tables with a header, so the first clip of each is lost."""
    return clips.at(np.arange(1, len(clips.clip_id_N)))


def drawn_evenly(train: Embedded, test: Embedded, each: int, seed: int = 0) -> Pair:
    """So many training clips of each class (all where it has fewer), and only classes that are tested."""
    classes = [tag for tag in range(test.tags_NC.shape[1]) if test.tags_NC[:, tag].any()]
    rng, chosen = np.random.default_rng(seed), list[Array]()
    for tag in classes:
        of_tag = np.flatnonzero(train.tags_NC[:, tag])
        chosen.append(rng.permutation(of_tag)[:each])
    return train.at(np.sort(np.concatenate(chosen))), test
