import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sde_toolkit.data.toy import gaussian_mixture
from sde_toolkit.models import NetworkModel, OwnRows
from sde_toolkit.networks import MLP, UNet
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import DenoisingLoss, Optimization, Parallel, TrainState, fit
from sde_toolkit.training.checkpoint import latest_checkpoint
from sde_toolkit.utils import Processes


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 100))
def test_every_row_belongs_to_one_part(count, accumulate, more):
    size = count * accumulate + more
    parts = [
        rows for rank in range(count) for rows in Parallel(Processes(rank, count), accumulate).parts(size)
    ]
    rows = [row for part in parts for row in range(size)[part]]
    assert rows == list(range(size))
    lengths = [part.stop - part.start for part in parts]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1


def test_impossible_sharings_are_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 6, one row for each of 3 parts of 2"):
        Parallel(Processes(1, 2), 3).parts(5)
    with pytest.raises(ValueError, match="accumulate must be"):
        Parallel(accumulate=0)
    with pytest.raises(ValueError, match="shard must be False with one process"):
        Parallel(shard=True)


@pytest.mark.parametrize("drop", [nn.Dropout(0.3), nn.Dropout2d(0.5), nn.Dropout3d(0.5)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_rows_have_the_masks_of_the_whole_batch(drop, layout):
    event = (3, 4, 2) if not isinstance(drop, nn.Dropout3d) else (3, 4, 2, 2)
    x = torch.randn(7, *event, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=layout) if x.ndim == 4 else x
    torch.manual_seed(1)
    whole = drop(x)
    for rows in (slice(0, 2), slice(2, 6), slice(6, 7)):
        torch.manual_seed(1)
        own = OwnRows(drop, rows)(x)
        assert torch.equal(own[rows], whole[rows])
        assert own.shape == whole.shape
        own[rows] = 0
        assert torch.equal(own, torch.zeros_like(own))


def weights_after(network, parallel=None, loss=None, steps=20):
    dataset = gaussian_mixture([[-1.0, 0.0], [1.0, 0.5]], std=0.2, num_train=200, num_test=10)
    model = NetworkModel(network, VPSDE(), "velocity", (2,), dataset.data_std).to(torch.float64)
    state = TrainState(model, Optimization(warmup_steps=5), seed=3, parallel=parallel)
    history = fit(state, dataset, loss or DenoisingLoss(antithetic_nsr=0.5), steps, 17)
    return state, history


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.unused, self.drop = (
            MLP((2,), width=16, depth=2, seed=1),
            nn.Embedding(2, 2, _weight=torch.ones(2, 2)),
            nn.Dropout(0.2),
        )

    def forward(self, x, c):
        return self.body(self.drop(x), c)


@pytest.mark.parametrize("loss", [DenoisingLoss(antithetic_nsr=0.5), DenoisingLoss(second_order=0.1)])
def test_a_batch_in_parts_is_the_same_update(loss):
    (whole, first), (parts, second) = (
        weights_after(Dropping(), p, loss) for p in (None, Parallel(accumulate=3))
    )
    for a, b in zip(whole.model.network.parameters(), parts.model.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(whole.losses, parts.losses, rtol=1e-10, atol=1e-12)
    assert [info.loss for info in first] == pytest.approx([info.loss for info in second], rel=1e-10)


def test_losses_without_rows_are_refused_in_parts():
    def mean(model, x0, generator):
        return DenoisingLoss()(model, x0, generator).mean()

    weights_after(MLP((2,), width=8, depth=1), loss=mean, steps=2)
    with pytest.raises(
        ValueError, match="loss must return a number for each of 17 examples where batches are shared"
    ):
        weights_after(MLP((2,), width=8, depth=1), Parallel(accumulate=2), mean, steps=2)


def test_images_in_channels_last_have_the_same_masks(tmp_path):
    def build():
        network = UNet((1, 8, 8), channels=(8,), attention_levels=(), dropout=0.3, seed=1).double()
        return TrainState(
            NetworkModel(network, VPSDE(), "noise", (1, 8, 8)), Optimization(warmup_steps=2), parallel=sharing
        )

    x0 = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for sharing in (None, Parallel(accumulate=2)):
        state = build()
        fit(state, x0, DenoisingLoss(), 4, 6, workdir=tmp_path / str(sharing is None))
        found.append(latest_checkpoint(tmp_path / str(sharing is None)).part("model"))
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0, atol=1e-8)
