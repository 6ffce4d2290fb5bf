"""A condition follows its sample: through batches, adaptive runs, correctors, restarts and callbacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import MIXTURE, RING

from sde_toolkit import samplers
from sde_toolkit.models import ExactModel, NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VESDE, VPSDE, SubVPSDE

COUNT = 24
LABELS = torch.arange(COUNT) * 7 % 5
SAMPLERS = {
    "euler_maruyama": samplers.euler_maruyama(6),
    "ddim": samplers.ddim(6),
    "heun": samplers.heun(6),
    "unipc": samplers.unipc(6),
    "exponential_integrator": samplers.exponential_integrator(6),
    "sra": samplers.sra(6),
    "predictor_corrector": samplers.predictor_corrector(samplers.reverse_diffusion(6)),
    "restarting": samplers.restarting(samplers.edm(6), samplers.Restart(0.1, 0.6)),
    "dopri5": samplers.dopri5(rtol=1e-4, atol=1e-4),
    "bosh3": samplers.bosh3(rtol=1e-2, atol=1e-2),
    "adaptive_sde": samplers.adaptive_sde(rtol=0.1, atol=0.1),
}


def sampler_of(name: str, model: ExactModel) -> samplers.Sampler:
    return samplers.default(model, 6) if name == "default" else SAMPLERS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SAMPLERS, "default"])
def test_every_row_has_its_own_label_whatever_the_batch(name: str) -> None:
    model = ExactModel(MIXTURE, VPSDE())
    sampler = sampler_of(name, model)
    whole = sampler.sample(model, COUNT, condition=LABELS, seed=3)
    for batch_size in (1, 7, COUNT):
        parts = sampler.sample(model, COUNT, condition=LABELS, seed=3, batch_size=batch_size)
        assert torch.equal(parts.x, whole.x)
        assert parts.nfe == whole.nfe
    for i in (0, 5, 11):
        alone = sampler.sample(model, 1, condition=LABELS[i : i + 1], seed=3, first_sample=i)
        assert torch.equal(alone.x[0], whole.x[i])
        same = sampler.sample(model, 1, condition=int(LABELS[i]), seed=3, first_sample=i)
        assert torch.equal(same.x, alone.x)


@pytest.mark.parametrize("sde", [VPSDE(), SubVPSDE(), VESDE()], ids=["vp", "sub-vp", "ve"])
def test_labelled_samples_are_those_of_their_component(sde) -> None:
    model = ExactModel(RING, sde)
    labels = torch.arange(64) % 8
    x = samplers.dopri5(rtol=1e-6, atol=1e-6).sample(model, 64, condition=labels, seed=1).x
    for k in range(8):
        one = samplers.dopri5(rtol=1e-6, atol=1e-6).sample(model.given(k), 64, seed=1).x[labels == k]
        torch.testing.assert_close(x[labels == k], one, rtol=1e-4, atol=1e-4)
        away = x[labels == k] - RING.components.means[k]
        assert away.norm(dim=1).max() < 8 * 0.15


def test_callbacks_and_correctors_see_the_conditional_prediction() -> None:
    model, seen = ExactModel(RING, VPSDE()), []
    samplers.ddim(8).sample(model, 8, condition=torch.arange(8), callback=seen.append)
    nearest = torch.cdist(seen[-1].x0_hat, RING.components.means).argmin(1)
    assert nearest.tolist() == list(range(8))


def test_a_network_of_classes_takes_labels_of_every_row() -> None:
    network = MLP((2,), width=8, depth=1, num_classes=3)
    torch.nn.init.normal_(network.last.weight, generator=torch.Generator().manual_seed(0))
    model = NetworkModel(network, VPSDE(), "noise", (2,))
    labels = torch.tensor([2, 0, 1, 3, 2, 0, 1])
    sampler = samplers.ddim(5)
    x = sampler.sample(model, 7, condition=labels, batch_size=3).x
    torch.testing.assert_close(sampler.sample(model, 7, condition=labels).x, x)
    for k in range(4):
        torch.testing.assert_close(sampler.sample(model, 7, condition=k).x[labels == k], x[labels == k])
        torch.testing.assert_close(sampler.sample(model.given(k), 7).x[labels == k], x[labels == k])


@pytest.mark.parametrize(
    ("condition", "error", "words"),
    [
        (torch.zeros(3, dtype=torch.int64), ValueError, r"shape \(4,\), one per sample, got \(3,\)"),
        (torch.zeros(4), TypeError, "must be integers"),
        (torch.full((4,), 5), ValueError, "among 0 .. 4, got 5"),
        (-1, ValueError, "got -1"),
    ],
)
def test_wrong_conditions_are_refused_before_any_evaluation(condition, error, words) -> None:
    with pytest.raises(error, match=words):
        samplers.ddim(3).sample(ExactModel(MIXTURE, VPSDE()), 4, condition=condition)


def test_a_model_without_conditions_refuses_one() -> None:
    model = ExactModel(MIXTURE, VPSDE()).given(0)
    with pytest.raises(ValueError, match="must be left out for a model without conditions, got 1"):
        samplers.ddim(3).sample(model, 4, condition=1)


SCRIPT = """
import sys
from typing import NamedTuple
import torch
sys.path[:0] = {paths!r}
from problems import MIXTURE
from test_conditions import COUNT, LABELS, SAMPLERS
from sde_toolkit.models import ExactModel
from sde_toolkit.sdes import VPSDE
from sde_toolkit.utils import launched

class Drawn(NamedTuple):
    x: torch.Tensor

model = ExactModel(MIXTURE, VPSDE())
with launched() as processes:
    assert processes.count == 2
    for name in {names!r}:
        def draw(first, labels):
            sampler, count = SAMPLERS[name], len(labels)
            return Drawn(sampler.sample(model, count, condition=labels, seed=3, first_sample=first).x)
        shared = processes.map(draw, LABELS, 7).x
        alone = SAMPLERS[name].sample(model, COUNT, condition=LABELS, seed=3).x
        assert torch.equal(shared, alone), name
"""


@pytest.mark.slow
def test_two_processes_draw_the_samples_of_one(tmp_path: Path) -> None:
    script = tmp_path / "share.py"
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), str(here.parents[1])]
    names = ["ddim", "unipc", "predictor_corrector", "dopri5", "adaptive_sde"]
    script.write_text(SCRIPT.format(paths=paths, names=names))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
