"""One thread for every test: small tensors gain nothing from more, and results must not depend on it."""

from collections.abc import Iterator

import pytest
import torch
from forking import Forks, Fresh

torch.set_num_threads(1)
pytest.register_assert_rewrite("contracts")


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Commands in processes of their own."""
    made = Forks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def fresh() -> Iterator[Fresh]:
    """Programs in processes of their own, which have imported torch and nothing of ours."""
    made = Fresh()
    yield made
    made.close()
