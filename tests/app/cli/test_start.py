"""The command starts light, says what is wrong in one line, and exits as promised."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from vigil import cli
from vigil_data.errors import Failure, MediaError, UserError

REPOSITORY = Path(__file__).resolve().parents[3]
HEAVY = (
    "torch",
    "transformers",
    "lightning",
    "timm",
    "wandb",
    "lance",
    "pyarrow",
    "numpy",
    "sklearn",
    "onnx",
    "onnxruntime",
    "matplotlib",
)


def vigil(*arguments: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from vigil.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["recipe", "--help"], ["recipe", "check", "recipes/text-safety.yaml"]], ids=" ".join
)
def test_nothing_heavy_is_imported(arguments: list[str]) -> None:
    code = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print('\\n' + json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr))\n"
        "from vigil.cli import main\n"
        "main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == []


def test_help_names_every_command() -> None:
    done = vigil("--help")
    assert done.returncode == 0
    for command in ("recipe", "data", "train", "evaluate", "export", "verify", "score", "demo"):
        assert f" {command} " in done.stdout


def test_version() -> None:
    from importlib.metadata import version

    assert vigil("--version").stdout == f"vigil {version('vigil')}\n"


def test_an_unknown_command_is_the_users_mistake() -> None:
    done = vigil("trian")
    assert done.returncode == 2
    assert "trian" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_says_ok_for_each_right_file_and_tells_every_mistake_of_the_others(tmp_path: Path) -> None:
    right = REPOSITORY / "recipes" / "text-safety.yaml"
    (tmp_path / "a.yaml").write_text(f"extends: {right}\nsead: 1\nseed: x\n", encoding="utf-8")
    (tmp_path / "b.yaml").write_text(f"extends: {right}\nmodel: {{width: 1}}\n", encoding="utf-8")
    done = vigil("recipe", "check", "a.yaml", str(right), "b.yaml", "gone.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == f"ok  {right}\n"
    assert done.stderr.splitlines() == [
        "error: a.yaml:2: sead: is not a key of a recipe (did you mean seed?)",
        "error: a.yaml:3: seed: must be a whole number, not 'x'",
        "error: b.yaml:2: model.width: must be at least 8, not 1",
        "error: there is no file gone.yaml",
    ]


def test_show_prints_a_recipe_that_can_be_checked_again(tmp_path: Path) -> None:
    shown = vigil("recipe", "show", "recipes/text-safety.yaml", "optimizer.lr=1e-5", "seed=7")
    assert shown.returncode == 0, shown.stderr
    (tmp_path / "shown.yaml").write_text(shown.stdout, encoding="utf-8")
    again = vigil("recipe", "show", "shown.yaml", cwd=tmp_path)
    assert again.stdout == shown.stdout
    assert "lr: 0.00001" in shown.stdout or "lr: 1e-05" in shown.stdout


def test_show_says_where_values_come_from() -> None:
    shown = vigil("recipe", "show", "--origins", "recipes/text-safety.yaml", "seed=7")
    assert "seed: 7 # command line" in shown.stdout
    assert "# recipes/taxonomies/text-safety.yaml:" in shown.stdout


def test_schema_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    done = vigil("recipe", "schema", "--to", str(tmp_path / "schema.json"))
    assert done.returncode == 0
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == vigil("recipe", "schema").stdout


def test_a_schema_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    done = vigil("recipe", "schema", "--to", "no/such/folder/schema.json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write no/such/folder/schema.json: No such file or directory\n"


def exit_of(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int | str | None:
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "build", lambda: app)
    monkeypatch.setattr(sys, "argv", ["vigil"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (UserError("one", "two"), 2, "error: one\nerror: two\n"),
        (MediaError("cut off"), 2, "error: cut off\n"),
        (Failure("no more"), 1, "error: no more\n"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Exit(85), 85, ""),
    ],
    ids=["user", "media", "failure", "interrupt", "exit"],
)
def test_exit_status(
    error: BaseException, status: int, lines: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(error, monkeypatch) == status
    assert capsys.readouterr().err == lines


def test_a_failure_that_nobody_foresaw_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        exit_of(ZeroDivisionError(), monkeypatch)
