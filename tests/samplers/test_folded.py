"""All forms of the Gaussian-residual sampler's steps are the same map."""

import pytest
import torch
from problems import SDES
from torch import Tensor

from sde_toolkit.models import ExactModel, Gaussian, Moments
from sde_toolkit.samplers import gaussian_residual
from sde_toolkit.samplers.gaussian.folded import MOST_AXES, FoldedPlan, fold, folds
from sde_toolkit.samplers.gaussian.low_rank import LowRankPlan, make_low_rank_plan
from sde_toolkit.samplers.gaussian.plan import Plan, make_plan


def law(shape: tuple[int, ...], kind: str) -> Moments:
    n = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(n, n, dtype=torch.float64, generator=generator)
    mean = torch.randn(shape, dtype=torch.float64, generator=generator)
    full = Moments(mean, root @ root.mT / n + 0.05 * torch.eye(n, dtype=torch.float64))
    return {"full": full, "diagonal": full.diagonal(), "scalar": full.scalar()}[kind]


def both(moments: Moments, name: str, eta: float, steps: int = 9) -> tuple[Plan, FoldedPlan]:
    model = ExactModel(Gaussian(torch.zeros(moments.event_shape), 1.0), SDES[name])
    sampler = gaussian_residual(model, steps, moments=moments, eta=eta)
    ready = sampler.prepare(model)
    tables = sampler.method._tables(sampler.equation(model), ready.control.ts)
    like = torch.empty(1, *moments.event_shape, dtype=torch.float64)
    return make_plan(tables, moments, like), fold(tables, moments, like)


def reduced(name: str, eta: float, rank: int, steps: int = 9) -> tuple[Plan, LowRankPlan]:
    """The steps of low rank, and the same numbers along every axis."""
    moments = law((2, 5), "full").low_rank(rank)
    model = ExactModel(Gaussian(torch.zeros(moments.event_shape), 1.0), SDES[name])
    sampler = gaussian_residual(model, steps, moments=moments, eta=eta)
    tables = sampler.method._tables(sampler.equation(model), sampler.prepare(model).control.ts)
    like = torch.empty(1, *moments.event_shape, dtype=torch.float64)

    def every(x: Tensor | None) -> Tensor | None:
        return None if x is None else torch.cat([x[..., :rank], *[x[..., -1:]] * (10 - rank)], -1)

    names = ("mix", "keep", "spread", "usual", "moved")
    expanded = tables._replace(**{name: every(getattr(tables, name)) for name in names})
    return make_plan(expanded, moments, like), make_low_rank_plan(tables, moments, like)


def run(
    plan: Plan | FoldedPlan | LowRankPlan, x: Tensor, eta: float, replace_after: int | None, steps: int = 9
) -> Tensor:
    """The state after all steps of a nonlinear field that is no score."""
    generator = torch.Generator().manual_seed(5)
    carry = plan.start(x)
    for i in range(steps + 1):
        z = torch.randn(x.shape, dtype=x.dtype, generator=generator) if eta else None
        x, carry = plan.step(i, x, carry, torch.sin(x) if i else None, z)
        if i == replace_after:
            x, carry = x + 0.1, carry.without_prediction()
    return x


@pytest.mark.parametrize("replace_after", [None, 0, 4])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("name", ["vp-linear", "ve"])
@pytest.mark.parametrize("kind", ["full", "diagonal", "scalar"])
@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_both_forms_are_one_map(shape, kind, name, eta, replace_after) -> None:
    moments = law(shape, kind)
    elementwise, folded = both(moments, name, eta)
    for count in (1, 5, 8):
        x = torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
        with torch.no_grad():
            found, wanted = (run(plan, x, eta, replace_after) for plan in (folded, elementwise))
        assert found.shape == wanted.shape
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("replace_after", [None, 0, 4])
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("name", ["vp-linear", "ve"])
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_the_form_of_low_rank_is_the_same_map(rank, name, eta, replace_after) -> None:
    elementwise, plan = reduced(name, eta, rank)
    for count in (1, 5, 8):
        x = torch.randn(count, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
        found, wanted = (run(plan, x, eta, replace_after) for plan in (plan, elementwise))
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_gradients_flow_through_both_forms_alike() -> None:
    pairs = (both(law((3,), "full"), "vp-linear", 0.0), (3,)), (reduced("vp-linear", 0.0, 3), (2, 5))
    for plans, shape in pairs:
        grads = []
        for plan in plans:
            x = torch.linspace(-1, 1, 4 * torch.Size(shape).numel(), dtype=torch.float64)
            x = x.reshape(4, *shape).requires_grad_()
            run(plan, x, 0.0, None).square().sum().backward()
            grads.append(x.grad)
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("n", [MOST_AXES, MOST_AXES + 1])
def test_few_axes_are_folded_and_many_are_not(n: int) -> None:
    model = ExactModel(Gaussian(torch.zeros(n), torch.eye(n)), SDES["vp-linear"])
    ready = gaussian_residual(model, 5).prepare(model)
    assert isinstance(ready.plan, FoldedPlan) == (n <= MOST_AXES)


def test_long_runs_are_not_folded() -> None:
    model = ExactModel(Gaussian(torch.zeros(MOST_AXES), torch.eye(MOST_AXES)), SDES["vp-linear"])
    sampler = gaussian_residual(model, 2000)
    tables = sampler.method._tables(sampler.equation(model), sampler.prepare(model).control.ts)
    assert not folds(tables)
