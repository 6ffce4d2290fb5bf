"""The classifier two-sample test beside scikit-learn's own measures and closed forms."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from sde_toolkit.metrics import ClassifierTest, bootstrap
from sde_toolkit.metrics.two_sample import _folds, _shares, _trained


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


def test_parts_are_trained_anew():
    from sklearn.linear_model import LogisticRegression

    x, label = normal(200, 3).numpy(), (normal(200, seed=1) > 0).numpy().astype(int)
    made = LogisticRegression(class_weight="balanced", tol=1e-10).fit(x, label)
    kept = np.stack([np.ones(200, bool), normal(200, seed=2).numpy() > 0, x[:, 0] > -0.5])
    found = _trained(made, x, label, kept)
    assert found[0] == pytest.approx([*made.coef_[0], *made.intercept_], rel=1e-12)
    for theta, one in zip(found, kept, strict=True):
        again = LogisticRegression(class_weight="balanced", tol=1e-10).fit(x[one], label[one])
        assert theta == pytest.approx([*again.coef_[0], *again.intercept_], abs=1e-6)


def test_training_on_separable_parts_comes_to_an_end():
    from sklearn.linear_model import LogisticRegression

    label = np.arange(80) % 2
    x = (20.0 * label[:, None] + normal(80, 2).numpy()) / 10
    made = LogisticRegression(class_weight="balanced", tol=1e-8).fit(x, label)
    kept = np.stack([np.arange(80) < 40, np.arange(80) < 20])
    for theta, one in zip(_trained(made, x, label, kept), kept, strict=True):
        again = LogisticRegression(class_weight="balanced", tol=1e-8).fit(x[one], label[one])
        assert theta == pytest.approx([*again.coef_[0], *again.intercept_], rel=0.01)


def test_neighbours_of_parts_are_those_of_the_part():
    from sklearn.neighbors import KNeighborsClassifier

    x, label, judge = normal(120, 2).numpy(), np.arange(120) % 2, normal(30, 2, seed=1).numpy()
    kept = np.stack([np.ones(120, bool), normal(120, seed=2).numpy() > 0])
    found = _shares(KNeighborsClassifier(7).fit(x, label), judge, label, kept)
    for shares, one in zip(found, kept, strict=True):
        again = KNeighborsClassifier(7).fit(x[one], label[one])
        assert shares == pytest.approx(again.predict_proba(judge)[:, 1], abs=1e-12)


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


@pytest.mark.slow
def test_error_bars_count_the_test_examples_and_the_training():
    """Accuracies of equal laws spread as coins do at least; the error bar was twice that for logistic
    regression, and a fifth too small for neighbours."""
    for classifier in ("logistic", "neighbours"):
        found = [
            bootstrap(
                ClassifierTest(classifier=classifier),
                normal(60, 2, seed=2 * s),
                normal(60, 2, seed=2 * s + 1),
            )
            for s in range(40)
        ]
        errors = math.sqrt(np.mean([e.standard_error**2 for e in found]))
        spread = np.std([e.value for e in found], ddof=1)
        assert 0.7 < errors / spread < 1.5, classifier  # the spread of 40 is .11 off
        assert 0.8 < errors / math.sqrt(0.25 / 120) < 1.5, classifier


def test_sets_that_are_told_apart_for_sure_have_an_error_bar():
    x, y = normal(50, 2) + 20, normal(50, 2, seed=1)
    for measure in ("accuracy", "auc"):
        found = bootstrap(ClassifierTest(measure), x, y)
        low, high = found.interval()
        assert (found.value, high) == (1, 1)
        assert found.standard_error > 0
        assert 0.9 < low < 1 - 3 / 100


def test_it_does_not_depend_on_a_common_scale_or_on_the_type():
    x, y = normal(50, 2) + 0.8, normal(50, 2, seed=1)
    assert ClassifierTest()(1000 * x + 3, 1000 * y + 3) == pytest.approx(ClassifierTest()(x, y), abs=0.011)
    assert ClassifierTest()(x.float(), y.float()) == pytest.approx(ClassifierTest()(x, y), abs=0.011)


def test_what_it_refuses():
    with pytest.raises(ValueError, match="y must hold at least 2 samples for each of 5 folds, got 9"):
        ClassifierTest()(normal(50, 2), normal(9, 2))
    with pytest.raises(ValueError, match="classifier must be one of logistic, quadratic, neighbours"):
        ClassifierTest(classifier="svm")
