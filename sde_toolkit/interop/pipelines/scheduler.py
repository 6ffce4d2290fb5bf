"""Our samplers inside pipelines of diffusers: a scheduler around any preset on a fixed grid.

A pipeline asks its scheduler for ``timesteps``, calls its network once for each, and hands the output to
``step``.  Here every timestep is one evaluation of the sampler, in its order, so that methods with several
evaluations per step have several timesteps per step; what ``step`` returns is the next input of the network,
and in the end the samples (``stepwise``).

    timesteps      N steps of a preset with k evaluations are N k timesteps, and one more for ``denoise``
    a run that     begins with a closed form (Gaussian-residual) has one timestep before the others, whose
                   evaluation goes unused, since a pipeline evaluates its first state before any step
    noise          the generator that the pipeline gives; else that of ``seed``, keyed by sample as everywhere
                   here; else torch's own
    a state that   the pipeline changed between two steps (inpainting, callbacks) is taken where a step begins
    image to image begins at any later timestep, with the sampler on the times that are left (``programs``);
                   evaluations that a run from there does not make go unused
    correctors     and restarts have timesteps of their own, one for every evaluation

The class is made on first use, since diffusers is loaded late.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from sde_toolkit.guidance import DynamicThreshold, StaticThreshold, thresholded
from sde_toolkit.interop.libraries import other_library, part_of
from sde_toolkit.interop.pipelines.programs import Beginning
from sde_toolkit.interop.pipelines.schedules import Schedule, read_schedule
from sde_toolkit.interop.pipelines.stepwise import Request, Run, StandIn, stand_in_model
from sde_toolkit.interop.pipelines.wrappers import described, named_grid, wrapped
from sde_toolkit.models import ModuleModel, Moments
from sde_toolkit.samplers import PRESETS, Corrector, Preset, Restart, Sampler
from sde_toolkit.sdes import ChainSDE
from sde_toolkit.utils import Stream, checked, integer
from solvers import Normals, expand_like


class GeneratorNoise:
    """Normals in the order in which they are asked for.

    Args:
        like: shape, type and device.
        generator: of torch; its own default one when None.  A list has one for every sample.
    """

    def __init__(self, like: Tensor, generator: Any) -> None:
        self._like, self._generator = like, generator

    def draw(self, index: int, stream: int = Stream.STEPS) -> Tensor:
        """Standard normals with shape (B, *), new ones at every call."""
        tensors = other_library("diffusers.utils.torch_utils", "a scheduler", "images")
        like = self._like
        return tensors.randn_tensor(
            like.shape, generator=self._generator, device=like.device, dtype=like.dtype
        )


class Stepping:
    """What ``ToolkitScheduler`` does; the class itself is also a ``SchedulerMixin`` and a ``ConfigMixin``."""

    config: Any
    order = 1
    moments: Moments | None = None
    timesteps: Tensor
    num_inference_steps: int | None = None
    _begin: int | None = None
    _idle = False
    _learned = False

    def _setup(self) -> None:
        """Check the configuration, and read it."""
        config = dict(self.config)
        self._schedule: Schedule = read_schedule(config["trained_as"], config)
        self._preset = _preset(config["preset"])
        self._clear()
        self.timesteps = torch.arange(config["num_train_timesteps"] - 1, -1, -1)

    def _clear(self) -> None:
        self._run: Run | None = None
        self._returned: Tensor | None = None
        self._request: Request | None = None
        self._index = 0

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the states that a run begins with."""
        return self._schedule.sde.prior_std

    @property
    def step_index(self) -> int | None:
        """Number of the timestep that comes next; None before the first."""
        return None if self._run is None else self._index

    @property
    def begin_index(self) -> int | None:
        """Where a pipeline said that it begins."""
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at this timestep, as pipelines from image to image do."""
        self._begin = begin_index

    def _sampler(self, model: ModuleModel, num_steps: int) -> Sampler:
        config = self.config
        options = dict(config["options"] or {})
        if isinstance(options.get("grid"), str):
            options["grid"] = named_grid(options["grid"])
        unknown = sorted(set(options) - set(self._preset.parameters))
        if unknown:
            known = ", ".join(name for name in self._preset.parameters if name not in ("model", "num_steps"))
            raise ValueError(
                f"options must be parameters of {self._preset.name}, {known}, got {', '.join(unknown)}"
            )
        made = wrapped(self._preset.make(num_steps, model=model, **options).on(model.sde), config)
        if config["thresholding"]:
            q, most = config["dynamic_thresholding_ratio"], config["sample_max_value"]
            return thresholded(made, DynamicThreshold(q, 1.0, most))
        if config["clip_sample"]:
            return thresholded(made, StaticThreshold(config["clip_sample_range"]))
        return made

    def _model(self, like: Tensor) -> tuple[StandIn, ModuleModel]:
        learned = dict(self.config["options"] or {}).get("variance") == "learned"
        return stand_in_model(self._schedule, like, self.config["data_std"], self.moments, learned)

    @torch.no_grad()
    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Find the evaluations of a run of ``num_inference_steps`` steps, in their order.

        Raises:
            ValueError: a preset that does not run on this process, such as one that needs moments.
        """
        integer("num_inference_steps", num_inference_steps, 1)
        shape = (2,) if self.moments is None else self.moments.event_shape
        like = torch.ones(1, *shape, dtype=torch.float64)
        network, model = self._model(like)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = Run(network, self._sampler(model, num_inference_steps), model, Normals(0, 1, shape))
        found = []
        request = run.begin(like)
        self._idle = request is None or not torch.equal(self._state(request), like)
        parts = 2 if model.learned_variance else 1
        while request is not None:
            found.append(request)
            request = run.answer(like.repeat(1, parts, *[1] * (len(shape) - 1)) * 0)
        times = [request.tau for request in found]
        if self._idle:
            times.insert(0, self._told(model, float(run.ts[0])))
        inside = sum(request.key[0] != "denoise" for request in found)
        self.order = max(1, round(inside / num_inference_steps))
        self.num_inference_steps = num_inference_steps
        self._plan, self._whole = found, run
        tau = torch.tensor(times, dtype=torch.float64)
        whole = self._schedule.feature == "index" and bool((tau == tau.round()).all())
        self.timesteps = tau.to(device=device, dtype=torch.int64 if whole else torch.float32)
        self._begin = None
        self._clear()

    def _told(self, model: ModuleModel, t: float) -> float:
        return float(
            model.arguments(torch.ones(1, *model.event_shape), torch.tensor(t, dtype=torch.float64))[1]
        )

    def _time(self, timesteps: Tensor) -> Tensor:
        """t at timesteps of any shape."""
        schedule, tau = self._schedule, timesteps.double()
        sde = schedule.sde
        if schedule.feature == "index":
            assert isinstance(sde, ChainSDE)
            return sde.time(tau + 1)
        if schedule.feature == "time":
            return tau / schedule.scale
        sigma = {
            "log_sigma/4": (4 * tau).exp(), "250 log_sigma": (tau / 250).exp(),
            "arctan": (torch.pi / 2 * tau).tan(), "sigma": tau,
        }  # fmt: skip
        return sde.inverse_nsr(sigma[schedule.feature]).clamp(0, sde.T)

    def _levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma at timesteps of any shape."""
        t = self._time(timesteps)
        return self._schedule.sde.alpha(t), self._schedule.sde.sigma(t)

    def _scale(self, tau: Any) -> float:
        """The factor between a state and the network's input."""
        if not self._schedule.scaled:
            return 1.0
        _, sigma = self._levels(torch.as_tensor(tau))
        return float((self._schedule.data_std**2 + sigma.square()).rsqrt())

    def _state(self, request: Request) -> Tensor:
        scale = self._scale(request.tau)
        return request.x if scale == 1 else request.x / scale

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The network's input for a state, with shape (B, *)."""
        scale = self._scale(timestep)
        return sample if scale == 1 else scale * sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x0 + sigma z at timesteps with shape (B,) or (1,), with shape (B, *)."""
        alpha, sigma = (
            level.to(original_samples.device, original_samples.dtype) for level in self._levels(timesteps)
        )
        return expand_like(alpha, original_samples) * original_samples + expand_like(sigma, noise) * noise

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> Any:
        """Take the network's output at ``timestep``, and return the next state.

        Args:
            model_output: with the shape of the sample, or twice its channels.
            timestep: as in ``timesteps``; they come in their order.
            sample: the state, with shape (B, *), as the last step returned it.
            generator: of the noise.
            return_dict: whether to return an object with ``prev_sample``, or a tuple.

        Raises:
            ValueError: ``set_timesteps`` was not called, or the state was changed inside a step.
        """
        if self.num_inference_steps is None:
            raise ValueError(
                "set_timesteps must be called before step, got none; scheduler.set_timesteps(20)"
            )
        if self._run is None:
            self._start(timestep, sample, generator)
        elif self._returned is not None and not _goes_on(sample, self._returned):
            self._replace(sample)
        assert self._run is not None
        number = self._index - self._idle
        if number >= 0 and self._request is not None and _same_time(self._plan[number], self._request):
            channels = sample.shape[1] * (2 if self._learned else 1)
            self._request = self._run.answer(model_output[:, :channels])
        self._index += 1
        finished = self._index == len(self.timesteps)
        made = self._run.result if self._request is None else self._state(self._request)
        assert made is not None
        self._returned = made = made.to(sample.dtype)
        if finished:
            self._clear()
        if not return_dict:
            return (made,)
        utils = other_library("diffusers.schedulers.scheduling_utils", "a scheduler", "images")
        return utils.SchedulerOutput(made)

    def _start(self, timestep: Any, sample: Tensor, generator: Any) -> None:
        first = self._begin
        if first is None:
            same = (self.timesteps.double().cpu() == float(timestep)).nonzero()
            first = int(same[0]) if len(same) else 0
        network, model = self._model(sample.to(torch.promote_types(sample.dtype, torch.float32)))
        assert self.num_inference_steps is not None
        begin = self._beginning(first) if first else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = self._sampler(model, self.num_inference_steps)
            self._run = Run(network, sampler, model, self._noise(sample, generator), begin)
        self._learned, self._index = model.learned_variance, first
        self._request = self._run.begin(sample)

    def _beginning(self, first: int) -> Beginning:
        """Where a run begins whose first timestep is number ``first``, from 1 on."""
        request, whole = self._plan[first - self._idle], self._whole
        move = next(move for move in whole.moves if move.key == request.key)
        t = move.t if request.plain else self._time(torch.tensor(request.tau, dtype=torch.float64))
        closed = all(request.key != ("step", 0) for request in self._plan)
        return Beginning(whole.moves, request.key, request.plain, t, whole.ts[-1], closed)

    def _replace(self, sample: Tensor) -> None:
        assert self._run is not None
        if self._request is None or not self._request.plain:
            raise ValueError(
                f"sample must be what the last step gave, got another inside a step of {self._preset.name}; "
                "take a preset with one evaluation per step for pipelines that change the state"
            )
        self._request = self._run.replace(sample)

    def _noise(self, sample: Tensor, generator: Any) -> Any:
        dtype = torch.promote_types(sample.dtype, torch.float32)
        if generator is None and self.config["seed"] is not None:
            return Normals(self.config["seed"], len(sample), tuple(sample.shape[1:]), dtype, sample.device)
        return GeneratorNoise(sample.to(dtype), generator)

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])


def _goes_on(sample: Tensor, returned: Tensor) -> bool:
    """Whether a pipeline steps on from what it was given: all of it, or its first half twice, as DiT's does
    for guidance, which never looks at the second half."""
    if torch.equal(sample, returned):
        return True
    half = len(sample) // 2
    return len(sample) == 2 * half and torch.equal(sample, torch.cat([returned[:half]] * 2))


def _same_time(planned: Request, asked: Request) -> bool:
    """Whether what a pipeline evaluates next is what a run asks for."""
    return abs(planned.tau - asked.tau) <= 1e-6 * abs(planned.tau) + 1e-9


def _preset(name: Any) -> Preset:
    if name not in PRESETS or PRESETS[name].kind == "adaptive":
        known = ", ".join(sorted(key for key, found in PRESETS.items() if found.kind != "adaptive"))
        raise ValueError(f"preset must be one on a fixed grid, one of {known}, got {name!r}")
    return PRESETS[name]


@functools.cache
def scheduler_class() -> Any:
    """The class ``ToolkitScheduler``.

    Raises:
        ImportError: diffusers is not installed.
    """
    peer = other_library("diffusers", "a scheduler", "images")
    register = other_library("diffusers.configuration_utils", "a scheduler", "images").register_to_config

    def __init__(
        self: Any,
        preset: str = "dpm_solver_pp",
        options: Mapping[str, Any] | None = None,
        corrector: Mapping[str, Any] | None = None,
        corrector_first: bool = False,
        restarts: list[Mapping[str, Any]] | None = None,
        last_draw: bool = True,
        trained_as: str = "DDPMScheduler",
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str | None = None,
        rescale_betas_zero_snr: bool = False,
        timestep_type: str = "discrete",
        variance_type: str | None = None,
        use_flow_sigmas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        data_std: float | None = None,
        seed: int | None = None,
    ) -> None:
        """Keep the configuration, and check it."""
        self._setup()

    names = {"__init__": register(__init__), "__module__": __name__, "__doc__": Stepping.__doc__,
             "_compatibles": [kind.name for kind in _karras()]}  # fmt: skip
    return type("ToolkitScheduler", (Stepping, peer.SchedulerMixin, peer.ConfigMixin), names)


def _karras() -> Any:
    utils = other_library("diffusers.schedulers.scheduling_utils", "a scheduler", "images")
    return utils.KarrasDiffusionSchedulers


class PipelineScheduler(Protocol):
    """What pipelines of diffusers call a scheduler for; it is a ``SchedulerMixin`` of theirs besides."""

    order: int
    init_noise_sigma: float
    timesteps: Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Plan a run."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as the network sees it."""

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
        """The next state, in the field ``prev_sample``."""

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of clean samples."""


@checked
def toolkit_scheduler(
    scheduler: object,
    preset: str = "dpm_solver_pp",
    *,
    moments: Moments | None = None,
    seed: int | None = None,
    data_std: float | None = None,
    corrector: Corrector | None = None,
    corrector_first: bool = False,
    restarts: Sequence[Restart] = (),
    last_draw: bool = True,
    **options: Any,
) -> PipelineScheduler:
    """A scheduler of diffusers that samples with one of our presets, for ``pipeline.scheduler``.

    Args:
        scheduler: of diffusers, the one that the network was trained with.
        preset: the name of a sampler on a fixed grid.
        moments: of the data, for the Gaussian-residual sampler; not in the configuration that is saved.
        seed: of the noise, keyed by sample; the pipeline's generator or torch's own when None.
        data_std: root-mean-square standard deviation of the data.
        corrector, corrector_first: Langevin steps at every time, as for ``samplers.predictor_corrector``.
        restarts: as for ``samplers.restarting``, with grids that have names.
        last_draw: False leaves the draw of the last step out.
        options: of the preset; a grid by its name.

    Raises:
        ValueError: an unknown preset or option, what does not fit the preset, or a scheduler without a
            process in continuous time.
        TypeError: no scheduler.
        ImportError: diffusers is not installed.
    """
    config = part_of(scheduler, "config")
    if config is None or not hasattr(config, "items") or part_of(scheduler, "set_timesteps") is None:
        inside = "; give its scheduler" if part_of(scheduler, "scheduler") is not None else ""
        got = type(scheduler).__name__
        raise TypeError(f"scheduler must be one of diffusers' schedulers, got {got}{inside}")
    made = scheduler_class()
    own = dict(config)
    around = described(corrector, corrector_first, restarts, last_draw)
    known = set(inspect.signature(made.__init__).parameters) - {"preset", "options", "seed", *around}
    kept = {name: value for name, value in own.items() if name in known and value is not None}
    kept["trained_as"] = own.get("trained_as") or type(scheduler).__name__
    if data_std is not None:
        kept["data_std"] = data_std
    new = made(preset=preset, options=options, seed=seed, **around, **kept)
    new.moments = moments
    return new


def __getattr__(name: str) -> Any:
    if name == "ToolkitScheduler":
        return scheduler_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
