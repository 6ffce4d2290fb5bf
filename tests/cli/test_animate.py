"""``sde-toolkit animate``: the files, and the mistakes."""

import numpy as np
import pytest
import torch

from sde_toolkit import cli, runs, samplers
from sde_toolkit.config import parse_config
from sde_toolkit.lab import has_ffmpeg


def test_animate_writes_a_film_and_a_strip(tmp_path, capsys):
    words = ["animate", "--config=digits", "--sampler=ddim", "--num_steps=4", "--num_samples=9", "--frames=3"]
    assert cli.main([*words, f"--output={tmp_path}"]) == 0
    names = {path.name for path in (tmp_path / "animations").iterdir()}
    assert names == {"ddim-4-seed0.gif", "ddim-4-seed0.png"}
    assert (tmp_path / "animations" / "ddim-4-seed0.gif").read_bytes()[:4] == b"GIF8"
    assert "9 samples by ddim-4: 5 network evaluations each" in capsys.readouterr().out


@pytest.mark.slow
def test_animate_takes_exact_problems(tmp_path, capsys):
    words = ["animate", "--problem=ring", "--sampler=heun", "--num_steps=6", "--num_samples=50", "--frames=4"]
    assert cli.main([*words, f"--output={tmp_path}"]) == 0
    assert cli.main([*words, "--label=3", f"--output={tmp_path}"]) == 0
    names = {path.name for path in (tmp_path / "animations").iterdir()}
    stems = ("ring-heun-6-seed0", "ring-heun-6-class3-seed0")
    assert names == {f"{stem}.{form}" for stem in stems for form in ("gif", "png")}
    assert "50 samples by heun-6: 13 network evaluations each" in capsys.readouterr().out


def test_frames_of_a_problem_hold_data_and_samples_at_the_same_times():
    config = parse_config({"comparison": {"problems": "ring"}, "sampling": {"seed": 3}})
    (problem,) = runs.open_problems(config, None)
    frames, samples = runs.animation_frames(
        problem, samplers.heun(100, denoise=False), config, 50, 4, label=2
    )
    (ahead, clean), (back, reverse) = frames["forward process"], frames["heun"]
    assert ahead == back[::-1]
    assert clean.shape == reverse.shape == (4, 50, 2)
    assert torch.equal(torch.from_numpy(reverse[-1]), samples.x.float())  # the last frame is the samples
    component = problem.mixture.component(2)
    for x in (clean[0], reverse[-1]):  # both are draws of one mode, at the end of the run
        assert np.abs(x.mean(0) - component.mean.numpy()).max() < 0.1
        assert 0.5 < x.std(0).mean() / component.std < 2


def test_samples_of_classes_in_turn_move_beside_all_data(tmp_path):
    words = ["animate", "--problem=ring", "--sampler=ddim", "--num_steps=3", "--num_samples=20", "--frames=2"]
    assert cli.main([*words, "--labels=1,5", f"--output={tmp_path}"]) == 0
    assert (tmp_path / "animations" / "ring-ddim-3-classes1-5-seed0.gif").exists()
    config = parse_config({"comparison": {"problems": "ring"}})
    (problem,) = runs.open_problems(config, None)
    labels = torch.tensor([1, 5] * 20)
    _, samples = runs.animation_frames(problem, samplers.heun(30), config, 40, 2, None, labels)
    apart = torch.cdist(samples.x.double(), problem.mixture.components.means)
    assert torch.equal(apart.argmin(1), labels)


@pytest.mark.slow
def test_a_problem_of_the_users_in_one_dimension(tmp_path, capsys):
    """Densities are drawn; without real examples the forward process has nothing to start from."""
    (tmp_path / "mine.py").write_text(
        "from sde_toolkit import VPSDE, ExactModel, GaussianMixture\n"
        "from sde_toolkit.lab import Problem\n"
        "law = GaussianMixture([0.3, 0.7], [[-1.0], [0.8]], [0.02, 0.05])\n"
        "def line():\n    return ExactModel(law, VPSDE()), law.sample(200, seed=1)\n"
        "def bare():\n    return Problem('bare', ExactModel(law, VPSDE()))\n"
    )
    words = ["animate", "--sampler=ddim", "--num_steps=4", "--num_samples=50", f"--output={tmp_path}"]
    assert cli.main([*words, f"--problem={tmp_path}/mine.py:line"]) == 0
    assert (tmp_path / "animations" / "mine.py_line-ddim-4-seed0.gif").exists()
    assert cli.main([*words, f"--problem={tmp_path}/mine.py:bare"]) == 2
    assert "problem 'bare' must have real examples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--problem=gaussian", "--label=1"], "classes"),
        (["--problem=ring", "--label=8"], "label must be a component, 0 .. 7, got 8"),
        (["--problem=rings"], "problem 'rings' is unknown"),
        (["--problem=ring", "--workdir=."], "give --workdir or --problem, not both"),
        (["--num_samples=0"], "num_samples must be at least 1, got 0"),
        (["--sampler=dopri5"], "a callback needs a fixed grid"),
        (["--frames=1"], "frames must be at least 2, got 1"),
        (["--format=webm"], "must be one or more of gif, mp4"),
        (["--label=3"], "classes"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, said, tmp_path, capsys):
    try:
        model = [] if any(word.startswith("--problem") for word in words) else ["--config=digits"]
        code = cli.main(["animate", *model, f"--output={tmp_path}", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(has_ffmpeg(), reason="ffmpeg is installed")
def test_mp4_without_ffmpeg_is_refused_before_the_work(tmp_path, capsys):
    assert cli.main(["animate", "--config=digits", "--format=mp4", f"--output={tmp_path}"]) == 2
    assert "needs ffmpeg, which is not installed" in capsys.readouterr().err
