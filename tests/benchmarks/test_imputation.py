"""The benchmark of imputation: exact draws are what the others are judged by."""

from benchmarks.imputation import measure
from sde_toolkit.guidance import MMPS


def test_exact_draws_are_the_closest():
    table = measure({"MMPS": MMPS()}, seeds=(0, 1), rows=6, draws=19)
    assert table["exact"]["width"][0] == 1
    assert table["exact"]["mean error"][0] < table["MMPS"]["mean error"][0]
