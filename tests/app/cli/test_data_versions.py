"""The commands on versions, labels and joins print what was done and exit with 2 for what cannot be."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vigil.cli import build
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.history import Change
from vigil_data.errors import UserError
from vigil_data.items import Item


def vigil(*arguments: Any) -> str:
    done = CliRunner().invoke(build(), ["data", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "200"})
    assert done.exit_code == 0
    return done.output


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    items = [
        Item(f"p{n}", (f"text {n}",), targets={"spam": n % 2} if n < 2 else {}, columns={"split": "train"}) for n in range(4)
    ]
    change = Change("import", "spring sample", command="vigil data import posts.csv", who="ann@host")
    write(tmp_path / "posts", items, change=change)
    return tmp_path / "posts"


def decisions(tmp_path: Path, *rows: tuple[str, Any, str]) -> Path:
    file = tmp_path / "reviews.csv"
    lines = [f"{id_},spam,{value},{reviewer},2026-05-01,v3" for id_, value, reviewer in rows]
    file.write_text("\n".join(["id,label,value,reviewer,time,policy_version", *lines]) + "\n")
    return file


def test_merge_labels_then_log_diff_and_provenance(posts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIGIL_USER", "team-a")
    file = decisions(tmp_path, ("p2", 1, "ann"), ("p1", 0, "ann"), ("p1", 0, "be\x1bn"), ("p3", "cannot tell", "ann"))
    report = tmp_path / "report.jsonl"
    printed = vigil("merge-labels", posts, file, "--on-conflict", "replace", "--report", report, "--reason", "May\nreviews")
    assert f"{posts} version 2: 4 decisions stored, 0 were stored before" in printed
    assert "targets: 1 set, 1 replaced, 0 as before, 1 undecided" in printed
    assert "\x1b" not in printed
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(line["id"], line["before"], line["after"], line["action"]) for line in lines] == [
        ("p2", None, 1.0, "set"),
        ("p1", 1.0, 0.0, "replaced"),
    ]
    log = vigil("log", posts).splitlines()
    assert log[0].startswith("version 2, ")
    assert log[0].endswith(" UTC by team-a")
    assert log[1:3] == ["    merge labels: 4 decisions, 1 set, 1 replaced, 4 items in all", r"    reason: May\nreviews"]
    assert log[4].endswith("by ann@host")
    assert log[5:] == ["    import: 4 added, 4 items in all", "    reason: spring sample", "    $ vigil data import posts.csv"]
    assert [entry["version"] for entry in json.loads(vigil("log", posts, "--json"))] == [2, 1]
    shown = vigil("diff", posts, 1, "--ids")
    assert "0 rows added, 0 rows removed, 2 rows changed" in shown
    assert "columns added: provenance:spam" in shown
    assert shown.splitlines()[-2:] == ["changed p1", "changed p2"]
    found = json.loads(vigil("diff", posts, 1, 2, "--json"))
    assert (found["changed"], found["labels"]) == (2, {"spam": {"set": 1, "changed": 1, "unset": 0}})
    assert json.loads(vigil("diff", posts, 1, 2, "--json", "--ids"))["changed"] == ["p1", "p2"]
    (given,) = json.loads(vigil("provenance", posts, "p1", "--json"))
    assert (given["source"], given["at"], given["policy"]) == ("reviews: ann, be\x1bn", "2026-05-01T00:00:00+00:00", "v3")
    assert "vigil data import posts.csv" in vigil("provenance", posts, "p0"), "imported without a source"


def test_merge_labels_of_kept_decisions_with_other_rules(posts: Path, tmp_path: Path) -> None:
    vigil("merge-labels", posts, decisions(tmp_path, ("p2", 1, "ann"), ("p2", 0, "ben"), ("p2", 0, "cleo")))
    printed = vigil("merge-labels", posts, "--rule", "adjudicated", "--rule", "majority", "--soft")
    assert "targets: 1 updated" in printed
    assert "0.333333" in printed
    with pytest.raises(UserError, match="--rule newest: the rules are"):
        vigil("merge-labels", posts, "--rule", "newest")


def test_join_prints_sources_conflicts_and_leaks(posts: Path, tmp_path: Path) -> None:
    write(tmp_path / "more", [Item("p0", ("other",)), Item("m1", ("Text 1",), targets={"spam": 0.0}, columns={"split": "test"})])
    with pytest.raises(UserError, match="choose a target with --on-conflict"):
        vigil("join", posts, tmp_path / "more", "--to", tmp_path / "all")
    report = tmp_path / "conflicts.jsonl"
    printed = vigil("join", posts, tmp_path / "more", "--to", tmp_path / "all", "--on-conflict", "first", "--report", report)
    assert "all version 1: 5 items, 1 rows are part of an earlier one" in printed
    assert "warning: spam: 1 conflicting targets, resolved by first" in printed
    assert "warning: for example p1: spam is 1 in posts (p1), 0 in more (m1)" in printed
    assert "warning: 1 items were in several splits; each is in the first of test, validation, others, train" in printed
    (conflict,) = map(json.loads, report.read_text().splitlines())
    assert conflict["claims"][1] == {"dataset": "more", "id": "m1", "value": 0.0}
    assert Dataset(tmp_path / "all").table(["id"])["id"].to_pylist() == ["p0", "p1", "p2", "p3", "more:p0"]


def test_import_with_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "posts.jsonl"
    file.write_text('{"id": "p1", "text": "hello"}\n')
    vigil("import", "manifest", file, "--to", tmp_path / "d", "--reason", "spring sample")
    assert "    reason: spring sample" in vigil("log", tmp_path / "d").splitlines()
