"""The classifier two-sample test beside scikit-learn's own measures and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from sde_toolkit.metrics import ClassifierTest, bootstrap
from sde_toolkit.metrics.two_sample import _folds, _moved


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classifier", ["logistic", "quadratic", "neighbours"])
def test_values_are_scikit_learns(classifier):
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    x, y = normal(60, 2) + 0.7, 1.3 * normal(45, 2, seed=1)
    folds = np.concatenate([_folds(len(s), 5, 0, step) for step, s in enumerate((x, y))])
    points, label = torch.cat([x, y]).numpy(), np.repeat([1, 0], [60, 45])
    keep = torch.ones(1, 105, dtype=torch.bool)
    scores = ClassifierTest("auc", classifier)._scores(points, label, folds, keep)[0].numpy()
    wins = pairs = 0
    for fold in range(5):
        one = folds == fold
        count = (label[one] == 1).sum() * (label[one] == 0).sum()
        wins += roc_auc_score(label[one], scores[one]) * count
        pairs += count
    assert ClassifierTest("auc", classifier)(x, y) == pytest.approx(wins / pairs, rel=1e-12)
    if classifier != "neighbours":  # whose ties the two count differently
        expected = balanced_accuracy_score(label, scores > 0)
        assert ClassifierTest("accuracy", classifier)(x, y) == pytest.approx(expected, rel=1e-12)


def test_a_step_of_newton_is_training_without_the_points():
    from sklearn.linear_model import LogisticRegression

    x, label = normal(200, 3).numpy(), (normal(200, seed=1) > 0).numpy().astype(int)
    made = LogisticRegression(class_weight="balanced", tol=1e-10).fit(x, label)
    out = np.arange(200) % 40 == np.array([[0], [7]])
    found = _moved(made, x, label, np.concatenate([np.zeros((1, 200), bool), out]))
    assert found[0] == pytest.approx([*made.coef_[0], *made.intercept_])
    for theta, one in zip(found[1:], out, strict=True):
        again = LogisticRegression(class_weight="balanced", tol=1e-10).fit(x[~one], label[~one])
        change = again.coef_[0] - made.coef_[0]
        assert np.linalg.norm(theta[:3] - again.coef_[0]) < 0.15 * np.linalg.norm(change)


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
    assert found.standard_error == pytest.approx(math.sqrt(p * (1 - p) / 100), rel=0.4)
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
