"""The programs that measure posterior samplers and guidance."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import guidance as law_of_guidance
from benchmarks import posteriors


def test_cases_have_one_posterior_for_every_problem_and_observation() -> None:
    found = list(posteriors.cases(0))
    assert len(found) == 12 * len(posteriors.NOISES)
    for case in found:
        assert math.isfinite(case.truth.log_evidence)
        assert case.truth.event_shape == case.model.event_shape


@pytest.mark.parametrize("method", ["GaussianInformed", "DDRM", "TwistedSMC"])
def test_draws_are_measured_beside_the_posterior(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(posteriors, "SAMPLES", 32)
    case = next(posteriors.cases(0))
    x = posteriors.ours()[method](case, 10, 0)
    assert x.shape == (32, 2)
    values = posteriors.measured(case, x, 0)
    assert values["W2"] > 0
    assert 0 <= values["coverage"] <= 1
    assert posteriors.measured(case, x * math.nan, 0)["W2"] == math.inf


def test_columns_tell_the_best_of_both() -> None:
    row = {"problem": "2-D", "observation": "mask", "noise": 0.1, "nfe": 20}
    rows = [
        row | {"method": m, "W2": w} for m, w in (("floor", 0.1), ("A", 0.2), ("B", 0.4), ("azula C", 0.8))
    ]
    (column,) = posteriors.columns(rows)
    assert (column["best of ours"], column["best of azula"], column["ratio"]) == ("A", "azula C", 0.25)
    assert posteriors.overall(rows)["B"] == {"2-D": 0.4}


def test_the_tilted_law_is_the_conditional_one_at_scale_one() -> None:
    data = law_of_guidance.law()
    found = law_of_guidance.tilted_quantiles(data, 1.0, 2001)
    component = data.component(law_of_guidance.LABEL)
    wanted = component.mean + component.std * torch.special.ndtri((torch.arange(2001).double() + 0.5) / 2001)
    torch.testing.assert_close(found, wanted.flatten(), rtol=0, atol=1e-3)
