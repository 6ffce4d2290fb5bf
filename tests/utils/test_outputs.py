"""Folders that appear whole, and places that are looked at before the work."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sde_toolkit.utils.files import atomic_folder, atomic_write
from sde_toolkit.utils.outputs import check_output_directory, check_output_file


def names(folder):
    return sorted(os.listdir(folder))


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with atomic_folder(tmp_path / "a") as new:
        (new / "1").write_text("one")
        assert not (tmp_path / "a").exists()
    with atomic_folder(tmp_path / "a") as new:
        (new / "2").write_text("two")
        assert names(tmp_path / "a") == ["1"]
    assert names(tmp_path / "a") == ["2"]

    def fail():
        with atomic_folder(tmp_path / "a") as new:
            (new / "3").write_text("three")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names(tmp_path / "a") == ["2"]
    assert names(tmp_path) == ["a"]
    with pytest.raises(OSError), atomic_folder(tmp_path / "none" / "a"):
        pass


def test_a_folder_that_a_killed_process_left_goes_with_the_next_write(fresh, tmp_path):
    program = """
import os, sys
from sde_toolkit.utils.files import atomic_folder
with atomic_folder(sys.argv[1]) as new:
    (new / "1").write_text("one")
    os._exit(9)
"""
    process = fresh.begin(program, str(tmp_path / "a"), output=os.devnull, log=os.devnull)
    assert fresh.wait(process) == 9
    assert len(names(tmp_path)) == 1
    with atomic_folder(tmp_path / "a"):
        pass
    assert names(tmp_path) == ["a"]


def test_places_where_files_can_and_cannot_lie(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "folder")
    os.mkfifo(tmp_path / "pipe")
    good = ("file", "new", "new/deep/file", "folder/file", "linked/file", "with space", "\u00e4")
    bad = ("link", "loop", "folder", "pipe", "file/under", "pipe/under", "loop/under", "x" * 300,
           f"{'x' * 300}/file", "a\0b")  # fmt: skip
    for name in good:
        assert check_output_file(tmp_path / name) == tmp_path / name
    for name in (*(tmp_path / name for name in bad), "", "/dev/null", "/proc/1/new", "/"):
        with pytest.raises(ValueError, match="output must"):
            check_output_file(name)
    for name in ("folder", "new/deep", "linked"):
        assert check_output_directory(tmp_path / name) == tmp_path / name
    for name in ("file", "file/a", "pipe", "loop", "link", "x" * 300):
        with pytest.raises(ValueError, match="path must lie in a directory"):
            check_output_directory(tmp_path / name, "path")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_output_file("~/new") == tmp_path / "new"
    assert names(tmp_path) == ["file", "folder", "link", "linked", "loop", "pipe"]


@settings(deadline=None, max_examples=100)
@given(name=st.text(max_size=40))
def test_a_place_that_passes_can_be_written(tmp_path_factory, name):
    place = tmp_path_factory.mktemp("place", numbered=True) / "in" / name
    try:
        place = check_output_file(place)
    except ValueError:
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(place, b"1")
    assert place.read_bytes() == b"1"
