import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import DATA, DIAGONAL, GAUSSIAN, MIXTURE, RING
from torch import nn

from sde_toolkit.interop import ForeignModel, from_denoiser, from_edm, from_epsilon
from sde_toolkit.likelihood import log_likelihood
from sde_toolkit.models import PREDICTIONS, ExactModel, GaussianMixture
from sde_toolkit.samplers import ddim, ddpm, default, heun
from sde_toolkit.sdes import VESDE, VPSDE, Chain, CosineBeta, RectifiedFlow, SubVPSDE
from solvers import expand_like

PROCESSES = {
    "vp": VPSDE(),
    "cosine": VPSDE(CosineBeta()),
    "subvp": SubVPSDE(),
    "ve": VESDE(),
    "rectified": RectifiedFlow(),
}
NOISE_ALONE = VESDE(1e-4, 1e5)
"""alpha = 1: at the time where sigma is n the exact model speaks of y = x0 + n z."""
KINDS = tuple(name for name in PREDICTIONS if name != "residual")
TOLERANCE = 1e-6


def of_noised(data, predicts, d=1.0):
    """An exact output at y = x0 + n z, by the formulas of the papers."""
    exact = ExactModel(data, NOISE_ALONE)

    def network(y, n, condition=None):
        x0 = exact.denoise(y, NOISE_ALONE.inverse_nsr(n), condition)
        n = expand_like(n, y)
        z = (y - x0) / n
        return {
            "data": x0,
            "noise": z,
            "flow": z,
            "score": -z / n,
            "velocity": z - n * x0,
            "edm": (x0 - d**2 / (n**2 + d**2) * y) * (n**2 + d**2).sqrt() / (n * d),
        }[predicts]

    return network


def of_state(exact, predicts):
    """An exact output at x_t, asked by t."""
    sde = exact.sde

    def network(x, t):
        if predicts == "flow":
            drift = sde.probability_flow(exact).drift
            return drift(t, x)
        if predicts == "edm":
            a, s, d = (expand_like(v, x) for v in (sde.alpha(t), sde.sigma(t), torch.tensor(0.7)))
            keep = a * d**2 / (a**2 * d**2 + s**2)
            return (exact.denoise(x, t) - keep * x) * (a**2 * d**2 + s**2).sqrt() / (s * d)
        return {"noise": exact.noise, "data": exact.denoise, "score": exact.score}.get(
            predicts, exact.velocity
        )(x, t)

    return network


def states(exact, count=24):
    generator, sde = torch.Generator().manual_seed(3), exact.sde
    t = sde.T * (0.01 + 0.98 * torch.rand(count, generator=generator, dtype=torch.float64))
    x0 = exact.data.sample(count, seed=4).double()
    z = torch.randn(count, *exact.event_shape, generator=generator, dtype=torch.float64)
    return sde.perturb(x0, t, z), t


def check(model, exact):
    x, t = states(exact)
    for method in ("noise", "denoise", "velocity", "score"):
        for at in (t, t[0]):
            wanted = getattr(exact, method)(x, at)
            error = (getattr(model, method)(x, at) - wanted).abs().max() / (1 + wanted.abs().max())
            assert float(error) < TOLERANCE, (method, float(error))


@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("data", ["gaussian", "diagonal", "mixture"])
def test_a_denoiser_of_noised_data_is_the_exact_model_under_every_process(name, predicts, data):
    exact = ExactModel(DATA[data], PROCESSES[name])
    network = of_noised(DATA[data], predicts, 0.7)
    model = from_denoiser(
        network, exact.event_shape, exact.sde, predicts=predicts, data_std=0.7, dtype=torch.float64
    )
    check(model, exact)


@pytest.mark.parametrize("predicts", KINDS)
@pytest.mark.parametrize("name", PROCESSES)
def test_a_network_of_x_t_is_the_exact_model(name, predicts):
    exact = ExactModel(MIXTURE, PROCESSES[name])
    model = from_epsilon(
        of_state(exact, predicts), exact.sde, exact.event_shape, predicts=predicts, data_std=0.7,
        dtype=torch.float64,
    )  # fmt: skip
    check(model, exact)


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize(
    "time", ["t", "sigma", "log_sigma/4", "log_snr", "1000t", "999t", lambda t: 7 * t + 1]
)
def test_the_number_that_tells_the_level(name, time):
    sde = PROCESSES[name]
    seen = []

    def network(x, c):
        seen.append(c)
        return 0 * x

    t = torch.tensor([0.2, 0.9], dtype=torch.float64) * sde.T
    n = sde.sigma(t) / sde.alpha(t)
    wanted = {
        "t": t,
        "sigma": n,
        "log_sigma/4": n.log() / 4,
        "log_snr": (sde.alpha(t) ** 2 / sde.sigma(t) ** 2).log(),
        "1000t": 1000 * t / sde.T,
        "999t": 999 * t / sde.T,
    }
    x = torch.ones(2, 3, dtype=torch.float64)
    from_epsilon(network, sde, (3,), time=time, dtype=torch.float64).noise(x, t)
    expected = 7 * t + 1 if callable(time) else wanted[time]
    torch.testing.assert_close(seen[0], expected, rtol=1e-12, atol=1e-12)
    assert seen[0].shape == (2,)


def test_the_scaled_state_is_that_of_edm():
    sde, seen = VPSDE(), []
    model = ForeignModel(
        lambda x, c: seen.append(x) or x, sde, "edm", (3,), "unit", "log_sigma/4", 0.5, dtype=torch.float64
    )
    x, t = torch.randn(4, 3, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    model.denoise(x, t)
    y, n = x / sde.alpha(t), sde.nsr(t)
    torch.testing.assert_close(seen[0], y / (n**2 + 0.25).sqrt())


@settings(max_examples=25, deadline=None)
@given(
    predicts=st.sampled_from(KINDS),
    name=st.sampled_from(sorted(PROCESSES)),
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    scale=st.floats(0.1, 20),
    seed=st.integers(0, 1000),
)
def test_any_mixture_of_any_shape_through_the_door_and_back(predicts, name, shape, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    means = scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    data = GaussianMixture([0.3, 0.7], means, [0.2 * scale**2, 0.05 * scale**2])
    exact = ExactModel(data, PROCESSES[name])
    model = from_denoiser(
        of_noised(data, predicts), exact.event_shape, exact.sde, predicts=predicts, dtype=torch.float64
    )
    x, t = states(exact, 5)
    wanted = exact.denoise(x, t)
    assert float((model.denoise(x, t) - wanted).abs().max()) < 1e-6 * (1 + float(wanted.abs().max()))


def test_classes_are_handed_on_as_the_network_takes_them():
    exact, seen = ExactModel(RING, VESDE()), []

    def network(y, sigma, class_labels=None):
        seen.append(class_labels)
        return y

    x, t = torch.ones(3, 2, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
    model = from_denoiser(
        network, (2,), num_classes=4, one_hot=True, argument="class_labels", dtype=torch.float64
    )
    model.denoise(x, t, torch.tensor([0, 3, 4]))
    assert seen[-1].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]
    model.denoise(x, t)
    assert seen[-1] is None
    model = from_denoiser(network, (2,), num_classes=4, dtype=torch.float64)
    model.denoise(x, t, torch.tensor([0, 3, 4]))
    assert seen[-1].tolist() == [0, 3, 4]
    with pytest.raises(ValueError, match=r"labels must be among 0 \.\. 3"):
        default(model, 2).sample(model, 2, condition=9)
    given_class = from_denoiser(of_noised(RING, "data"), (2,), exact.sde, num_classes=8, dtype=torch.float64)
    labels = torch.tensor([0, 5, 7])
    torch.testing.assert_close(given_class.denoise(x, t, labels), exact.denoise(x, t, labels))


def test_outputs_in_tuples_and_records():
    class Record:
        def __init__(self, sample):
            self.sample = sample

    x, t = torch.ones(3, 2), torch.tensor(0.5)
    for wrap in (lambda y: (y,), lambda y: [y], Record, lambda y: y):
        model = from_epsilon(lambda y, c, wrap=wrap: wrap(2 * y), VPSDE(), (2,))
        assert torch.equal(model.noise(x, t), 2 * x)


class EDMLike(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.img_channels, self.img_resolution, self.label_dim, self.sigma_data = 1, 2, classes, 0.6
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, x, sigma, class_labels=None):
        assert class_labels is None or class_labels.shape == (len(x), self.label_dim)
        return of_noised(DIAGONAL, "data")(x.double(), sigma.double()).to(x.dtype) + self.shift


@pytest.mark.parametrize("classes", [0, 3])
def test_edm_networks(classes):
    network = EDMLike(classes)
    model = from_edm(network)
    assert model.event_shape == (1, 2, 2)
    assert model.num_classes == classes
    assert model.data_std == 0.6
    exact = ExactModel(DIAGONAL, VESDE(0.002, 80.0))
    x = torch.randn(5, 1, 2, 2) * 3
    t = torch.tensor(0.6)
    condition = torch.tensor([0, 1, 2, 3, 0]) if classes else None
    torch.testing.assert_close(
        model.denoise(x, t, condition), exact.denoise(x.double(), t).float(), rtol=1e-4, atol=1e-4
    )
    assert sum(p.numel() for p in model.parameters()) == 1
    with pytest.raises(ValueError, match="img_channels"):
        from_edm(nn.Linear(2, 2))


def test_samples_and_likelihoods_are_those_of_the_exact_model():
    exact = ExactModel(GAUSSIAN, VPSDE())
    model = from_denoiser(
        of_noised(GAUSSIAN, "data"), (3,), exact.sde, moments=exact.moments, dtype=torch.float64
    )
    for sampler in (heun(8), ddim(10), default(exact, 8)):
        wanted = sampler.sample(exact, 6, seed=1).x
        torch.testing.assert_close(sampler.sample(model, 6, seed=1).x, wanted, rtol=1e-6, atol=1e-6)
    x = exact.data.sample(4, seed=0).double()
    torch.testing.assert_close(
        log_likelihood(model, x).nats, log_likelihood(exact, x).nats, rtol=1e-5, atol=1e-5
    )


def test_networks_at_indices_of_a_chain():
    chain = Chain.cosine(20)
    seen = []

    def network(x, i):
        seen.append(i)
        return torch.cat([0 * x, x], 1)

    model = from_epsilon(network, chain, (1, 2, 2), learned_variance=True)
    ddpm(num_steps=20).sample(model, 2)
    assert {int(i[0]) for i in seen} == set(range(20))
    assert all(i.dtype == torch.int64 for i in seen)
    _, fraction = model.raw_and_fraction(torch.ones(2, 1, 2, 2), torch.tensor(0.5))
    assert torch.equal(fraction, 0.5 * (torch.ones(2, 1, 2, 2) + 1))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: from_denoiser(nn.Linear, (2,)), "denoiser must be a Module or a function"),
        (lambda: from_denoiser(3, (2,)), "denoiser must be"),
        (lambda: from_denoiser(lambda x: x, (2,)), r"two arguments, .* called as \(x\); wrap it"),
        (lambda: from_epsilon(nn.Linear(2, 2), VPSDE(), (2,)), r"two arguments, .* called as \(input"),
        (lambda: from_denoiser(lambda x, c: x, (2,), predicts="residual"), "residual"),
        (lambda: from_denoiser(lambda x, c: x, (2,), one_hot=True), "one_hot needs num_classes"),
        (lambda: from_denoiser(lambda x, c: x, (2,), time="tau"), "time must be"),
        (lambda: from_epsilon(lambda x, c: x, VPSDE(), (2,), learned_variance=True), "give the Chain"),
        (lambda: from_epsilon(lambda x, c: x, Chain.cosine(9), (2,), time="999t"), "time must be left out"),
        (lambda: from_epsilon(lambda x, c: x, VPSDE(), (2,), num_classes=-1), "at least 0"),
    ],
)
def test_what_is_no_network_is_refused_in_a_sentence(call, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence):
        call()


def test_an_output_of_another_shape_is_refused():
    model = from_denoiser(lambda x, c: torch.cat([x, x], 1), (2, 2))
    with pytest.raises(TypeError, match="must return a tensor of shape"):
        model.denoise(torch.ones(3, 2, 2), torch.tensor(0.5))


def test_a_denoiser_can_be_put_around_another_network():
    model = from_denoiser(lambda x, c: x, (2,), dtype=torch.float64)
    other = model.with_network(lambda x, c: 3 * x)
    assert other.state == model.state
    x = torch.ones(1, 2, dtype=torch.float64)
    assert math.isclose(float(other.denoise(x, torch.tensor(0.3))[0, 0]), 3.0)
