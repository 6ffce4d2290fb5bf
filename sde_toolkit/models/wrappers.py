"""Models made of models: everything that a wrapper does not change is that of the model inside.

A wrapper overrides ``raw`` (and ``predicts``, where its prediction is another one), or any other method or
attribute; thresholds, guidance, counting and fixed conditions are wrappers.

Networks inside the wrappings of torch, and the plain names of their tensors.

``torch.compile`` puts a network into a module under the name ``_orig_mod``, the parallel wrappers under
``module``, and both names then stand in the names of all tensors.  A file holds the tensors of the network
itself, so that it does not depend on how it was run:

    compiled        _orig_mod.first.weight     -> first.weight
    parallel        module.first.weight        -> first.weight
    a part of it    blocks._orig_mod.0.weight  -> blocks.0.weight

A network of yours with a part that is called "module" keeps this name.  A plain function is made a module by
``as_module``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sde_toolkit.models.moments import Moments
from sde_toolkit.models.score import Condition, DataScale, ScoreModel
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import shown


class Wrapper(ScoreModel):
    """A model that forwards to another one.

    Args:
        model: the model inside.
    """

    def __init__(self, model: ScoreModel) -> None:
        self.model = model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @property
    def sde(self) -> ForwardSDE:  # type: ignore[override]
        """That of the model inside."""
        return self.model.sde

    @property
    def predicts(self) -> str:  # type: ignore[override]
        """That of the model inside."""
        return self.model.predicts

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """That of the model inside."""
        return self.model.exact

    @property
    def learned_variance(self) -> bool:  # type: ignore[override]
        """That of the model inside."""
        return self.model.learned_variance

    @property
    def event_shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """That of the model inside."""
        return self.model.event_shape

    @property
    def data_std(self) -> float:  # type: ignore[override]
        """That of the model inside."""
        return self.model.data_std

    @property
    def moments(self) -> Moments | None:  # type: ignore[override]
        """Those of the model inside."""
        return self.model.moments

    @property
    def class_moments(self) -> Sequence[Moments] | None:  # type: ignore[override]
        """Those of the model inside."""
        return self.model.class_moments

    @property
    def scaling(self) -> DataScale | None:  # type: ignore[override]
        """That of the model inside."""
        return self.model.scaling

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """That of the model inside."""
        return self.model.num_classes

    @property
    def condition_shape(self) -> tuple[int, ...] | None:  # type: ignore[override]
        """That of the model inside."""
        return self.model.condition_shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        """That of the model inside."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """That of the model inside."""
        return self.model.device

    def conditions(self, condition: Condition | None, count: int) -> Tensor | None:
        """The condition as the model inside takes it."""
        return self.model.conditions(condition, count)

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction of the model inside, with shape (B, *)."""
        return self.model.raw(x_t, t, condition)

    def raw_and_fraction(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """This model's prediction and the fraction of the model inside, each with shape (B, *).

        A wrapper that changes the prediction evaluates it beside: there is one evaluation more.
        """
        raw, fraction = self.model.raw_and_fraction(x_t, t, condition)
        changed = type(self).raw is not Wrapper.raw
        return self.raw(x_t, t, condition) if changed else raw, fraction


class GivenModel(Wrapper):
    """The score model of p_t(x_t | c) for one condition c that all samples share.

    Args:
        model: takes conditions.
        condition: the class, or the row of a condition.
        moments: of the data given c; the model's own when None.
    """

    def __init__(self, model: ScoreModel, condition: Condition, moments: Moments | None = None) -> None:
        super().__init__(model)
        rows = condition[None] if isinstance(condition, Tensor) else condition
        row = model.conditions(rows, 1)
        if row is None:
            raise ValueError("condition must be a class or a row for a model that is given one, got None")
        self.condition, self._moments = row, moments

    @property
    def moments(self) -> Moments | None:  # type: ignore[override]
        """Of the data given the condition, where they are known."""
        return self.model.moments if self._moments is None else self._moments

    @property
    def class_moments(self) -> None:  # type: ignore[override]
        """None: the condition is chosen."""
        return None

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """0: the condition is chosen."""
        return 0

    @property
    def condition_shape(self) -> None:  # type: ignore[override]
        """None: the condition is chosen."""
        return None

    def conditions(self, condition: Condition | None, count: int) -> None:
        """Refuses another condition."""
        if condition is not None:
            raise ValueError("condition must be left out for a model that is given one; use the model inside")

    def raw(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """The prediction given the condition, with shape (B, *)."""
        row = self.condition
        return self.model.raw(x_t, t, row.expand(len(x_t), *row.shape[1:]))

    def raw_and_fraction(
        self, x_t: Tensor, t: Tensor, condition: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The prediction and the fraction given the condition, each with shape (B, *)."""
        row = self.condition
        return self.model.raw_and_fraction(x_t, t, row.expand(len(x_t), *row.shape[1:]))


class OwnRows(nn.Module):
    """A network that is evaluated at some rows of a batch only; the output of the others is 0.

    The rows are as in a call with the whole batch, the masks of ``nn.Dropout`` included, which are drawn for
    the whole batch.  What a row gets from other rows of its batch (batch normalisation) is that of the rows
    that are evaluated.

    Args:
        module: the network.
        rows: that are evaluated.
    """

    def __init__(self, module: nn.Module, rows: slice) -> None:
        super().__init__()
        self.module, self.rows = module, rows

    def forward(self, x: Tensor, *arguments: Tensor) -> Tensor:
        """The network at (x, ...), tensors with B rows each, with 0 in the rows of others."""
        count = len(x)
        own = [tensor[self.rows] for tensor in arguments]
        drops = any(isinstance(part, _Dropout) and part.p > 0 for part in self.module.modules())
        with _MasksOfRows(self.rows, count) if drops else contextlib.nullcontext():
            out = self.module(x[self.rows], *own)
        out = getattr(out, "sample", out) if not isinstance(out, Tensor) else out
        if not isinstance(out, Tensor) or not out.ndim:
            return out  # refused by the model
        first, last, _ = self.rows.indices(count)
        event = out.shape[1:]
        return torch.cat([out.new_zeros(first, *event), out, out.new_zeros(count - last, *event)])


_Dropout = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)


_MASKS: list[Any] = []
"""Those that are entered now, the innermost last."""


def masks_again() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """What a part of a network is evaluated in, and what it is evaluated again in, so that its dropout has
    the masks that it had (``context_fn`` of ``torch.utils.checkpoint``)."""
    masks = _MASKS[-1] if _MASKS else None
    again = contextlib.nullcontext() if masks is None else _MasksOfRows(masks.rows, masks.count)
    return contextlib.nullcontext(), again


class _MasksOfRows(TorchFunctionMode):
    """Inside, a dropout of these rows draws the masks of the whole batch and takes its own."""

    def __init__(self, rows: slice, count: int) -> None:
        super().__init__()
        self.rows, self.count = rows, count

    def __enter__(self) -> _MasksOfRows:
        _MASKS.append(self)
        super().__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        _MASKS.remove(self)
        super().__exit__(*raised)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _DROPOUTS or not kwargs.get("training", True):
            return func(*args, **kwargs)
        x = args[0]
        order = sorted(range(x.ndim), key=x.stride, reverse=True)  # masks are drawn as elements lie in memory
        shape = (self.count, *x.shape[1:])
        ones = torch.ones([shape[axis] for axis in order], dtype=x.dtype, device=x.device)
        whole = ones.permute([order.index(axis) for axis in range(x.ndim)])
        return x * func(whole, **(kwargs | {"inplace": False}))[self.rows]


_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel, OwnRows)


class FunctionNetwork(nn.Module):
    """A function as a module without parameters.

    Args:
        function: called with the arguments of a network.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def extra_repr(self) -> str:
        """The function's name."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def forward(self, *arguments: Tensor) -> Tensor:
        """What the function returns."""
        return self.function(*arguments)


def as_module(network: nn.Module | Callable[..., Tensor]) -> nn.Module:
    """The network as a module; raises TypeError for what is neither a module nor a function."""
    if isinstance(network, nn.Module):
        return network
    if isinstance(network, type) or not callable(network):
        made = f"; make one, as in {network.__name__}(...)" if isinstance(network, type) else ""
        raise TypeError(f"network must be a torch.nn.Module or a function, got {shown(network)}{made}")
    return FunctionNetwork(network)


def inner_network(network: nn.Module) -> nn.Module:
    """The network inside all wrappings around the whole of it."""
    while True:
        if isinstance(network, _PARALLEL):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network._orig_mod  # type: ignore[assignment]
        else:
            return network


def plain_parameters(network: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters under their plain names."""
    for name, parameter in network.named_parameters():
        yield _plain(network, name), parameter


def plain_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of ``network.state_dict()`` under their plain names; not copies.

    Raises:
        TypeError: the network keeps something else than tensors there.
    """
    found = {}
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"network must keep tensors alone in its state_dict, got {type(value).__name__} for "
                f"{name!r}; make it a buffer, or leave it out of get_extra_state"
            )
        found[_plain(network, name)] = value
    return found


def _plain(network: nn.Module, name: str) -> str:
    kept, module = [], network
    for part in name.split("."):
        parallel = part == "module" and isinstance(module, _PARALLEL)
        if not parallel and part != "_orig_mod":
            kept.append(part)
        module = getattr(module, part, module)
    return ".".join(kept)
