"""The choices that make a sampler: its fields, what is refused of them, and the facts that follow.

Orders and evaluations are those that the method declares; a corrector, restarts and a denoised end add
evaluations of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

from sde_toolkit.samplers import checks, grids
from sde_toolkit.samplers.correctors import AfterStep
from sde_toolkit.samplers.equations import ReverseEquation
from sde_toolkit.samplers.grids import Grid, label
from sde_toolkit.samplers.records import Guidance
from sde_toolkit.samplers.restarts import Restart
from sde_toolkit.samplers.starts import Start, check_start
from sde_toolkit.sdes import ForwardSDE
from sde_toolkit.utils import check_fields
from solvers import MAX_STEPS, Integrator, Interval, Method, SchemeMethod

T_MIN = 1e-3
"""Default end of the reverse run, score_sde's choice for VP; on a chain it stands for the first index."""

Chosen = TypeVar("Chosen", bound="Choices")


@dataclass(frozen=True)
class Choices:
    """What a sampler consists of; its arguments are explained by ``Sampler``."""

    name: str
    equation: ReverseEquation = field(repr=False)
    method: Method | Integrator
    num_steps: int | None
    t_min: float = T_MIN
    grid: Grid = grids.uniform
    denoise: bool = True
    corrector: AfterStep | None = None
    corrector_first: bool = False
    last_draw: bool = True
    start: Start = "prior"
    restarts: tuple[Restart, ...] = ()
    guidance: Guidance | None = None
    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = MAX_STEPS
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_fields(self)
        check_start(self.start)
        checks.check_limits(self.num_steps, self.t_min, self.rtol, self.atol, self.max_steps)
        whole = self.num_steps is None or isinstance(self.method, Integrator)
        if self.corrector is not None and whole:
            raise ValueError(f"a corrector needs a fixed grid, but {self.name} chooses its own steps")
        if self.restarts and (whole or self.weak_order is not None):
            raise ValueError(f"restarts need a deterministic sampler on a fixed grid, got {self.name}")
        ends_in_step = self.corrector is None or self.corrector_first
        if not self.last_draw and (whole or self.weak_order is None or not ends_in_step):
            raise ValueError(
                f"last_draw=False needs a sampler on a fixed grid that ends in a step with a draw, got {self}"
            )

    def __repr__(self) -> str:
        settings = {name: value for name, value in self._settings.items() if name != "sampler"}
        return f"Sampler({self.name!r}, {', '.join(f'{name}={value}' for name, value in settings.items())})"

    @property
    def order(self) -> int | None:
        """Declared order of the deterministic error; None for other libraries' solvers."""
        return None if isinstance(self.method, Integrator) else self.method.order

    @property
    def strong_order(self) -> float | None:
        """Declared strong order; None without noise, or where no path is approximated."""
        return None if isinstance(self.method, Integrator) else self.method.strong_order

    @property
    def weak_order(self) -> float | None:
        """Declared weak order; None for samplers without noise."""
        return None if isinstance(self.method, Integrator) else self.method.weak_order

    @property
    def nfe(self) -> int | None:
        """Declared evaluations per sample; None where the method chooses its own steps."""
        if self.num_steps is None or isinstance(self.method, Integrator):
            return None
        method, n = self.method, self.num_steps
        again = 0 if self.corrector is None else self.corrector.num_steps * n
        if self.corrector is not None and isinstance(method, SchemeMethod) and method.evaluates_end:
            again += n - 1
        if self.corrector is not None and method.first_same_as_last:
            again += n - 1
        restarts = sum(r.repeats * method.nfe(r.num_steps) for r in self.restarts)
        return method.nfe(n) + again + restarts + self.denoise

    def corrected(self, interval: Interval) -> Interval | None:
        """The interval at whose end the corrector runs after a step over this one; None where it does not."""
        if self.corrector is None or not self.corrector_first:
            return None if self.corrector is None else interval
        following = interval._replace(number=interval.number + 1)  # it runs where the next step begins
        return None if following.number == self.num_steps else following

    @property
    def settings(self) -> dict[str, Any]:
        """The options as plain values, for records."""
        return dict(self._settings)

    @cached_property
    def _settings(self) -> dict[str, Any]:
        common: dict[str, Any] = {"sampler": self.name, "t_min": self.t_min, "denoise": self.denoise}
        if self.num_steps is None:
            steps: dict[str, Any] = {"rtol": self.rtol, "atol": self.atol}
            if self.max_steps != MAX_STEPS:
                steps["max_steps"] = self.max_steps
        else:
            steps = {"num_steps": self.num_steps, "grid": label(self.grid)}
        wrappers = {"corrector": self.corrector, "restarts": self.restarts, "guidance": self.guidance}
        used: dict[str, Any] = {name: repr(value) for name, value in wrappers.items() if value}
        if self.corrector is not None and self.corrector_first:
            used["corrector_first"] = True
        if self.start != "prior":
            used["start"] = str(self.start)
        used |= {} if self.last_draw else {"last_draw": False}
        return common | steps | used | dict(self.options)

    def on(self: Chosen, sde: ForwardSDE) -> Chosen:
        """The sampler with the default end that this process has, where it has one of its own."""
        end = sde.default_t_min
        return self if end is None or self.t_min != T_MIN or end == T_MIN else replace(self, t_min=end)
