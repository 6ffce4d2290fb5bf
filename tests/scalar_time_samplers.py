"""Samplers of ``scalar_samplers`` whose steps are taken in the time t."""

import math

import numpy as np
import torch
from scalar_samplers import MEAN, VARIANCE, Problem, Run, State, integral


def in_time(
    eta: float,
    stages: int,
    c: float = 1.0,
    w: tuple[float, ...] = (),
    area: tuple[float, ...] = (),
    b: tuple[float, ...] = (1.0,),
    third: tuple[float, ...] = (),
) -> Run:
    """Methods on dx = [f x - (1 + eta^2)/2 g^2 score] dt + eta g dW in t, of one to three stages, the
    third at the end of the step."""

    def run(p: Problem) -> State:
        def at(t: float) -> tuple[float, float, float, float]:
            u = torch.tensor(t, dtype=torch.float64)
            return tuple(float(v(u)) for v in (p.sde.f, p.sde.g_squared, p.sde.alpha, p.sde.sigma))

        def drift(t: float, x: State) -> State:
            f, g2, alpha, sigma = at(t)
            one = np.zeros_like(x)
            one[0] = alpha * MEAN
            return f * x + (1 + eta**2) / 2 * g2 * (x - one) / (alpha**2 * VARIANCE + sigma**2)

        x = p.alpha[0] * p.start()
        for i in range(p.count):
            t, s = p.t[i : i + 2]
            h = s - t
            g_t, g_s = (eta * math.sqrt(at(u)[1]) for u in (t, s))
            W = math.sqrt(-h) * p.draw(i)
            H = math.sqrt(-h / 12) * p.draw(i, area=True)
            if stages == 1:
                x = x + h * drift(t, x) + g_t * W
                continue
            g = (g_t + g_s) / 2
            first = x + g * (w[0] * W + area[0] * H)
            k1 = drift(t, first)
            k2 = drift(t + c * h, x + h * c * k1 + g * (w[1] * W + area[1] * H))
            total = g * W - (g_s - g_t) * H if any(area) else g * W
            new = x + h * (b[0] * k1 + b[1] * k2) + total
            if stages == 3:
                noise = g * (w[2] * W + area[2] * H)
                new = new + h * b[2] * drift(s, x + h * (third[0] * k1 + third[1] * k2) + noise)
            x = new
        return x / p.alpha[-1]

    return run


def exponential_integrator(eta: float) -> Run:
    """x_s = r x_t + (score at t) times an integral of g^2, plus noise of the exact variance."""

    def run(p: Problem) -> State:
        kappa, y = 1 + eta**2, p.start()
        for i in range(p.count):
            t, s = p.n[i : i + 2]

            # x / alpha: int kappa/2 g^2 / alpha |dt| score = kappa int alpha n |dn| score, score = -e /
            # (alpha_t t)
            def rate(n: float) -> float:
                return n * float(p.sde.alpha(p.sde.inverse_nsr(torch.tensor(n, dtype=torch.float64))))

            pull = kappa * integral(rate, s, t) / (p.alpha[i] * t)
            y = y - pull * p.noise(y, t) + eta * math.sqrt(t**2 - s**2) * p.draw(i)
        return y

    return run
