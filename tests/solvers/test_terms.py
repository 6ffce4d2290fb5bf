"""Terms and the broadcast helpers."""

import pytest
import torch

from solvers import ODE, SDE, Recursion, expand_like
from solvers.terms import flatten


@pytest.mark.parametrize("event_shape", [(), (1,), (3,), (2, 4, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coefficients_per_sample_broadcast_in_the_type_of_the_state(
    event_shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = torch.ones(5, *event_shape, dtype=dtype)
    c = torch.arange(5, dtype=torch.float64)
    product = expand_like(c, x) * x
    assert product.dtype == dtype
    assert product.shape == x.shape
    assert all((product[i] == i).all() for i in range(5))


def test_a_scalar_coefficient_leaves_the_type_of_the_state_alone() -> None:
    c, x = torch.tensor(2.0, dtype=torch.float64), torch.ones(2, 3)
    assert expand_like(c, x) is c
    assert (expand_like(c, x) * x).dtype == torch.float32


@pytest.mark.parametrize(("event_shape", "columns"), [((), 1), ((1,), 1), ((3,), 3), ((2, 4, 4), 32)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_flatten_makes_one_row_per_sample(count: int, event_shape: tuple[int, ...], columns: int) -> None:
    x = torch.rand(count, *event_shape)
    assert flatten(x).shape == (count, columns)
    assert torch.equal(flatten(x).flatten(), x.flatten())


def test_an_unknown_kind_of_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise must be 'additive' or 'diagonal', got 'scalar'"):
        SDE(lambda t, y: y, lambda t: t, noise="scalar")  # type: ignore[arg-type]


def test_terms_are_frozen_records() -> None:
    for term in (
        ODE(lambda t, y: y),
        SDE(lambda t, y: y, lambda t: t),
        Recursion(lambda t, y: y, lambda t, s: (t,) * 3),
    ):
        assert term.args == ()
        with pytest.raises(AttributeError):
            term.args = (1,)  # type: ignore[misc, assignment]
