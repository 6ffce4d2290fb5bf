"""How a model stands while it is run: in evaluation mode, and outside torch's inference mode.

A run looks at a model and leaves it as it was.  Dropout would make a sample depend on more than its seed, and
batch normalisation would move its statistics, so that every module goes into evaluation mode for the run and
back into its own mode after it, also after an error.

Tensors made inside ``torch.inference_mode`` can never take part in a gradient.  A run keeps some (products of
moments, coefficients), and the same model may be trained or differentiated later: so a run leaves that mode,
with gradients switched off as before, and copies the inference tensors that it was given.

Under autocast the network alone runs in the lower type; a sampler's own products keep that of the state.

A model of half precision is asked in its own type, by runs whose states are float32: a state of 8 bits cannot
keep the steps of a run, of which each would be rounded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from sde_toolkit.models.products import ordinary
from sde_toolkit.models.score import ScoreModel
from sde_toolkit.models.wrappers import Wrapper

P = ParamSpec("P")
R = TypeVar("R")


_NO_HOLDERS = (Tensor, str, int, float, type(None))
"""What holds no module, told first: the checks for abstract classes take most of the search."""


def modules_of(*parts: object) -> list[nn.Module]:
    """The modules in models, in models inside them, and in their attributes, each once."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    left = list(parts)
    while left:
        part = left.pop()
        if isinstance(part, _NO_HOLDERS) or id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, nn.Module):
            found.update((id(module), module) for module in part.modules())
        if isinstance(part, (list, tuple)):
            left.extend(part)
        elif isinstance(part, Mapping):
            left.extend(part.values())
        elif isinstance(part, (ScoreModel, functools.partial)):
            left.extend(vars(part).values())
            left.extend((part.func, part.args, part.keywords) if isinstance(part, functools.partial) else ())
    return list(found.values())


@contextmanager
def evaluating(*models: object) -> Iterator[None]:
    """Every module of the models in evaluation mode inside, and each in its own mode after it, errors too."""
    training = [module for module in modules_of(*models) if module.training]
    modes = [(module, module.training) for module in modules_of(*models)] if training else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class EvaluatedModel(Wrapper):
    """A model that is in evaluation mode whenever it is asked, such as in a backward pass after a run."""

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction with shape (B, *)."""
        with evaluating(self.model):
            return self.model.raw(x_t, t, condition)


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Inside, tensors are ordinary ones; gradients stay off where inference mode had switched them off."""
    if not torch.is_inference_mode_enabled():
        with _fresh_casts():
            yield
        return
    with torch.inference_mode(False), torch.no_grad(), _fresh_casts():
        yield


@contextmanager
def recording() -> Iterator[None]:
    """Inside, gradients are recorded, whatever was switched off outside: for training."""
    with torch.inference_mode(False), torch.enable_grad(), _fresh_casts():
        yield


@contextmanager
def _fresh_casts() -> Iterator[None]:
    """Inside, autocast keeps no copies of weights: those of a run without gradients, or of the update before,
    would be used where gradients or the new weights are wanted."""
    kept = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


def evaluated(function: Callable[P, R]) -> Callable[P, R]:
    """A function of a model, its first argument, that runs it as this file says."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        given: Any = args
        named: dict[str, Any] = kwargs
        if any(isinstance(x, Tensor) and x.is_inference() for x in (*given, *named.values())):
            given = tuple(ordinary(x) if isinstance(x, Tensor) else x for x in given)
            named = {key: ordinary(x) if isinstance(x, Tensor) else x for key, x in named.items()}
        model = given[0] if given else named.get("model")
        with evaluating(model), outside_inference_mode():
            return function(*given, **named)

    return run


def _autocast() -> dict[str, torch.dtype]:
    kinds = ("cpu", "cuda")
    return {kind: torch.get_autocast_dtype(kind) for kind in kinds if torch.is_autocast_enabled(kind)}


@contextmanager
def without_autocast() -> Iterator[None]:
    """Inside, products keep their type."""
    with ExitStack() as stack:
        for kind in _autocast():
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """The type of a run's states for a model of this type: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


class WideModel(Wrapper):
    """A model of half precision, asked in its own type, for states of ``wide_type``."""

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """Of the states."""
        return wide_type(self.model.dtype)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction with the shape and type of x_t, (B, *)."""
        return self.model.raw(x_t.to(self.model.dtype), t, condition).to(x_t.dtype)

    def raw_and_fraction(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prediction and the fraction with the shape and type of x_t, (B, *)."""
        raw, v = self.model.raw_and_fraction(x_t.to(self.model.dtype), t, condition)
        return raw.to(x_t.dtype), v.to(x_t.dtype)


def in_run(model: ScoreModel) -> ScoreModel:
    """The model as a run asks it, in the type of the states: itself as a rule, another for one of half
    precision, and inside autocast one that is asked there."""
    kinds = _autocast()
    if wide_type(model.dtype) != model.dtype:
        model = WideModel(model)
    return AutocastModel(model, kinds) if kinds else model


class AutocastModel(Wrapper):
    """A model that is asked inside autocast and answers in the type of the state.

    Args:
        model: the model inside.
        kinds: type of device -> type of its products.
    """

    def __init__(self, model: ScoreModel, kinds: Mapping[str, torch.dtype]) -> None:
        super().__init__(model)
        self.kinds = kinds

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction with the shape and type of x_t, (B, *)."""
        with self._inside():
            return self.model.raw(x_t, t, condition).to(x_t.dtype)

    def raw_and_fraction(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prediction and the fraction with the shape and type of x_t, (B, *)."""
        with self._inside():
            raw, v = self.model.raw_and_fraction(x_t, t, condition)
            return raw.to(x_t.dtype), v.to(x_t.dtype)

    def _inside(self) -> ExitStack:
        """The stack of its autocasts, entered."""
        stack = ExitStack()
        for kind, dtype in self.kinds.items():
            stack.enter_context(torch.autocast(kind, dtype))
        return stack
