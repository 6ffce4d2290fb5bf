"""Solvers of other packages on the reverse equations, for comparison: those of SciPy and of torchsde.

    scipy_*       the probability flow, each sample on its own with its own steps
    torchsde_*    the reverse SDE with equal steps, on the Brownian tree of the sampler's seed, so that
                  samples do not depend on the batch size

References: Virtanen et al., "SciPy 1.0" (1907.10121); Li et al., "Scalable Gradients for Stochastic
Differential Equations" (2001.01328).
"""

from __future__ import annotations

from collections.abc import Callable

from sde_toolkit.samplers import grids
from sde_toolkit.samplers.choices import T_MIN
from sde_toolkit.samplers.equations import reverse_sde
from sde_toolkit.samplers.presets.adaptive_steps import adaptive
from sde_toolkit.samplers.sampler import Sampler
from sde_toolkit.utils import checked
from solvers import Integrator


@checked
def torchsde_sampler(
    method: Integrator, num_steps: int, *, t_min: float = T_MIN, denoise: bool = True
) -> Sampler:
    """A method of torchsde on the reverse SDE with equal steps, as in
    ``torchsde_sampler(solvers.reference.TorchSDE("srk"), 100)``."""
    name = f"torchsde_{method.name}"
    return Sampler(name, reverse_sde, method, num_steps, t_min, grids.uniform, denoise)


def _scipy(method: str, title: str) -> Callable[..., Sampler]:
    def preset(
        *, rtol: float = 1e-5, atol: float = 1e-5, t_min: float = T_MIN, denoise: bool = True
    ) -> Sampler:
        from solvers.reference import SciPy

        return adaptive(SciPy(method), rtol=rtol, atol=atol, t_min=t_min, denoise=denoise)

    return _named(preset, f"scipy_{method.lower()}", f"SciPy's {title} on the probability-flow ODE.")


def _torchsde(method: str, title: str) -> Callable[..., Sampler]:
    def preset(num_steps: int, *, t_min: float = T_MIN, denoise: bool = True) -> Sampler:
        from solvers.reference import TorchSDE

        return torchsde_sampler(TorchSDE(method), num_steps, t_min=t_min, denoise=denoise)

    return _named(preset, f"torchsde_{method}", f"torchsde's {title} on the reverse SDE, with equal steps.")


def _named(preset: Callable[..., Sampler], name: str, text: str) -> Callable[..., Sampler]:
    preset.__name__ = preset.__qualname__ = name
    preset.__doc__ = text
    return preset


scipy_rk45 = _scipy("RK45", "Dormand-Prince 5(4)")
scipy_rk23 = _scipy("RK23", "Bogacki-Shampine 3(2)")
scipy_dop853 = _scipy("DOP853", "Dormand-Prince 8(5, 3)")
scipy_radau = _scipy("Radau", "implicit Radau IIA of order 5")
scipy_bdf = _scipy("BDF", "implicit backward differentiation")
scipy_lsoda = _scipy("LSODA", "Adams and BDF methods with switching")

torchsde_euler = _torchsde("euler", "Euler-Maruyama")
torchsde_milstein = _torchsde("milstein", "Milstein")
torchsde_srk = _torchsde("srk", "stochastic Runge-Kutta of strong order 1.5")
torchsde_euler_heun = _torchsde("euler_heun", "Euler-Heun")
torchsde_heun = _torchsde("heun", "Heun")
torchsde_midpoint = _torchsde("midpoint", "midpoint method")
torchsde_reversible_heun = _torchsde("reversible_heun", "reversible Heun")
