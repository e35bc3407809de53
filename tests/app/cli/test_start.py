"""`vigil init`, `vigil doctor` and `vigil demo`: what they print, and their exit status."""

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from vigil.cli import start
from vigil.workflows import demo_pipeline, doctor
from vigil.workflows.demo_pipeline import Stage, Summary
from vigil.workflows.doctor import Check
from vigil_data.errors import UserError


@pytest.fixture(scope="module")
def call():
    app = typer.Typer()
    start.register(app)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


def test_init_prints_the_files_and_the_next_commands(call, tmp_path):
    result = call("init", tmp_path / "posts")
    assert result.exit_code == 0
    assert str(tmp_path / "posts" / "recipe.yaml") in result.output
    assert result.output.endswith("  vigil export runs/posts --to bundle && vigil serve bundle\n")
    assert isinstance(call("init", tmp_path / "posts").exception, UserError)


@pytest.mark.parametrize(("status", "exit_code"), [("ok", 0), ("warn", 0), ("missing", 0), ("broken", 1)])
def test_doctor_exits_with_1_only_if_something_is_broken(call, monkeypatch, status, exit_code):
    checks = [Check("Python", "ok", "3.11"), Check("thing", status, "found", "do this" if status != "ok" else "")]
    monkeypatch.setattr(doctor, "run_checks", lambda *, import_torch: iter(checks))
    result = call("doctor")
    assert result.exit_code == exit_code
    assert result.output.splitlines()[1] == f"{status:<8}thing            found" + ("; fix: do this" if status != "ok" else "")
    written = call("doctor", "--json")
    assert written.exit_code == exit_code
    assert json.loads(written.output) == {
        "broken": exit_code,
        "checks": [
            {"name": "Python", "status": "ok", "detail": "3.11", "fix": ""},
            {"name": "thing", "status": status, "detail": "found", "fix": checks[1].fix},
        ],
    }


def test_doctor_of_this_machine_finds_nothing_broken(call):
    result = call("doctor")
    assert result.exit_code == 0, result.output
    assert "vigil[train]" in result.output


def test_demo_runs_stages_as_commands_and_prints_the_summary(call, tmp_path, monkeypatch):
    summary = Summary(0.95, {"text": 0.5}, {"init": 1.0}, 1.0, "report.html", "comparison.html", "suite.html", "bundle")

    def run_demo(folder, seed, run, start):
        assert (folder, seed) == (tmp_path, 3)
        run(Stage("init", ["init", str(tmp_path / "posts")], tmp_path), 1, 2)
        return summary

    monkeypatch.setattr(demo_pipeline, "run_demo", run_demo)
    result = call("demo", "--dir", tmp_path, "--seed", "3")
    assert result.exit_code == 0, result.output
    assert f"[1/2] $ vigil init {tmp_path / 'posts'}" in result.output
    assert (tmp_path / "posts" / "recipe.yaml").is_file()
    assert "all three, fused                           0.950" in result.output
    assert result.output.endswith(f"bundle:     bundle\nsummary:    {tmp_path / 'summary.json'}\n")


def test_demo_ends_with_the_status_of_a_stage(call, tmp_path, monkeypatch):
    def run_demo(folder, seed, run, start):
        run(Stage("doctor", ["doctor"], tmp_path), 1, 1)

    monkeypatch.setattr(demo_pipeline, "run_demo", run_demo)
    monkeypatch.setattr(doctor, "run_checks", lambda *, import_torch: iter([Check("Python", "broken", "2.7")]))
    assert call("demo", "--dir", tmp_path).exit_code == 1


def test_run_commands_logs_what_commands_print_and_says_when_each_ends(tmp_path):
    log, project = tmp_path / "log", ["init", str(tmp_path / "posts")]
    command = [sys.executable, "-c", "from vigil.command_process import run_commands; run_commands()", str(log)]
    asked = "\n".join(map(json.dumps, (["doctor", "--json"], project, project, ["doctor"])))
    ran = subprocess.run(command, input=asked, check=False, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (2, "")
    assert ran.stdout.splitlines() == ["doctor --json", f"init {tmp_path / 'posts'}"]
    written = log.read_text()
    assert written.startswith("\n$ vigil doctor --json\n{")
    assert written.count("$ vigil") == 3
    assert "error: " in written.splitlines()[-1]
