"""Merging changes the targets that reviewers decided, lists each one, overwrites none silently, and keeps the decisions."""

import json
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vigil_data.dataset import history
from vigil_data.dataset.dataset import Dataset, write
from vigil_data.dataset.provenance import provenance_of
from vigil_data.errors import UserError
from vigil_data.items import Item
from vigil_data.reviews import merge
from vigil_data.reviews.decisions import COLUMNS, stored_decisions
from vigil_data.reviews.merge import merge_labels

TIME = "2026-05-01T10:00:00Z"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    items = [
        Item(f"p{n}", (f"text {n}",), targets={"spam": n % 2} if n < 3 else {}, columns={"source": "forum"}) for n in range(5)
    ]
    write(tmp_path / "d", items)
    return tmp_path / "d"


def decision(id_: str, value: Any, reviewer: str = "ann", label: str = "spam", **of: Any) -> dict[str, Any]:
    return {"id": id_, "label": label, "value": value, "reviewer": reviewer, "time": TIME, "policy_version": "v3", **of}


def reviews(folder: Path, *rows: dict[str, Any], name: str = "reviews.jsonl") -> Path:
    file = folder.parent / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def spam(folder: Path) -> dict[str, float | None]:
    table = Dataset(folder).table(["id", "target:spam"])
    return dict(zip(table["id"].to_pylist(), table["target:spam"].to_pylist(), strict=True))


def test_merge_labels_sets_unknown_targets_and_keeps_the_decisions(folder: Path) -> None:
    file = reviews(
        folder, decision("p3", 1, minutes=0.5), decision("p3", 0, "ben"), decision("p3", 1, "cleo"), decision("p4", "cannot tell")
    )
    merged = merge_labels(folder, file, reason="May reviews")
    assert (merged.stored, merged.counts, merged.undecided) == (4, {"set": 1}, [("p4", "spam")])
    assert spam(folder) == {"p0": 0.0, "p1": 1.0, "p2": 0.0, "p3": 1.0, "p4": None}
    (given,) = provenance_of(folder, "p3")
    assert (given.source, given.policy, given.at and given.at.isoformat()) == (
        "reviews: ann, ben, cleo",
        "v3",
        "2026-05-01T10:00:00+00:00",
    )
    assert provenance_of(folder, "p1")[0].source == "forum"
    change = history.read(folder)[-1].change
    assert change is not None
    assert (change.operation, change.reason, change.counts) == ("merge labels", "May reviews", {"decisions": 4, "set": 1})
    assert [(of.value, of.minutes) for of in stored_decisions(folder)] == [(1.0, 0.5), (0.0, None), (1.0, None), (None, None)]


def test_merge_labels_again_with_another_rule_updates_its_own_targets(folder: Path) -> None:
    file = reviews(folder, decision("p3", 1), decision("p3", 0, "ben"), decision("p3", 1, "cleo"))
    merge_labels(folder, file)
    soft = merge_labels(folder, rules=("majority",), soft=True)
    assert (soft.stored, soft.counts, spam(folder)["p3"]) == (0, {"updated": 1}, pytest.approx(2 / 3))
    again = merge_labels(folder, file, soft=True)
    assert (again.stored, again.repeated, again.same, again.version) == (0, 3, 1, soft.version), "nothing new is no version"


def test_merge_labels_counts_earlier_decisions(folder: Path) -> None:
    merge_labels(folder, reviews(folder, decision("p3", 1)))
    later = merge_labels(folder, reviews(folder, decision("p3", 0, "ben"), decision("p3", 0, "cleo"), name="later.jsonl"))
    assert (later.counts, spam(folder)["p3"]) == ({"updated": 1}, 0.0)


@pytest.mark.parametrize(("on_conflict", "target"), [("keep", 1.0), ("replace", 0.0)])
def test_merge_labels_lists_every_contradicted_target(folder: Path, on_conflict: Any, target: float) -> None:
    file = reviews(folder, decision("p1", 0), decision("p2", 0))
    with pytest.raises(
        UserError, match=r"p1: spam is 1 \(from forum\), but 0 by ann\nnothing was written; use --on-conflict keep"
    ):
        merge_labels(folder, file)
    assert (Dataset(folder).version, stored_decisions(folder)) == (1, [])
    merged = merge_labels(folder, file, on_conflict=on_conflict)
    (cell,) = merged.cells
    assert (cell.id, cell.before, cell.after, cell.before_source, cell.action) == (
        "p1",
        1.0,
        0.0,
        "forum",
        "kept" if on_conflict == "keep" else "replaced",
    )
    assert (merged.same, spam(folder)["p1"]) == (1, target)
    assert lance.dataset(str(folder / "reviews.lance")).to_table()["before"].to_pylist() == [1.0, 0.0]


def test_merge_labels_leaves_other_labels_of_the_items(folder: Path) -> None:
    file = reviews(folder, decision("p1", 1, label="scam"), decision("p3", 1), decision("p3", 0.25, label="scam"))
    merged = merge_labels(folder, file, new_labels=["scam"])
    assert merged.counts == {"set": 3}
    items = {item.id: item.targets for item in Dataset(folder).take(range(5))}
    assert (items["p1"], items["p3"], items["p2"]) == ({"spam": 1.0, "scam": 1.0}, {"spam": 1.0, "scam": 0.0}, {"spam": 0.0})


def test_merge_labels_names_every_mistake_of_the_file(folder: Path) -> None:
    file = reviews(
        folder,
        decision("p9", 1),
        decision("p1", 1, label="scam"),
        decision("p1", 1.5),
        decision("p1", "maybe"),
        decision("p1", None),
        decision("p1", 1, time="yesterday"),
        decision("p1", 1, time="2999-01-01"),
        decision("p1", 1, time="1066-10-14"),
        decision("p1", 1, confidence=7),
        decision("p1", 1, adjudicated="perhaps"),
        decision("p1", 1, minutes=90_000),
        decision("p1", 1, note="x"),
        decision("p2", 1, "ben"),
        decision("p2", 0, "ben"),
    )
    rest = "both under policy version v3; keep one answer, or give the new one another policy version"
    with pytest.raises(UserError) as raised:
        merge_labels(folder, file)
    assert [line.removeprefix(f"{file}:") for line in raised.value.lines] == [
        "1: the dataset has no item p9",
        "2: the dataset has no label scam; it has spam",
        '3: value is 1.5, not a number from 0 to 1, and not "cannot tell"',
        "4: value is 'maybe', not a number from 0 to 1, and not \"cannot tell\"",
        "5: value is missing",
        "6: time is 'yesterday', not a time such as 2026-11-24T18:30:00Z",
        "7: time is '2999-01-01', in the future",
        "8: time is '1066-10-14', before 1990",
        "9: confidence is 7, not a number from 0 to 1",
        "10: adjudicated is 'perhaps', not true or false",
        "11: minutes is 90000, not a number of minutes from 0 to 1440",
        f"12: unknown column note; the columns are {', '.join(COLUMNS)}",
        f"14: reviewer ben answers 0 for spam of p2, but 1 at {file}:13, {rest}",
    ]
    assert Dataset(folder).version == 1


def test_merge_labels_names_an_answer_that_contradicts_a_kept_one(folder: Path) -> None:
    first = reviews(folder, decision("p3", 1))
    merge_labels(folder, first)
    with pytest.raises(UserError, match=rf"later\.jsonl:1: reviewer ann answers 0 for spam of p3, but 1 at {first}:1"):
        merge_labels(folder, reviews(folder, decision("p3", 0), name="later.jsonl"))
    changed = reviews(folder, decision("p3", 0, policy_version="v4"), name="later.jsonl")
    assert merge_labels(folder, changed).counts == {"updated": 1}


def test_merge_labels_reads_csv_and_parquet(folder: Path) -> None:
    rows = [decision("p3", 1.0, confidence=0.5, adjudicated=True), decision("p4", 0.0, "ben", confidence=1.0, adjudicated=False)]
    csv = folder.parent / "reviews.csv"
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    csv.write_text("\n".join(lines) + "\n")
    assert merge_labels(folder, csv).counts == {"set": 2}
    pq.write_table(pa.Table.from_pylist(rows), folder.parent / "reviews.parquet")
    assert merge_labels(folder, folder.parent / "reviews.parquet").repeated == 2
    assert [(of.confidence, of.adjudicated) for of in stored_decisions(folder)] == [(0.5, True), (1.0, False)]


def test_merge_labels_of_decisions_about_erased_items(folder: Path) -> None:
    merge_labels(folder, reviews(folder, decision("p3", 1), decision("p4", 1)))
    lance.dataset(str(folder / "items.lance")).delete("id = 'p3'")
    merged = merge_labels(folder, soft=True)
    assert (merged.absent, merged.same) == (1, 1)


def test_merge_labels_that_was_killed_can_be_repeated(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = reviews(folder, decision("p3", 1))

    def killed(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(merge, "write_columns", killed)
        with pytest.raises(KeyboardInterrupt):
            merge_labels(folder, file)
    assert (Dataset(folder).version, spam(folder)["p3"]) == (1, None)
    merged = merge_labels(folder, file)
    assert (merged.repeated, merged.counts, spam(folder)["p3"]) == (1, {"set": 1}, 1.0)
