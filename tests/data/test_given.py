"""Arrays, torch data sets and loaders for training: the same batches as those of a ``Dataset``."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from sde_toolkit.data import Dataset, Scaling, from_array, training_data
from sde_toolkit.models import NetworkModel
from sde_toolkit.networks import MLP
from sde_toolkit.sdes import VPSDE
from sde_toolkit.training import DenoisingLoss, TrainState, fit

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(24) % 3
LEVELS = (torch.arange(24 * 16).reshape(24, 1, 4, 4) * 7 % 256).to(torch.uint8)


class Squares(torch.utils.data.Dataset):
    """Examples made when they are asked for."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, k: int) -> torch.Tensor:
        return X[k]


class Stream(IterableDataset):
    """Examples without numbers."""

    def __iter__(self):
        return iter(X)


def trained(data: object, num_classes: int = 0, **options: object) -> tuple[list[float], TrainState]:
    """The losses of a short run, and where it ended."""
    network = MLP((2,), width=8, depth=1, num_classes=num_classes)
    state = TrainState(NetworkModel(network, VPSDE(), "noise", (2,)), seed=3)
    return [info.loss for info in fit(state, data, DenoisingLoss(), 4, **options)], state


def test_every_form_of_the_same_examples_is_the_same_run():
    wanted, state = trained(Dataset("x", X, X[:1]), batch_size=8)
    for data in (
        X, X.numpy(), TensorDataset(X), Squares(),
        DataLoader(TensorDataset(X), batch_size=8, shuffle=True),
        DataLoader(X, batch_size=8), DataLoader(Squares(), batch_size=8, num_workers=1),
    ):  # fmt: skip
        losses, ended = trained(data, **({} if isinstance(data, DataLoader) else {"batch_size": 8}))
        assert losses == wanted
        assert ended.model.moments == state.model.moments


def test_labels_come_with_the_examples():
    wanted, _ = trained(Dataset("x", X, X[:1], labels_train=LABELS, labels_test=LABELS[:1]), 3, batch_size=8)
    for data in ((X, LABELS), TensorDataset(X, LABELS), DataLoader(TensorDataset(X, LABELS), batch_size=8)):
        assert trained(data, 3, **({} if isinstance(data, DataLoader) else {"batch_size": 8}))[0] == wanted


def test_integers_are_grey_levels_and_floats_stay():
    assert training_data(LEVELS).levels == 256
    assert training_data(LEVELS > 100).levels == 2
    made = training_data(LEVELS.float().mul(0.01))
    assert made.levels is None
    assert torch.equal(made.train, LEVELS.float().mul(0.01))
    assert training_data(made) is made


def test_a_resumed_run_from_a_loader_is_the_uninterrupted_one(tmp_path):
    data = DataLoader(TensorDataset(X), batch_size=8, shuffle=True)
    wanted, state = trained(data)
    network = MLP((2,), width=8, depth=1)
    again = TrainState(NetworkModel(network, VPSDE(), "noise", (2,)), seed=3)
    losses = [info.loss for stop in (2, 4) for info in fit(again, data, DenoisingLoss(), stop)]
    assert losses == wanted
    assert all(map(torch.equal, again.ema.network.parameters(), state.ema.network.parameters()))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DataLoader(TensorDataset(X), sampler=WeightedRandomSampler([1.0] * 24, 24)), "sampler of its own"),
        (DataLoader(TensorDataset(X), sampler=RandomSampler(X, replacement=True)), "sampler of its own"),
        (DataLoader(TensorDataset(X), batch_sampler=BatchSampler(SequentialSampler(X), 5, True)), None),
        (DataLoader(TensorDataset(X), batch_size=4, collate_fn=list), "collate function of its own"),
        (DataLoader(Stream()), "whose examples have numbers"),
        (Stream(), "whose examples have numbers"),
        (torch.zeros(0, 2), "N >= 1"),
        (torch.zeros(5), r"shape \(N, \*\)"),
        ((X, LABELS, LABELS), "got 3 parts"),
        (X.long(), "integers of type int64"),
        (X * torch.nan, "must be finite"),
        (X + 0j, "must be numbers"),
    ],
)
def test_what_has_no_batches_by_number_is_refused(data, words):
    if words is None:
        assert len(training_data(data).train) == 24
        return
    with pytest.raises(ValueError, match=words):
        training_data(data)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["u1", "u2", "i4", "f2", "f4", "f8", "?", "c8", "U1", "O"]),
    st.lists(st.integers(0, 3), max_size=4),
)
def test_any_array_becomes_a_data_set_or_is_named(kind, shape):
    values = np.arange(int(np.prod(shape, dtype=int))).reshape(shape).astype(kind)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whole numbers
            made, sentence = training_data(values), None
    except (ValueError, TypeError) as error:
        made, sentence = None, str(error)
    assert made is None or made.train.shape == values.shape
    assert sentence is None or "dataset" in sentence


def test_images_of_whole_numbers_are_told_to_be_levels():
    with pytest.warns(UserWarning, match="whole numbers from 0 to 255 of type float32 .*Scaling.grey"):
        from_array(LEVELS.float())
    with pytest.warns(UserWarning, match="whole numbers from 0 to 255"):
        training_data(LEVELS.float())


def test_unsigned_integers_are_grey_levels_too():
    for kind in (np.uint16, np.uint32, np.uint64):
        made = from_array(LEVELS.numpy().astype(kind) * 256, Scaling.grey(65536))
        assert (made.levels, int(made.train.max())) == (65536, int(made.train.max()) // 256 * 256)
    with pytest.raises(ValueError, match=r"below 2\^63"):
        from_array(np.full((4, 2), 2**64 - 1, np.uint64), Scaling.grey(256))
