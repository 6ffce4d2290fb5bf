"""One thread for every test: small tensors gain nothing from more, and results must not depend on it."""

import pytest
import torch

torch.set_num_threads(1)
pytest.register_assert_rewrite("contracts")
