"""Laws of products of powers: on a grid against closed forms, independent integrals, and what is refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from sde_toolkit.guidance import Composed, product_law, product_on_grid
from sde_toolkit.models import ExactData, ExactModel, Gaussian, GaussianMixture
from sde_toolkit.sdes import VPSDE

ONE = GaussianMixture([0.6, 0.4], [[-1.0], [1.0]], [[0.5], [0.25]])
TWO = GaussianMixture(
    [0.3, 0.7], [[-1.0, 0.5], [1.0, -0.5]], [[[0.4, 0.1], [0.1, 0.2]], [[0.3, 0.0], [0.0, 0.5]]]
)


@pytest.mark.parametrize(
    ("laws", "powers"),
    [
        ([Gaussian([0.3], [2.0]), Gaussian([1.0], [0.5])], [-0.5, 1.7]),
        ([ONE, ONE.component(0)], [2, 1.0]),
        ([TWO, TWO.component(1), Gaussian([0.0, 1.0], [3.0, 0.2])], [1, 0.7, 0.4]),
        ([TWO.component(0), TWO.component(1)], [1.8, -0.4]),
        ([Gaussian([[100.0, -3.0]], [[1e-4, 50.0]])], [1.0]),
    ],
)
def test_it_equals_the_closed_form(laws: list[ExactData], powers: list[float]) -> None:
    grid, closed = product_on_grid(laws, powers), product_law(laws, powers)
    x = closed.sample(50, 0)
    torch.testing.assert_close(grid.log_prob(x), closed.log_prob(x), rtol=0, atol=1e-9)
    std = closed.covariance.diagonal().sqrt()
    assert float(((grid.mean - closed.mean).flatten() / std).abs().max()) < 1e-9
    assert float(((grid.covariance - closed.covariance) / std / std[:, None]).abs().max()) < 1e-8
    assert float(grid.masses.sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("scale", [1.5, 3.0, 5.0])
def test_the_law_that_guidance_aims_at(scale: float) -> None:
    """p(x | c)^w p(x)^(1 - w), by an adaptive quadrature."""
    law = Composed(ExactModel(ONE, VPSDE()), [1], scale).grid_law()

    def density(x: float, power: int) -> float:
        at = torch.tensor([[x]], dtype=torch.float64)
        log = scale * ONE.component(1).log_prob(at) + (1 - scale) * ONE.log_prob(at)
        return float(log.exp()) * x**power

    mass, mean, square = (
        integrate.quad(density, -6, 8, args=(power,), epsabs=1e-13, epsrel=1e-12, limit=400)[0]
        for power in (0, 1, 2)
    )
    assert law.log_mass == pytest.approx(math.log(mass), abs=1e-10)
    assert float(law.mean) == pytest.approx(mean / mass, abs=1e-10)
    assert float(law.covariance) == pytest.approx(square / mass - (mean / mass) ** 2, abs=1e-10)


def test_draws_have_its_moments_and_do_not_depend_on_their_number() -> None:
    law = product_on_grid([TWO, TWO.component(0)], [-0.5, 1.5])
    x = law.sample(20_000, 5)
    assert torch.equal(law.sample(30, 5), x[:30])
    error = (law.covariance.diagonal() / len(x)).sqrt()
    assert float(((x.mean(0) - law.mean) / error).abs().max()) < 5
    ratio = torch.linalg.solve(law.covariance, torch.cov(x.mT))
    assert float((torch.linalg.eigvals(ratio).real - 1).abs().max()) < 0.06


reals = st.floats(-3, 3)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(reals, st.floats(0.05, 4), reals, st.floats(0.05, 4), st.floats(-2, 3)),
        min_size=1,
        max_size=3,
    )
)
def test_any_powers_in_one_dimension_have_their_mass_or_a_sentence(
    parts: list[tuple[float, float, float, float, float]],
) -> None:
    laws = [GaussianMixture([0.5, 0.5], [[a], [b]], [[u], [v]]) for a, u, b, v, _ in parts]
    powers = [part[-1] for part in parts]
    law, refusal = None, ""
    try:
        law = product_on_grid(laws, powers)
    except ValueError as error:
        refusal = str(error)
    if law is None:
        assert refusal.startswith(("powers must", "points must be more"))
        return
    x = np.linspace(float(law.axes[0][0]), float(law.axes[0][-1]), 20_001)
    logs = sum(
        a * p.log_prob(torch.as_tensor(x)[:, None]).numpy() for p, a in zip(laws, powers, strict=True) if a
    )
    top = float(np.max(logs))
    assert law.log_mass == pytest.approx(top + math.log(np.trapezoid(np.exp(logs - top), x)), abs=1e-5)
    beyond = torch.linspace(0, 20 * float(x[-1] - x[0]), 4001, dtype=torch.float64)[:, None]
    outside = torch.cat([float(x[0]) - beyond, float(x[-1]) + beyond])
    assert float(law.log_prob(outside).max()) < top - law.log_mass - 45  # nothing was left outside the box


def test_refusals_are_sentences() -> None:
    with pytest.raises(ValueError, match="without a finite mass"):
        product_on_grid([ONE, Gaussian([0.0], [0.1])], [1.0, -1.0])
    with pytest.raises(ValueError, match="without a finite mass"):  # in one direction only
        product_on_grid([TWO, Gaussian([0.0, 0.0], [9.0, 0.1])], [1.0, -1.0])
    with pytest.raises(ValueError, match="must not all be 0"):
        product_on_grid([ONE], [0.0])
    with pytest.raises(ValueError, match="one or two features"):
        product_on_grid([Gaussian(torch.zeros(3), torch.ones(3))], [0.5])
    with pytest.raises(ValueError, match="at least 65"):
        product_on_grid([ONE], [0.5], points=9)
    with pytest.raises(ValueError, match="must be finite"):
        product_on_grid([ONE], [math.nan])
    far = GaussianMixture([0.5, 0.5], [[-1000.0], [1000.0]], [[1e-4], [1e-4]])
    with pytest.raises(ValueError, match="points must be more"):
        product_on_grid([far], [0.5])
    with pytest.raises(ValueError, match="product_on_grid takes"):
        product_law([ONE], [0.5])
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        product_on_grid([ONE], [0.5]).sample(0, 1)
