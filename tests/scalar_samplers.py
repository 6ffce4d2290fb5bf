"""The papers' samplers on scalar Gaussian data, written a second time: numbers in the clock n = sigma /
alpha.

With y = x / alpha the schedule is gone: the clean prediction is D(y, n) = m + c^2 / (c^2 + n^2) (y - m), the
noise e = (y - D) / n.  A state is the vector of its coefficients on (1, x_T, draws of W, draws of H), so that
one run gives the whole law of the output.  Nothing here is shared with the package but the functions of the
process.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import quad

MEAN, VARIANCE = 0.7, 0.25

State = np.ndarray
Run = Callable[["Problem"], State]


class Problem:
    """The levels of a grid and the basis of the states."""

    def __init__(self, sde, ts: torch.Tensor) -> None:
        self.sde, self.t = sde, ts.tolist()
        self.count = len(self.t) - 1
        self.n = sde.nsr(ts).tolist()
        self.alpha = sde.alpha(ts).tolist()

    def start(self) -> State:
        """y at T: x_T = prior_std times its draw."""
        y = np.zeros(2 + 2 * self.count)
        y[1] = self.sde.prior_std / self.alpha[0]
        return y

    def draw(self, i: int, area: bool = False) -> State:
        z = np.zeros(2 + 2 * self.count)
        z[2 + i + area * self.count] = 1
        return z

    def clean(self, y: State, n: float) -> State:
        one = np.zeros_like(y)
        one[0] = MEAN
        return one + VARIANCE / (VARIANCE + n**2) * (y - one)

    def noise(self, y: State, n: float) -> State:
        one = np.zeros_like(y)
        one[0] = MEAN
        return n / (VARIANCE + n**2) * (y - one)

    def nsr(self, t: float) -> float:
        return float(self.sde.nsr(torch.tensor(t, dtype=torch.float64)))


def ddim(eta: float) -> Run:
    def run(p: Problem) -> State:
        y = p.start()
        for i in range(p.count):
            t, s = p.n[i : i + 2]
            v = eta * s / t * math.sqrt(t**2 - s**2)
            y = p.clean(y, t) + math.sqrt(s**2 - v**2) * p.noise(y, t) + v * p.draw(i)
        return y

    return run


def ddpm(large: bool) -> Run:
    def run(p: Problem) -> State:
        y = p.start()
        for i in range(p.count):
            t, s = p.n[i : i + 2]
            gain = 1 - (s / t) ** 2
            std = t * p.alpha[i] / p.alpha[i + 1] if large else s
            y = (1 - gain) * y + gain * p.clean(y, t) + std * math.sqrt(gain) * p.draw(i)
        return y

    return run


def reverse_diffusion(p: Problem) -> State:
    y = p.start()
    for i in range(p.count):
        (t, s), (a_t, a_s) = p.n[i : i + 2], p.alpha[i : i + 2]
        r, q = a_t / a_s, a_t * math.sqrt(t**2 - s**2)
        x = (2 - r) * a_t * y - q**2 / (a_t * t) * p.noise(y, t) + q * p.draw(i)
        y = x / a_s
    return y


def dpm_solver_pp(order: int) -> Run:
    def run(p: Problem) -> State:
        y, D, lam = p.start(), [], [-math.log(n) for n in p.n]
        for i in range(p.count):
            D.insert(0, p.clean(y, p.n[i]))
            h, k = lam[i + 1] - lam[i], min(order, i + 1)
            y = math.exp(-h) * y + (1 - math.exp(-h)) * D[0]
            if k == 2:
                y = y + (1 - math.exp(-h)) / 2 * h / (lam[i] - lam[i - 1]) * (D[0] - D[1])
            if k == 3:
                first = (D[0] - D[1]) / (lam[i] - lam[i - 1])
                before = (D[1] - D[2]) / (lam[i - 1] - lam[i - 2])
                second = (first - before) / (lam[i] - lam[i - 2])
                slope = first + (lam[i] - lam[i - 1]) * second
                y = y + (h - 1 + math.exp(-h)) * slope
                y = y + (h**2 / 2 - h + 1 - math.exp(-h)) * second
        return y

    return run


def dpm_solver(order: int) -> Run:
    def run(p: Problem) -> State:
        y = p.start()
        for i in range(p.count):
            t, s = p.n[i : i + 2]
            h = math.log(t / s)
            e, (n1, n2) = p.noise(y, t), [t * math.exp(-c * h) for c in (1 / 3, 2 / 3)]
            if order == 1:
                y = y + (s - t) * e
            if order == 2:
                middle = math.sqrt(t * s)
                y = y + (s - t) * p.noise(y + (middle - t) * e, middle)
            if order == 3:
                d1 = p.noise(y + (n1 - t) * e, n1) - e
                u2 = y + (n2 - t) * e - 2 * n2 * (math.expm1(2 * h / 3) / (2 * h / 3) - 1) * d1
                d2 = p.noise(u2, n2) - e
                y = y + (s - t) * e - 1.5 * s * (math.expm1(h) / h - 1) * d2
        return y

    return run


def dpm_solver_pp_2s(p: Problem) -> State:
    y = p.start()
    for i in range(p.count):
        t, s = p.n[i : i + 2]
        middle = math.sqrt(t * s)
        u = middle / t * y + (1 - middle / t) * p.clean(y, t)
        y = s / t * y + (1 - s / t) * p.clean(u, middle)
    return y


def rho_rk(a: list[list[float]], b: list[float], c: list[float]) -> Run:
    def run(p: Problem) -> State:
        y = p.start()
        for i in range(p.count):
            t, s = p.n[i : i + 2]
            k: list[State] = []
            for row, node in zip(a, c, strict=True):
                stage = y + (s - t) * sum((w * d for w, d in zip(row, k, strict=False)), 0 * y)
                k.append(p.noise(stage, t + node * (s - t)))
            y = y + (s - t) * sum(w * d for w, d in zip(b, k, strict=True))
        return y

    return run


def churned(churn: float) -> Run:
    def run(p: Problem) -> State:
        y = p.start()
        for i in range(p.count):
            t, s = p.n[i : i + 2]
            hat = min(t * (1 + min(churn / p.count, math.sqrt(2) - 1)), p.n[0])
            y = y + math.sqrt(hat**2 - t**2) * p.draw(i)
            d = p.noise(y, hat)
            y = y + (s - hat) * (d + p.noise(y + (s - hat) * d, s)) / 2
        return y

    return run


_AB = {1: [1], 2: [1.5, -0.5], 3: [23 / 12, -4 / 3, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -3 / 8]}


def ipndm(p: Problem) -> State:
    y, e = p.start(), []
    for i in range(p.count):
        e.insert(0, p.noise(y, p.n[i]))
        y = y + (p.n[i + 1] - p.n[i]) * sum(b * v for b, v in zip(_AB[min(4, i + 1)], e, strict=False))
    return y


def pndm(p: Problem) -> State:
    y, e = p.start(), []
    for i in range(p.count):
        t, s = p.n[i : i + 2]
        e.insert(0, p.noise(y, t))
        if i < 3:
            middle = p.nsr((p.t[i] + p.t[i + 1]) / 2)
            e2 = p.noise(y + (middle - t) * e[0], middle)
            e3 = p.noise(y + (middle - t) * e2, middle)
            e4 = p.noise(y + (s - t) * e3, s)
            y = y + (s - t) * (e[0] + 2 * e2 + 2 * e3 + e4) / 6
        else:
            y = y + (s - t) * sum(b * v for b, v in zip(_AB[4], e, strict=False))
    return y


def spndm(p: Problem) -> State:
    y, e = p.start(), []
    for i in range(p.count):
        t, s = p.n[i : i + 2]
        e.insert(0, p.noise(y, t))
        if i:
            y = y + (s - t) * (3 * e[0] - e[1]) / 2
        else:
            y = y + (s - t) * (e[0] + p.noise(y + (s - t) * e[0], s)) / 2
    return y


def lagrange(v: float, nodes: list[float], j: int) -> float:
    return math.prod((v - w) / (nodes[j] - w) for m, w in enumerate(nodes) if m != j)


def integral(function: Callable[[float], float], start: float, end: float) -> float:
    return quad(function, start, end, epsabs=0, epsrel=1e-12, limit=200)[0]


def score_adams(order: int) -> Run:
    """dy = -alpha n score dn, the score joined in lam."""

    def run(p: Problem) -> State:
        y, m = p.start(), []
        for i in range(p.count):
            t, s, k = *p.n[i : i + 2], min(order, i + 1)
            m.insert(0, -p.noise(y, t) / (p.alpha[i] * t))
            nodes = [-math.log(n) for n in p.n[i : None if i < k else i - k : -1]]
            for j in range(k):

                def rate(n: float) -> float:
                    alpha = float(p.sde.alpha(p.sde.inverse_nsr(torch.tensor(n, dtype=torch.float64))))
                    return alpha * n * lagrange(-math.log(n), nodes, j)  # noqa: B023

                y = y - integral(rate, t, s) * m[j]
        return y

    return run


def adams(
    order: int, clock: str, tau: float = -1.0, corrector: int = 0, predicts: str = "noise",
    released: bool = False,
) -> Run:  # fmt: skip
    """Noise form with any clock, or (tau >= 0) the data form of the family in lam with PEC correction;
    the released weights of two nodes have kappa h^2 / 2 in place of the integral of kappa e^(-kappa v)
    (h - v)."""

    def run(p: Problem) -> State:
        sde = p.sde

        def v(n: float) -> float:
            time = float(sde.inverse_nsr(torch.tensor(n, dtype=torch.float64)))
            return {"nsr": n, "lam": -math.log(n), "time": time}[clock]

        y, m = p.start(), []
        for i in range(p.count):
            t, s, k = *p.n[i : i + 2], min(order, i + 1)
            m.insert(0, p.noise(y, t))
            nodes = [v(n) for n in p.n[i : None if i < k else i - k : -1]]
            for j in range(k):
                y = y + integral(lambda n: lagrange(v(n), nodes, j), t, s) * m[j]  # noqa: B023
        return y

    def family(p: Problem) -> State:
        lam, kappa = [-math.log(n) for n in p.n], 1 + tau**2

        def step(i: int, y: State, nodes: list[float], m: list[State]) -> State:
            h = lam[i + 1] - lam[i]
            new = math.exp(-kappa * h) * y
            for j in range(len(nodes)):
                new = new + m[j] * integral(
                    lambda u: kappa * math.exp(-kappa * (lam[i + 1] - u)) * lagrange(u, nodes, j),  # noqa: B023
                    lam[i],
                    lam[i + 1],
                )
            if released and len(nodes) == 2:
                linear = integral(lambda v: kappa * math.exp(-kappa * v) * (h - v), 0.0, h)
                new = new + (kappa * h**2 / 2 - linear) / (nodes[0] - nodes[1]) * (m[0] - m[1])
            return new + p.n[i + 1] * math.sqrt(-math.expm1(-2 * tau**2 * h)) * p.draw(i)

        y = p.start()
        m = [p.clean(y, p.n[0])]
        for i in range(p.count):
            past = lam[i::-1]
            k = min(order, i + 1)
            new = step(i, y, past[:k], m[:k])
            if i < p.count - 1:
                ahead = p.clean(new, p.n[i + 1])
                if corrector:
                    k = min(corrector, i + 1)
                    new = step(i, y, [lam[i + 1], *past[:k]], [ahead, *m[:k]])
                m.insert(0, ahead)
            y = new
        return y

    return run if tau < 0 else family


def velocity_adams(order: int) -> Run:
    """d(x / R) = v / R d(angle), angle = arctan n, R^2 = alpha^2 + sigma^2: in y, R = alpha sqrt(1 + n^2)."""

    def run(p: Problem) -> State:
        angle = [math.atan(n) for n in p.n]
        y, m = p.start(), []
        for i in range(p.count):
            R = [a * math.hypot(1, n) for a, n in zip(p.alpha, p.n, strict=True)]
            sigma = p.alpha[i] * p.n[i]
            m.insert(0, p.alpha[i] * p.noise(y, p.n[i]) - sigma * p.clean(y, p.n[i]))
            k = min(order, i + 1)
            nodes = [angle[i - j] for j in range(k)]
            out = p.alpha[i] / R[i] * y
            for j in range(k):

                def rate(u: float) -> float:
                    n = torch.tensor(math.tan(u), dtype=torch.float64)
                    alpha = float(p.sde.alpha(p.sde.inverse_nsr(n)))
                    return lagrange(u, nodes, j) / (alpha * math.hypot(1, float(n)))  # noqa: B023

                out = out + integral(rate, angle[i], angle[i + 1]) * m[j]
            y = R[i + 1] / p.alpha[i + 1] * out
        return y

    return run


def unipc(order: int, b: Callable[[float], float], data: bool, corrector: bool) -> Run:
    """UniPC with its linear systems solved by numpy, h = hh times 1 (noise) or -1 (data)."""

    def run(p: Problem) -> State:
        lam, look = [-math.log(n) for n in p.n], p.clean if data else p.noise

        def base(i: int, y: State, m0: State) -> tuple[State, float, float]:
            h = lam[i + 1] - lam[i]
            hh, scale = (-h, 1.0) if data else (h, p.n[i + 1])
            keep = p.n[i + 1] / p.n[i] if data else 1.0
            return keep * y - scale * math.expm1(hh) * m0, hh, scale

        def weights(hh: float, r: list[float]) -> np.ndarray:
            if len(r) == 1:
                return np.array([0.5])
            powers = np.array([[x**j for x in r] for j in range(len(r))])
            right = []
            for j in range(1, len(r) + 1):
                phi = quad(lambda u: math.exp((1 - u) * hh) * u**j, 0, 1, epsrel=1e-13)[0]  # noqa: B023
                right.append(phi * hh / b(hh))  # j! phi_{j+1} hh / B
            return np.linalg.solve(powers, np.array(right))

        y = p.start()
        m = [look(y, p.n[0])]
        for i in range(p.count):
            x, hh, scale = base(i, y, m[0])
            k = min(order, i + 1)
            r = [(lam[i - j] - lam[i]) / (lam[i + 1] - lam[i]) for j in range(1, k)]
            D = [(m[j] - m[0]) / r[j - 1] for j in range(1, k)]
            new = x
            for w, d in zip(weights(hh, r) if r else [], D, strict=True):
                new = new - scale * b(hh) * w * d
            if i < p.count - 1:
                ahead = look(new, p.n[i + 1])
                if corrector:
                    new = x
                    for w, d in zip(weights(hh, [*r, 1.0]), [*D, ahead - m[0]], strict=True):
                        new = new - scale * b(hh) * w * d
                else:
                    ahead = look(new, p.n[i + 1])
                m.insert(0, ahead)
            y = new
        return y

    return run


def dpm_multistep(order: int, noise: bool, eta: float, heun: bool = False) -> Run:
    """The formulas of the authors' multistep code as integrals: of a line, or of a parabola whose second
    difference counts half."""

    def integral(weight: Callable[[float], float], h: float) -> float:
        return quad(weight, 0, h, epsabs=1e-14, epsrel=1e-13)[0]

    def run(p: Problem) -> State:
        y, m, lam, c = p.start(), [], [-math.log(n) for n in p.n], 1 + eta**2
        for i in range(p.count):
            t, s = p.n[i : i + 2]
            m.insert(0, (p.noise if noise else p.clean)(y, t))
            h, k = lam[i + 1] - lam[i], min(order, i + 1)

            def kernel(u: float, j: int, h: float = h, s: float = s) -> float:
                return -c * s * math.exp(h - u) * u**j if noise else c * math.exp(-c * (h - u)) * u**j

            whole = integral(lambda u: kernel(u, 0), h)
            first = integral(lambda u: kernel(u, 1), h)
            y = (1 if noise else math.exp(-c * h)) * y + whole * m[0]
            if eta:
                y = y + math.sqrt(t**2 - s**2 if noise else s**2 * (1 - (s / t) ** 2)) * p.draw(i)
            if k > 1:
                slope = (m[0] - m[1]) / (lam[i] - lam[i - 1])
            if k == 2:
                y = y + (first if heun else whole * h / 2) * slope
            if k == 3:
                before = (m[1] - m[2]) / (lam[i - 1] - lam[i - 2])
                second = (slope - before) / (lam[i] - lam[i - 2])
                half = integral(lambda u: kernel(u, 2), h) / 2
                y = y + first * (slope + (lam[i] - lam[i - 1]) * second) + half * second
        return y

    return run


def er_sde(order: int) -> Run:
    def phi(n: float) -> float:
        return n * (math.exp(n**0.3) + 10)

    def run(p: Problem) -> State:
        y, D, slopes = p.start(), [], []
        for i in range(p.count):
            t, s = p.n[i : i + 2]
            D.insert(0, p.clean(y, t))
            r, k = phi(s) / phi(t), min(order, i + 1)
            y = r * y + (1 - r) * D[0] + math.sqrt(s**2 - (t * r) ** 2) * p.draw(i)
            if i:
                slopes.insert(0, (D[0] - D[1]) / (t - p.n[i - 1]))
            if k >= 2:
                y = y + (s - t + phi(s) * integral(lambda n: 1 / phi(n), s, t)) * slopes[0]
            if k == 3:
                second = 2 * (slopes[0] - slopes[1]) / (t - p.n[i - 2])
                moment = integral(lambda n: (n - t) / phi(n), s, t)  # noqa: B023
                y = y + ((s - t) ** 2 / 2 + phi(s) * moment) * second
        return y

    return run
