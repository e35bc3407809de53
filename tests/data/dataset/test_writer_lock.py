"""One writer at a time, and none while an erasure is unfinished; readers are not affected."""

from pathlib import Path

import pytest

from vigil_data.dataset.dataset import Dataset, exists, write
from vigil_data.dataset.writer_lock import JOURNAL, writing
from vigil_data.errors import UserError
from vigil_data.filesystem import locked
from vigil_data.items import Item


def test_write_is_refused_while_another_process_writes(tmp_path: Path) -> None:
    write(tmp_path / "d", [Item("a", ("x",))])
    with (
        locked(tmp_path / "d" / ".writing", "busy"),
        pytest.raises(UserError, match=r"d is being written by process \d+ on .*; wait for it"),
    ):
        write(tmp_path / "d", [Item("b", ("y",))], append=True)
    with writing(tmp_path / "d"):
        write(tmp_path / "d", [Item("b", ("y",))], append=True)  # a nested block shares the lock
    assert len(Dataset(tmp_path / "d")) == 2


def test_write_is_refused_until_an_interrupted_erasure_has_finished(tmp_path: Path) -> None:
    write(tmp_path / "d", [Item("a", ("x",))])
    (tmp_path / "d" / JOURNAL).write_text("{}")
    with pytest.raises(UserError, match=r"an erasure was interrupted.*finish it with `vigil data erase .*d --resume`"):
        write(tmp_path / "d", [Item("b", ("y",))], append=True)
    assert len(Dataset(tmp_path / "d")) == 1
    with writing(tmp_path / "d", resumes=True):
        pass


def test_writing_leaves_no_folder_after_a_refused_import(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outside"):
        write(tmp_path / "d", [Item("a", ("x",), targets={"spam": 2.0})])
    assert not exists(tmp_path / "d")
    assert not (tmp_path / "d").exists()
    write(tmp_path / "d", [Item("a", ("x",))])
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["items.lance"]


def test_writing_removes_what_a_killed_import_left(tmp_path: Path) -> None:
    write(tmp_path, [Item("a", ("x",))])
    (tmp_path / ".incoming-xyz").mkdir()
    (tmp_path / ".incoming-xyz" / "0.arrow").write_bytes(b"rows")
    write(tmp_path, [Item("b", ("y",))], append=True)
    assert [path.name for path in tmp_path.iterdir()] == ["items.lance"]
