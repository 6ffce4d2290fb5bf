"""The default prediction and the default law of t are those that were measured best."""

import json

import pytest
import torch

from benchmarks import predictions
from benchmarks.record import RESULTS
from sde_toolkit.config import base_config
from sde_toolkit.training import DenoisingLoss


def recorded(name: str, figure: str) -> dict[str, dict[str, float]]:
    """Problem -> arm -> the last mean of this figure."""
    found = json.loads((RESULTS / f"{name}.json").read_text())["results"]
    return {
        problem: {arm: row[figure]["mean"][-1] for arm, row in arms.items()}
        for problem, arms in found.items()
    }


def test_the_default_prediction_has_the_least_kl_divergence() -> None:
    assert base_config().model.predicts == "residual"
    for problem, arms in recorded("predictions", "nats").items():
        assert arms["residual"] <= min(arms[name] for name in ("noise", "velocity", "edm")), problem


def test_the_default_law_of_t_has_the_least_kl_divergence() -> None:
    arm = predictions.LAWS["residual: likelihood, moments"]
    assert arm == ("residual", DenoisingLoss())
    fields = base_config().loss.to_dict()
    assert fields.pop("name") == "denoising"
    assert {name: getattr(arm[1], name) for name in fields} == fields
    for problem, arms in recorded("training_times", "nats").items():
        assert arms["residual: likelihood, moments"] == min(arms.values()), problem


@pytest.mark.parametrize("predicts", ["noise", "residual"])
def test_its_loop_trains(monkeypatch: pytest.MonkeyPatch, predicts: str) -> None:
    monkeypatch.setattr(predictions, "STEPS", 3)
    model = predictions.train(predictions.scales(), predicts, DenoisingLoss(), seed=0)
    assert model.moments is not None
    x = torch.zeros(2, 16)
    assert float(model.network(x, torch.zeros(2)).detach().abs().max()) > 0


def test_the_scales_span_what_is_said() -> None:
    std = torch.linalg.eigvalsh(predictions.scales().covariance).sqrt()
    assert 50 < float(std.amax() / std.amin()) < 55
