"""Classifier-free guidance: a linear combination of two predictions, from one call."""

import pytest
import torch
from torch import Tensor, nn

from sde_toolkit import samplers
from sde_toolkit.guidance import ClassifierFree, guided
from sde_toolkit.models import NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VPSDE

X, LABELS = torch.linspace(-2, 2, 10).reshape(5, 2), torch.tensor([0, 2, 1, 0, 2])


def model(predicts: str = "noise") -> NetworkModel:
    network = MLP((2,), width=8, depth=1, num_classes=3)
    nn.init.normal_(network.last.weight, generator=torch.Generator().manual_seed(1))
    return NetworkModel(network, VPSDE(), predicts, (2,))


@pytest.mark.parametrize("predicts", ["noise", "data", "velocity", "edm"])
@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.linspace(0.1, 0.9, 5)], ids=["one", "each"])
def test_predictions_are_combined_whatever_the_network_puts_out(predicts: str, t: Tensor) -> None:
    plain = model(predicts)
    strong = ClassifierFree(plain, 3.0)
    for name in ("noise", "denoise", "score", "velocity"):
        given, free = getattr(plain, name)(X, t, LABELS), getattr(plain, name)(X, t)
        torch.testing.assert_close(
            getattr(strong, name)(X, t, LABELS), free + 3 * (given - free), rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(ClassifierFree(plain, 1.0).raw(X, t, LABELS), plain.raw(X, t, LABELS))
    torch.testing.assert_close(ClassifierFree(plain, 0.0).raw(X, t, LABELS), plain.raw(X, t))
    assert torch.equal(strong.raw(X, t), plain.raw(X, t))


def test_every_sampler_can_be_guided() -> None:
    plain = model()
    for sampler in (samplers.ddim(5), samplers.dopri5(rtol=1e-2, atol=1e-2), samplers.default(plain, 5)):
        one = guided(sampler, 1.0).sample(plain, 5, condition=LABELS)
        torch.testing.assert_close(one.x, sampler.sample(plain, 5, condition=LABELS).x, rtol=1e-3, atol=1e-3)
        assert "ClassifierFreeGuidance(scale=1.0)" in one.settings["guidance"]
    samples = guided(samplers.ddim(5), 2.0).sample(plain, 5, condition=LABELS)
    assert samples.nfe == 12  # both branches count


def test_what_cannot_be_guided_is_refused() -> None:
    without = NetworkModel(MLP((2,), width=8, depth=1), VPSDE(), "noise", (2,))
    with pytest.raises(ValueError, match="guidance needs a model with classes"):
        guided(samplers.ddim(3), 2.0).sample(without, 2)
    with pytest.raises(ValueError, match=r"scale must be a (finite )?number"):
        guided(samplers.ddim(3), float("nan")).sample(model(), 2, condition=0)
