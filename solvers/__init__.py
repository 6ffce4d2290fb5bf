"""Integration of differential equations in torch, for batches in which every sample is a problem of its own.

    solution = solve(ODE(f), y0, DOPRI5, Adaptive(0.0, 1.0, rtol=1e-6, atol=1e-6))
    solution = solve(SDE(f, g), y0, EULER_MARUYAMA, FixedGrid(ts), noise=Normals(seed, len(y0), y0.shape[1:]))

A problem is a term (``solvers.terms``), a method (``solvers.methods``), and a rule for the steps
(``solvers.control``); ``solve`` (``solvers.integrate``) puts them together.  ``solvers.reference`` adapts
scipy.integrate.solve_ivp and torchsde.sdeint to the same call.
"""

from solvers.brownian import BrownianMotion, NoiseSource, Normals, StepNormals
from solvers.control import Adaptive, FixedGrid
from solvers.integrate import END, SaveAt, Solution, SolverError, Stats, Status, solve
from solvers.methods import (
    DOPRI5,
    EULER,
    EULER_MARUYAMA,
    HEUN,
    RECURSION,
    RK4,
    EulerMaruyama,
    Integrator,
    Interval,
    Method,
    RecursionStep,
    RungeKutta,
    Step,
)
from solvers.stochastic import (
    MILSTEIN,
    SHARK,
    SOSRA,
    SRA1,
    STOCHASTIC_HEUN,
    AdditiveRungeKutta,
    Milstein,
)
from solvers.terms import ODE, SDE, Recursion, Term, expand_like
from solvers.tree import BrownianTree

__all__ = [
    "DOPRI5",
    "END",
    "EULER",
    "EULER_MARUYAMA",
    "HEUN",
    "MILSTEIN",
    "ODE",
    "RECURSION",
    "RK4",
    "SDE",
    "SHARK",
    "SOSRA",
    "SRA1",
    "STOCHASTIC_HEUN",
    "Adaptive",
    "AdditiveRungeKutta",
    "BrownianMotion",
    "BrownianTree",
    "EulerMaruyama",
    "FixedGrid",
    "Integrator",
    "Interval",
    "Method",
    "Milstein",
    "NoiseSource",
    "Normals",
    "Recursion",
    "RecursionStep",
    "RungeKutta",
    "SaveAt",
    "Solution",
    "SolverError",
    "Stats",
    "Status",
    "Step",
    "StepNormals",
    "Term",
    "expand_like",
    "solve",
]
