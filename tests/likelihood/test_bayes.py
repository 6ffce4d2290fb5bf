"""Bayes' rule against closed forms, and figures of merit whose values are known."""

import functools
import math

import pytest
import torch
from problems import ALPHA, MIXTURE, RING
from scipy import stats

from sde_toolkit.config.builders import build_dataset
from sde_toolkit.data.scaling import Scaling
from sde_toolkit.likelihood import (
    BoundDraws,
    Classification,
    FlowSolver,
    UniformDequantizer,
    classify,
    continuous_bound,
    discrete_log_likelihood,
    fit_temperature,
    judge,
    log_likelihood,
    tempered,
)
from sde_toolkit.metrics.features import digit_features
from sde_toolkit.models.exact import ExactModel, Gaussian
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.runs.store import open_shipped
from sde_toolkit.samplers.presets.one_step import ddim
from sde_toolkit.sdes import VPSDE

FLOAT64 = torch.float64
SDE = VPSDE()
MODEL = ExactModel(MIXTURE, SDE)


def responsibilities(data, x):
    """p(k | x) of a mixture's components, from scipy's normal densities."""
    c, flat = data.components, x.flatten(1).numpy()
    columns = []
    for k, weight in enumerate(c.weights):
        axes = torch.eye(c.means.shape[1], dtype=FLOAT64) if c.axes is None else c.axes[k]
        covariance = ((axes * c.variances[k]) @ axes.mT).numpy()
        density = stats.multivariate_normal(c.means[k].numpy(), covariance).logpdf(flat)
        columns.append(torch.from_numpy(density) + weight.log())
    return torch.stack(columns, 1).softmax(1)


@pytest.mark.parametrize("data", [MIXTURE, RING], ids=["mixture", "ring"])
def test_the_probability_flow_gives_the_responsibilities(data):
    x = data.sample(6, seed=1)
    density = functools.partial(log_likelihood, solver=FlowSolver(rtol=1e-05, atol=1e-05))
    found = classify(ExactModel(data, SDE), x, priors=data.components.weights, log_likelihood=density)
    torch.testing.assert_close(found.probabilities, responsibilities(data, x), rtol=0, atol=5e-3)
    assert torch.equal(found.prediction, responsibilities(data, x).argmax(1))
    assert found.seconds > 0


def test_common_draws_cancel_between_the_classes():
    """Classes that differ little: one probe is noisy in every log p, and hardly in the differences."""
    covariance = [[0.5, 0.3, 0.2], [0.3, 0.4, 0.1], [0.2, 0.1, 0.3]]
    means = ([0.1, 0.0, 0.0], [-0.1, 0.0, 0.1])

    class Pair:
        num_classes = 2

        def given(self, label):
            return ExactModel(Gaussian(means[label], covariance), SDE)

    x = Gaussian([0.0, 0.0, 0.0], covariance).sample(40, seed=0)
    flow = functools.partial(log_likelihood, solver=FlowSolver(rtol=0.0001, atol=0.0001))
    exact, noisy = (
        classify(Pair(), x, log_likelihood=functools.partial(flow, divergence=k)).log_joint for k in (None, 1)
    )
    alone, difference = noisy - exact, (noisy - exact)[:, 0] - (noisy - exact)[:, 1]
    assert float(alone.std()) > 0.2
    assert float(difference.std()) < 1e-3
    bound = functools.partial(continuous_bound, draws=BoundDraws(num_draws=64, control=False))
    rough = classify(Pair(), x, log_likelihood=bound).log_joint
    gap = (rough - exact)[:, 0] - (rough - exact)[:, 1]
    assert float(gap.std()) < 0.3 * float((rough - exact).std())


def test_grey_levels_are_classified_by_their_probabilities():
    scaling = Scaling.grey(17)
    values = scaling.to_levels(0.5 * RING.sample(30, seed=2))
    dequantizer = UniformDequantizer(scaling, SDE)

    class Record:
        def __init__(self, nats):
            self.nats = nats

    def exact(model, x, *, t_min, first_sample):
        return Record(model.log_prob(x, torch.tensor(t_min, dtype=FLOAT64)))

    density = functools.partial(
        discrete_log_likelihood, dequantizer=dequantizer, num_samples=64, log_likelihood=exact
    )
    found = classify(ExactModel(RING, SDE), values, log_likelihood=density)
    centres = scaling.dequantize(values, torch.full((), 0.5), FLOAT64)
    nearby = responsibilities(RING, centres)
    assert float((found.probabilities - nearby).abs().mean()) < 0.02


def test_priors_enter_as_logarithms():
    x = MIXTURE.sample(3, seed=0)
    priors = [0.1, 0.2, 0.3, 0.15, 0.25]

    class Record:
        nats = torch.zeros(3)

    found = classify(MODEL, x, priors=priors, log_likelihood=lambda model, x: Record())
    torch.testing.assert_close(found.probabilities, torch.tensor(priors, dtype=FLOAT64).expand(3, 5))
    equal = classify(MODEL, x, log_likelihood=lambda model, x: Record())
    torch.testing.assert_close(equal.probabilities, torch.full((3, 5), 0.2, dtype=FLOAT64))


def known(confidence, right):
    """Two classes, the first one predicted with the given confidence, right where the label is 0."""
    p = torch.tensor(confidence, dtype=FLOAT64)
    return Classification(torch.stack([p, 1 - p], 1).log()), 1 - torch.tensor(right)


def test_the_figures_of_merit_of_a_case_done_by_hand():
    found, labels = known([0.95, 0.95, 0.65, 0.65], [1, 0, 1, 1])
    judged = judge(found, labels, num_bins=10)
    assert judged.accuracy.value == 0.75
    assert judged.accuracy.standard_error == pytest.approx(0.25)
    surprise = -(math.log(0.95) + math.log(0.05) + 2 * math.log(0.65)) / 4
    assert judged.negative_log_likelihood.value == pytest.approx(surprise)
    assert judged.brier.value == pytest.approx(2 * (0.05**2 + 0.95**2 + 2 * 0.35**2) / 4)
    # two bins of two: .95 with accuracy 1/2, .65 with accuracy 1
    assert judged.calibration_error.value == pytest.approx(0.5 * 0.45 + 0.5 * 0.35)
    assert [(b.count, b.accuracy) for b in judged.bins] == [(2, 1.0), (2, 0.5)]
    assert [round(b.confidence, 9) for b in judged.bins] == [0.65, 0.95]
    assert all(b.lower <= b.confidence <= b.upper + 1e-12 for b in judged.bins)
    assert torch.allclose(found.confidence, torch.tensor([0.95, 0.95, 0.65, 0.65], dtype=FLOAT64))


def calibrated(count, classes=4, sharpness=1.5, seed=0):
    """Log-probabilities and labels drawn from them."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn(count, classes, generator=generator, dtype=FLOAT64)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return logits.log_softmax(1), labels


def test_perfect_probabilities_have_the_calibration_error_of_the_floor():
    errors, floors, spreads = [], [], []
    for seed in range(16):
        log_joint, labels = calibrated(300, seed=seed)
        judged = judge(Classification(log_joint), labels)
        errors.append(judged.calibration_error.value)
        floors.append(judged.floor)
        spreads.append(judged.calibration_error.standard_error)
    errors, floors = torch.tensor(errors), torch.tensor(floors)
    tolerance = stats.norm.isf(ALPHA / 2) * float(errors.std()) / 4
    assert abs(float((errors - floors).mean())) < tolerance
    assert 0.7 < sum(spreads) / 16 / float(errors.std()) < 1.6


def surprise(found, labels):
    return -float(found.log_probabilities.gather(1, labels[:, None]).mean())


def test_the_temperature_is_found_again_and_mends_the_likelihood():
    log_joint, labels = calibrated(5000)
    for temperature in (0.2, 1.0, 7.0):
        found = Classification(log_joint * temperature)
        fitted = fit_temperature(found, labels)
        assert fitted == pytest.approx(temperature, rel=0.08)
        after = tempered(found, fitted)
        assert torch.equal(after.prediction, found.prediction)
        scores = [surprise(f, labels) for f in (found, after)]
        assert scores[1] <= scores[0] + 1e-12
        for nearby in (0.95, 1.05):
            assert scores[1] < surprise(tempered(found, nearby * fitted), labels)
    separable, all_right = known([0.8, 0.7], [1, 1])
    assert fit_temperature(separable, all_right) < 2e-3


class NoClasses:
    num_classes = 0

    def given(self, label):
        raise AssertionError


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: classify(NoClasses(), torch.zeros(1, 8)), "model must have classes"),
        (lambda: classify(MODEL, torch.zeros(1, 8), priors=[0.5, 0.5]), "priors must be 5 positive"),
        (lambda: classify(MODEL, torch.zeros(1, 8), priors=[0.5] * 5), "sum to 1"),
        (lambda: classify(MODEL, torch.zeros(1, 8), priors=[0, 0, 0, 0.5, 0.5]), "positive"),
        (lambda: judge(known([0.8], [1])[0], torch.zeros(2, dtype=torch.int64)), r"shape \(1,\)"),
        (lambda: judge(known([0.8], [1])[0], torch.zeros(1)), "must be integers"),
        (lambda: judge(known([0.8], [1])[0], torch.tensor([2])), r"among 0 .. 1"),
        (lambda: judge(*known([0.8], [1]), num_bins=0), "num_bins must be"),
        (lambda: tempered(known([0.8], [1])[0], 0.0), "temperature must be positive"),
        (lambda: MODEL.given(5), "component of a mixture, 0 .. 4, got 5"),
        (lambda: ExactModel(Gaussian([0.0], [1.0]), SDE).given(0), "component of a mixture"),
    ],
)
def test_bad_arguments_get_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.slow
def test_a_network_of_classes_is_a_conditional_model():
    model = NetworkModel(MLP((2,), width=8, depth=1, num_classes=3), SDE, "noise", (2,))
    found = classify(model, torch.zeros(2, 2), log_likelihood=functools.partial(log_likelihood, divergence=1))
    torch.testing.assert_close(found.probabilities, torch.full((2, 3), 1 / 3, dtype=FLOAT64))


@pytest.mark.slow
def test_the_shipped_digits_are_told_apart_and_drawn_by_class():
    run = open_shipped("digits_classes")
    dataset = build_dataset(run.config)
    density = functools.partial(continuous_bound, draws=BoundDraws(num_draws=16, control=False))
    judged = judge(classify(run.model, dataset.scaled_test(), log_likelihood=density), dataset.labels_test)
    assert judged.accuracy.value > 0.95
    recognise = digit_features()
    for label in range(10):
        drawn = ddim(15).sample(run.model.given(label), 20, seed=label).x
        assert float((recognise.predict(drawn) == label).double().mean()) > 0.75
