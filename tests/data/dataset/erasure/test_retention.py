"""A retention policy names what its rules say and nothing on legal hold; all its mistakes are reported at once."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vigil_data.dataset.dataset import write
from vigil_data.dataset.erasure.retention import plan_retention, read_policy
from vigil_data.errors import UserError
from vigil_data.items import Item

NOW = datetime(2026, 11, 29, tzinfo=UTC)


def item(id_: str, days: int | None, label: float | None = None, **columns: object) -> Item:
    created = {} if days is None else {"created_at": NOW - timedelta(days=days)}
    return Item(id_, (f"text of {id_}",), targets={"spam": label}, columns={**created, **columns})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("retention") / "dataset"
    items = [
        item("old-post", 800, 1.0, content_type="post", source="forum"),
        item("old-thread", 800, content_type="thread", source="it's"),
        item("held-post", 800, content_type="post"),
        item("new-post", 5, content_type="post", split="train"),
        item("undated", None, 0.0, content_type="post"),
    ]
    write(folder, items)
    return folder


def policy(folder: Path, text: str) -> Path:
    (folder / "policy.yaml").write_text(text)
    return folder / "policy.yaml"


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("older_than: 2y", {"old-post", "old-thread"}),
        ("older_than: 2y, content_type: [post]", {"old-post"}),
        ('source: ["it\'s"]', {"old-thread"}),
        ("labelled: false, older_than: 1w", {"old-thread"}),
        ("labelled: true", {"old-post", "undated"}),
        ("split: [train]", {"new-post"}),
        ("where: \"id = 'undated' OR id = 'new-post'\", content_type: [post]", {"undated", "new-post"}),
        ("older_than: 9y", set()),
    ],
)
def test_plan_retention_names_the_items_of_a_rule(dataset: Path, tmp_path: Path, rule: str, expected: set[str]) -> None:
    text = f"name: p\nrules:\n  - {{name: r, {rule}}}\nlegal_hold: {{ids: [held-post]}}\n"
    plan, counts = plan_retention(dataset, read_policy(policy(tmp_path, text)), NOW)
    assert {found.id for found in plan.items} == expected
    assert counts[0].items == len(expected)
    assert counts[0].undated == ("older_than" in rule)


def test_plan_retention_joins_rules_and_counts_legal_holds(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "holds.txt").write_text("old-post\n\nheld-post\n")
    text = (
        "name: p\nrules:\n  - {name: a, older_than: 2y}\n  - {name: b, content_type: [post]}\n"
        "legal_hold: {ids: [new-post], file: holds.txt}\n"
    )
    plan, counts = plan_retention(dataset, read_policy(policy(tmp_path, text)), NOW)
    assert [found.id for found in plan.items] == ["old-thread", "undated"]
    assert [(count.rule, count.items, count.held) for count in counts] == [("a", 1, 2), ("b", 1, 3)]


def test_read_policy_reports_all_mistakes_with_their_lines(tmp_path: Path) -> None:
    text = "name: p\nrules:\n  - name: a\n    older_than: 90x\n  - name: b\n  - name: c\n    lablled: true\n"
    with pytest.raises(UserError) as error:
        read_policy(policy(tmp_path, text))
    assert [line.split("policy.yaml:")[1][:30] for line in error.value.lines] == [
        "4: rules[0].older_than: must m",
        "5: rules[1]: has no condition,",
        "7: rules[2].lablled: is not a ",
    ]


def test_plan_retention_names_the_rule_of_an_invalid_condition(dataset: Path, tmp_path: Path) -> None:
    text = "name: p\nrules:\n  - {name: a, where: nothing = 1}\n"
    with pytest.raises(UserError, match=r"rule a: dataset .*: invalid condition '\(nothing = 1\)'"):
        plan_retention(dataset, read_policy(policy(tmp_path, text)), NOW)
