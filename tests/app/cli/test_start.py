"""`vigil init` and `vigil doctor`: what they print, and their exit status."""

import json

import pytest
import typer
from typer.testing import CliRunner

from vigil.cli import start
from vigil.workflows import doctor
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
