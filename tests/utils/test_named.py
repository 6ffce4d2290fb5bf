"""Objects of the user's by name: found in modules and files, and a sentence for all that is wrong."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.utils import named_object


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "of_mine.py").write_text("value = 3\n\ndef double(x):\n    return 2 * x\n")
    (tmp_path / "failing.py").write_text("raise KeyError('oops')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("of_mine", None)


def test_modules_and_files(here):
    assert named_object("of_mine:double", "metric")(2) == 4
    assert named_object("of_mine.value", "metric") == 3
    path = here / "of_mine.py"
    assert named_object(f"{path}:value", "metric") == 3
    assert named_object(f"{path}:double", "metric") is named_object(f"{path}:double", "metric")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("of_mine:dubble", "metric 'of_mine:dubble': module 'of_mine' has no function 'dubble'"),
        ("{here}/of_mine.py:dubble", "has no function 'dubble'; did you mean 'double'?"),
        ("{here}/none.py:double", "there is no file"),
        ("{here}/failing.py:f", "failed: KeyError: 'oops'"),
        ("failing:f", "module 'failing' cannot be imported: KeyError: 'oops'"),
        ("nowhere:f", "there is no module 'nowhere'; put the directory"),
        ("word", "is no path of a function"),
        ("", "is no path of a function"),
        ("a..b", "is no path of a function"),
        ("of_mine:a b", "is no path of a function"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(here, path, message):
    with pytest.raises(ValueError) as caught:
        named_object(path.format(here=here), "metric")
    assert message in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=20))
def test_any_text_is_an_object_or_a_sentence(text):
    with pytest.raises(ValueError, match="metric"):
        named_object(f"no_such_package_{text}", "metric")
