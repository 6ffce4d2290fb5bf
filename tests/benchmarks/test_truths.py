"""The table of scores that losses train: its measures on exact models, and pairs within 2 per cent."""

import pytest
import torch

from benchmarks import truths
from sde_toolkit.models import PREDICTIONS, ExactModel
from sde_toolkit.training import WEIGHTINGS


def test_the_default_run_has_every_prediction_and_every_weight():
    chosen = truths.pairs(False)
    assert {predicts for predicts, _ in chosen} == set(PREDICTIONS)
    assert {weighting for _, weighting in chosen} == set(WEIGHTINGS)
    assert len(truths.pairs(True)) == len(PREDICTIONS) * len(WEIGHTINGS)


class Off(ExactModel):
    """The exact noise times 1.03."""

    def raw(self, x_t, t, condition=None):
        return 1.03 * super().raw(x_t, t, condition)


def test_the_error_is_that_of_the_score():
    data = truths.DATA["mixture"]
    found = truths.errors(data, Off(data, truths.SDE))
    assert found == pytest.approx(dict.fromkeys(found, 3.0), rel=1e-4)  # states in single precision
    assert truths.excess(data, truths._in_float32(data), "noise") == 0.0
    # E |1.03 z_hat - z|^2 = E |z_hat - z|^2 + .0009 E |z_hat|^2
    assert truths.excess(data, truths._in_float32(data), "likelihood") < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize(("predicts", "weighting"), [("residual", "likelihood"), ("velocity", "likelihood")])
def test_pairs_reach_the_exact_score(predicts, weighting):
    torch.manual_seed(0)
    data = truths.DATA["gaussian"]
    model = truths.train(data, data.sample(truths.POOL, seed=1).float(), predicts, weighting)
    assert truths.errors(data, model)["score"] < truths.LIMIT
    assert abs(truths.excess(data, model, weighting)) < 0.5  # of the known minimum, on the same draws
