"""Arguments of a term: one row for every sample, or a sentence."""

import pytest
import torch

from solvers import HEUN, ODE, FixedGrid, solve

Y = torch.ones(3, 2, dtype=torch.float64)
GRID = FixedGrid([0.0, 0.5, 1.0])


@pytest.mark.parametrize("argument", [torch.tensor(2.0), torch.ones(2), 2.0, None])
def test_arguments_without_rows_are_named(argument):
    with pytest.raises(
        (ValueError, TypeError), match=r"args\[1\] of the term .* 3 samples, got|args must be"
    ):
        solve(ODE(lambda t, y, a, b: -b * y, (Y, argument)), Y, HEUN, GRID)


def test_arguments_with_rows_are_passed_on():
    rate = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    found = solve(ODE(lambda t, y, a: -a * y, (rate,)), Y, HEUN, GRID).y
    for k in range(3):
        alone = solve(ODE(lambda t, y, a: -a * y, (rate[k : k + 1],)), Y[k : k + 1], HEUN, GRID).y
        assert torch.equal(found[k : k + 1], alone)
