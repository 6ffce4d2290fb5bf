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
            runs.draw_samples(run.model, run.fingerprint, sampler, path, **OPTIONS)
    assert parts_path(path).is_dir()
    with monkeypatch.context() as patch:
        counted = Interrupting(patch, before=None)
        again = runs.draw_samples(run.model, run.fingerprint, sampler, path, **OPTIONS)
        assert counted.made == 3  # the first, whose settings are those of all, and the two that were missing
    assert torch.equal(again.x, whole.x)
    assert (again.nfe, again.settings, again.first_sample) == (whole.nfe, whole.settings, 0)
    assert parts_path(path).is_dir()  # until the result is written
    runs.forget_parts(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"seed": 4}, {"batch_size": 2}, {"num_samples": 8}])
def test_batches_of_another_call_are_not_taken(run, tmp_path, monkeypatch, options):
    path, sampler = tmp_path / "x.npz", samplers.ddim(3)
    with monkeypatch.context() as patch:
        Interrupting(patch, before=2)
        with pytest.raises(KeyboardInterrupt):
            runs.draw_samples(run.model, run.fingerprint, sampler, path, **OPTIONS)
    asked = OPTIONS | options
    found = runs.draw_samples(run.model, run.fingerprint, sampler, path, **asked)
    assert torch.equal(found.x, sampler.sample(run.model, **asked).x)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b'{"kind": 3}'])
def test_a_damaged_file_counts_as_none(run, tmp_path, content):
    path = tmp_path / "x.npz"
    parts_path(path).mkdir()
    (parts_path(path) / "a-000000.safetensors").write_bytes(content)
    found = runs.draw_samples(run.model, run.fingerprint, samplers.ddim(2), path, **OPTIONS)
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


def test_shards_join_to_the_undivided_samples(run, tmp_path):
    path, sampler = tmp_path / "x.npz", samplers.ddim(3)
    whole = sampler.sample(run.model, **OPTIONS)

    def draw(**more):
        return runs.draw_samples(run.model, run.fingerprint, sampler, path, **OPTIONS, **more)

    for index in (1, 3):
        with pytest.raises(runs.ShardFinishedError):
            draw(shard=runs.Shard(index, 3))
    with pytest.raises(ValueError, match=r"the batch from row 3 is missing in .*x.npz.parts; run the shard"):
        draw(merging=True)
    with pytest.raises(runs.ShardFinishedError):
        draw(shard=runs.Shard(2, 3))
    assert len(list(parts_path(path).iterdir())) == 3
    joined = draw(merging=True)
    assert torch.equal(joined.x, whole.x)
    assert joined.nfe == whole.nfe


def test_batches_are_written_while_the_work_goes_on(run, tmp_path, monkeypatch):
    monkeypatch.setattr("sde_toolkit.runs.parts.INTERVAL", 0.0)
    path, seen = tmp_path / "x.npz", []
    usual = samplers.PreparedSampler.sample

    @functools.wraps(usual)
    def sample(prepared, *args, **options):
        seen.append(len(list(parts_path(path).glob("*"))))
        return usual(prepared, *args, **options)

    monkeypatch.setattr(samplers.PreparedSampler, "sample", sample)
    runs.draw_samples(run.model, run.fingerprint, samplers.ddim(2), path, **OPTIONS)
    assert seen == [0, 1, 2, 3]


def test_equal_samples_are_equal_files(run, tmp_path):
    samples = samplers.ddim(2).sample(run.model, 4)
    for name in ("a.npz", "b.npz"):
        runs.save_samples(tmp_path / name, samples, run.config, run.fingerprint)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    x, note = runs.load_samples(tmp_path / "a.npz")
    assert torch.equal(x, samples.x)
    assert note["nfe"] == samples.nfe
