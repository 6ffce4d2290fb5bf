"""The Brownian tree: refinement, its exact law, paths that depend on nothing but (seed, sample), refusals."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import ALPHA
from torch import Tensor

from solvers import BrownianTree, Interval, Normals
from solvers.tree import DEPTH

FLOAT64 = torch.float64


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=FLOAT64)


def combine(p: Tensor, q: Tensor, first: Any, second: Any) -> tuple[Tensor, Tensor]:
    """W and H over two adjoining intervals of lengths p and q."""
    (w1, h1), (w2, h2) = first, second
    return w1 + w2, (p * h1 + q * h2) / (p + q) + (q * w1 - p * w2) / (2 * (p + q))


def step(t: Tensor, s: Tensor) -> Interval:
    return Interval(0, t, s, float("nan"))


TICK = st.integers(min_value=0, max_value=1 << DEPTH) | st.integers(min_value=0, max_value=64).map(
    lambda k: k << (DEPTH - 6)
)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 0.0), (-3.0, 5.0)])
@settings(deadline=None, max_examples=40)
@given(ticks=st.lists(TICK, min_size=3, max_size=3, unique=True).map(sorted))
def test_refinement_follows_the_combination_rule(t0: float, t1: float, ticks: list[int]) -> None:
    tree = BrownianTree(t0, t1, Normals(3, 2, (2,)))
    t, u, s = (t0 + (t1 - t0) * tensor(k / (1 << DEPTH)) for k in ticks)
    p, q = (tensor(float(b - a)) for a, b in pairwise(ticks))
    expected = combine(p, q, tree(t, u), tree(u, s))
    for found, wanted in zip(tree(t, s), expected, strict=True):
        assert float((found - wanted).abs().max()) < 1e-13 * float((s - t).abs().sqrt())


PINNED = {
    (1.0, 0.75): (
        "-0x1.56d68ab232a30p-2",
        "-0x1.03881e38533a5p-6",
        "0x1.5b79ddf447c1cp-2",
        "-0x1.ce21b53d7f738p-6",
        "-0x1.4143ce01adb24p-5",
        "0x1.ba9409d02082ep-6",
    ),
    (0.3, 0.1): (
        "0x1.e813c66e7e26ep-1",
        "-0x1.28f51bca37c93p-1",
        "-0x1.cbaa318cafd92p-2",
        "0x1.c5d6452019a4dp-3",
        "-0x1.4db4aadec44fdp-5",
        "-0x1.728e2f322840ap-4",
    ),
    (0.7004, 0.70039): (
        "-0x1.c27ff17cc6b11p-9",
        "0x1.5d97aa7e44c54p-8",
        "-0x1.0c076b67f5a45p-9",
        "0x1.9c9eb66f1d039p-10",
        "0x1.58c691c496c90p-11",
        "0x1.8c12e970756dep-10",
    ),
}
"""W of the samples 0, 17 and 400 of seed 5 over intervals of the run from 1 to .001, and their H."""


@pytest.mark.parametrize("interval", PINNED)
def test_the_bits_of_a_path_stay_what_they_are(interval: tuple[float, float]) -> None:
    tree = BrownianTree(1.0, 1e-3, Normals(5, [0, 17, 400], (1,)))
    w, h = tree(*(tensor(time)[0] for time in interval))
    assert [x.hex() for x in torch.cat((w, h)).flatten().tolist()] == list(PINNED[interval])


@pytest.mark.parametrize("kept", [0, 1 << 9, 1 << 23])
@pytest.mark.parametrize("block", [1, 1 << 18])
def test_answers_do_not_depend_on_earlier_queries(
    monkeypatch: pytest.MonkeyPatch, kept: int, block: int
) -> None:
    """Steps that are taken, tried again and left to some of the samples, on one path and on new ones."""
    monkeypatch.setattr("solvers.tree._KEPT_ELEMENTS", kept)
    monkeypatch.setattr("solvers.tree.BLOCK_ELEMENTS", block)
    g = torch.Generator().manual_seed(0)
    rows = torch.arange(9)
    path = BrownianTree(1.0, 1e-3, Normals(5, 9, (3,)))
    t = torch.ones(9, dtype=FLOAT64)
    for turn in range(20):
        u = torch.rand(2, len(rows), generator=g, dtype=FLOAT64)
        s = path.snap(t, t - 0.002 - 0.03 * u[0] ** 4)
        fresh = BrownianTree(1.0, 1e-3, Normals(5, rows, (3,)))
        assert all(torch.equal(a, b) for a, b in zip(path(t, s), fresh(t, s), strict=True))
        t = torch.where(u[1] < 0.7, s, t)
        if turn % 7 == 6:
            keep = torch.arange(len(rows))[turn % 2 :: 2 if turn > 6 else 1]
            rows, t, path = rows[keep], t[keep], path.take(keep)


class Impulses:
    """Draws that are unit impulses: sample j has its one in draw j % 2 of node j // 2."""

    count, on_host = 2, True

    def draw(self, rows: np.ndarray, nodes: np.ndarray) -> Tensor:
        here = nodes == rows // 2
        return torch.from_numpy(np.stack((here & (rows % 2 == 0), here & (rows % 2 == 1))).astype(float))


@pytest.mark.parametrize(
    "ticks", [range(0, 33, 1), [0, 32], [0, 1, 32], [0, 5, 6, 17, 31, 32], [3, 4, 16, 24, 27]]
)
@pytest.mark.parametrize("down", [False, True])
def test_on_any_partition_the_law_is_exact(monkeypatch: pytest.MonkeyPatch, ticks: Any, down: bool) -> None:
    """Queries are linear in the draws of 31 nodes and the root, so impulses give their covariances."""
    tree = BrownianTree(float(down), float(not down), Normals(0, 64, ()))
    monkeypatch.setattr(tree, "_scattered", Impulses())
    times = [tensor(k / 32) for k in ticks]
    times = [1 - t for t in times] if down else times
    responses = [z for t, s in pairwise(times) for z in tree.increment_and_area(step(t[0], s[0]))]
    covariance = torch.stack(responses) @ torch.stack(responses).T
    torch.testing.assert_close(covariance, torch.eye(len(responses), dtype=FLOAT64), rtol=0, atol=1e-13)


def test_the_law_is_exact_at_arbitrary_times() -> None:
    count = 20_000
    tree = BrownianTree(0.0, 1.0, Normals(1, count, ()))
    times = tensor(0.1, 0.13, 0.5, 0.77, 0.770001, 1.0)
    z = torch.stack([z for t, s in pairwise(times) for z in tree.increment_and_area(step(t, s))])
    bound = scipy.stats.norm.isf(ALPHA / 200)
    eye = torch.eye(len(z), dtype=FLOAT64)
    deviation = (z @ z.T / count - eye) / ((1 + eye) / count).sqrt()
    assert float(deviation.abs().max()) < bound
    assert all(scipy.stats.kstest(row.numpy(), "norm").pvalue > ALPHA for row in z)


def test_w_and_h_come_in_units_of_time() -> None:
    tree = BrownianTree(2.0, -1.0, Normals(4, 3, (2,)))
    t, s = tensor(1.5, 0.5, 2.0), tensor(0.75, -0.5, -1.0)
    w, h = tree(t, s)
    z, area = tree.increment_and_area(step(t, s))
    length = (t - s)[:, None]
    torch.testing.assert_close(w, z * length.sqrt(), rtol=1e-11, atol=0)
    torch.testing.assert_close(h, area * (length / 12).sqrt(), rtol=1e-11, atol=0)
    assert torch.equal(tree.increment(step(t, s)), z)


@pytest.mark.parametrize("event_shape", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_path_does_not_depend_on_the_batch(event_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    times = torch.rand(2, 40, generator=g, dtype=FLOAT64)
    times[:, ::3] = (64 * times[:, ::3]).round() / 64
    t, s = times.min(0).values, times.max(0).values
    whole = BrownianTree(0.0, 1.0, Normals(5, 40, event_shape, dtype))
    w, h = whole(t, s)
    assert torch.equal(whole.increment(step(t, s)), whole.increment_and_area(step(t, s))[0])
    assert w.shape == h.shape == (40, *event_shape)
    assert w.dtype == h.dtype == dtype
    for rows in ([0], [7, 3], list(range(11, 40))):
        index = torch.tensor(rows)
        parts = (whole.take(index), BrownianTree(0.0, 1.0, Normals(5, rows, event_shape, dtype)))
        for part in parts:
            assert torch.equal(part(t[index], s[index])[0], w[index])
            assert torch.equal(part(t[index], s[index])[1], h[index])


def test_a_path_does_not_depend_on_how_many_levels_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = BrownianTree(0.0, 1.0, Normals(5, 4, (3,)))
    expected = tree(tensor(0.1)[0], tensor(0.7)[0])
    monkeypatch.setattr("solvers.tree.BLOCK_ELEMENTS", 1)
    assert all(torch.equal(a, b) for a, b in zip(tree(tensor(0.1)[0], tensor(0.7)[0]), expected, strict=True))


def test_a_path_made_on_a_device_has_the_same_bits() -> None:
    """The arithmetic of other devices, run on this one."""
    g = torch.Generator().manual_seed(0)
    here, there = (BrownianTree(1.0, 1e-3, Normals(5, 9, (3,))) for _ in range(2))
    there._scattered.on_host = False
    t, rows = torch.ones(9, dtype=FLOAT64), torch.tensor([7, 1, 2, 3, 6])
    for turn in range(8):
        s = here.snap(t, t - 0.002 - 0.03 * torch.rand(len(t), generator=g, dtype=FLOAT64))
        assert all(torch.equal(a, b) for a, b in zip(here(t, s), there(t, s), strict=True))
        t = torch.where(torch.rand(len(t), generator=g) < 0.7, s, t)
        if turn == 4:
            t, here, there = t[rows], here.take(rows), there.take(rows)


def test_other_draws_are_those_of_the_normals_and_nothing_of_the_path() -> None:
    normals = Normals(5, 3, (2,))
    tree = BrownianTree(0.0, 1.0, normals)
    assert torch.equal(tree.draw(4, 2), normals.draw(4, 2))
    z = tree.increment(step(tensor(0.0)[0], tensor(1.0)[0]))
    assert not any((normals.draw(i, stream) == z).any() for i in (0, 1) for stream in range(4))


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 1.0), (1.0, 1e-3), (1000.0, 1001.0), (80.0, 0.002)])
def test_snapping_shortens_a_little_and_stays_on_ticks(t0: float, t1: float) -> None:
    g = torch.Generator().manual_seed(0)
    tree = BrownianTree(t0, t1, Normals(0, 500, (1,)))
    u = torch.rand(500, generator=g, dtype=FLOAT64)
    t = tree.snap(torch.full_like(u, t0), t0 + (t1 - t0) * u)
    h = (t1 - t) * torch.rand(500, generator=g, dtype=FLOAT64) ** 8
    s = tree.snap(t, t + h)
    length = (s - t).abs()
    assert bool((length >= h.abs() * (1 - 1 / 16) - 1.5 * tree.tick).all())
    assert bool((length <= h.abs() + 1.5 * tree.tick).all())
    assert bool((length >= 0.9 * tree.tick).all())
    assert torch.equal(tree.snap(t, torch.full_like(t, t1)), torch.full_like(t, t1))
    assert torch.equal(tree.snap(t, s), s) or bool(((tree.snap(t, s) - t).abs() <= length).all())
    for a, b in zip(tree(t, s), tree(t + 0.2 * tree.tick, s), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("t0", "t1"), [(0.0, 0.0), (math.nan, 1.0), (0.0, math.inf)])
def test_a_run_that_is_empty_or_infinite_is_refused(t0: float, t1: float) -> None:
    with pytest.raises(
        ValueError, match=r"t0 and t1 must be finite and differ|t[01] must be a number, got nan"
    ):
        BrownianTree(t0, t1, Normals(0, 1, (1,)))


@pytest.mark.parametrize(("t", "s"), [(0.5, 0.25), (-0.1, 0.5), (0.5, 1.1), (0.5, 0.5), (math.nan, 0.5)])
def test_an_interval_outside_the_run_or_without_length_is_refused(t: float, s: float) -> None:
    tree = BrownianTree(0.0, 1.0, Normals(0, 2, (1,)))
    with pytest.raises(ValueError, match=r"an interval must be at least .* for sample 1"):
        tree(tensor(0.0, t), tensor(0.5, s))
