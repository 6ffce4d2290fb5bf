"""The classifier two-sample test beside scikit-learn's own measures and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from sde_toolkit.metrics import ClassifierTest, bootstrap
from sde_toolkit.metrics.two_sample import _folds


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classifier", ["logistic", "quadratic", "neighbours"])
def test_values_are_scikit_learns(classifier):
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    x, y = normal(60, 2) + 0.7, 1.3 * normal(45, 2, seed=1)
    test = ClassifierTest("auc", classifier)
    folds = [_folds(len(s), 5, 0, step) for step, s in enumerate((x, y))]
    a, b = test._scores(x.numpy(), y.numpy(), *folds)
    wins = pairs = 0
    for fold in range(5):
        in_x, in_y = folds[0] == fold, folds[1] == fold
        label = np.repeat([1, 0], [in_x.sum(), in_y.sum()])
        count = in_x.sum() * in_y.sum()
        wins += roc_auc_score(label, np.concatenate([a[in_x], b[in_y]])) * count
        pairs += count
    assert test(x, y) == pytest.approx(wins / pairs, rel=1e-12)
    if classifier != "neighbours":  # whose ties the two count differently
        label = np.repeat([1, 0], [60, 45])
        expected = balanced_accuracy_score(label, np.concatenate([a, b]) > 0.5)
        assert ClassifierTest("accuracy", classifier)(x, y) == pytest.approx(expected, rel=1e-12)


def test_shifted_normals_have_the_closed_form():
    """N(d, 1) and N(0, 1): accuracy Phi(d / 2), AUC Phi(d / sqrt(2))."""
    x, y = normal(4000, 1) + 1.0, normal(4000, 1, seed=1)
    spread = 4.4 * math.sqrt(0.25 / 8000)
    assert ClassifierTest()(x, y) == pytest.approx(scipy.stats.norm.cdf(0.5), abs=spread)
    assert ClassifierTest("auc")(x, y) == pytest.approx(scipy.stats.norm.cdf(1 / math.sqrt(2)), abs=spread)


def test_each_classifier_sees_what_it_should():
    wide, y = 2 * normal(400, 2), normal(400, 2, seed=1)
    assert ClassifierTest("auc")(wide, y) < 0.56
    assert ClassifierTest("auc", "quadratic")(wide, y) > 0.65
    assert ClassifierTest("auc", "neighbours")(wide, y) > 0.62
    same = normal(400, 2, seed=2)
    for classifier in ("logistic", "quadratic", "neighbours"):
        assert 0.42 < ClassifierTest("auc", classifier)(same, y) < 0.58
    assert ClassifierTest()(normal(50, 2) + 20, normal(50, 2)) == 1


def test_error_bars_are_binomial_for_one_sample_in_each_group():
    x, y = normal(50, 2) + 0.8, normal(50, 2, seed=1)
    found = bootstrap(ClassifierTest(), x, y)
    p = found.value
    assert found.standard_error == pytest.approx(math.sqrt(p * (1 - p) / 100), rel=0.25)
    assert found.value == pytest.approx(ClassifierTest()(x, y), rel=1e-12)


def test_it_does_not_depend_on_a_common_scale_or_on_the_type():
    x, y = normal(50, 2) + 0.8, normal(50, 2, seed=1)
    assert ClassifierTest()(1000 * x + 3, 1000 * y + 3) == pytest.approx(ClassifierTest()(x, y), abs=0.011)
    assert ClassifierTest()(x.float(), y.float()) == pytest.approx(ClassifierTest()(x, y), abs=0.011)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="y must hold at least 2 samples for each of 5 folds, got 9"):
        ClassifierTest()(normal(50, 2), normal(9, 2))
    with pytest.raises(ValueError, match="classifier must be one of logistic, quadratic, neighbours"):
        ClassifierTest(classifier="svm")
