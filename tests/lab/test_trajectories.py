"""Samples on their way: what is kept, its bounds, the law of forward paths, and the pictures."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from sde_toolkit import samplers
from sde_toolkit.lab import (
    Recorder,
    figures,
    forward_trajectory,
    has_ffmpeg,
    strip_figure,
    write_animation,
)
from sde_toolkit.lab.drawing.trajectories import kept_steps
from sde_toolkit.models import ExactModel, Gaussian
from sde_toolkit.sdes import VESDE, VPSDE

MODEL = ExactModel(Gaussian(torch.tensor([0.5, -0.25]), torch.full((2,), 0.49)), VPSDE())


def test_the_states_are_those_of_the_run():
    states = []
    kept = samplers.ddim(8).sample(MODEL, 5, callback=lambda info: states.append(info.x.clone()) or None)
    recorder = Recorder()
    again = samplers.ddim(8).sample(MODEL, 5, callback=recorder)
    assert torch.equal(kept.x, again.x)
    found = recorder.trajectory()
    assert found.x.shape == (8, 5, 2)
    assert torch.equal(found.x, torch.stack(states).float())
    assert list(found.times) == sorted(found.times, reverse=True)


@pytest.mark.parametrize("batch_size", [None, 3, 7])
def test_memory_is_bounded_and_batches_do_not_matter(batch_size):
    recorder = Recorder(num_frames=4, most_samples=8)
    samplers.ddim(30).sample(MODEL, 12, batch_size=batch_size, first_sample=2, callback=recorder)
    whole = Recorder(num_frames=4, most_samples=8)
    samplers.ddim(30).sample(MODEL, 12, first_sample=2, callback=whole)
    assert recorder.trajectory().x.shape == (4, 8, 2)
    assert torch.equal(recorder.trajectory().x, whole.trajectory().x)
    assert recorder.trajectory().x.dtype == torch.float32


@pytest.mark.parametrize(("steps", "frames"), [(10, 50), (10, 10), (10, 3), (100, 7), (1, 1), (5, 1)])
def test_steps_are_evenly_spaced_and_end_at_the_data(steps, frames):
    kept = sorted(kept_steps(steps, frames))
    assert len(kept) == min(steps, frames)
    assert kept[-1] == steps - 1
    assert max(np.diff(kept), default=1) - min(np.diff(kept), default=1) <= 1


def test_refusals():
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        Recorder(num_frames=0)
    with pytest.raises(ValueError, match="must have been the callback of a run"):
        Recorder().trajectory()
    with pytest.raises(ValueError, match="times must increase within"):
        forward_trajectory(VPSDE(), torch.zeros(3, 2), [0.5, 0.2])
    with pytest.raises(ValueError, match="a callback needs a fixed grid"):
        samplers.dopri5().sample(MODEL, 4, callback=Recorder())


@pytest.mark.parametrize("sde", [VPSDE(), VESDE()], ids=["vp", "ve"])
def test_forward_paths_have_the_law_of_the_process(sde):
    """z-tests of the mean, variance and covariance of two times, each at a false-alarm rate of 1e-5."""
    n, alpha_5 = 40000, 4.42
    times = [0.0, 0.3, 0.7, 1.0]
    found = forward_trajectory(sde, torch.full((n, 1), 0.8), times, seed=3).x.double()[..., 0]
    for k, t in enumerate(times):
        time = torch.tensor(t, dtype=torch.float64)
        alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
        assert abs(float(found[k].mean()) - 0.8 * alpha) <= alpha_5 * sigma / n**0.5 + 1e-6
        assert abs(float(found[k].var()) - sigma**2) <= alpha_5 * sigma**2 * (2 / n) ** 0.5 + 1e-6
        if k:  # Cov(x_s, x_t) = (alpha_t / alpha_s) sigma_s^2
            before = torch.tensor(times[k - 1], dtype=torch.float64)
            expected = alpha / float(sde.alpha(before)) * float(sde.sigma(before)) ** 2
            products = (found[k] - found[k].mean()) * (found[k - 1] - found[k - 1].mean())
            error = float(products.std()) / n**0.5
            assert abs(float(products.mean()) - expected) <= alpha_5 * error + 1e-6
    assert torch.equal(
        found[:, :5], forward_trajectory(sde, torch.full((5, 1), 0.8), times, 3).x[..., 0].double()
    )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 30, 2), (6, 30, 1), (6, 9, 1, 4, 4), (1, 5, 3)])
def test_pictures_of_every_shape(tmp_path, shape):
    x = np.random.default_rng(0).normal(size=shape)
    times = tuple(np.linspace(1, 0, shape[0]))
    frames = {"forward": (times[::-1], x[::-1]), "reverse": (times, x)}
    write_animation(tmp_path / "a.gif", frames)
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.n_frames >= min(shape[0], 2)
        assert moving.size[0] > moving.size[1]
    assert figures.render(strip_figure(frames), dpi=40)[:4] == b"\x89PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_axes_stand_still_unless_the_noise_explodes():
    """Above a frame of a process whose states shrink a hundredfold stands the width of its axes."""
    x = np.random.default_rng(0).normal(size=(3, 200, 2))
    times = (1.0, 0.5, 0.0)
    still = strip_figure({"vp": (times, x)})
    assert [axes.get_title() for axes in still.axes] == ["t = 1", "t = 0.5", "t = 0"]
    assert len({axes.get_xlim() for axes in still.axes}) == 1
    moving = strip_figure({"ve": (times, x * np.array([100, 10, 1])[:, None, None])})
    widths = [axes.get_xlim()[1] for axes in moving.axes]
    assert widths[0] > 5 * widths[1] > 25 * widths[2] > 25 * 2
    assert all(f"axes ±{w:.3g}" in a.get_title() for w, a in zip(widths, moving.axes, strict=True))
    zeros = strip_figure({"none": (times, 0 * x)})
    assert [axes.get_xlim() for axes in zeros.axes] == [(-1, 1)] * 3


def test_endings_and_films(tmp_path):
    frames = {"reverse": ((1.0, 0.0), np.zeros((2, 5, 2)))}
    with pytest.raises(ValueError, match=r"path must end in .gif or .mp4, got 'a.webm'"):
        write_animation(tmp_path / "a.webm", frames)
    with pytest.raises(ValueError, match="equally many frames"):
        write_animation(tmp_path / "a.gif", {**frames, "other": ((1.0,), np.zeros((1, 5, 2)))})
    if has_ffmpeg():
        write_animation(tmp_path / "a.mp4", frames)
        assert b"ftyp" in (tmp_path / "a.mp4").read_bytes()[:16]
    else:
        with pytest.raises(OSError, match=r"needs ffmpeg, which is not installed"):
            write_animation(tmp_path / "a.mp4", frames)


def test_the_last_frame_is_what_was_given(tmp_path):
    images = np.zeros((2, 25, 1, 8, 8))
    images[1] = 1.0
    write_animation(tmp_path / "a.gif", {"reverse": ((1.0, 0.0), images)})
    with Image.open(tmp_path / "a.gif") as moving:
        moving.seek(moving.n_frames - 1)
        stream = BytesIO()
        moving.convert("L").save(stream, "PNG")
    ink = np.asarray(Image.open(stream))
    middle = ink[ink.shape[0] // 3 : -ink.shape[0] // 4, ink.shape[1] // 3 : -ink.shape[1] // 3]
    assert (middle < 128).mean() > 0.6
