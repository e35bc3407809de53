"""Files and folders are complete or absent, whatever stops the writer."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vigil_data import filesystem
from vigil_data.errors import Failure, UserError

KILLED = """
import os, signal, sys
from pathlib import Path
from vigil_data import filesystem
real = os.rename
def rename(source, to, **_):
    if str(to).endswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, to)
Path.rename = lambda self, to: rename(str(self), str(to))
with filesystem.replaced_folder(Path(sys.argv[1]), replaces=lambda _: True) as partial:
    (partial / "file").write_text("new")
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_file_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    for content in ("old", b"new"):
        filesystem.write_file(tmp_path / "a.json", content)
    assert (tmp_path / "a.json").read_text() == "new"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EACCES])
def test_write_file_that_fails_keeps_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    filesystem.write_file(tmp_path / "a", "old")

    def fail(*_: object) -> int:
        raise OSError(error, "x")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Failure, match=rf"a: cannot be written: {os.strerror(error)}"):
        filesystem.write_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_write_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        filesystem.write_json(tmp_path / "a", float("nan"))
    assert not (tmp_path / "a").exists()


def test_replaced_folder_refuses_what_it_may_not_replace(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    with pytest.raises(UserError, match="already exists"), filesystem.replaced_folder(tmp_path / "folder"):
        pass
    assert (tmp_path / "folder" / "file").read_text() == "old"


def test_replaced_folder_keeps_the_older_folder_if_the_block_fails(tmp_path: Path) -> None:
    with filesystem.replaced_folder(tmp_path / "folder") as partial:
        (partial / "file").write_text("old")
    with pytest.raises(ZeroDivisionError), filesystem.replaced_folder(tmp_path / "folder", replaces=lambda _: True):
        raise ZeroDivisionError
    assert (tmp_path / "folder" / "file").read_text() == "old"
    assert names(tmp_path) == ["folder"]


@pytest.mark.parametrize("at", [".former", "folder"])
def test_recover_folder_after_a_kill_between_the_renames(tmp_path: Path, at: str) -> None:
    with filesystem.replaced_folder(tmp_path / "folder") as partial:
        (partial / "file").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "folder"), at], check=False)
    assert killed.returncode == -signal.SIGKILL
    filesystem.recover_folder(tmp_path / "folder")
    assert (tmp_path / "folder" / "file").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_recover_file_removes_only_its_own_temporary_files(tmp_path: Path) -> None:
    for name in ("a.parquet", ".a.0123abcd.partial.parquet", ".a.b.0123abcd.partial.parquet", ".a.0123abcd.partial.json"):
        (tmp_path / name).write_text("x")
    filesystem.recover_file(tmp_path / "a.parquet")
    assert names(tmp_path) == [".a.0123abcd.partial.json", ".a.b.0123abcd.partial.parquet", "a.parquet"]


HOLDER = """
import sys, time
from pathlib import Path
from vigil_data import filesystem
with filesystem.locked(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_locked_excludes_another_process_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"process {holder.pid} on .* is busy"),
            filesystem.locked(tmp_path / "lock", "{owner} is busy"),
        ):
            pass
        holder.kill()
    with filesystem.locked(tmp_path / "lock", "busy"):
        pass


def test_sha256_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert filesystem.sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(UserError, match="cannot be read: No such file"):
        filesystem.sha256_file(tmp_path / "b")


def test_make_folder_makes_those_above_and_keeps_an_existing_one(tmp_path: Path) -> None:
    filesystem.make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "file").write_text("kept", encoding="utf-8")
    filesystem.make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b" / "file").read_text(encoding="utf-8") == "kept"
    with pytest.raises(UserError, match=r"file/c cannot be created: Not a directory"):
        filesystem.make_folder(tmp_path / "a" / "b" / "file" / "c")
