"""``sde-toolkit animate``: the files, and the mistakes."""

import pytest

from sde_toolkit import cli
from sde_toolkit.lab import has_ffmpeg


def test_animate_writes_a_film_and_a_strip(tmp_path, capsys):
    words = ["animate", "--config=digits", "--sampler=ddim", "--num_steps=4", "--num_samples=9", "--frames=3"]
    assert cli.main([*words, f"--output={tmp_path}"]) == 0
    names = {path.name for path in (tmp_path / "animations").iterdir()}
    assert names == {"ddim-4-seed0.gif", "ddim-4-seed0.png"}
    assert (tmp_path / "animations" / "ddim-4-seed0.gif").read_bytes()[:4] == b"GIF8"
    assert "9 samples by ddim-4: 5 network evaluations each" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sampler=dopri5"], "a callback needs a fixed grid"),
        (["--frames=1"], "frames must be at least 2, got 1"),
        (["--format=webm"], "must be one or more of gif, mp4"),
        (["--label=3"], "classes"),
    ],
)
def test_mistakes_are_told_in_a_sentence(words, said, tmp_path, capsys):
    try:
        code = cli.main(["animate", "--config=digits", f"--output={tmp_path}", *words])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert said in capsys.readouterr().err


@pytest.mark.skipif(has_ffmpeg(), reason="ffmpeg is installed")
def test_mp4_without_ffmpeg_is_refused_before_the_work(tmp_path, capsys):
    assert cli.main(["animate", "--config=digits", "--format=mp4", f"--output={tmp_path}"]) == 2
    assert "needs ffmpeg, which is not installed" in capsys.readouterr().err
