"""Examples that stay on disk or in a data set: the batches of memory, from any number of workers."""

import copy
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_toolkit.data import Dataset, Scaling, open_data
from sde_toolkit.data.rows import CHUNK_BYTES, MappedArray, ReadAhead, Rows
from sde_toolkit.data.sources import arrays, named, raw

RNG = np.random.default_rng(0)
POINTS = RNG.normal([1, 2, 3], size=(60, 3))
IMAGES = RNG.integers(0, 256, (30, 8, 6, 3), dtype=np.uint8)


@pytest.fixture
def nothing_fits(monkeypatch):
    """Every source counts as too large for memory."""
    for module in (raw, arrays, named):
        monkeypatch.setattr(module, "MAX_IN_MEMORY", 0)


def both(path, monkeypatch, **options) -> tuple[Dataset, Dataset]:
    """The data set in memory, and the same one left on the disk."""
    small = open_data(path, **options)
    monkeypatch.setattr(arrays, "MAX_IN_MEMORY", 0)
    return small, open_data(path, **options)


@pytest.mark.parametrize(
    ("x", "options"),
    [(POINTS, {}), (POINTS, {"scaling": "per_coordinate"}), (IMAGES, {"flip": "horizontal"}),
     (IMAGES.reshape(30, -1), {"shape": (8, 6, 3)}), (IMAGES.astype("<u2"), {"levels": 300}),
     (IMAGES.astype(np.float64) / 255, {})],
)  # fmt: skip
def test_an_array_on_disk_gives_the_batches_of_one_in_memory(tmp_path, monkeypatch, x, options) -> None:
    np.save(tmp_path / "x.npy", x)
    small, large = both(tmp_path / "x.npy", monkeypatch, **options)
    assert isinstance(large.train, Rows)
    assert (len(large.train), large.digest) == (len(small.train), small.digest)
    assert (large.event_shape, large.dtype, large.levels) == (small.event_shape, small.dtype, small.levels)
    torch.testing.assert_close(large.scaling.shift, small.scaling.shift)
    for step in (0, 1, 7):
        torch.testing.assert_close(large.batch(step, 16, 3), small.batch(step, 16, 3), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(large.covariance, small.covariance, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(large.scaled_test(), small.scaled_test(), rtol=1e-6, atol=1e-6)
    for twin in (pickle.loads(pickle.dumps(large)), copy.deepcopy(large)):
        assert torch.equal(twin.batch(2, 16, 3), large.batch(2, 16, 3))


def test_batches_do_not_read_an_array_whole(tmp_path, monkeypatch, nothing_fits) -> None:
    np.save(tmp_path / "x.npy", RNG.normal(size=(5000, 3)))
    seen: list[int] = []
    inner = MappedArray.rows
    monkeypatch.setattr(MappedArray, "rows", lambda self, i: seen.append(len(i)) or inner(self, i))
    dataset = open_data(tmp_path / "x.npy")
    seen.clear()
    dataset.batch(0, 8, 0)
    assert seen == [8]
    assert len(pickle.dumps(dataset.train)) < 60_000  # its place and its indices, not its values


@pytest.mark.parametrize("workers", [0, 1])
def test_a_process_that_shares_a_batch_reads_its_own_rows_alone(tmp_path, monkeypatch, nothing_fits, workers):
    np.save(tmp_path / "x.npy", IMAGES)
    dataset = open_data(tmp_path / "x.npy", layout="NHWC", flip="horizontal", workers=workers)
    whole, own = dataset.batch(3, 16, 1), slice(5, 11)
    seen: list[int] = []
    inner = MappedArray.rows
    monkeypatch.setattr(MappedArray, "rows", lambda self, i: seen.append(len(i)) or inner(self, i))
    shared = dataset.batch(3, 16, 1, own)
    assert torch.equal(shared[own], whole[own])
    assert shared.shape == whole.shape
    assert seen == ([] if workers else [6])


def test_what_is_wrong_in_an_array_on_disk_is_said_with_its_place(tmp_path, nothing_fits) -> None:
    x = POINTS.copy()
    x[41, 2] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"the first at index \(41, 2\)"):
        open_data(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.arange(12).reshape(6, 2))
    with pytest.raises(ValueError, match=r"need data.levels"):
        open_data(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.zeros((4, 5, 5, 5), np.float32))
    with pytest.raises(ValueError, match=r"give data.layout"):
        open_data(tmp_path / "x.npy")


class Jittered(torch.utils.data.Dataset):
    """Labelled images that are shifted at random whenever they are read, by all three generators."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.rand(()).item() + np.random.rand() + random.random()  # noqa: NPY002
        return torch.full((1, 8, 8), index / 20 + noise), index % 2


def jittered() -> Jittered:
    return Jittered()


@pytest.mark.parametrize("fits", [True, False])
def test_a_torch_data_set_is_read_the_same_way_every_time(request, fits) -> None:
    if not fits:
        request.getfixturevalue("nothing_fits")
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, two = open_data(f"{__name__}:jittered"), open_data(f"{__name__}:jittered")
    assert one.digest == two.digest
    assert isinstance(one.train, Rows) is not fits
    assert sorted(torch.cat([one.labels_train, one.labels_test]).tolist()) == [0] * 10 + [1] * 10
    batches = [one.batch(step, 6, 1) for step in range(5)]
    assert all(torch.equal(two.batch(step, 6, 1), batches[step]) for step in (4, 2, 0))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert (before[2] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_items_of_several_shapes_and_broken_ones_are_refused(nothing_fits) -> None:
    for name, words in {
        "uneven": "items of one shape and type",
        "empty": "empty",
        "torn": "OSError: torn",
    }.items():
        with pytest.raises(ValueError, match=words):
            open_data(f"{__name__}:{name}")


class Listed(torch.utils.data.Dataset):
    """The items of a list; an error among them is raised."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> np.ndarray:
        if isinstance(self.items[index], Exception):
            raise self.items[index]
        return self.items[index]


def uneven() -> Listed:
    return Listed([np.zeros(3), np.zeros(4)])


def empty() -> Listed:
    return Listed([])


def torn() -> Listed:
    return Listed([np.zeros(3), OSError("torn")])


def test_workers_change_no_batch_and_a_resume_is_exact(nothing_fits) -> None:
    plain = open_data(f"{__name__}:jittered")
    ahead = open_data(f"{__name__}:jittered", workers=2)
    for step in (0, 1, 2, 9, 10, 3):  # on, resumed elsewhere, back
        assert torch.equal(ahead.batch(step, 5, 4), plain.batch(step, 5, 4))
    assert torch.equal(ahead.batch(4, 5, 8), plain.batch(4, 5, 8))
    assert torch.equal(pickle.loads(pickle.dumps(ahead)).batch(4, 5, 8), plain.batch(4, 5, 8))


def test_bad_numbers_of_workers_are_refused() -> None:
    x = torch.randn(4, 2)
    with pytest.raises(ValueError, match="workers must be an integer >= 0, got -1"):
        Dataset("x", x, x, Scaling.identity(), workers=-1)
    with pytest.raises(ValueError, match="workers must be an integer >= 1, got 0"):
        ReadAhead(x, 0)


def test_a_held_out_part_too_large_for_memory_is_refused(tmp_path, monkeypatch, nothing_fits) -> None:
    from sde_toolkit.data.sources import opening

    np.save(tmp_path / "x.npy", POINTS)
    monkeypatch.setattr(opening, "MAX_HELD_OUT", 100)
    with pytest.raises(ValueError, match="give a smaller share"):
        open_data(tmp_path / "x.npy", held_out=0.5)


def test_examples_that_are_trained_on_are_not_held_out(tmp_path) -> None:
    np.save(tmp_path / "x.npy", POINTS)
    np.savez(tmp_path / "same.npz", POINTS)
    with pytest.raises(ValueError, match="other examples than those of training"):
        open_data(tmp_path / "x.npy", held_out=tmp_path / "same.npz")


def test_mirror_images_need_a_scaling_that_mirrors(tmp_path) -> None:
    np.save(tmp_path / "x.npy", IMAGES.astype(np.float32) / 255)
    assert open_data(tmp_path / "x.npy", flip="horizontal").scaling.shift.ndim == 0
    with pytest.raises(ValueError, match=r"take data.scaling=common"):
        open_data(tmp_path / "x.npy", flip="horizontal", scaling="per_coordinate")


MEMORY = """
import sys
from pathlib import Path
from sde_toolkit import open_data

def own_memory():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

before = own_memory()
dataset = open_data(sys.argv[1], held_out=0.001)
dataset.moments
dataset.batch(0, 64, 0)
print(own_memory() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_opening_a_large_array_takes_the_memory_of_a_few_parts(tmp_path) -> None:
    x = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (400_000, 256))
    for first in range(0, len(x), 50_000):
        x[first : first + 50_000] = RNG.normal(size=(50_000, 256))
    x.flush()
    words = [sys.executable, "-c", MEMORY, str(tmp_path / "x.npy")]
    taken = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert taken < 12 * CHUNK_BYTES < x.nbytes / 2  # some parts at once, however many there are
