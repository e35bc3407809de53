"""`vigil monitor sample` and `designs`: every shipped design draws, prints what it drew, and mistakes have one clear line."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from click.testing import Result
from simulated_traffic import simulate_traffic
from typer.testing import CliRunner

from vigil.cli.monitor import sample
from vigil_data.errors import UserError
from vigil_monitoring.queues.queue import read_queue

DESIGNS = sorted(file.stem for file in (Path(__file__).resolve().parents[3] / "recipes" / "monitoring").glob("*.yaml"))

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def call() -> Call:
    app = typer.Typer()
    sample.register(app)
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Live decisions and those of a shadow, as one table."""
    live, _ = simulate_traffic(4_000, 1, prevalence=0.02)
    shadow, _ = simulate_traffic(4_000, 1, prevalence=0.02, shift=0.5, role="shadow")
    file = tmp_path_factory.mktemp("traffic") / "traffic.parquet"
    pq.write_table(pa.concat_tables([live, shadow]), file)
    return file


def lines(result: Result, start: str) -> list[list[str]]:
    return [line.split() for line in result.output.splitlines() if line.startswith(start)]


@pytest.mark.parametrize("design", DESIGNS)
def test_sample_draws_with_every_shipped_design(design: str, call: Call, traffic: Path, tmp_path: Path) -> None:
    to = tmp_path / "queue.jsonl"
    result = call("sample", traffic, "--design", design, "--budget", 150, "--seed", 7, "--to", to)
    assert result.exit_code == 0, result.exception
    queue = read_queue(to)
    assert queue.table.num_rows == 150
    assert (queue.record.seed, queue.record.items, queue.record.role) == (7, 4_000, "live")
    assert f"record: {tmp_path / 'queue.record.json'}" in result.output
    printed = {stratum.name: stratum for stratum in queue.record.strata}
    assert all(name in result.output for name in printed)
    assert lines(result, "prevalence  hate")


def test_sample_prints_expected_half_widths_of_several_budgets(call: Call, traffic: Path, tmp_path: Path) -> None:
    result = call("sample", traffic, "--design", "prevalence", "--budget", 200, "--power")
    assert result.exit_code == 0, result.exception
    assert all(f"± at {budget}" in result.output for budget in (100, 200, 400, 800))
    [all_items] = [line for line in lines(result, "prevalence") if line[1:4] == ["hate", "all", "items"]]
    widths = [float(word) for word in all_items[6:] if word.replace(".", "").isdigit()]
    assert widths == sorted(widths, reverse=True)
    assert len(widths) == 4
    assert not list(tmp_path.iterdir())


def test_sample_of_a_period_and_after_an_earlier_queue(call: Call, traffic: Path, tmp_path: Path) -> None:
    options = ("--design", "prevalence", "--budget", 50, "--from", "2026-11-02", "--until", "2026-11-03")
    assert call("sample", traffic, *options, "--to", tmp_path / "first.jsonl").exit_code == 0
    result = call("sample", traffic, *options, "--to", tmp_path / "second.jsonl", "--not-in", tmp_path / "first.jsonl")
    assert result.exit_code == 0, result.exception
    assert "- 50 decisions were reviewed earlier" in result.output
    second = read_queue(tmp_path / "second.jsonl")
    assert second.table.num_rows == 100
    assert (second.record.start, second.record.end) == ("2026-11-02", "2026-11-03")
    assert second.record.earlier == (str(tmp_path / "first.jsonl"),)


def test_designs_lists_each_with_its_description(call: Call) -> None:
    result = call("designs")
    assert [line.split()[0] for line in result.output.splitlines()] == DESIGNS
    assert "Prevalence of every label" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--design", "prevalnce"), r"there is no design prevalnce \(did you mean prevalence\?\); `vigil monitor designs` lists"),
        (("--design", "prevalence", "--budget", 1), "--budget 1 is less than the 2 that 1 strata need"),
        (("--design", "prevalence", "--power"), "--power draws nothing; leave out --to"),
        (("--design", "prevalence", "--against", "other.parquet"), "other.parquet: does not exist"),
        (("--design", "prevalence", "--not-in", "none.jsonl"), "none.jsonl: cannot be read"),
        (("--design", "missing.yaml"), "missing.yaml"),
    ],
)
def test_sample_refuses_mistakes_with_one_line(
    options: tuple[object, ...], message: str, call: Call, traffic: Path, tmp_path: Path
) -> None:
    result = call("sample", traffic, *options, "--to", tmp_path / "queue.jsonl")
    assert isinstance(result.exception, UserError)
    assert len(result.exception.lines) == 1
    with pytest.raises(UserError, match=message):
        raise result.exception
    assert not list(tmp_path.iterdir())


def test_sample_needs_a_file_to_write(call: Call, traffic: Path) -> None:
    result = call("sample", traffic, "--design", "prevalence")
    with pytest.raises(UserError, match=r"--to FILE.jsonl is missing"):
        raise result.exception or AssertionError
