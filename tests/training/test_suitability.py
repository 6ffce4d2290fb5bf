"""Data that cannot suit a process or their scaling are told with a number when the training begins."""

import warnings

import pytest
import torch

from sde_toolkit.data import Dataset, Scaling, from_array
from sde_toolkit.models import NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VESDE, VPSDE
from sde_toolkit.training import DenoisingLoss, TrainState, fit
from sde_toolkit.training.suitability import warn_if_unsuitable

POINTS = torch.randn(200, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_data_far_from_the_prior_are_told_by_how_much() -> None:
    far = from_array(POINTS + 1e4, Scaling.identity())
    alpha = float(VPSDE().alpha(torch.tensor(1.0, dtype=torch.float64)))
    with pytest.warns(UserWarning, match=f"{alpha * float(far.mean.abs().amax()):.3g} standard deviations"):
        warn_if_unsuitable(far, VPSDE())
    wide = from_array(POINTS * 1e3, Scaling.identity())
    with pytest.warns(UserWarning, match="times the prior's"):
        warn_if_unsuitable(wide, VPSDE())


def test_features_of_very_different_scale_are_told_what_helps() -> None:
    mixed = from_array(POINTS * torch.tensor([1.0, 1.0, 1e-3]))
    with pytest.warns(UserWarning, match=r"factor of 9\d\d .* feature 2, .*per_coordinate"):
        warn_if_unsuitable(mixed, VPSDE())


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()])
def test_scaled_data_and_constant_pixels_raise_no_warning(sde) -> None:
    images = torch.zeros(20, 1, 4, 4)
    images[:, 0, 0, 0] = torch.randn(20, generator=torch.Generator().manual_seed(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_unsuitable(from_array(POINTS), sde)
        warn_if_unsuitable(from_array(POINTS * 100, Scaling.standard(POINTS * 100, per_coordinate=True)), sde)
        warn_if_unsuitable(Dataset("spots", images, images), sde)


def test_fit_warns_before_it_begins() -> None:
    far = from_array(POINTS + 1e4, Scaling.identity())
    model = NetworkModel(MLP((3,), width=8, depth=1), VPSDE(), "noise", (3,))
    with pytest.warns(UserWarning, match="far from where sampling starts"):
        fit(TrainState(model), far, DenoisingLoss(), num_steps=1, batch_size=4)
