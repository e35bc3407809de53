"""The loop's demonstration, small: real commands from simulated posts to a promoted challenger, and its dashboard."""

import json
import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer

from vigil.cli import build
from vigil.cli.loop import run_command
from vigil.workflows.loop import demonstration
from vigil.workflows.loop.demonstration import DemoFiles, run_loop_demo
from vigil_data.errors import UserError
from vigil_monitoring.queues.queue import read_queue


@pytest.mark.end_to_end
def test_run_loop_demo_retrains_after_an_alarm_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstration, "PAST_POSTS", 500)
    monkeypatch.setattr(demonstration, "POSTS_PER_WEEK", 80)
    monkeypatch.setattr(demonstration, "SAMPLE", 40)
    monkeypatch.setattr(demonstration, "MINED", 20)
    small = ("training.token_cache=false", "training.epochs=1", "model.encoders.text.config.num_hidden_layers=1")
    monkeypatch.setattr(demonstration, "TRAINING", small)
    monkeypatch.setattr(demonstration, "_alarms", lambda _, week: ["more weapons than before"] if week == 1 else [])
    policy = tmp_path / "policies" / "demo-loop.yaml"
    policy.parent.mkdir()
    shipped = (demonstration.RECIPES / "policies" / "demo-loop.yaml").read_text(encoding="utf-8")
    policy.write_text(shipped.replace("at most 3 %", "at most 30 %"), encoding="utf-8")
    (tmp_path / "frozen-quickstart.yaml").symlink_to(demonstration.RECIPES / "frozen-quickstart.yaml")
    (tmp_path / "taxonomies").symlink_to(demonstration.RECIPES / "taxonomies")
    monkeypatch.setattr(demonstration, "RECIPES", tmp_path)
    vigil, ran = typer.main.get_command(build()), []

    class Stopped(Exception):
        pass

    def run(command):
        ran.append(command[:2])
        if command[0] == "loop" and ran.count(["loop", "run"]) == 3 and stops:
            stops.clear()
            raise Stopped
        run_command(vigil, command)

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
    assert text.count("<title>true values</title>") >= 5, "labels, any of them, precision and recall"
    truth = json.loads((files.loop / "results" / "0002-truth.json").read_text())
    facts = json.loads(files.truth.read_text())
    violating = [bool(facts[id_]) for id_ in traffic["id"].to_pylist()]
    (true,) = (row["value"] for row in truth["rows"] if (row["metric"], row["name"]) == ("prevalence", "any label"))
    assert true == pytest.approx(sum(violating) / len(violating))
    with pytest.raises(UserError, match="holds a demonstration with"):
        run_loop_demo(folder, 1, run, weeks=2)


def test_run_loop_demo_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="neither this demonstration nor an empty folder"):
        run_loop_demo(tmp_path, 0, lambda _: sys.exit("no command runs"))
