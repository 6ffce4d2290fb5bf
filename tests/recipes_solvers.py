"""A small valid call of every public part of the solvers, in the form of ``recipes``."""

from __future__ import annotations

from typing import Any

import torch
from recipe_parts import X, the

import solvers


def solving() -> dict[str, tuple[Any, Any]]:
    """Name -> what is called, and what makes its arguments."""
    ode = solvers.ODE(lambda t, y, *args: -y)
    noisy = solvers.SDE(lambda t, y: -y, lambda t: torch.ones_like(t))
    grid = solvers.FixedGrid(torch.linspace(0, 1, 4, dtype=torch.float64))
    normals = solvers.Normals(0, 6, (2,))
    return {
        "Adams": (solvers.Adams, the(nodes=2)),
        "Adaptive": (solvers.Adaptive, the(t0=0.0, t1=1.0)),
        "BrownianTree": (solvers.BrownianTree, the(t0=0.0, t1=1.0, normals=normals)),
        "FixedGrid": (solvers.FixedGrid, the(ts=[0.0, 1.0])),
        "Normals": (solvers.Normals, the(seed=0, samples=3, event_shape=(2,))),
        "Normals.draw": (normals.draw, the(index=0)),
        "ODE": (solvers.ODE, the(drift=lambda t, y: y)),
        "Recursion": (solvers.Recursion, the(drift=lambda t, y: y, coefficients=lambda t, s: (t, s, t))),
        "SDE": (solvers.SDE, the(drift=lambda t, y: y, diffusion=lambda t: t)),
        "SaveAt": (solvers.SaveAt, dict),
        "Semilinear": (solvers.Semilinear, the(drift=lambda t, y: y)),
        "StepNormals": (solvers.StepNormals, the(source=normals)),
        "solve": (solvers.solve, the(term=ode, y0=X, method=solvers.HEUN, control=grid)),
        "solve adaptively": (
            solvers.solve,
            the(term=ode, y0=X, method=solvers.DOPRI5, control=solvers.Adaptive(0.0, 1.0)),
        ),
        "solve with noise": (
            solvers.solve,
            the(term=noisy, y0=X, method=solvers.EULER_MARUYAMA, control=grid, noise=normals),
        ),
    }
