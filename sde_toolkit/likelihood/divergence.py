"""Traces of Jacobians that are available as products with vectors.

The divergence of a field is the trace of its Jacobian A, an (n, n) matrix for every sample, and automatic
differentiation gives products A^T v at the price of a forward pass each.  With probes p_j, E[p p^T] = I,

    exact         sum_i e_i^T A e_i                                              n products
    Hutchinson    1/k sum_j p_j^T A p_j                                          k products
    Hutch++       tr(Q^T A Q) + 1/k sum_j g_j^T A g_j,   g_j = (I - Q Q^T) p_j,
                  Q an orthonormal basis of the span of A^T s_1, ..., A^T s_m    2 m + k products

All are unbiased.  One Rademacher probe has the variance sum_{i<j} (A_ij + A_ji)^2, without the diagonal; a
Gaussian one has 2 |(A + A^T) / 2|^2, with the diagonal.  k orthogonal probes of length sqrt(n) are k draws
without replacement of n: the variance of their mean is that of independent ones times (n - k) / (n - 1), and
k = n is exact.  Walsh's are orthogonal signs: k rows of the Hadamard matrix of order N, the power of two at
or above n, drawn without replacement, of which n entries are used, each with a random sign of its own.  Over
all N rows the terms average to tr A exactly, and each alone is a Rademacher probe; so n becomes N in the
factor.  The terms that are averaged are kept apart as columns.  A linear functional of A, such as an integral
over time with the probes held fixed, then has a standard error from their spread:

    s / sqrt(k),   times sqrt((n - k) / n) for orthogonal probes,    s the columns' standard deviation.

Terms are quadratic in the probes, so that a Jacobian with a few large eigenvalues makes them skewed, and the
mean of few of them leans on its own standard error.  With their skewness g Hall's transformation

    f(T) = T + g T^2 / (3 sqrt(k)) + g^2 T^3 / (27 k) + g / (6 sqrt(k))

of Student's ratio T is monotone and has the law of Student up to terms of order 1/k.

References: Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix" (1990); Grathwohl et
al., "FFJORD" (1810.01367); Meyer, Musco, Musco and Woodruff, "Hutch++" (2010.09649); Choromanski et al., "The
Unreasonable Effectiveness of Structured Random Orthogonal Embeddings" (1703.00864); Hall, "On the Removal of
Skewness by Transformation" (J. R. Statist. Soc. B 54, 1992).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from sde_toolkit.models import full_precision
from sde_toolkit.utils import Stream, check_fields, integer
from solvers import Normals

ProbeKind = Literal["rademacher", "gaussian", "walsh"]
PROBE_KINDS: tuple[str, ...] = get_args(ProbeKind)
"""The distributions of random probes by name."""

Auto = Literal["auto"]
"""The name of ``chosen_divergence``'s own choice."""

EXACT_UP_TO = 64
"""Most features of which the divergence is exact by default."""

DEPENDENT = 1e-6
"""Share of a product's length, outside the products before it, up to which it counts as dependent on them;
above the rounding of float32 networks."""

_STRAIGHT = 1e-7
"""Skewness over sqrt(k) below which Hall's transformation is the identity to rounding."""

Product = Callable[[Tensor], Tensor]
"""v with shape (B, k, n) -> A^T v with shape (B, k, n)."""


MOST_FEATURES = 1 << 14
"""Most features of which the divergence is found exactly."""

MOST_PROBES = 1 << 20
"""Most random probes."""


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


class Divergence(ABC):
    """A way to find the trace of (B, n, n) Jacobians.

    Attributes:
        control: the multiple of a known matrix, the Jacobian that Gaussian data would have, that is
            subtracted before the trace is estimated; its trace is added again.
    """

    control: float = 0.5

    @abstractmethod
    def columns(self, num_features: int) -> int:
        """k, the number of terms that are averaged, for Jacobians with n = ``num_features``.

        Raises:
            ValueError: this estimator cannot be used for so few features.
        """

    @abstractmethod
    def probes(self, source: Normals) -> Tensor | None:
        """The probes of B samples with shape (B, m, n), the same for every batch split; None for none."""

    @abstractmethod
    def trace(self, product: Product, probes: Tensor | None, like: Tensor) -> Tensor:
        """The terms with shape (B, k), whose mean is the trace.

        Args:
            product: A^T v.
            probes: what ``probes`` gave.
            like: a tensor with shape (B, n), for shape, type and device.
        """

    @abstractmethod
    def products(self, num_features: int) -> int:
        """Products with the Jacobian per trace."""

    def at_least(self, num_probes: int, num_features: int) -> Divergence:
        """The same with at least so many probes; its own are the first of them."""
        return self

    def standard_error(self, columns: Tensor, num_features: int) -> Tensor | None:
        """Of the mean of the columns (B, k), with shape (B,); None for a single column."""
        if columns.shape[1] < 2:
            return None
        return self.error_of_mean(columns.std(1), num_features)

    def error_of_mean(self, std: Tensor, num_features: int) -> Tensor:
        """Standard error of the mean of the k columns, from their standard deviation; same shape."""
        return std / math.sqrt(self.columns(num_features))


@dataclass(frozen=True)
class ExactDivergence(Divergence):
    """n products, one for each feature, for at most ``MOST_FEATURES``.

    Args:
        chunk: features per batched product; less memory with fewer.

    Raises:
        ValueError: ``chunk`` below 1.
    """

    chunk: int = 64

    def __post_init__(self) -> None:
        check_fields(self)
        _at_least_one("chunk", self.chunk)

    def columns(self, num_features: int) -> int:
        """1; raises ValueError for more than ``MOST_FEATURES``."""
        if num_features > MOST_FEATURES:
            raise ValueError(
                f"divergence must be estimated for {num_features} features: the exact one takes as many "
                f"derivatives of the network at every evaluation, and at most {MOST_FEATURES} are allowed; "
                "give a number of Hutchinson's probes, as in divergence=16"
            )
        return 1

    def probes(self, source: Normals) -> None:
        """None."""

    def products(self, num_features: int) -> int:
        """n."""
        return num_features

    def trace(self, product: Product, probes: Tensor | None, like: Tensor) -> Tensor:
        """The trace with shape (B, 1)."""
        batch, n = like.shape
        total = like.new_zeros(batch)
        for first in range(0, n, self.chunk):
            count = min(self.chunk, n - first)
            rows = like.new_zeros(count, n)
            rows[:, first : first + count].fill_diagonal_(1.0)
            found = product(rows.expand(batch, -1, -1))
            total = total + (found * rows).sum((1, 2))
        return total[:, None]

    def standard_error(self, columns: Tensor, num_features: int) -> None:
        """None: there is no error."""


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """The mean over k random probes.

    Args:
        num_probes: k.
        kind: "rademacher" (signs), "gaussian", or "walsh" (orthogonal signs).
        orthogonal: make the probes of a sample orthogonal, each of length sqrt(n); k is at most n then, and
            their directions are uniform whatever the kind.  Without effect on "walsh".
        control: the multiple of the Gaussian's Jacobian that is not estimated; with 1 Gaussian data are
            exact, 1/2 lowers the variance for data that are Gaussian on coarse scales only.

    Raises:
        ValueError: ``num_probes`` below 1, or an unknown kind.
    """

    num_probes: int = 1
    kind: ProbeKind = "rademacher"
    orthogonal: bool = False
    control: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        _at_least_one("num_probes", self.num_probes)
        if self.kind not in PROBE_KINDS:
            raise ValueError(f"kind must be one of {', '.join(PROBE_KINDS)}, got {self.kind!r}")

    def columns(self, num_features: int) -> int:
        """k; raises ValueError for more orthogonal probes than there are."""
        most = self.most(num_features)
        if most is not None and self.num_probes > most:
            raise ValueError(
                f"num_probes must be at most the number of features, {num_features}, for orthogonal probes, "
                f"or the power of two above it for Walsh's, got {self.num_probes}; {most} are exact"
            )
        return self.num_probes

    def most(self, num_features: int) -> int | None:
        """The number of orthogonal probes that is exact; None for independent ones."""
        if self.kind == "walsh":
            return _power_of_two(num_features)
        return num_features if self.orthogonal else None

    def probes(self, source: Normals) -> Tensor:
        """With shape (B, k, n)."""
        if self.kind == "walsh":
            return _walsh(source, self.num_probes)
        return _draw(source, 0, self.num_probes, self.kind, self.orthogonal)

    def products(self, num_features: int) -> int:
        """k."""
        return self.num_probes

    def at_least(self, num_probes: int, num_features: int) -> Hutchinson:
        """More probes, as far as there are orthogonal ones."""
        most = self.most(num_features) or num_probes
        return replace(self, num_probes=max(self.num_probes, min(num_probes, most)))

    def first(self) -> Hutchinson:
        """The first probe alone."""
        return replace(self, num_probes=1)

    def trace(self, product: Product, probes: Tensor | None, like: Tensor) -> Tensor:
        """One term for each probe."""
        assert probes is not None
        return (product(probes) * probes).sum(2)

    def error_of_mean(self, std: Tensor, num_features: int) -> Tensor:
        """See the module's head."""
        error, most = super().error_of_mean(std, num_features), self.most(num_features)
        return error if most is None else error * math.sqrt((most - self.num_probes) / most)


@dataclass(frozen=True)
class HutchPlusPlus(Divergence):
    """Exact on a sketch of the Jacobian's range, Hutchinson's estimate on the rest.

    Args:
        num_probes: k, for the rest.
        sketch: m, the dimension of the range; ``num_probes`` when None.
        kind: of both, "rademacher" or "gaussian".
        control: as for ``Hutchinson``.

    Raises:
        ValueError: a number below 1, or an unknown kind.
    """

    num_probes: int = 4
    sketch: int | None = None
    kind: ProbeKind = "rademacher"
    control: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        _at_least_one("num_probes", self.num_probes)
        _at_least_one("sketch", self.size)
        kinds = [kind for kind in PROBE_KINDS if kind != "walsh"]  # Walsh's are not independent of the sketch
        if self.kind not in kinds:
            raise ValueError(f"kind must be one of {', '.join(kinds)}, got {self.kind!r}")

    @property
    def size(self) -> int:
        """m."""
        return self.num_probes if self.sketch is None else self.sketch

    def columns(self, num_features: int) -> int:
        """k; raises ValueError where the sketch has as many dimensions as the data."""
        if self.size >= num_features:
            raise ValueError(
                f"sketch must be below the number of features, {num_features}, got {self.size}; take the "
                "exact divergence"
            )
        return self.num_probes

    def probes(self, source: Normals) -> Tensor:
        """Those of the sketch, then the others, with shape (B, m + k, n)."""
        return _draw(source, 0, self.size + self.num_probes, self.kind, orthogonal=False)

    def products(self, num_features: int) -> int:
        """2 m + k."""
        return 2 * self.size + self.num_probes

    def at_least(self, num_probes: int, num_features: int) -> HutchPlusPlus:
        """More probes, the sketch as it is."""
        return replace(self, num_probes=max(self.num_probes, num_probes), sketch=self.size)

    def first(self) -> HutchPlusPlus:
        """The sketch and the first probe."""
        return replace(self, num_probes=1, sketch=self.size)

    def trace(self, product: Product, probes: Tensor | None, like: Tensor) -> Tensor:
        """One term for each of the k probes, the same exact part in all."""
        assert probes is not None
        sketch, rest = probes[:, : self.size], probes[:, self.size :]
        basis = _orthonormal(product(sketch))
        rest = rest - torch.einsum("bkm,bmn->bkn", torch.einsum("bkn,bmn->bkm", rest, basis), basis)
        both = torch.cat([basis, rest], 1)
        terms = (product(both) * both).sum(2)
        return terms[:, : self.size].sum(1, keepdim=True) + terms[:, self.size :]


DEFAULT_PROBES = Hutchinson(8, "walsh")
"""The estimate by default of more than ``EXACT_UP_TO`` features, from which probes are added."""


def chosen_divergence(divergence: Divergence | int | Auto | None, num_features: int) -> Divergence:
    """The object that an argument ``divergence`` stands for.

    Args:
        divergence: "auto" is exact up to ``EXACT_UP_TO`` features and ``DEFAULT_PROBES`` beyond; a number is
            that of Hutchinson's probes, None is exact.
        num_features: n.

    Raises:
        ValueError: a number out of range, another name, or an estimator that does not fit n.
    """
    if isinstance(divergence, str):
        if divergence != "auto":
            raise ValueError(
                f"divergence must be 'auto', a number of probes, a Divergence or None, got {divergence!r}"
            )
        divergence = None if num_features <= EXACT_UP_TO else DEFAULT_PROBES
    if not isinstance(divergence, Divergence):
        count = None if divergence is None else integer("divergence", divergence, 1, MOST_PROBES)
        divergence = ExactDivergence() if count is None else Hutchinson(count)
    divergence.columns(num_features)
    return divergence


def unskewed_ratio(quantile: Tensor, skewness: Tensor, count: Tensor) -> Tensor:
    """T with f(T) = ``quantile`` for Hall's transformation f of the module's head; all with shape (B,)."""
    lean = skewness / count.to(skewness).sqrt()
    small = lean.abs() < _STRAIGHT
    inside = 1 + lean * (quantile - lean / 6)
    curved = 3 * (inside.sign() * inside.abs().pow(1 / 3) - 1) / torch.where(small, 1.0, lean)
    return torch.where(small, quantile, curved)


class JacobianProducts:
    """Products with the Jacobians of B samples, from one forward pass.

    Args:
        output: with shape (B, *), a function of ``x`` that autograd recorded, row by row.
        x: with shape (B, *).
        create_graph: whether the products will be differentiated themselves.
    """

    def __init__(self, output: Tensor, x: Tensor, create_graph: bool = False) -> None:
        self._output, self._x, self._create_graph = output, x, create_graph

    def __call__(self, vectors: Tensor) -> Tensor:
        """A^T v with shape (B, k, *), for v with shape (B, k, *)."""
        vectors = vectors.movedim(1, 0)
        if len(vectors) > 1:
            try:
                return self._grad(vectors, batched=True).movedim(0, 1)
            except RuntimeError:  # an operation of the network has no rule for batches of products
                pass
        return torch.stack([self._grad(vector, batched=False) for vector in vectors], dim=1)

    def _grad(self, vectors: Tensor, batched: bool) -> Tensor:
        try:
            with full_precision(self._output):
                (found,) = torch.autograd.grad(
                    self._output,
                    self._x,
                    vectors,
                    retain_graph=True,
                    create_graph=self._create_graph,
                    is_grads_batched=batched,
                )
        except RuntimeError as error:
            if "donated buffer" not in str(error):
                raise
            raise ValueError(
                "model must allow several derivatives of one evaluation, got one that torch.compile made for "
                "a single one; set torch._functorch.config.donated_buffer = False before it is compiled, or "
                "give the model as it was before"
            ) from error
        return found


def _draw(source: Normals, first: int, count: int, kind: str, orthogonal: bool) -> Tensor:
    """Probes with shape (B, count, n)."""
    z = torch.stack([source.draw(first + j, Stream.PROBES).flatten(1) for j in range(count)], dim=1)
    if orthogonal:
        q, r = torch.linalg.qr(z.mT)
        signs = r.diagonal(dim1=1, dim2=2).sign()  # uniform directions need a positive diagonal
        return (q * signs[:, None]).mT * math.sqrt(z.shape[2])
    return torch.where(z < 0, -1.0, 1.0).to(z) if kind == "rademacher" else z


def _power_of_two(n: int) -> int:
    """The smallest one that is at least n."""
    return 1 << (n - 1).bit_length()


def _walsh(source: Normals, count: int) -> Tensor:
    """Walsh's probes with shape (B, count, n): draw 0 has the signs, draws 1 and 2 the order of the rows."""
    signs, *keys = (source.draw(j, Stream.PROBES).flatten(1) for j in range(3))
    n = signs.shape[1]
    order = torch.cat(keys, 1)[:, : _power_of_two(n)].argsort(dim=1, stable=True)[:, :count, None]
    place, odd = torch.arange(n, device=signs.device), torch.zeros_like(order, dtype=torch.bool)
    for bit in range(n.bit_length()):
        odd = odd ^ ((order >> bit & 1).bool() & (place >> bit & 1).bool())
    return torch.where(odd ^ (signs < 0)[:, None], -1.0, 1.0).to(signs)


def _orthonormal(rows: Tensor) -> Tensor:
    """An orthonormal basis of the span of the rows (B, m, n), by Gram and Schmidt, twice; 0 for a row that
    depends on those before it.

    What is left of such a row is rounding, whose direction means nothing.  Where it is left out the random
    probes cover it, so that the estimate stays unbiased.
    """
    found: list[Tensor] = []
    for whole in rows.unbind(1):
        row = whole
        for _ in range(2):
            for other in found:
                row = row - (row * other).sum(1, keepdim=True) * other
        size, least = row.norm(dim=1, keepdim=True), DEPENDENT * whole.norm(dim=1, keepdim=True)
        found.append(torch.where(size > least, row / size.clamp(min=torch.finfo(row.dtype).tiny), 0.0))
    return torch.stack(found, dim=1)
