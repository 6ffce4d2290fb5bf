import errno
import os
import resource
import subprocess
import sys

import pytest

from sde_toolkit.utils.files import WorkdirLock, atomic_write, atomic_write_text, remove_leftovers


def test_a_file_is_written_and_replaced_whole(tmp_path):
    path = tmp_path / "a.bin"
    atomic_write(path, b"one")
    atomic_write(str(path), b"two")
    assert path.read_bytes() == b"two"
    atomic_write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_leaves_the_former_file(tmp_path):
    path = tmp_path / "a.bin"
    atomic_write(path, b"good")
    # The temporary file leads to a device that is always full: a true ENOSPC without a disk of our own.
    (tmp_path / f".a.bin.{os.getpid()}.tmp").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"could not write .*a\.bin \(6 bytes\): No space left on device"
    ) as info:
        atomic_write(path, b"better")
    assert info.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_write_that_fails_half_way_leaves_the_former_file(tmp_path):
    path = tmp_path / "a.bin"
    atomic_write(path, b"good")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            atomic_write(path, bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(OSError, match=r"could not write .*missing/a\.bin .*No such file or directory"):
        atomic_write(tmp_path / "missing" / "a.bin", b"x")


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".a.bin.123.tmp").write_bytes(b"half")
    (tmp_path / "a.bin").write_bytes(b"whole")
    (tmp_path / "notes.tmp").write_bytes(b"mine")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a.bin", "notes.tmp"]


def test_a_lock_is_exclusive_and_given_back(tmp_path):
    lock = WorkdirLock(tmp_path / "run")
    assert not lock.held
    with lock as held:
        assert held is lock
        assert lock.held
        with (
            pytest.raises(
                ValueError, match=rf"workdir must not be in use, got .*run.* \(process {os.getpid()}\)"
            ),
            WorkdirLock(tmp_path / "run"),
        ):
            pass
        with WorkdirLock(tmp_path / "other"):
            pass
    assert not lock.held
    with WorkdirLock(tmp_path / "run"), pytest.raises(ValueError, match="workdir must not be in use"):
        lock.__enter__()


HOLDER = """
import sys, time
from sde_toolkit.utils import WorkdirLock
with WorkdirLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_lock_names_the_other_process_and_ends_with_it(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=rf"process {other.pid}\)"), WorkdirLock(tmp_path):
            pass
        other.kill()
        other.wait()
    with WorkdirLock(tmp_path):
        pass


def test_the_file_that_names_the_holder_goes_with_the_lock(tmp_path):
    with WorkdirLock(tmp_path):
        assert (tmp_path / ".holder").read_text() == str(os.getpid())
    assert not (tmp_path / ".holder").exists()
    (tmp_path / ".holder").mkdir()  # cannot be written: the lock is given back
    with pytest.raises(OSError), WorkdirLock(tmp_path):
        pass
    (tmp_path / ".holder").rmdir()
    with WorkdirLock(tmp_path):
        pass


WITHOUT_POSIX = """
import os, sys
sys.modules["fcntl"] = None  # as on Windows: no such module, and no directory can be opened
opened = os.open
def open_files_only(path, *rest, **more):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return opened(path, *rest, **more)
os.open = open_files_only
from sde_toolkit.utils import WorkdirLock, atomic_write
with WorkdirLock(sys.argv[1]) as lock:
    atomic_write(lock.path / "a", b"whole")
"""


def test_files_and_locks_need_no_posix(tmp_path):
    code = "import warnings; warnings.simplefilter('ignore')" + WITHOUT_POSIX
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert (tmp_path / "a").read_bytes() == b"whole"
