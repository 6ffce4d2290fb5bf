"""The quantile of the dynamic threshold, for events of any size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sde_toolkit.guidance import DynamicThreshold


@given(st.integers(1, 40), st.floats(0.01, 1.0), st.integers(0, 1000))
def test_the_quantile_is_torchs(size, q, seed):
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    s = x.abs().quantile(q, dim=1).clamp(min=0.5)[:, None]
    assert torch.allclose(DynamicThreshold(q, 0.5)(x), 0.5 / s * x.clamp(-s, s), rtol=1e-12)


@pytest.mark.slow
def test_events_above_the_limit_of_torch():
    size = (1 << 24) + 2
    x = torch.linspace(-2, 2, size)[None]
    found = DynamicThreshold(0.75, 1.0)(x)
    assert float(found.abs().amax()) == 1.0
    assert abs(float((found.abs() >= 1).double().mean()) - 0.25) < 1e-6
