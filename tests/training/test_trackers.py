"""Trackers: TensorBoard's files, functions of the user's, failures that do not end the training."""

import sys

import pytest

from sde_toolkit.training.watching.trackers import open_trackers

MINE = """
TOLD = []

def tracker(workdir, config):
    TOLD.append((workdir.name, config["seed"]))
    return lambda step, values: TOLD.append((step, values))

class Closing:
    def __call__(self, step, values):
        TOLD.append(step)

    def close(self):
        TOLD.append("closed")

def closing(workdir, config):
    return Closing()

def failing(workdir, config):
    def tell(step, values):
        raise OSError("no network")
    return tell

def none(workdir, config):
    pass
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def told(path):
    (module,) = (m for m in sys.modules.values() if getattr(m, "__file__", None) == str(path))
    return module.TOLD


def test_functions_of_the_user_are_told(mine, tmp_path):
    names = [f"{mine}:tracker", f"{mine}:closing"]
    with open_trackers(names, tmp_path, {"seed": 3}, 0) as tracker:
        tracker(5, {"loss": 1.5})
    assert told(mine) == [(tmp_path.name, 3), (5, {"loss": 1.5}), 5, "closed"]


def test_a_failing_tracker_warns_once_and_the_others_go_on(mine, tmp_path):
    names = [f"{mine}:failing", f"{mine}:closing"]
    with open_trackers(names, tmp_path, {}, 0) as tracker:
        with pytest.warns(RuntimeWarning, match="failing failed and is told nothing more.*no network"):
            tracker(1, {"loss": 1.0})
        tracker(2, {"loss": 1.0})
    assert told(mine) == [1, 2, "closed"]


def test_wrong_trackers_get_sentences(mine, tmp_path):
    for name, error, words in (
        ("wandb", ValueError, "must be tensorboard or the path of a function"),
        (f"{mine}:nothing", ValueError, "has no function 'nothing'"),
        (f"{mine}:TOLD", TypeError, "must name a function, got list"),
        (f"{mine}:none", TypeError, "must return a function of .step, values., got NoneType"),
    ):
        with pytest.raises(error, match=words), open_trackers([name], tmp_path, {}, 0):
            pass


def test_tensorboard_has_the_numbers_and_loses_those_that_are_made_again(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for begin, value in ((0, 1.0), (2, 5.0)):
        with open_trackers(["tensorboard"], tmp_path, {}, begin) as tracker:
            for step in range(begin + 1, begin + 4):
                tracker(step, {"loss": value, "held_out/loss": 2 * value})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["held_out/loss", "loss"]
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(1, 1.0), (2, 1.0), (3, 5.0), (4, 5.0), (5, 5.0)]


def test_a_missing_tensorboard_is_told_in_a_sentence(fresh, tmp_path):
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from pathlib import Path\n"
        "from sde_toolkit.training import open_trackers\n"
        "try:\n"
        "    open_trackers(['tensorboard'], Path('.'), {}, 0).__enter__()\n"
        "except ImportError as error:\n"
        "    print(error)\n"
    )
    _, shown, told = fresh(tmp_path, code)
    assert "pip install 'sde-toolkit[logging]'" in shown, told
