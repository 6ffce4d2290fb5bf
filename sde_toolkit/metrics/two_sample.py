"""The classifier two-sample test: how well can samples and real data be told apart?

A classifier is trained on the pooled sets, in F folds that hold both sets in equal parts; each fold is judged
by the classifier of the others.  With scores s (high for "sample"):

    accuracy    1/2 ( share of x with s > 1/2  +  share of y with s < 1/2 ),    a tie counts one half
    AUC         P( s(x) > s(y) ), pairs of one fold,                            a tie counts one half

.5 means that this classifier cannot tell them apart, 1 that it always can.  Values below .5 are chance (the
fold that is left out is slightly unlike the others, which takes about 1 / (2 n) off).

Classifiers: logistic regression on standardised features sees means; on "quadratic" ones (all products too)
it sees covariances; "neighbours" sees any difference, in few dimensions.

The error bar covers the draw of the samples that are judged, the classifiers held fixed (Bayle et al.: right
for classifiers that one sample moves little).  Their own training is not in it: where the laws are nearly
equal and the classifier is flexible, the value varies from repetition to repetition by up to a third more.

References: Lopez-Paz and Oquab, "Revisiting Classifier Two-Sample Tests" (1610.06545); Bayle et al.,
"Cross-validation Confidence Intervals for Test Error" (2007.12671).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sde_toolkit.metrics.exact import subset_means
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
        """See ``Distance``: the classifiers are trained once, on all samples.

        Raises ValueError for fewer samples than folds.
        """
        for name, s in (("x", x), ("y", y)):
            if len(s) < 2 * self.num_folds:
                raise ValueError(
                    f"{name} must hold at least 2 samples for each of {self.num_folds} folds, got {len(s)}"
                )
        folds = [_folds(len(s), self.num_folds, self.seed, step) for step, s in enumerate((x, y))]
        score_x, score_y = self._scores(x.flatten(1).numpy(), y.flatten(1).numpy(), *folds)
        if self.measure == "accuracy":
            right_x, right_y = _above(score_x, 0.5), _above(-score_y, -0.5)
            return (subset_means(right_x, keep_x) + subset_means(right_y, keep_y)) / 2
        wins, pairs = torch.zeros(2, len(keep_x), dtype=torch.float64)
        for fold in range(self.num_folds):
            a, b = (torch.from_numpy(f == fold) for f in folds)
            wx, wy = keep_x[:, a].double(), keep_y[:, b].double()
            wins += ((wx @ _above(score_x[a][:, None], score_y[b])) * wy).sum(1)
            pairs += wx.sum(1) * wy.sum(1)
        return wins / pairs

    def _scores(
        self, x: np.ndarray, y: np.ndarray, fold_x: np.ndarray, fold_y: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """The probability of "sample" for each of x and y, by the classifier that did not see it."""
        scores = np.empty(len(x)), np.empty(len(y))
        for fold in range(self.num_folds):
            rest_x, rest_y = x[fold_x != fold], y[fold_y != fold]
            label = np.repeat([1, 0], [len(rest_x), len(rest_y)])
            made = self._classifier(len(label)).fit(np.concatenate([rest_x, rest_y]), label)
            for score, s, folds in zip(scores, (x, y), (fold_x, fold_y), strict=True):
                score[folds == fold] = made.predict_proba(s[folds == fold])[:, 1]
        return torch.from_numpy(scores[0]), torch.from_numpy(scores[1])

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


def _above(a: Tensor, b: Tensor | float) -> Tensor:
    """1 where a > b, 1/2 where they are equal."""
    return ((a > b).double() + (a >= b).double()) / 2
