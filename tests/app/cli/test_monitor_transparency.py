"""`vigil monitor transparency` and `vigil monitor statements`: what they write and print, and their messages."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from vigil.cli import monitor
from vigil_data.errors import UserError

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def call() -> Call:
    app = typer.Typer()
    monitor.register(app)
    return lambda *arguments: CliRunner().invoke(app, ["monitor", *map(str, arguments)], env={"COLUMNS": "250"})


@pytest.fixture
def traffic(tmp_path: Path) -> Path:
    """Two days of 30 decisions each; of each day's, 10 are removals and 10 are labelled."""
    rows = []
    for number in range(60):
        time = datetime(2026, 11, 2 + number // 30, tzinfo=UTC) + timedelta(minutes=number)
        action = ("allow", "remove", "label")[number % 3]
        reason = {"label": "hate", "action": action, "probability": 0.9, "threshold": 0.8}
        rows.append(
            {"id": f"i{number}", "time": time, "probability.hate": 0.9, "action": action, "reasons": [reason][: number % 3]}
        )
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "traffic.parquet")
    return tmp_path / "traffic.parquet"


def test_transparency_writes_a_report_of_the_period(call: Call, traffic: Path, tmp_path: Path) -> None:
    appeals = tmp_path / "appeals.csv"
    appeals.write_text("id,time\ni1,2026-11-03\ni4,2026-11-02\n", encoding="utf-8")
    people = tmp_path / "measures.jsonl"
    people.write_text('{"id": "i0", "time": "2026-11-03T12:00:00Z", "label": "hate", "action": "remove"}\n', encoding="utf-8")
    options = ["--mapping", "safety", "--from", "2026-11-03", "--appeals", appeals, "--human-measures", people, "--k", "1"]
    done = call("transparency", traffic, *options, "--service", "Example", "--to", tmp_path / "report")
    assert done.exit_code == 0, done.output
    assert "30 decisions; measures taken solely by automated means: 20, by people: 1" in done.output
    assert "complaints: 1, upheld 0, reversed 0" in done.output
    written = json.loads((tmp_path / "report" / "transparency.json").read_text(encoding="utf-8"))
    assert written["period"] == {"start": "2026-11-03", "end": "2026-11-03"}
    assert [(row["name"], row["count"]) for row in written["by_action"]] == [("label", 10), ("remove", 11)]
    assert all(Path(line).is_file() for line in done.output.splitlines() if line.endswith((".csv", ".json", ".html")))


def test_transparency_withholds_below_ten_by_default(call: Call, traffic: Path, tmp_path: Path) -> None:
    people = tmp_path / "measures.jsonl"
    people.write_text('{"id": "i0", "time": "2026-11-03T12:00:00Z", "label": "hate", "action": "remove"}\n', encoding="utf-8")
    done = call("transparency", traffic, "--mapping", "comments", "--human-measures", people, "--to", tmp_path / "report")
    assert "by people: withheld" in done.output
    assert "counts, those below 10 and those that reveal them" in done.output


def test_statements_need_the_time_of_posting(call: Call, traffic: Path, tmp_path: Path) -> None:
    refused = call("statements", traffic, "--mapping", "safety", "--to", tmp_path / "statements.jsonl")
    assert isinstance(refused.exception, UserError)
    assert "the mapping safety does not say when content was posted" in str(refused.exception)


def test_statements_with_a_mapping_of_my_own(call: Call, traffic: Path, tmp_path: Path) -> None:
    from vigil.workflows.shipped_recipes import RECIPES

    text = (RECIPES / "transparency" / "safety.yaml").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(text.replace("posted: null", "posted: time"), encoding="utf-8")
    done = call("statements", traffic, "--mapping", tmp_path / "mine.yaml", "--to", tmp_path / "statements.jsonl")
    assert done.exit_code == 0, done.output
    assert "40  STATEMENT_CATEGORY_ILLEGAL_OR_HARMFUL_SPEECH" in done.output
    lines = (tmp_path / "statements.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 40
    assert json.loads(lines[0])["incompatible_content_explanation"].startswith("An attack on people for their origin")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mapping", "safty"], "there is no mapping (comments, safety) safty (did you mean safety?)"),
        (["--mapping", "absent.yaml"], "absent.yaml"),
        (
            ["--mapping", "safety", "--from", "2027-01-01"],
            "has no live decisions from 2027-01-01; it has 2026-11-02 to 2026-11-03",
        ),
        (["--mapping", "safety", "--appeals", "absent.csv"], "absent.csv"),
    ],
)
def test_transparency_names_mistakes(call: Call, traffic: Path, tmp_path: Path, options: list[str], message: str) -> None:
    refused = call("transparency", traffic, *options, "--to", tmp_path / "report")
    assert isinstance(refused.exception, UserError), refused.output
    assert message in str(refused.exception)
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("command", ["transparency", "statements"])
def test_output_below_a_file_is_refused(call: Call, traffic: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nposted: time\nactions: {remove: {visibility: [DECISION_VISIBILITY_CONTENT_REMOVED]}, label: {}}\n"
        "labels: {hate: {category: STATEMENT_CATEGORY_VIOLENCE, reference: rules, explanation: violent}}\n",
        encoding="utf-8",
    )
    refused = call(command, traffic, "--mapping", tmp_path / "mine.yaml", "--to", traffic / "new" / "statements.jsonl")
    assert isinstance(refused.exception, UserError), refused.output
    assert "cannot be created: Not a directory" in str(refused.exception)


def test_statements_must_be_json_lines(call: Call, traffic: Path, tmp_path: Path) -> None:
    refused = call("statements", traffic, "--mapping", "safety", "--to", tmp_path / "statements.json")
    assert "name a file that ends in .jsonl" in str(refused.exception)
