import math

import pytest
import torch
from contracts import SDEContract, derivative, draw, inner_times
from hypothesis import given
from hypothesis import strategies as st
from problems import DATA, MIXTURE, SDES

import solvers
from sde_toolkit.models.exact import ExactModel
from sde_toolkit.sdes import (
    VESDE,
    VPSDE,
    Beta,
    CosineBeta,
    CustomSDE,
    ForwardSDE,
    LinearBeta,
    RectifiedFlow,
    SubVPSDE,
)


def time(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


ALL = pytest.mark.parametrize("sde", SDES.values(), ids=SDES)


@ALL
class TestContract(SDEContract):
    pass


@pytest.mark.parametrize(
    "sde",
    [
        VPSDE(LinearBeta(0.3, 0.3)),
        VPSDE(LinearBeta(0.1, 12.0, T=2.0)),
        SubVPSDE(CosineBeta(s=0.02, T=0.9)),
        VESDE(sigma_min=0.002, sigma_max=80.0),
        RectifiedFlow(),
        RectifiedFlow(0.9),
        CustomSDE(lambda t: torch.exp(-2 * t.square()), lambda t: 3 * t.sin(), T=1.5, prior_std=3.0),
    ],
    ids=repr,
)
def test_contract_holds_for_other_parameters(sde):
    contract = SDEContract()
    contract.test_alpha_decays_at_rate_f(sde)
    contract.test_variance_grows_by_g_squared(sde)
    contract.test_noise_to_signal_ratio_is_the_clock(sde)
    contract.test_inverse_of_the_ratio(sde)


def test_linear_vp_values_by_hand():
    t, sde = time(0.4), VPSDE(LinearBeta(0.1, 20.0))
    integral = 0.1 * 0.4 + 19.9 * 0.08
    assert float(sde.alpha(t)) == pytest.approx(math.exp(-integral / 2), rel=1e-14)
    assert float(sde.sigma(t)) == pytest.approx(math.sqrt(1 - math.exp(-integral)), rel=1e-14)
    assert float(sde.g_squared(t)) == pytest.approx(0.1 + 0.4 * 19.9, rel=1e-14)
    assert float(sde.f(t)) == pytest.approx(-0.5 * (0.1 + 0.4 * 19.9), rel=1e-14)


def test_cosine_vp_values_by_hand():
    t, sde = time(0.7), VPSDE(CosineBeta())
    w = math.pi / 2 / 1.008
    assert float(sde.alpha(t)) == pytest.approx(math.cos(w * 0.708) / math.cos(w * 0.008), rel=1e-14)
    assert float(sde.g_squared(t)) == pytest.approx(2 * w * math.tan(w * 0.708), rel=1e-14)
    assert sde.T == 0.9946


def test_sub_vp_values_by_hand():
    t, sde, vp = time(0.4), SubVPSDE(LinearBeta()), VPSDE(LinearBeta())
    assert float(sde.sigma(t)) == pytest.approx(float(vp.sigma(t)) ** 2, rel=1e-14)
    beta, integral = 0.1 + 0.4 * 19.9, 0.1 * 0.4 + 19.9 * 0.08
    assert float(sde.g_squared(t)) == pytest.approx(beta * (1 - math.exp(-2 * integral)), rel=1e-14)


def test_ve_values_by_hand():
    t, sde = time(0.4), VESDE(0.01, 50.0)
    sigma = 0.01 * 5000**0.4
    assert float(sde.sigma(t)) == pytest.approx(sigma, rel=1e-14)
    assert float(sde.g(t)) == pytest.approx(sigma * math.sqrt(2 * math.log(5000)), rel=1e-14)
    assert float(sde.f(t)) == 0
    assert float(sde.sigma(time(0.0))) == pytest.approx(0.01, rel=1e-15)


def test_custom_sde_rebuilds_a_built_in_one():
    vp = VPSDE()
    custom = CustomSDE(vp.alpha, vp.sigma)
    t = inner_times(vp)
    for name in ("f", "g_squared", "nsr"):
        torch.testing.assert_close(getattr(custom, name)(t), getattr(vp, name)(t), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(custom.inverse_nsr(vp.nsr(t)), t, rtol=0, atol=1e-12)
    assert custom.prior_std == pytest.approx(float(vp.sigma(time(1.0))))


class TestRectifiedFlow(SDEContract):
    @pytest.fixture
    def sde(self) -> RectifiedFlow:
        return RectifiedFlow(0.995)

    def test_it_is_the_custom_process_of_straight_lines(self, sde):
        custom, t = CustomSDE(lambda t: 1 - t, lambda t: t, T=0.995), inner_times(sde)
        for name in ("alpha", "sigma", "f", "g_squared", "nsr"):
            torch.testing.assert_close(getattr(sde, name)(t), getattr(custom, name)(t), rtol=1e-12, atol=0)
        torch.testing.assert_close(custom.inverse_nsr(sde.nsr(t)), t, rtol=0, atol=1e-13)
        assert sde.prior_std == custom.prior_std

    def test_its_flow_is_the_mean_of_noise_less_data(self, sde):
        """dx/dt = E[z - x0 | x_t] for data whose conditional means are known."""
        model, t = ExactModel(MIXTURE, sde), inner_times(sde, 5)
        x = draw(5, MIXTURE.event_shape)
        flow = sde.probability_flow(model).drift(t, x)
        torch.testing.assert_close(flow, model.noise(x, t) - model.denoise(x, t), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("beta", [LinearBeta(), LinearBeta(2.0, 2.0), CosineBeta()], ids=repr)
def test_rates_have_the_integral_and_inverse_they_claim(beta: Beta):
    t = torch.linspace(0, beta.T, 50, dtype=torch.float64)
    torch.testing.assert_close(derivative(beta.integral, t), beta.rate(t), rtol=1e-11, atol=1e-11)
    assert float(beta.integral(time(0.0))) == 0
    torch.testing.assert_close(beta.inverse_integral(beta.integral(t)), t, rtol=1e-12, atol=1e-14)


def test_small_times_keep_their_digits():
    """1 - exp(-B) and the inverse of the ratio must not cancel next to the data."""
    t = time(1e-13)
    for sde, order in ((VPSDE(), 0.5), (SubVPSDE(), 1.0)):
        assert float(sde.sigma(t)) == pytest.approx((0.1 * 1e-13) ** order, rel=1e-9, abs=0)
        assert float(sde.inverse_nsr(sde.nsr(t))) == pytest.approx(1e-13, rel=1e-12, abs=0)
    cosine = VPSDE(CosineBeta())
    assert float(cosine.inverse_nsr(cosine.nsr(t))) == pytest.approx(1e-13, rel=1e-12, abs=0)


def _divergence(field, x: torch.Tensor) -> torch.Tensor:
    def trace(sample: torch.Tensor) -> torch.Tensor:
        return torch.func.jacrev(lambda u: field(u.unsqueeze(0)).squeeze(0))(sample).trace()

    return torch.stack([trace(sample) for sample in x])


@ALL
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_reverse_family_transports_the_marginals(sde: ForwardSDE, eta: float, fraction: float):
    """The Fokker-Planck equation of the reverse SDE, run down in time, in logarithms:

    d log p/dt + drift . score + div drift + g_rev^2 (div score + |score|^2) / 2 = 0.
    """
    model, t = ExactModel(MIXTURE, sde), time(fraction * sde.T)
    x = sde.perturb(MIXTURE.sample(6, seed=3), t, draw(6, (8,)))
    rate = torch.stack([derivative(lambda u, row=row: model.log_prob(row, u), t) for row in x.split(1)])
    term = sde.reverse(model, eta)
    assert term.noise == "additive"
    drift, score, noise = term.drift(t, x), model.score(x, t), term.diffusion(t)
    div_drift = _divergence(lambda u: term.drift(t, u), x)
    spread = 0.5 * noise.square() * (_divergence(lambda u: model.score(u, t), x) + score.square().sum(1))
    parts = [rate, (drift * score).sum(1), div_drift, spread]
    scale = sum(part.abs() for part in parts)
    assert float((sum(parts) / scale).abs().max()) < 1e-10
    assert float(noise) == pytest.approx(eta * float(sde.g(t)), rel=1e-14)


@ALL
@pytest.mark.parametrize("name", ["gaussian", "diagonal"])
def test_terms_match_the_formulas(sde: ForwardSDE, name: str):
    model, t = ExactModel(DATA[name], sde), inner_times(sde, 4)
    x = draw(4, DATA[name].event_shape)
    score, column = model.score(x, t), (-1, *[1] * (x.ndim - 1))
    f, g_squared = sde.f(t).reshape(column), sde.g_squared(t).reshape(column)
    flow = sde.probability_flow(model)
    assert isinstance(flow, solvers.ODE)
    torch.testing.assert_close(flow.drift(t, x), f * x - 0.5 * g_squared * score, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(flow.drift(t, x), sde.reverse(model, 0.0).drift(t, x), rtol=0, atol=0)
    reverse = sde.reverse(model)
    torch.testing.assert_close(reverse.drift(t, x), f * x - g_squared * score, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(reverse.diffusion(t), sde.g(t), rtol=0, atol=0)


@ALL
def test_discretize_samples_the_process(sde: ForwardSDE):
    chain = sde.discretize(20)
    assert chain.num_steps == 20
    torch.testing.assert_close(chain.times, torch.arange(21, dtype=torch.float64) * (sde.T / 20))
    torch.testing.assert_close(chain.sigmas, sde.sigma(chain.times), rtol=0, atol=0)
    torch.testing.assert_close(chain.alphas, sde.alpha(chain.times), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: VESDE(sigma_min=0.0), "got sigma_min = 0.0, sigma_max = 50"),
        (
            lambda: VESDE(sigma_min=2.0, sigma_max=1.0),
            "sigma_min < sigma_max, got sigma_min = 2.0, sigma_max = 1.0",
        ),
        (lambda: VESDE(sigma_max=math.inf), "got sigma_min = 0.01, sigma_max = inf"),
        (lambda: LinearBeta(beta_min=-1.0), "beta_min.*got -1.0 and 20.0"),
        (lambda: LinearBeta(beta_min=3.0, beta_max=2.0), "beta_min <= beta_max, got 3.0 and 2.0"),
        (lambda: LinearBeta(T=0.0), "T must be a finite positive number, got 0"),
        (lambda: CosineBeta(s=-0.1), "s > 0.*got s = -0.1"),
        (lambda: CosineBeta(T=1.0), "T < 1.*T = 1.0"),
        (lambda: RectifiedFlow(1.0), "T must be between 0 and 1, .* got 1.0; try 0.999"),
        (lambda: CustomSDE(lambda t: 1 - t, lambda t: t), r"alpha\(t\) must be finite and positive"),
        (
            lambda: CustomSDE(lambda t: 1 - t, lambda t: t, T=-1.0),
            "T must be a finite positive number, got -1",
        ),
        (lambda: CustomSDE(torch.ones_like, lambda t: 1 - 0.5 * t), "must increase strictly"),
        (lambda: CustomSDE(torch.ones_like, lambda t: t.sum()), r"sigma\(t\) must have the shape of t"),
        (lambda: CustomSDE(torch.ones_like, lambda t: t, prior_std=0.0), "prior_std must be.*got 0"),
        (lambda: VPSDE().discretize(0), "num_steps must be at least 1, got 0"),
    ],
)
def test_bad_parameters_are_refused_in_a_sentence(build, said: str):
    with pytest.raises(ValueError, match=said):
        build()


@pytest.mark.parametrize("build", [VPSDE, SubVPSDE])
def test_beta_must_be_an_object(build):
    with pytest.raises(TypeError, match=r"beta must be a Beta or None, got 0\.1; .*LinearBeta"):
        build(0.1)


@given(eta=st.one_of(st.floats(max_value=0.0, exclude_max=True), st.just(math.inf), st.just(math.nan)))
def test_eta_must_be_finite_and_not_negative(eta: float):
    with pytest.raises(ValueError, match=r"eta must be a (finite )?number"):
        VPSDE().reverse(ExactModel(MIXTURE, VPSDE()), eta)


def test_forward_process_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        ForwardSDE()
    with pytest.raises(TypeError, match="abstract"):
        Beta()
