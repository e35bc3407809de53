"""`StepCache` keeps intact steps of the same key, and runs the others again."""

import json
from pathlib import Path

import pytest

from vigil_data.errors import UserError
from vigil_serving.bundle.manifest import write_manifest
from vigil_serving.export.step_cache import Step, StepCache, link_files, open_step_cache


class Reported(list[tuple[str, bool]]):
    """Reported steps, each with whether it was kept."""

    def __call__(self, name: str, seconds: float | None) -> None:
        self.append((name, seconds is None))


def _run_two(folder: Path, base: dict[str, int], depends_on: dict[str, int] | None = None) -> Reported:
    """Run two steps; the second uses the files of the first."""
    reported = Reported()
    cache = StepCache(folder, base, report=reported)
    first = cache.run("the first, of two", lambda to: (to / "a.txt").write_text("a") and None, depends_on=depends_on)
    content = (first.folder / "a.txt").read_text()
    cache.run("second", lambda to: (to / "b.txt").write_text(content * 2) and None, after=[first])
    return reported


@pytest.fixture
def done(tmp_path: Path) -> Path:
    assert _run_two(tmp_path, {"weights": 1}) == [("the first, of two", False), ("second", False)]
    return tmp_path


def test_step_cache_keeps_steps_of_the_same_key(done: Path) -> None:
    assert _run_two(done, {"weights": 1}) == [("the first, of two", True), ("second", True)]


@pytest.mark.parametrize(("base", "depends_on"), [({"weights": 2}, None), ({"weights": 1}, {"opset": 20})])
def test_step_cache_runs_steps_of_another_key_and_their_successors_again(done: Path, base, depends_on) -> None:
    assert _run_two(done, base, depends_on) == [("the first, of two", False), ("second", False)]


@pytest.mark.parametrize("damage", ["changed", "removed", "added", "record"])
def test_step_cache_runs_a_damaged_step_again(done: Path, damage: str) -> None:
    step = done / "steps" / "the-first-of-two"
    if damage == "changed":
        (step / "a.txt").write_text("b")
    elif damage == "removed":
        (step / "a.txt").unlink()
    elif damage == "added":
        (step / "c.txt").write_text("")
    else:
        (step / "step.json").write_text("{")
    assert _run_two(done, {"weights": 1}) == [("the first, of two", False), ("second", True)]
    assert json.loads((step / "step.json").read_text())["files"].keys() == {"a.txt"}


def test_step_cache_keeps_nothing_of_a_failed_step(tmp_path: Path) -> None:
    def fails(to: Path) -> None:
        (to / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        StepCache(tmp_path, {}).run("first", fails)
    reported = Reported()
    step = StepCache(tmp_path, {}, report=reported).run("first", lambda to: (to / "complete").write_text("") and None)
    assert reported == [("first", False)]
    assert sorted(path.name for path in step.folder.iterdir()) == ["complete", "step.json"]


def test_link_files_makes_no_copies(done: Path) -> None:
    link_files(Step("second", "", done / "steps" / "second"), done / "to")
    assert [path.name for path in (done / "to").iterdir()] == ["b.txt"]
    assert (done / "to" / "b.txt").samefile(done / "steps" / "second" / "b.txt")


def test_open_step_cache_locks_its_folder_and_removes_it_on_success(tmp_path: Path) -> None:
    with open_step_cache(tmp_path / "b", {}) as cache:
        (cache.folder / "steps").mkdir()
        refused = pytest.raises(UserError, match=r"another export to it is running \(process \d+ on .*\); wait for it")
        with refused, open_step_cache(tmp_path / "b", {}, restart=True):
            pass
        assert (cache.folder / "steps").is_dir()
    assert not list(tmp_path.iterdir())


def _fails(to: Path) -> None:
    with open_step_cache(to, {}) as cache:
        (cache.folder / "steps" / "x").mkdir(parents=True, exist_ok=True)
        raise KeyError


def test_open_step_cache_keeps_its_folder_after_a_failure_until_restart(tmp_path: Path) -> None:
    for restart in (False, True):
        with pytest.raises(KeyError):
            _fails(tmp_path / "b")
        with open_step_cache(tmp_path / "b", {}, restart=restart) as cache:
            assert (cache.folder / "steps" / "x").is_dir() != restart


def test_open_step_cache_recovers_from_a_kill_during_the_replacement_of_a_bundle(tmp_path: Path) -> None:
    former = tmp_path / ".b.123.former"
    former.mkdir()
    (former / "bundle.json").write_text("{}")
    write_manifest(former)
    (tmp_path / ".b.123.partial").mkdir()
    with open_step_cache(tmp_path / "b", {}):
        assert (tmp_path / "b" / "bundle.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
