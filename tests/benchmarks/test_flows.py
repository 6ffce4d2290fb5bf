"""The exact problems of the benchmarks: their ends are those of the flow, and every one is what it says."""

import pytest
import torch

from benchmarks import flows
from sde_toolkit.models.exact import Gaussian


def test_the_problems_are_those_that_the_module_promises() -> None:
    data = flows.make_data()
    assert {name: d.event_shape for name, d in data.items()} == {
        "ring": (2,),
        "scales": (3,),
        "mixture8": (8,),
        "mixture32": (32,),
        "mixture64": (64,),
        "low_rank": (16,),
    }
    assert int(torch.linalg.matrix_rank(data["low_rank"].covariance, tol=1e-10)) == 4
    assert [name for name, d in data.items() if isinstance(d, Gaussian)] == ["low_rank"]
    for sde in flows.make_processes().values():
        t_min = sde.inverse_nsr(torch.tensor(flows.NSR_MIN, dtype=torch.float64))
        torch.testing.assert_close(float(sde.nsr(t_min)), flows.NSR_MIN, rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", flows.make_processes())
@pytest.mark.parametrize("name", ["ring", "low_rank"])
def test_the_exact_end_has_no_error_and_carries_the_flow_on(name: str, process: str) -> None:
    sde = flows.make_processes()[process]
    problem = flows.make_problem(name, flows.make_data()[name], sde)
    assert problem.error(problem.end) == 0
    assert problem.error(problem.zero_end, at_zero=True) == 0
    middle = sde.inverse_nsr(torch.tensor(0.5, dtype=torch.float64))
    T, t_min = (torch.tensor(t, dtype=torch.float64) for t in (sde.T, problem.t_min))
    by_parts = problem.model.flow(problem.model.flow(problem.x_T, T, middle), middle, t_min)
    assert problem.error(by_parts) < 1e-8
    assert problem.error(torch.full_like(problem.end, torch.nan)) == torch.inf
