"""The program that measures how errors of particles fall."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import particles
from benchmarks.posteriors import cases


def test_slopes_are_those_of_powers() -> None:
    numbers = [16, 64, 256]
    values = [(3 * P**-0.5, 0.1 * P**-0.5) for P in numbers]
    fitted, error = particles.slope(numbers, values)
    assert fitted == pytest.approx(-0.5, abs=1e-12)
    relative = 0.1 / 3
    assert error == pytest.approx(relative / (math.log(4) * math.sqrt(2)), rel=1e-9)


def test_roots_have_the_standard_error_of_their_squares() -> None:
    squares = torch.tensor([1.0, 3.0, 5.0, 7.0])
    value, error = particles.root(squares)
    assert value == 2
    assert error == pytest.approx(float(squares.std()) / 2 / 4)


def test_every_number_of_particles_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(particles, "NUM_STEPS", 6)
    found = particles.measure(next(cases(0, (0.3,), ("2-D",))), {4: 8, 16: 8})
    assert [row["particles"] for row in found["rows"]] == [4, 16]
    assert all(row["mean"] > 0 and row["evidence error"] > 0 for row in found["rows"])
    assert set(found["slopes"]) == {"mean", "evidence"}
