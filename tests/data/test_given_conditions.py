"""Conditions that are no classes, of data of the user's own: from tables, keys and files beside."""

import numpy as np
import pytest
import torch

from sde_toolkit.data import absolute_places, open_data

RNG = np.random.default_rng(0)
X, C = RNG.normal(size=(40, 2)), RNG.normal(size=(40, 3)).astype(np.float32)


def pairs(dataset):
    """Examples in raw units beside their conditions."""
    x = torch.cat([dataset.scaling.to_data(part[:]) for part in (dataset.train, dataset.test)])
    return torch.cat([x, torch.cat([dataset.conditions_train, dataset.conditions_test])], 1).double()


def same_rows(found, wanted):
    found, wanted = (np.asarray(a)[np.argsort(np.asarray(a)[:, 0])] for a in (found, wanted))
    return np.allclose(found, wanted, atol=1e-5)


def test_a_key_a_file_and_columns_give_the_same_conditions_to_the_same_rows(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, c=C)
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "c.npy", C)
    table = np.concatenate([X, C], 1)
    np.savetxt(tmp_path / "t.csv", table, delimiter=",", header="a,b,u,v,w", comments="")
    opened = [
        open_data(tmp_path / "d.npz", conditions="c"),
        open_data(tmp_path / "x.npy", conditions=str(tmp_path / "c.npy")),
        open_data(tmp_path / "t.csv", conditions="u,v,w"),
    ]
    for dataset in opened:
        assert dataset.event_shape == (2,)
        assert dataset.conditions_train.dtype == torch.float32
        assert same_rows(pairs(dataset), table)
    assert opened[2].columns == ("a", "b")
    assert opened[0].digest != open_data(tmp_path / "d.npz", key="x").digest


def test_held_out_sources_bring_conditions_of_their_own(tmp_path):
    np.savez(tmp_path / "train.npz", x=X, c=C)
    np.savez(tmp_path / "test.npz", x=X[:9] + 1, c=C[:9])
    dataset = open_data(tmp_path / "train.npz", conditions="c", held_out=tmp_path / "test.npz")
    assert torch.equal(dataset.conditions_test, torch.from_numpy(C[:9]))
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "c.npy", C)
    with pytest.raises(ValueError, match=r"data.held_out must be a share where data.conditions is a file"):
        open_data(tmp_path / "x.npy", conditions=str(tmp_path / "c.npy"), held_out=tmp_path / "x2.npy")


def test_a_parquet_table(tmp_path):
    pandas = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pandas.table({"a": X[:, 0], "u": C[:, 0], "b": X[:, 1]})
    parquet.write_table(table, tmp_path / "t.parquet")
    dataset = open_data(tmp_path / "t.parquet", conditions="u")
    assert dataset.columns == ("a", "b")
    assert same_rows(pairs(dataset), np.concatenate([X, C[:, :1]], 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conditions": "z"}, r"has no array 'z'; data.conditions may be one of x, c, short, words"),
        ({"conditions": "short"}, r"one row of data.conditions per example, got 7 for 40"),
        ({"conditions": "words"}, r"data.conditions must be real numbers with shape \(N, d\)"),
        ({"conditions": "nowhere.npy"}, r"got 'nowhere.npy', which does not exist"),
        ({"conditions": "c", "missing": "mask"}, r"data.conditions must be left out here.*data.missing=mask"),
    ],
)
def test_what_cannot_be_is_a_sentence(tmp_path, options, message):
    np.savez(tmp_path / "d.npz", x=X, c=C, short=C[:7], words=np.array(["a"] * 40))
    with pytest.raises(ValueError, match=message):
        open_data(tmp_path / "d.npz", key="x", **options)


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300])
def test_a_number_that_is_none_is_told_with_its_place(tmp_path, value):
    c = C.astype(np.float64)
    c[3, 1] = value
    np.savez(tmp_path / "d.npz", x=X, c=c)
    with pytest.raises(ValueError, match=r"data.conditions must be finite.*at index \(3, 1\) of 'c'"):
        open_data(tmp_path / "d.npz", key="x", conditions="c")
    c[3] = np.nan  # no condition
    np.savez(tmp_path / "d.npz", x=X, c=c)
    assert open_data(tmp_path / "d.npz", key="x", conditions="c").conditions_train.isnan().any(1).sum() <= 1


def test_conditions_of_another_size_than_one_are_warned_of(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, c=1000 * C)
    with pytest.warns(UserWarning, match=r"should be of order one.*root mean square"):
        open_data(tmp_path / "d.npz", conditions="c")


def test_a_file_of_conditions_is_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = absolute_places({"data.conditions": "c.npy"})
    assert found == {"data.conditions": str(tmp_path / "c.npy")}
    assert absolute_places({"data.conditions": "u,v"}) == {"data.conditions": "u,v"}
