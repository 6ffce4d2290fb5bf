"""Models of score_sde as score models: their processes, their labels, their data.

    process     continuous labels                  trained at N indices
    VP          999 t,      output  -sigma score   the chain beta_i = (beta_min + (i-1)/(N-1) (beta_max -
                                                   beta_min)) / N, label i - 1
    sub-VP      999 t,      output  -sigma score
    VE          sigma(t),   output  score          the chain of N noise levels, geometric from sigma_min to
                                                   sigma_max, label N - i

and the state enters as it is.  Trained at N indices a model is an ``IndexedModel``; sub-VP is read as
continuous always, as in score_sde.

The data are images in [-1, 1] ("centered") or [0, 1].  The model's ``scaling`` divides these into the bins of
256 grey levels, as the published likelihoods do.

Reference: Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations"
(2011.13456), appendices B to D.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sde_toolkit.data import Scaling
from sde_toolkit.interop.denoisers import ForeignModel, Time
from sde_toolkit.interop.score_sde.checkpoint import read_tensors_of
from sde_toolkit.interop.score_sde.network import ScoreSDENetwork
from sde_toolkit.interop.score_sde.settings import ScoreSDEConfig, read_score_sde_config
from sde_toolkit.models import IndexedModel, Moments
from sde_toolkit.sdes import VESDE, VPSDE, Chain, ForwardSDE, LinearBeta, SubVPSDE
from sde_toolkit.utils import as_device, checked

IMAGE_STD = {True: 0.5, False: 0.25}
"""Standard deviation of images in [-1, 1] and in [0, 1], where no moments are given."""


class FromLargest(nn.Module):
    """A network whose labels count from the largest noise level, called with indices that count from the
    smallest.

    Args:
        network: called as ``network(x, label)``.
        num_scales: N.
    """

    embeds_real_times = False
    """Whether the label may be any real number."""

    def __init__(self, network: nn.Module, num_scales: int) -> None:
        super().__init__()
        self.network, self.num_scales = network, num_scales

    def forward(self, x: Tensor, i: Tensor) -> Tensor:
        """The output with the shape of x, for indices from 0 to N - 1 with shape (B,)."""
        return self.network(x, self.num_scales - 1 - i)


def process_of(config: ScoreSDEConfig) -> ForwardSDE:
    """The forward process of a configuration, in continuous time."""
    if config.sde == "vesde":
        return VESDE(config.sigma_min, config.sigma_max)
    beta = LinearBeta(config.beta_min, config.beta_max)
    return VPSDE(beta) if config.sde == "vpsde" else SubVPSDE(beta)


def chain_of(config: ScoreSDEConfig) -> Chain:
    """The N indices of a configuration."""
    count = config.num_scales

    def evenly(first: float, last: float) -> Tensor:
        return torch.linspace(first, last, count, dtype=torch.float64)

    if config.sde == "vesde":
        return Chain.from_sigmas(evenly(math.log(config.sigma_min), math.log(config.sigma_max)).exp())
    return Chain.from_betas(evenly(config.beta_min / count, config.beta_max / count))


@checked
def from_score_sde(
    path: Path | str,
    config: Path | str | Mapping[str, Any] | ScoreSDEConfig,
    *,
    ema: bool = True,
    moments: Moments | None = None,
    device: torch.device | str | None = None,
) -> ForeignModel | IndexedModel:
    """The score model in a checkpoint of score_sde (yang-song's .pth files).

    Nothing that the files ask for is run: the checkpoint is read by torch's weights-only reader, and the
    configuration is parsed.

    Args:
        path: of the checkpoint.
        config: its configuration, as for ``read_score_sde_config``.
        ema: the moving averages of the weights, with which the results were published; otherwise the weights
            of the last step.
        moments: mean and covariance of the data in model scale, for samplers that use them.
        device: of the model; the host when None.

    Returns:
        A ``ScoreSDEModel``, or an ``IndexedModel`` where it was trained at N indices, in evaluation mode,
        whose parameters need no gradients.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no checkpoint of score_sde, one that asks for code to be run, a configuration of another
            model or of a network that is not rebuilt here, or moments of other data.
        TypeError: an argument of another type.
    """
    settings = read_score_sde_config(config)
    where = torch.device("cpu") if device is None else as_device("device", device)
    tensors = read_tensors_of(path, settings, ema)
    network = ScoreSDENetwork(settings)
    network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    network.sigmas.copy_(tensors["sigmas"])
    network.requires_grad_(False).eval().to(where)
    model = model_around(network, settings, moments)
    model.eval()
    return model


def model_around(
    network: nn.Module, config: ScoreSDEConfig, moments: Moments | None = None
) -> ForeignModel | IndexedModel:
    """The score model of a network that was trained as the configuration says."""
    predicts = "score" if config.sde == "vesde" else "noise"
    data_std = IMAGE_STD[config.centered] if moments is None else moments.std
    shape = config.event_shape
    model: ForeignModel | IndexedModel
    if config.continuous or config.sde == "subvpsde":
        label: Time = "sigma" if config.sde == "vesde" else "999t"
        model = ForeignModel(network, process_of(config), predicts, shape, "x_t", label, data_std, moments)
    else:
        called = FromLargest(network, config.num_scales) if config.sde == "vesde" else network
        fractional = config.sde == "vpsde"
        model = IndexedModel(called, chain_of(config), predicts, shape, fractional, data_std, moments)
    model.scaling = grey_levels(config.centered)
    return model


def grey_levels(centered: bool) -> Scaling:
    """The scaling of 256 grey levels v: 2 (v + u) / 256 - 1, or (v + u) / 256 where data are not centered."""
    if centered:
        return Scaling.grey(256)
    return Scaling(torch.tensor(1 / 256, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64), 256)
