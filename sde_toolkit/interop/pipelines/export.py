"""A model of ours as a directory that ``DDPMPipeline.from_pretrained`` and ``DDIMPipeline`` load.

    DIRECTORY/model_index.json, unet/ (a ``UNet2DModel`` and its safetensors), scheduler/ (the table of betas)

A pipeline of this kind knows N indices, the state x_t itself and UNet2DModel's layers, so that the model
must be a network at the indices of a variance-preserving chain whose layers are those: ``networks.UNet`` or
diffusers' own. The time features of ours, which are other angles of the same sines, become the table of
``time_embedding_type="learned"``, one row for every index: the numbers are the same, at integers.

What has no place there is refused: continuous time, sub-VP and VE, states that are scaled by the data's size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sde_toolkit.interop.libraries import other_library
from sde_toolkit.interop.pipelines.networks import PipelineNetwork
from sde_toolkit.models import IndexedModel, ModuleModel, NetworkModel, inner_network
from sde_toolkit.networks import UNet
from sde_toolkit.sdes import Chain, ChainSDE
from sde_toolkit.utils import atomic_folder, check_output_directory, checked

PREDICTION_TYPES = {"noise": "epsilon", "data": "sample", "velocity": "v_prediction"}


@checked
def to_diffusers(
    model: ModuleModel, directory: str | Path, *, pipeline: Literal["DDPM", "DDIM"] = "DDPM"
) -> Path:
    """Write a directory of diffusers, and return its path.

    A network with K classes has labels 0 to K there, K for "no class"; ``from_diffusers(directory,
    null_class=K)`` reads it back (pipelines of these two kinds pass no labels).

    Args:
        model: of a U-Net at the indices of a variance-preserving chain.
        directory: new, empty, or one that was written before.
        pipeline: whose class the directory names; either loads it.

    Raises:
        ValueError: what a discrete scheduler or UNet2DModel cannot say, with what to do; or a directory that
            holds something else.
        TypeError: no model of a network.
        ImportError: diffusers is not installed.
    """
    if not isinstance(model, ModuleModel):
        raise TypeError(f"model must be one of a network, got {type(model).__name__}")
    if pipeline not in ("DDPM", "DDIM"):
        raise ValueError(f"pipeline must be DDPM or DDIM, got {pipeline!r}")
    chain = _chain(model)
    network = _network(model, chain)
    place = check_output_directory(directory, "directory")
    if place.exists() and any(place.iterdir()) and not (place / "model_index.json").is_file():
        raise ValueError(f"directory must be new, empty or a pipeline's, got {place} with other files")
    peer = other_library("diffusers", "a directory of diffusers", "images")
    variance = {"variance_type": "learned_range" if model.learned_variance else "fixed_small"}
    scheduler = getattr(peer, f"{pipeline}Scheduler")(
        num_train_timesteps=chain.num_steps, trained_betas=chain.betas.tolist(), clip_sample=False,
        prediction_type=PREDICTION_TYPES[model.predicts], **(variance if pipeline == "DDPM" else {}),
    )  # fmt: skip
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(place) as folder:
        getattr(peer, f"{pipeline}Pipeline")(unet=network, scheduler=scheduler).save_pretrained(folder)
    return place


def _chain(model: ModuleModel) -> Chain:
    """The chain of the model; refuses what has no table of betas."""
    if not isinstance(model.sde, ChainSDE):
        raise ValueError(
            "model must be one at the indices of a chain for a discrete scheduler, got one under "
            f"{model.sde!r}; train it with IndexedModel(network, Chain.cosine(1000), ...), as "
            "--config=digits_ddpm does, or keep continuous time with save_model"
        )
    chain = model.sde.chain
    if not torch.allclose(chain.alphas.square() + chain.sigmas.square(), torch.ones(()).double(), atol=1e-9):
        raise ValueError(
            "model must have a chain with alpha^2 + sigma^2 = 1 for a table of betas, got another one; "
            "Chain.from_betas(betas) makes one"
        )
    if model.network_predicts not in PREDICTION_TYPES:
        raise ValueError(
            f"model must predict noise, data or velocity for a pipeline, got {model.network_predicts!r}; "
            "train it "
            'with predicts="velocity"'
        )
    return chain


def _network(model: ModuleModel, chain: Chain) -> Any:
    """The model's network as a ``UNet2DModel``."""
    if not isinstance(model, (IndexedModel, NetworkModel)):
        raise ValueError(f"model must be an IndexedModel for a pipeline, got a {type(model).__name__}")
    if isinstance(model, NetworkModel) and model.data_std != 1:
        raise ValueError(
            "model must see x_t itself, got a NetworkModel that scales it by data_std = "
            f"{model.data_std:.4g}; train an IndexedModel"
        )
    peer = other_library("diffusers", "a directory of diffusers", "images")
    inner = inner_network(model.network)
    if isinstance(inner, PipelineNetwork) and inner.sign == 1 and inner.channels is None:
        inner = inner.network
    indices = torch.arange(chain.num_steps, dtype=torch.float32)
    told = indices if isinstance(model, IndexedModel) else 1000 * chain.times[1:].float() / model.sde.T
    if isinstance(inner, UNet):
        if inner.patch_size != 1 or inner.fourier or inner.condition_shape:
            raise ValueError(
                "model must have a U-Net without patches, Fourier features and conditions that are no "
                "classes, which UNet2DModel lacks; train networks.UNet(event_shape, patch_size=1, fourier=())"
            )
        return _with_table(peer, inner.unet, inner._angle_rate * told)
    if not isinstance(inner, peer.UNet2DModel):
        raise ValueError(
            f"model must have a UNet or a UNet2DModel as its network, got {type(inner).__name__}; other "
            "networks have no class in DDPMPipeline"
        )
    return inner if isinstance(model, IndexedModel) else _with_table(peer, inner, told)


@torch.no_grad()
def _with_table(peer: Any, unet: nn.Module, told: Tensor) -> nn.Module:
    """The network with a table of its time features at the numbers that it is told, with shape (N,)."""
    config: Any = unet.config
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    own |= {"time_embedding_type": "learned", "num_train_timesteps": len(told)}
    made = peer.UNet2DModel(**own)
    parameter = next(unet.parameters())
    tensors = dict(unet.state_dict())
    features: Any = unet.time_proj
    tensors["time_proj.weight"] = features(told.to(parameter.device)).to(parameter.dtype)
    made.load_state_dict(tensors)
    return made.to(parameter.device, parameter.dtype).eval()
