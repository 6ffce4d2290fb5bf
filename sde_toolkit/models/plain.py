"""Networks inside the wrappings of torch, and the plain names of their tensors.

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

from collections.abc import Callable, Iterator

from torch import Tensor, nn

from sde_toolkit.utils import shown

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


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
