"""Integration of differential equations in torch, for batches in which every sample is a problem of its own.

    solution = solve(ODE(f), y0, DOPRI5, Adaptive(0.0, 1.0, rtol=1e-6, atol=1e-6))
    solution = solve(SDE(f, g), y0, EULER_MARUYAMA, FixedGrid(ts), noise=Normals(seed, len(y0), y0.shape[1:]))

A problem is a term (``solvers.terms``), a method (``solvers.methods``), and a rule for the steps
(``solvers.control``); ``solve`` (``solvers.integrate``) puts them together.  ``solvers.reference`` adapts
scipy.integrate.solve_ivp and torchsde.sdeint to the same call.
"""

from solvers.brownian import BrownianMotion, NoiseSource, Normals, StepNormals
from solvers.control import MAX_STEPS, Adaptive, FixedGrid
from solvers.dense import DenseOutput
from solvers.exponential import ETD_RK2, ETD_RK3, ExponentialRungeKutta
from solvers.forms import Form, Steps
from solvers.integrate import solve
from solvers.integrator import Integrator
from solvers.interval import Interval, Step
from solvers.methods import (
    EULER_MARUYAMA,
    RECURSION,
    SPREAD,
    EulerMaruyama,
    Method,
    RecursionStep,
    RungeKutta,
    SpreadStep,
)
from solvers.multistep import AB2, AB3, AB4, ABM4, Adams
from solvers.saving import END, SaveAt
from solvers.schemes import SchemeMethod
from solvers.solution import Solution, SolverError, Stats, Status
from solvers.stochastic import (
    MILSTEIN,
    SHARK,
    SOSRA,
    SRA1,
    STOCHASTIC_HEUN,
    AdditiveRungeKutta,
    Milstein,
)
from solvers.tableaux import BOSH3, DOP853, DOPRI5, EULER, HEUN, MIDPOINT, RALSTON, RK4, TSIT5
from solvers.terms import ODE, SDE, Recursion, Scheme, Semilinear, Spread, Term, expand_like
from solvers.tree import BrownianTree

__all__ = [
    "AB2",
    "AB3",
    "AB4",
    "ABM4",
    "BOSH3",
    "DOP853",
    "DOPRI5",
    "END",
    "ETD_RK2",
    "ETD_RK3",
    "EULER",
    "EULER_MARUYAMA",
    "HEUN",
    "MAX_STEPS",
    "MIDPOINT",
    "MILSTEIN",
    "ODE",
    "RALSTON",
    "RECURSION",
    "RK4",
    "SDE",
    "SHARK",
    "SOSRA",
    "SPREAD",
    "SRA1",
    "STOCHASTIC_HEUN",
    "TSIT5",
    "Adams",
    "Adaptive",
    "AdditiveRungeKutta",
    "BrownianMotion",
    "BrownianTree",
    "DenseOutput",
    "EulerMaruyama",
    "ExponentialRungeKutta",
    "FixedGrid",
    "Form",
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
    "Scheme",
    "SchemeMethod",
    "Semilinear",
    "Solution",
    "SolverError",
    "Spread",
    "SpreadStep",
    "Stats",
    "Status",
    "Step",
    "StepNormals",
    "Steps",
    "Term",
    "expand_like",
    "solve",
]
