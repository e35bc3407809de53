"""The loop's demonstration, small: real commands from simulated posts to a promoted challenger, and its page."""

import json
import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from vigil.cli import build
from vigil.cli.loop import signal_handlers_kept
from vigil.workflows.loop import demonstration
from vigil.workflows.loop.demo_page import LoopEvent, Quantity, WeekValue, plot, render_loop_page
from vigil.workflows.loop.demonstration import DemoFiles, run_loop_demo
from vigil_data.errors import UserError
from vigil_evaluation.stats.intervals import Interval
from vigil_monitoring.queues.queue import read_queue


@pytest.mark.end_to_end
def test_run_loop_demo_retrains_after_an_alarm_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "PAST_POSTS", 500)
    monkeypatch.setattr(demonstration, "POSTS_PER_WEEK", 80)
    monkeypatch.setattr(demonstration, "SAMPLE", 40)
    monkeypatch.setattr(demonstration, "MINED", 20)
    monkeypatch.setattr(demonstration, "TRAINING", ("training.token_cache=false", "training.epochs=1"))
    monkeypatch.setattr(demonstration, "_alarms", lambda _, week: ["more weapons than before"] if week == 1 else [])
    policy = tmp_path / "policies" / "demo-loop.yaml"
    policy.parent.mkdir()
    shipped = (demonstration.RECIPES / "policies" / "demo-loop.yaml").read_text(encoding="utf-8")
    policy.write_text(shipped.replace("at most 3 %", "at most 30 %"), encoding="utf-8")
    (tmp_path / "frozen-quickstart.yaml").symlink_to(demonstration.RECIPES / "frozen-quickstart.yaml")
    (tmp_path / "taxonomies").symlink_to(demonstration.RECIPES / "taxonomies")
    monkeypatch.setattr(demonstration, "RECIPES", tmp_path)
    vigil, ran = build(), []

    class Stopped(Exception):
        pass

    def run(command):
        ran.append(command[:2])
        if command[0] == "loop" and ran.count(["loop", "run"]) == 3 and stops:
            stops.clear()
            raise Stopped
        with signal_handlers_kept():
            assert not vigil(list(command), prog_name="vigil", standalone_mode=False)

    stops, folder, before = [True], tmp_path / "demo", signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        run_loop_demo(folder, 0, run, weeks=2)
    page = run_loop_demo(folder, 0, run, weeks=2)
    assert signal.getsignal(signal.SIGTERM) == before, "a training in this process leaves SIGTERM ignored"

    assert ran.count(["loop", "run"]) == 5, "two in each week, and one was cut off"
    assert [command[0] for command in ran].count("train") == 1, "the challenger is trained by the loop"
    files = DemoFiles(folder)
    outcomes = [json.loads((files.loop / number / "state.json").read_text())["outcome"] for number in ("0001", "0002")]
    assert outcomes[0] == "measured"
    assert outcomes[1] in {"promoted", "rejected"}
    champion = files.models / "champion"
    assert champion.resolve() == (files.loop / "0002" / "bundle" if outcomes[1] == "promoted" else folder / "bundle").resolve()
    mined = read_queue(files.loop / "0002" / "mined.jsonl").table
    asked = [id_ for id_, labels in zip(mined["id"].to_pylist(), mined["ask"].to_pylist(), strict=True) if labels]
    assert len(asked) == 20
    assert not set(asked) & set(read_queue(files.loop / "0002" / "sample.jsonl").table["id"].to_pylist())
    traffic = pq.read_table(files.traffic / "week02.parquet")
    assert traffic["time"].to_pylist() == sorted(traffic["time"].to_pylist())
    text = page.read_text(encoding="utf-8")
    assert outcomes[1] in text
    assert "more weapons than before" in text
    assert text.count("<circle") > 0
    assert (files.loop / "report.html").is_file()
    with pytest.raises(UserError, match="holds a demonstration with"):
        run_loop_demo(folder, 1, run, weeks=2)


def test_run_loop_demo_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="neither this demonstration nor an empty folder"):
        run_loop_demo(tmp_path, 0, lambda _: sys.exit("no command runs"))


def test_plot_puts_values_in_the_margins_and_counts_covered_weeks(tmp_path: Path) -> None:
    weeks = [
        WeekValue(1, 0.5, 0.4, Interval(0.3, 0.6)),
        WeekValue(2, 0.9, 0.5, Interval(0.4, 0.6)),
        WeekValue(3, None, None, None),
    ]
    quantity = Quantity("Recall", "Share of <b>positives</b>.", 1.0, weeks)
    assert quantity.covered == (1, 2)
    made = plot(quantity, [LoopEvent(2, "new", "something is new")])
    first, second = made.estimates
    assert (first.low_y - first.y) == pytest.approx(first.y - first.high_y, rel=1.1)
    assert first.x < second.x == made.marks[0][0]
    assert made.curve.count(",") == 2, "the truth of week 3 is undefined"
    assert second.text == "week 2: 50.0% (40.0% to 60.0%), true 90.0%"
    render_loop_page([quantity], [LoopEvent(2, "new", "x < y")], [("Traffic", "3 posts")], tmp_path / "loop.html")
    text = (tmp_path / "loop.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;positives" in text
    assert "x &lt; y" in text
