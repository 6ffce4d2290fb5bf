"""The benchmark of compositions: its laws, and the table that quotes it."""

import json
from pathlib import Path

import torch

from benchmarks.compositions import problems
from benchmarks.record import RESULTS


def test_the_laws_have_the_gradient_of_the_composed_log_density():
    for name, problem in problems().items():
        x = (
            1.5
            * torch.randn(50, *problem.model.event_shape, generator=torch.Generator().manual_seed(0)).double()
        )
        x.requires_grad_()
        laws = [
            problem.model.given(term).data if isinstance(term, int) else term.data for term in problem.terms
        ]
        plain = problem.model.data.log_prob(x)
        composed = plain + sum(
            w * (law.log_prob(x) - plain) for w, law in zip(problem.weights, laws, strict=True)
        )
        (wanted,) = torch.autograd.grad(composed.sum(), x)
        (got,) = torch.autograd.grad(problem.law.log_prob(x).sum(), x)
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-8, msg=name)


def test_the_table_is_that_of_the_results():
    rows = json.loads((RESULTS / "compositions.json").read_text())["results"]
    text = (Path(RESULTS).parent / "README.md").read_text(encoding="utf-8")
    for name in {row["problem"] for row in rows}:
        cells = [f"{row['W2']:.3f} +- {row['W2 error']:.3f}" for row in rows if row["problem"] == name]
        assert f"| {name} | {' | '.join(cells)} |" in text
