"""The samples' own arguments follow their rows, through compaction, dense output and failures."""

from typing import Any

import pytest
import torch
from torch import Tensor

from solvers import (
    BOSH3,
    DOP853,
    DOPRI5,
    ODE,
    SDE,
    STOCHASTIC_HEUN,
    Adaptive,
    BrownianTree,
    Normals,
    SaveAt,
    Solution,
    solve,
)

RATES = torch.tensor([0.2, 30.0, 1.0, 7.0, 0.05, 100.0, 3.0, 0.6], dtype=torch.float64)
KINDS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
Y0 = torch.linspace(0.5, 2, 16, dtype=torch.float64).reshape(8, 2)
CONTROL = Adaptive(0.0, 1.0, rtol=1e-6, atol=1e-6)


def field(t: Tensor, y: Tensor, rate: Tensor, kind: Tensor) -> Tensor:
    """Rows end at different steps: the rates differ, and so do the equations."""
    shift = torch.stack([y, y.square(), torch.sin(y)])[kind, torch.arange(len(y))]
    return -rate[:, None] * (y - torch.cos(shift))


def alone(i: int, method: Any, save: SaveAt) -> Solution:
    term = ODE(field, (RATES[i : i + 1], KINDS[i : i + 1]))
    return solve(term, Y0[i : i + 1], method, CONTROL, save=save)


@pytest.mark.parametrize("method", [DOPRI5, BOSH3, DOP853], ids=lambda method: method.name)
@pytest.mark.parametrize("save", [SaveAt(), SaveAt(times=[0.1, 0.55, 1.0])], ids=["end", "inside steps"])
def test_each_row_equals_the_row_alone(method: Any, save: SaveAt) -> None:
    whole = solve(ODE(field, (RATES, KINDS)), Y0, method, CONTROL, save=save)
    assert whole.stats.num_steps.unique().numel() > 3  # rows leave the batch at different times
    for i in range(8):
        one = alone(i, method, save)
        assert torch.equal(one.ys[:, 0], whole.ys[:, i])
        assert one.stats.nfe[0] == whole.stats.nfe[i]


def test_the_caller_s_arguments_stay_as_they_were() -> None:
    term = ODE(field, (RATES, KINDS))
    solve(term, Y0, DOPRI5, CONTROL)
    assert term.args[0] is RATES
    assert len(term.args[1]) == 8


def test_arguments_of_a_diffusion_follow_their_rows() -> None:
    def drift(t: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return -rate[:, None] * y

    control = Adaptive(0.0, 1.0, rtol=1e-2, atol=1e-2)

    def run(rows: slice) -> Solution:
        numbers = torch.arange(8)[rows]
        path = BrownianTree(0.0, 1.0, Normals(3, numbers, (2,)))
        term = SDE(drift, lambda t: 0.3 + 0 * t, args=(RATES[rows],))
        return solve(term, Y0[rows], STOCHASTIC_HEUN, control, noise=path)

    whole = run(slice(None))
    for i in (0, 3, 5):
        assert torch.equal(run(slice(i, i + 1)).y[0], whole.y[i])
