"""The classifier two-sample test: how well can samples and real data be told apart?

A classifier is trained on the pooled sets, in F folds that hold both sets in equal parts; each fold is judged
by the classifier of the others.  With scores s (high for "sample"):

    accuracy    1/2 ( share of x with s > 1/2  +  share of y with s < 1/2 ),    a tie counts one half
    AUC         P( s(x) > s(y) ), pairs of one fold,                            a tie counts one half

.5 means that this classifier cannot tell them apart, 1 that it always can.  Values below .5 are chance (the
fold that is left out is slightly unlike the others, which takes about 1 / (2 n) off).

Classifiers: logistic regression on standardised features sees means; on "quadratic" ones (all products too)
it sees covariances; "neighbours" sees any difference, in few dimensions.

The error bar covers the draw of the samples that are judged and, for logistic regression, of those that it is
trained on: without some of its samples the minimum of the loss moves by one step of Newton,
theta + H^-1 sum of their gradients.  The value of nearly equal laws is a product of the two, chance in the
training times chance in the test, so that the second part is as large as the first, and the jackknife, which
adds both before it squares, would count 4 where 2 are due: a subset is therefore judged by the classifier of
another subset.  Changes are fitted as sums over the points left out, as for ``NeighbourMetric``.

What is not mended: the accuracy is a count, whose changes are mostly noise, so that its error bar is up to
twice too large; prefer the AUC.  The classifier by neighbours is held fixed (right where one sample moves it
little, Bayle et al.): its error bar is up to a third too small.

References: Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests" (1610.06545); Bayle et al.,
"Cross-validation Confidence Intervals for Test Error" (2007.12671).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.metrics.distances import CHUNK
from sde_toolkit.metrics.protocol import Distance, Facts, check_choice
from sde_toolkit.utils import Stream, check_fields, integer, permutation


@dataclass(frozen=True)
class ClassifierTest(Distance):
    """The classifier two-sample test; see the module.

    Args:
        measure: "accuracy" or "auc".
        classifier: "logistic", "quadratic" or "neighbours", by scikit-learn.
        num_folds: F.
        num_neighbours: of the classifier by neighbours.
        seed: of the folds.
    """

    measure: Literal["accuracy", "auc"] = "accuracy"
    classifier: Literal["logistic", "quadratic", "neighbours"] = "logistic"
    num_folds: int = 5
    num_neighbours: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("measure", self.measure, ("accuracy", "auc"))
        check_choice("classifier", self.classifier, ("logistic", "quadratic", "neighbours"))
        integer("num_folds", self.num_folds, 2)
        integer("num_neighbours", self.num_neighbours, 1)
        integer("seed", self.seed, 0)
        title = f"classifier {'AUC' if self.measure == 'auc' else 'accuracy'}"
        object.__setattr__(self, "facts", Facts(title, 0.5, "lower", cost="training", most_samples=20_000))

    def on_subsets(self, x: Tensor, y: Tensor, keep_x: Tensor, keep_y: Tensor) -> Tensor:
        """See ``Distance``: the classifiers are trained once, on all samples, and moved to the subsets.

        Raises ValueError for fewer samples than folds.
        """
        for name, s in (("x", x), ("y", y)):
            if len(s) < 2 * self.num_folds:
                raise ValueError(
                    f"{name} must hold at least 2 samples for each of {self.num_folds} folds, got {len(s)}"
                )
        folds = [_folds(len(s), self.num_folds, self.seed, step) for step, s in enumerate((x, y))]
        points = torch.cat([x, y]).flatten(1).numpy()
        fold, keep = np.concatenate(folds), torch.cat([keep_x, keep_y], 1)
        half = len(keep) // 4  # of the groups of a jackknife: row 0 is all, then come G and G rows
        trained = torch.cat([keep[:1], *(part.roll(half, 0) for part in keep[1:].tensor_split(2))])
        label = np.repeat([1, 0], [len(x), len(y)])
        values = self._values(self._scores(points, label, fold, trained), label, fold, keep)
        out = torch.cat([~keep, ~trained], 1).double()
        return values[0] + out @ (torch.linalg.pinv(out) @ (values - values[0]))

    def _values(self, scores: Tensor, label: np.ndarray, fold: np.ndarray, keep: Tensor) -> Tensor:
        """Accuracy or AUC, with shape (R,), of scores with shape (R, n + m)."""
        if self.measure == "accuracy":
            sign = torch.from_numpy(2.0 * label - 1)
            right = (torch.sign(scores * sign) + 1) / 2
            each = [(right * keep)[:, label == k].sum(1) / keep[:, label == k].sum(1) for k in (1, 0)]
            return (each[0] + each[1]) / 2
        wins, pairs = torch.zeros(2, len(keep), dtype=torch.float64)
        for part in range(self.num_folds):
            a, b = (torch.from_numpy((fold == part) & (label == k)) for k in (1, 0))
            for rows in torch.arange(len(keep)).split(max(1, CHUNK // int(a.sum() * b.sum()))):
                ours, theirs = scores[rows][:, a, None], scores[rows][:, None, b]
                above = (ours > theirs).double() + (ours >= theirs).double()
                w, v = keep[rows][:, a].double(), keep[rows][:, b].double()
                wins[rows] += torch.einsum("rab,ra,rb->r", above, w, v) / 2
                pairs[rows] += w.sum(1) * v.sum(1)
        return wins / pairs

    def _scores(self, points: np.ndarray, label: np.ndarray, fold: np.ndarray, keep: Tensor) -> Tensor:
        """How much every point looks like a sample, with shape (R, n + m), above 0 for "sample"; by the
        classifier that did not see it, trained on each subset."""
        scores = torch.empty(keep.shape, dtype=torch.float64)
        for part in range(self.num_folds):
            rest, judged = fold != part, torch.from_numpy(fold == part)
            made = self._classifier(int(rest.sum())).fit(points[rest], label[rest])
            if self.classifier == "neighbours":
                found = torch.from_numpy(made.predict_proba(points[~rest])[:, 1]) - 0.5
                scores[:, judged] = found.expand(len(keep), -1)
            else:
                out = (~keep[:, torch.from_numpy(rest)]).numpy()
                theta = _moved(made[-1], made[:-1].transform(points[rest]), label[rest], out)
                features = _with_one(made[:-1].transform(points[~rest]))
                scores[:, judged] = torch.from_numpy(theta @ features.T)
        return scores

    def _classifier(self, num_training: int) -> Any:
        """A new classifier of scikit-learn; sets of unequal size count alike."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures, StandardScaler

        if self.classifier == "neighbours":
            k = min(self.num_neighbours, num_training)
            return make_pipeline(StandardScaler(), KNeighborsClassifier(k))
        logistic = LogisticRegression(class_weight="balanced", max_iter=1000)
        if self.classifier == "logistic":
            return make_pipeline(StandardScaler(), logistic)
        products = PolynomialFeatures(2, include_bias=False)
        return make_pipeline(StandardScaler(), products, StandardScaler(), logistic)


def _folds(n: int, num_folds: int, seed: int, step: int) -> np.ndarray:
    """Which fold each of n samples is in, at random in equal parts."""
    fold = np.empty(n, dtype=np.int64)
    # steps 0 and 1 are the jackknife's groups, which must not be aligned with the folds
    fold[permutation(n, seed, 2 + step, Stream.SPLIT).numpy()] = np.arange(n) % num_folds
    return fold


def _with_one(features: np.ndarray) -> np.ndarray:
    return np.concatenate([features, np.ones((len(features), 1))], 1)


def _moved(made: Any, features: np.ndarray, label: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Coefficients and intercept of a logistic regression, with shape (R, F + 1), one step of Newton towards
    the minimum without the points that the rows of ``out`` with shape (R, N) leave out."""
    z = _with_one(features)
    theta = np.concatenate([made.coef_[0], made.intercept_])
    weight = len(label) / (2 * np.where(label == 1, label.sum(), (1 - label).sum()))  # "balanced"
    p = 1 / (1 + np.exp(-z @ theta))
    ridge = np.diag([*np.full(len(theta) - 1, 1 / made.C), 0.0])
    hessian = (z * (weight * p * (1 - p))[:, None]).T @ z + ridge
    gradients = z * (weight * (p - label))[:, None]
    return theta + np.linalg.lstsq(hessian, (out @ gradients).T, rcond=None)[0].T
