"""Steps are done once: what an earlier start left is kept if it is whole and made of the same, and made anew if not."""

import json
from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_serving.bundle.manifest import write_manifest
from vigil_serving.export.step_cache import Steps, working


class Said(list[tuple[str, bool]]):
    """Steps as they were told, each with whether it was kept."""

    def __call__(self, name: str, seconds: float | None) -> None:
        self.append((name, seconds is None))


def _both(folder: Path, base: dict[str, int], of: dict[str, int] | None = None) -> Said:
    """Two steps, the second made of the first."""
    said = Said()
    steps = Steps(folder, base, said)
    first = steps.run("the first, of two", lambda to: (to / "a.txt").write_text("a") and None, of=of)
    steps.run(
        "second", lambda to: (to / "b.txt").write_text((first / "a.txt").read_text() * 2) and None, after=["the first, of two"]
    )
    return said


@pytest.fixture
def done(tmp_path: Path) -> Path:
    assert _both(tmp_path, {"weights": 1}) == [("the first, of two", False), ("second", False)]
    return tmp_path


def test_the_same_is_kept(done: Path) -> None:
    assert _both(done, {"weights": 1}) == [("the first, of two", True), ("second", True)]


@pytest.mark.parametrize(("base", "of"), [({"weights": 2}, None), ({"weights": 1}, {"opset": 20})])
def test_made_of_something_else_is_made_anew_and_so_is_what_follows(done: Path, base, of) -> None:
    assert _both(done, base, of) == [("the first, of two", False), ("second", False)]


@pytest.mark.parametrize("harm", ["changed", "removed", "added", "record"])
def test_a_harmed_artefact_is_made_anew(done: Path, harm: str) -> None:
    step = done / "steps" / "the-first-of-two"
    if harm == "changed":
        (step / "a.txt").write_text("b")
    elif harm == "removed":
        (step / "a.txt").unlink()
    elif harm == "added":
        (step / "c.txt").write_text("")
    else:
        (step / "step.json").write_text("{")
    assert _both(done, {"weights": 1}) == [("the first, of two", False), ("second", True)]
    assert json.loads((step / "step.json").read_text())["files"].keys() == {"a.txt"}


def test_a_step_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(to: Path) -> None:
        (to / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Steps(tmp_path, {}).run("first", fails)
    said = Said()
    made = Steps(tmp_path, {}, said).run("first", lambda to: (to / "whole").write_text("") and None)
    assert said == [("first", False)]
    assert sorted(path.name for path in made.iterdir()) == ["step.json", "whole"]


def test_files_are_placed_without_copies(done: Path) -> None:
    steps = Steps(done, {})
    steps.place(done / "steps" / "second", done / "to")
    assert [path.name for path in (done / "to").iterdir()] == ["b.txt"]
    assert (done / "to" / "b.txt").samefile(done / "steps" / "second" / "b.txt")


def test_a_work_folder_is_one_export_s_alone_and_goes_at_success(tmp_path: Path) -> None:
    with working(tmp_path / "b", restart=False) as work:
        (work / "steps").mkdir()
        with pytest.raises(UserError, match="another export to it is running"), working(tmp_path / "b", restart=True):
            pass
        assert (work / "steps").is_dir()
    assert not list(tmp_path.iterdir())


def _fails(to: Path) -> None:
    with working(to, restart=False) as work:
        (work / "steps" / "x").mkdir(parents=True, exist_ok=True)
        raise KeyError


def test_after_a_failure_it_stays_until_restart(tmp_path: Path) -> None:
    for restart in (False, True):
        with pytest.raises(KeyError):
            _fails(tmp_path / "b")
        with working(tmp_path / "b", restart=restart) as work:
            assert (work / "steps" / "x").is_dir() != restart


def test_a_kill_while_a_bundle_takes_another_s_place_is_mended(tmp_path: Path) -> None:
    former = tmp_path / ".b.123.former"
    former.mkdir()
    (former / "bundle.json").write_text("{}")
    write_manifest(former)
    (tmp_path / ".b.123.partial").mkdir()
    with working(tmp_path / "b", restart=False):
        assert (tmp_path / "b" / "bundle.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
