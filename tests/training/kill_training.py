"""A small training run for tests that kill it: resumes by itself, prints every step, and exports its end.

usage: kill_training.py WORKDIR NUM_STEPS CHECKPOINT_EVERY
"""

import sys

import torch

from sde_toolkit.data.toy import gaussian_mixture
from sde_toolkit.models.network import NetworkModel
from sde_toolkit.networks.mlp import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training.checkpoint import latest_checkpoint, restore
from sde_toolkit.training.loop import fit
from sde_toolkit.training.objective import DenoisingLoss
from sde_toolkit.training.state import Optimization, TrainState
from sde_toolkit.utils.files import WorkdirLock


def main(path: str, num_steps: int, checkpoint_every: int) -> None:
    torch.set_num_threads(1)
    dataset = gaussian_mixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2, num_train=100, num_test=10)
    model = NetworkModel(MLP((2,), width=16, depth=1, seed=4), VPSDE(), "velocity", (2,), dataset.data_std)
    state = TrainState(model, Optimization(warmup_steps=5), seed=4)
    with WorkdirLock(path) as workdir:
        checkpoint = latest_checkpoint(path)
        if checkpoint is not None:
            restore(state, checkpoint)
        print("from", state.step, flush=True)
        fit(
            state,
            dataset,
            DenoisingLoss(),
            num_steps,
            batch_size=16,
            workdir=workdir,
            checkpoint_every=checkpoint_every,
            on_step=lambda info: print(info.step, flush=True),
        )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
