"""Finished batches of an interrupted computation: kept, taken up again, never believed for another one."""

import functools

import pytest
import torch

from sde_toolkit import runs, samplers
from sde_toolkit.likelihood import log_likelihood
from sde_toolkit.models import ExactModel, GaussianMixture
from sde_toolkit.runs.parts import KeepingProcesses, kept_parts, parts_path
from sde_toolkit.sdes import VPSDE

OPTIONS = {"num_samples": 10, "seed": 3, "batch_size": 3}


class Interrupting:
    """A sampler's prepared runs that are interrupted before a batch, and counted."""

    def __init__(self, monkeypatch, before: int | None) -> None:
        self.made, usual = 0, samplers.PreparedSampler.sample

        @functools.wraps(usual)
        def sample(prepared, *args, **options):
            if self.made == before:
                raise KeyboardInterrupt
            self.made += 1
            return usual(prepared, *args, **options)

        monkeypatch.setattr(samplers.PreparedSampler, "sample", sample)


@pytest.fixture
def run() -> runs.Run:
    return runs.open_shipped("digits")


def test_an_interrupted_call_goes_on_with_its_batches(run, tmp_path, monkeypatch):
    path, sampler = tmp_path / "x.npz", samplers.ddim(3)
    whole = sampler.sample(run.model, **OPTIONS)
    with monkeypatch.context() as patch:
        Interrupting(patch, before=2)
        with pytest.raises(KeyboardInterrupt):
            runs.draw_samples(run, sampler, path, **OPTIONS)
    assert parts_path(path).is_file()
    with monkeypatch.context() as patch:
        counted = Interrupting(patch, before=None)
        again = runs.draw_samples(run, sampler, path, **OPTIONS)
        assert counted.made == 3  # the first, whose settings are those of all, and the two that were missing
    assert torch.equal(again.x, whole.x)
    assert (again.nfe, again.settings, again.first_sample) == (whole.nfe, whole.settings, 0)
    assert parts_path(path).is_file()  # until the result is written
    runs.forget_parts(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"seed": 4}, {"batch_size": 2}, {"num_samples": 8}])
def test_batches_of_another_call_are_not_taken(run, tmp_path, monkeypatch, options):
    path, sampler = tmp_path / "x.npz", samplers.ddim(3)
    with monkeypatch.context() as patch:
        Interrupting(patch, before=2)
        with pytest.raises(KeyboardInterrupt):
            runs.draw_samples(run, sampler, path, **OPTIONS)
    asked = OPTIONS | options
    found = runs.draw_samples(run, sampler, path, **asked)
    assert torch.equal(found.x, sampler.sample(run.model, **asked).x)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b'{"kind": 3}'])
def test_a_damaged_file_counts_as_none(run, tmp_path, content):
    path = tmp_path / "x.npz"
    parts_path(path).write_bytes(content)
    found = runs.draw_samples(run, samplers.ddim(2), path, **OPTIONS)
    assert torch.equal(found.x, samplers.ddim(2).sample(run.model, **OPTIONS).x)


def test_likelihoods_go_on_with_their_batches(tmp_path):
    data = GaussianMixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.1, 0.2])
    model, x = ExactModel(data, VPSDE()), data.sample(10, seed=0)
    whole, path = log_likelihood(model, x, batch_size=4), tmp_path / "likelihood.json"

    class Stopping(KeepingProcesses):
        """Interrupted before the last batch."""

        def map(self, function, rows, batch_size):
            def stopping(first, part):
                if first == 8:
                    raise KeyboardInterrupt
                return function(first, part)

            return super().map(stopping, rows, batch_size)

    with pytest.raises(KeyboardInterrupt), kept_parts(path, {}) as parts:
        log_likelihood(model, x, batch_size=4, processes=Stopping(parts=parts))
    with kept_parts(path, {}) as parts:
        assert {name.split(".")[1] for name in parts.tensors} == {"0", "4"}
        found = log_likelihood(model, x, batch_size=4, processes=KeepingProcesses(parts=parts))
    assert torch.equal(found.nats, whole.nats)
    assert torch.equal(found.nfe, whole.nfe)
