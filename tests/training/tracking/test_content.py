"""Content rule: what each level lets out of an evaluation's files."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vigil_training.tracking.content import MIN_GROUP_ITEMS, WITHHELD, ContentRule, withhold

TEXT = "Anna Berg wrote this"


@pytest.mark.parametrize(
    ("level", "id_", "text", "message"),
    [
        ("none", None, None, "status 1"),
        ("ids", "post-1", None, "status 1"),
        ("redacted", "post-1", "[name] wrote this", "[name] wrote this"),
        ("full", "post-1", TEXT, TEXT),
    ],
)
def test_content_rule_lets_out_what_its_level_states(level, id_, text, message):
    rule = ContentRule(level)
    assert rule.item_id("post-1") == id_
    assert rule.text(TEXT) == text
    assert rule.message(TEXT, "status 1") == message
    assert rule.audio(b"RIFF") == (b"RIFF" if level == "full" else None)
    assert rule.image(b"no image") is None
    assert rule.sends_diff == (level == "full")


def write_folder(folder):
    rows = [{"id": f"post-{n}", "author": "anna", "language": "en" if n else "rare-dialect", "text": "hello"} for n in range(8)]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "predictions.parquet")
    groups = [{"value": value} for value in ("en", "rare-dialect", "en × rare-dialect", "anna", None)]
    content = {
        "facts": {"split": "rare-dialect"},
        "overall": {"labels": {"scam": {}}},
        "by": [{"column": "language", "groups": groups}],
        "pairs": [{"original": "post-3", "perturbed": "post-4"}],
    }
    (folder / "metrics.json").write_text(json.dumps(content))
    (folder / "report.html").write_text("<p>hello")
    return content


@pytest.mark.parametrize("level", ["none", "ids", "redacted", "full"])
def test_evaluation_files_withhold_by_the_level(level, tmp_path):
    content = write_folder(tmp_path / "test")
    files = ContentRule(level).evaluation_files(tmp_path / "test")
    shared = json.loads(files["metrics.json"])
    assert ("report.html" in files) == (level == "full")
    if level == "full":
        assert shared == content
        return
    assert [group["value"] for group in shared["by"][0]["groups"]] == ["en", WITHHELD, f"en × {WITHHELD}", WITHHELD, None]
    assert shared["facts"] == content["facts"], "it states the split, not an item"
    ids = {"none": WITHHELD}.get(level)
    assert shared["pairs"] == [{"original": ids or "post-3", "perturbed": ids or "post-4"}]


def test_withheld_values_keep_labels_and_common_values():
    table = pa.table({"id": ["a", "b"], "language": ["scam", "en"], "probability.scam": ["x", "y"]})
    assert ContentRule("none").withheld_values(table, ["scam"]) == {"a", "b", "en"}
    common = pa.table({"id": [str(n) for n in range(MIN_GROUP_ITEMS)], "language": ["en"] * MIN_GROUP_ITEMS})
    assert ContentRule("ids").withheld_values(common, []) == frozenset()


def test_withhold_keeps_the_types_of_dataclasses_and_tuples():
    from vigil_evaluation.slices.results import Breakdown
    from vigil_evaluation.stats.intervals import Interval

    breakdown = Breakdown("language", [], 0, 0)
    assert withhold([breakdown, Interval(0.1, 0.2), ("x",)], {"x", "language"}) == [
        Breakdown(WITHHELD, [], 0, 0),
        Interval(0.1, 0.2),
        (WITHHELD,),
    ]
