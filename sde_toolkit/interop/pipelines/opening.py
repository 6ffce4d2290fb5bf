"""A directory or a pipeline of diffusers, as a score model.

    DIRECTORY/model_index.json               names the parts and their classes
              unet/ or transformer/          config.json and *.safetensors
              scheduler/                     scheduler_config.json: the process, see ``schedules``

A chain's network becomes an ``IndexedModel`` under a ``ChainSDE``, any other one a ``ForeignModel``.  The
model is the network itself: ``clip_sample`` and ``thresholding`` of the scheduler are options of sampling
and not of the model (``matching_sampler`` has them), since a clipped prediction is no score.

Nothing is downloaded, unpickled or run but the classes of diffusers itself.
"""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sde_toolkit.interop.denoisers import ForeignModel, State
from sde_toolkit.interop.folders import existing_folder, json_object, need_safetensors
from sde_toolkit.interop.libraries import other_library, part_of
from sde_toolkit.interop.pipelines.networks import BoundaryNetwork, PipelineNetwork, network_shape
from sde_toolkit.interop.pipelines.schedules import Schedule, read_schedule
from sde_toolkit.interop.variances import FractionNetwork
from sde_toolkit.models import IndexedModel, ModuleModel, Moments
from sde_toolkit.sdes import ChainSDE
from sde_toolkit.utils import as_device, checked, shown

NETWORKS = ("unet", "transformer")
"""Folders of a pipeline's network."""

_CONVERT = (
    "from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained(DIRECTORY, "
    "use_safetensors=False).save_pretrained(NEW)"
)


class Parts(NamedTuple):
    """A network, its scheduler's class and configuration, and the pipeline's class where there is one."""

    network: nn.Module
    scheduler: str
    config: dict[str, Any]
    pipeline: str = ""


@checked
def from_diffusers(
    source: str | Path | object,
    scheduler: object | None = None,
    *,
    event_shape: tuple[int, ...] | None = None,
    learned_variance: bool | None = None,
    null_class: int | None = None,
    data_std: float | None = None,
    moments: Moments | None = None,
    variant: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> ModuleModel:
    """A score model of what diffusers saved or holds: any family of ``schedules``, with classes or without.

    Args:
        source: a directory that ``save_pretrained`` of a pipeline wrote, a pipeline, or a network beside
            ``scheduler``.
        scheduler: with whose configuration the network was trained; the source's own when None.
        event_shape: the shape of one sample, (C, H, W); the network's own when None.
        learned_variance: whether the second half of 2 C channels is a learned variance, the fraction between
            two bounds (2102.09672) or, by the scheduler's variance_type "learned", itself; as the scheduler
            says when None.
        null_class: the last of the network's labels where it stands for "no class"; DiT's is known.
        data_std: root-mean-square standard deviation of the data; that of the moments, or 1, when None.
        moments: mean and covariance of the data, as from ``estimate_moments(x)``, or of the model's own
            samples, as from ``samplers.sampled_moments(model)``; likelihoods and the Gaussian-residual
            sampler use them.
        variant: of the weights' file, as in "fp16".
        device, dtype: of the network; its own type when None.

    Raises:
        ValueError: a directory with a file missing, with pickled weights, or with classes of others than
            diffusers; a scheduler without a process in continuous time; 2 C channels that nobody says the
            meaning of.
        TypeError: a source that is none of these.
        ImportError: diffusers is not installed.
    """
    parts = open_parts(source, scheduler, variant)
    schedule = read_schedule(parts.scheduler, parts.config)
    shape, out = event_shape_of(parts.network, event_shape)
    learned = learned_variances(parts, schedule, learned_variance, out / shape[0])
    channels = shape[0] if out == 2 * shape[0] and not learned else None
    if type(parts.network).__name__ == "UNet2DConditionModel":
        raise ValueError(
            "source must be a pipeline without prompts, got one with a UNet2DConditionModel; open it with "
            "open_latent(directory), whose text encoder makes its conditions"
        )
    network = PipelineNetwork(parts.network, schedule.sign, channels, null_class)
    model = model_of(
        network.to(as_device("device", device), dtype), schedule, shape, data_std, moments, learned
    )
    model.eval()
    if schedule.family == "cm":
        warnings.warn(
            f"{parts.scheduler} is that of a consistency model, whose prediction is the end of the flow and "
            "not the mean of the data: its scores and likelihoods are not those of a law; sample it with "
            "matching_sampler(scheduler, num_steps)",
            stacklevel=2,
        )
    return model


def model_of(
    network: nn.Module,
    schedule: Schedule,
    shape: tuple[int, ...],
    data_std: float | None = None,
    moments: Moments | None = None,
    learned_variance: bool = False,
    condition_shape: tuple[int, ...] | None = None,
    like: Tensor | None = None,
) -> ModuleModel:
    """The model of a network under a schedule.

    Args:
        network: called with the state and the time that the schedule says.
        schedule: the process.
        shape: of one sample.
        data_std, moments, learned_variance, condition_shape: as for ``IndexedModel``.
        like: gives type and device of the states for networks without tensors.
    """
    place: dict[str, Any] = {} if like is None else {"dtype": like.dtype, "device": like.device}
    if schedule.family == "cm":
        network = BoundaryNetwork(network, schedule.sde, schedule.data_std)
    if schedule.feature == "index":
        assert isinstance(schedule.sde, ChainSDE)
        if learned_variance and schedule.variance != "range":
            network = FractionNetwork(network, schedule.sde.chain, schedule.variance)
        parameter = next(network.parameters(), like)
        real = bool(getattr(network, "embeds_real_times", False))
        wide = parameter is None or parameter.dtype.itemsize >= 4  # others round an index
        return IndexedModel(
            network, schedule.sde.chain, schedule.predicts, shape, real and wide, data_std, moments,
            condition_shape=condition_shape, learned_variance=learned_variance, **place,
        )  # fmt: skip
    if schedule.scaled and data_std not in (None, schedule.data_std):
        raise ValueError(
            f"data_std must be the sigma_data = {schedule.data_std} that the network's input is scaled by, "
            f"got {data_std}; leave it out"
        )
    if data_std is None:
        data_std = schedule.data_std if moments is None or schedule.scaled else moments.std
    state: State = "unit" if schedule.scaled else "x_t"
    return ForeignModel(
        network, schedule.sde, schedule.predicts, shape, state, schedule.time(), data_std, moments,
        condition_shape=condition_shape, **place,
    )  # fmt: skip


def open_parts(source: object, scheduler: object | None, variant: str | None = None) -> Parts:
    """The network and the scheduler of a directory, a pipeline or a network.

    Raises:
        ValueError, TypeError, ImportError: as for ``from_diffusers``.
    """
    if isinstance(source, (str, Path)):
        found = _from_folder(existing_folder(source, "source"), variant, scheduler is None)
    elif isinstance(source, nn.Module):
        if scheduler is None:
            raise ValueError(
                f"scheduler must be given beside a network, got {type(source).__name__} alone; give "
                "scheduler=DDPMScheduler(...), the one that it was trained with"
            )
        found = Parts(source, "", {})
    else:
        network = next((found for name in NETWORKS if (found := part_of(source, name)) is not None), None)
        own = part_of(source, "scheduler")
        if not isinstance(network, nn.Module) or (own is None and scheduler is None):
            raise TypeError(
                "source must be a directory, a pipeline with a unet or transformer and a scheduler, or a "
                f"network with scheduler=, got {shown(source)}"
            )
        found = Parts(network, "", {}, type(source).__name__)
        scheduler = own if scheduler is None else scheduler
    if scheduler is None:
        return found
    config = part_of(scheduler, "config")
    if config is None or not hasattr(config, "items"):
        raise TypeError(f"scheduler must be one of diffusers' schedulers, got {shown(scheduler)}")
    return found._replace(scheduler=_class_of(scheduler, dict(config)), config=dict(config))


def _class_of(scheduler: object, config: dict[str, Any]) -> str:
    """The class that says what the configuration means; a scheduler of ours names it."""
    return str(config.get("trained_as") or type(scheduler).__name__)


def _from_folder(folder: Path, variant: str | None, with_scheduler: bool) -> Parts:
    index = json_object(folder / "model_index.json", "source")
    found = {name: entry for name in NETWORKS if (entry := index.get(name)) is not None}
    if len(found) != 1 or index.get("scheduler") is None:
        raise ValueError(
            "source must have a unet or a transformer, and a scheduler, in its model_index.json, got "
            f"{folder} with {', '.join(name for name in index if not name.startswith('_')) or 'nothing'}"
        )
    ((name, entry),) = found.items()
    network = load_part(folder / name, entry, variant)
    pipeline = str(index.get("_class_name", ""))
    if not with_scheduler:
        return Parts(network, "", {}, pipeline)
    config = json_object(folder / "scheduler" / "scheduler_config.json", "source")
    own = str(config.get("trained_as") or config.get("_class_name") or "")
    return Parts(network, own, config, pipeline)


def load_part(folder: Path, entry: Any, variant: str | None = None, library: str = "diffusers") -> nn.Module:
    """A module of a pipeline's directory, in evaluation mode.

    Args:
        folder: of the part.
        entry: of the part in model_index.json, [library, class].
        variant: of the weights' file.
        library: that the class must be of.

    Raises:
        ValueError: a class of another library, weights that are missing, pickled, or of another network.
        ImportError: the library is not installed.
    """
    name = class_name(entry, library, folder.name)
    peer = other_library(
        library, f"{folder.name}/ of a pipeline", "latent" if library != "diffusers" else "images"
    )
    base = peer.ModelMixin if library == "diffusers" else peer.PreTrainedModel
    cls: Any = getattr(peer, name, None)
    known = inspect.isclass(cls) and issubclass(cls, base)
    if not known:
        raise ValueError(
            f"{folder.name} must be a network of {library}, got the class {name!r}, which {library} "
            f"{peer.__version__} does not have as one"
        )
    if not folder.is_dir():
        raise ValueError(f"source must have a folder {folder.name}, got {folder.parent} without")
    json_object(folder / "config.json", "source")
    need_safetensors(folder, _CONVERT)
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    options |= {"variant": variant} if variant else {}
    options |= {"low_cpu_mem_usage": False} if library == "diffusers" else {}
    try:
        module, info = cls.from_pretrained(folder, **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        which = f" (variant = {variant!r})" if variant else ""
        raise ValueError(f"weights in {folder} cannot be loaded as a {name}{which}: {reason}") from error
    wrong = [
        *info.get("missing_keys", ()),
        *info.get("mismatched_keys", ()),
        *info.get("unexpected_keys", ()),
    ]
    if wrong:
        raise ValueError(
            f"weights in {folder} must be those of its config.json, a {name}, got another network's: "
            f"{wrong[0]} and {len(wrong) - 1} more tensors are missing, of another shape or not its own"
        )
    return module.eval()


def class_name(entry: Any, library: str, part: str) -> str:
    """The class in an entry [library, class] of model_index.json.

    Raises:
        ValueError: another library's; code that a directory brings is never run.
    """
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(word, str) for word in entry)):
        raise ValueError(f"{part} must be [library, class] in model_index.json, got {entry!r}")
    if entry[0] != library:
        raise ValueError(
            f"{part} must be a class of {library}, got {entry[1]!r} of {entry[0]!r}; code of others is not "
            "run"
        )
    return str(entry[1])


def event_shape_of(network: nn.Module, given: tuple[int, ...] | None) -> tuple[tuple[int, ...], int]:
    """The shape of one sample, as given or the network's own, and the network's output channels, 0 where it
    does not say."""
    if given is None:
        return network_shape(network)
    try:
        own, out = network_shape(network)
    except ValueError:
        if not given or min(given) < 1:
            raise ValueError(f"event_shape must be (C, H, W), got {given}") from None
        return given, 0
    if len(given) != len(own) or given[0] != own[0] or min(given) < 1:
        raise ValueError(f"event_shape must have {own[0]} channels, as {own}, got {given}")
    return given, out


def learned_variances(parts: Parts, schedule: Schedule, given: bool | None, factor: float) -> bool:
    """Whether the second half of the channels is a variance; refuses what nobody says."""
    says = schedule.learned_variance if given is None else given
    if given is None and parts.pipeline == "DiTPipeline" and factor == 2:
        says = True  # 2212.09748, section 4: as in 2102.09672
    if factor == 0:
        factor = 2 if says else 1
    if factor == 1:
        if says:
            raise ValueError(
                "learned_variance needs a network with twice as many channels as its input, got one with as "
                "many; the scheduler's variance_type is not this network's: give learned_variance=False"
            )
        return False
    if factor != 2:
        raise ValueError(
            f"network must have as many output channels as its input, or twice, got {factor:g} times"
        )
    if not says and given is None:
        raise ValueError(
            "learned_variance must be given for a network with twice as many channels as its input and a "
            "scheduler without variance_type='learned_range' or 'learned': True if the second half is "
            "Improved DDPM's variance, False to leave it out"
        )
    if says and schedule.feature != "index":
        raise ValueError("learned_variance must be False for a network that is no chain's, got True")
    return bool(says)
