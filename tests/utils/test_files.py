import errno
import os
import resource
import secrets
import signal
import subprocess
import sys

import pytest

from sde_toolkit.utils import files
from sde_toolkit.utils.files import WorkdirLock, atomic_write, atomic_write_text, remove_leftovers


def test_a_file_is_written_and_replaced_whole(tmp_path):
    path = tmp_path / "a.bin"
    atomic_write(path, b"one")
    atomic_write(str(path), b"two")
    assert path.read_bytes() == b"two"
    atomic_write_text(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_full_disk_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    atomic_write(path, b"good")
    # The device that is always full stands in for new files: a true ENOSPC without a disk of our own.
    opened = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *rest: opened("/dev/full", os.O_WRONLY) if rest[1:] else opened(path, *rest)
    )
    with pytest.raises(
        OSError, match=r"could not write .*a\.bin \(6 bytes\): No space left on device"
    ) as info:
        atomic_write(path, b"better")
    assert info.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"good"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_temporary_name_that_is_taken_is_never_written_to(tmp_path, monkeypatch):
    """Not even through a link that somebody has laid."""
    words = iter(["0" * 16, "1" * 16])
    monkeypatch.setattr(secrets, "token_hex", lambda length: next(words))
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    trap = tmp_path / f".{files._machine()}-{os.getpid()}-{'0' * 16}.tmp"
    files._mine.add(trap)
    trap.symlink_to(victim)
    atomic_write(tmp_path / "a.bin", b"good")
    assert (tmp_path / "a.bin").read_bytes() == b"good"
    assert victim.read_bytes() == b"precious"
    assert trap.is_symlink()


def test_names_of_temporaries_do_not_repeat(tmp_path):
    names = set()
    for _ in range(20):
        temporary, descriptor = files._new_temporary(tmp_path)
        os.close(descriptor)
        names.add(temporary.name)
    assert len(names) == 20


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
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    here, token = files._machine(), "0123456789abcdef"
    left = [
        f".{here}-{dead.pid}-{token}.tmp",
        f".{here}-{os.getpid()}-{token}.tmp",
        f".ffffffff-1-{token}.tmp",
    ]
    kept = [f".{here}-{os.getppid()}-{token}.tmp", f".fffffffe-1-{token}.tmp", "a.bin", "notes.tmp"]
    for name in (*left, *kept):
        (tmp_path / name).write_bytes(b"half")
    os.utime(tmp_path / left[2], (0, 0))  # of another machine, and old
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_a_killed_write_is_cleaned_up_by_the_next_one_in_any_directory(fresh, tmp_path):
    code = "import os, signal, sys; from sde_toolkit.utils import files\n"
    code += "os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL); files.atomic_write(sys.argv[1], b'x')"
    process = fresh.begin(code, str(tmp_path / "a.bin"), output=os.devnull, log=os.devnull)
    assert fresh.wait(process) == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    atomic_write(tmp_path / "b.bin", b"whole")
    assert os.listdir(tmp_path) == ["b.bin"]


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


@pytest.mark.slow
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


def test_files_and_locks_need_no_posix(fresh, tmp_path):
    code = "import warnings; warnings.simplefilter('ignore')" + WITHOUT_POSIX
    assert fresh(tmp_path, code, str(tmp_path))[0] == 0
    assert (tmp_path / "a").read_bytes() == b"whole"
