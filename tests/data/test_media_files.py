"""Media are read from one folder only, also while somebody exchanges files for links, and never from pipes or devices."""

import os
from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_data.media_files import MediaFolder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "a").write_bytes(b"inside")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "a").write_bytes(b"outside")
    return tmp_path / "in"


def test_media_folder_reads_files_of_any_depth(folder: Path) -> None:
    (folder / "b").write_bytes(b"top")
    media = MediaFolder(folder)
    for name, content in {
        "deep/a": b"inside",
        "b": b"top",
        "./deep/../b": b"top",
        "deep//a": b"inside",
        f"{folder}/deep/a": b"inside",
    }.items():
        assert (media.problem(name), media.read(name)) == (None, content)
    assert MediaFolder(folder, allow_outside=True).read("../secret/a") == b"outside"
    assert MediaFolder("/").read(f"{folder}/b") == b"top"
    for name in ("../secret/a", f"{folder.parent}/secret/a", "../in2/a", "..", "/"):
        with pytest.raises(UserError, match="outside"):
            media.read(name)


def test_media_folder_refuses_a_link_that_appears_after_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check sees a file within the folder; then a part of its path becomes a link to the outside."""
    locate = MediaFolder._locate

    for victim, outside in ((folder / "deep" / "a", folder.parent / "secret" / "a"), (folder / "deep", folder.parent / "secret")):

        def exchanged(self: MediaFolder, name: str, victim: Path = victim, outside: Path = outside) -> tuple[str, str | None]:
            found = locate(self, name)
            victim.rename(folder / "moved")
            victim.symlink_to(outside)
            return found

        monkeypatch.setattr(MediaFolder, "_locate", exchanged)
        with pytest.raises(UserError, match="deep/a cannot be read"):
            MediaFolder(folder).read("deep/a")
        victim.unlink()
        (folder / "moved").rename(victim)


def test_media_folder_does_not_wait_for_a_pipe_that_appears_after_the_check(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locate = MediaFolder._locate

    def exchanged(self: MediaFolder, name: str) -> tuple[str, str | None]:
        found = locate(self, name)
        (folder / "deep" / "a").unlink()
        os.mkfifo(folder / "deep" / "a")
        return found

    monkeypatch.setattr(MediaFolder, "_locate", exchanged)
    with pytest.raises(UserError, match="deep/a is a pipe, not a file"):
        MediaFolder(folder).read("deep/a")


def test_media_folder_limits_the_size_of_a_file(folder: Path) -> None:
    with (folder / "huge").open("wb") as file:
        file.truncate(10**12)
    media = MediaFolder(folder, max_bytes=6)
    assert media.read("deep/a") == b"inside"
    with pytest.raises(UserError, match="huge has 1,000,000 MB, more than 6e-06 MB; shorten it"):
        media.read("huge")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_media_folder_closes_its_descriptors(folder: Path) -> None:
    before = open_files()
    media = MediaFolder(folder)
    for n in range(50):
        (folder / f"d{n}").mkdir()
        (folder / f"d{n}" / "x").write_bytes(b"x")
        media.read(f"d{n}/x")
        with pytest.raises(UserError):
            media.read(f"d{n}/none")
    assert open_files() <= before + 1
    del media
    assert open_files() == before
