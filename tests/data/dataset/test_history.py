"""Each version has one change: who, when, why, by which command; and the history outlives deleted versions."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import lance
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.history import Change
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.lineage.invocation import command_line


def post(id_: str, **targets: float) -> Item:
    return Item(id_, (f"text {id_}",), targets=targets)


words = st.text(max_size=20, alphabet=st.characters(exclude_categories=["Cs"]))
changes = st.builds(
    Change,
    operation=words,
    reason=words,
    counts=st.dictionaries(words, st.integers(-(2**53), 2**53), max_size=3),
    command=words,
    who=words,
    when=st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
)


@given(changes)
def test_change_survives_its_properties(change: Change) -> None:
    assert Change.from_properties(change.to_properties()) == change


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"operation": 1}', json.dumps({"operation": "a", "counts": []})])
def test_change_of_another_program_is_none(text: str) -> None:
    assert Change.from_properties({"vigil.change": text}) is None


def test_change_names_user_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIGIL_USER", raising=False)
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    monkeypatch.setattr("socket.gethostname", lambda: "host")
    monkeypatch.setattr("sys.argv", ["/opt/bin/vigil", "data", "import", "my posts.csv"])
    change = Change("import")
    assert (change.who, change.command) == ("ann@host", "vigil data import 'my posts.csv'")
    monkeypatch.setenv("VIGIL_USER", "team-a")
    assert Change("import").who == "team-a"


def test_change_of_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIGIL_USER", raising=False)

    def no_name() -> str:
        raise KeyError("getpwuid(): uid not found: 4711")

    monkeypatch.setattr("getpass.getuser", no_name)
    assert Change("import").who.partition("@")[0].isdigit()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--token", "hunter2"],
        ["--api-key=hunter2"],
        ["--set", "store.secret_access_key=hunter2"],
        ["AWS_SECRET_ACCESS_KEY=hunter2"],
        ["https://ann:hunter2@host/posts.csv"],
        ["s3://bucket/posts.csv?X-Amz-Signature=hunter2&x=1"],
    ],
)
def test_command_line_has_no_secrets(arguments: list[str]) -> None:
    command = command_line(["/usr/bin/vigil", "data", *arguments, "--to", "d"])
    assert "hunter2" not in command
    assert "***" in command
    assert command.startswith("vigil data ")
    assert command.endswith(" --to d")


def test_read_has_one_change_for_each_version(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write(folder, [post("a"), Item("b", image=(b"broken",))])
    write(folder, [post("c", spam=1.0)], append=True, change=Change("import", reason="reviews of May", who="ann@host"))
    first, second = history.read(folder)
    assert (first.version, second.version) == (1, 2), "also with a new column"
    assert first.change is not None
    assert first.change.counts == {"added": 1, "quarantined": 1}
    assert second.change is not None
    assert (second.change.reason, second.change.who, second.change.counts) == ("reviews of May", "ann@host", {"added": 1})
    assert [entry.rows for entry in (first, second)] == [1, 2]
    assert abs(second.when - second.change.when) < timedelta(minutes=1)


def test_read_includes_versions_of_other_programs(tmp_path: Path) -> None:
    write(tmp_path, [post("a"), post("b")])
    lance.dataset(str(tmp_path / "items.lance")).delete("id = 'a'")
    assert [entry.change is None for entry in history.read(tmp_path)] == [False, True]


def test_keep_preserves_changes_of_deleted_versions(tmp_path: Path) -> None:
    write(tmp_path, [post("a")], change=Change("import", reason="first"))
    write(tmp_path, [post("b")], append=True)
    before = history.read(tmp_path)
    history.keep(tmp_path)
    lance.dataset(str(tmp_path / "items.lance")).cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)
    write(tmp_path, [post("c")], append=True)
    after = history.read(tmp_path)
    assert [entry.version for entry in after] == [1, 2, 3]
    assert [entry.readable for entry in after] == [False, True, True]
    assert [entry.change for entry in after[:2]] == [entry.change for entry in before]
    history.keep(tmp_path)
    assert history.read(tmp_path) == after, "keeping again changes nothing"
    with pytest.raises(UserError, match="no version 1"):
        Dataset(tmp_path, 1)


def test_read_of_a_damaged_file_names_the_line(tmp_path: Path) -> None:
    write(tmp_path, [post("a")])
    history.keep(tmp_path)
    (tmp_path / "history.jsonl").write_text((tmp_path / "history.jsonl").read_text() + '{"version": 2}\n')
    with pytest.raises(UserError, match=r"history\.jsonl:2: not an entry"):
        history.read(tmp_path)


def test_read_of_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a dataset"):
        history.read(tmp_path)
