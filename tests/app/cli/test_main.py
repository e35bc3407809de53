"""The command `vigil`: imports, help, errors, exit status and shell completion."""

import json
import os
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


COUNT_HEAVY = f"""
import atexit, json, sys
atexit.register(lambda: print(chr(10) + json.dumps([m for m in {HEAVY!r} if m in sys.modules]), file=sys.stderr))
from vigil.cli import main
main()
"""


AS_VIGIL = "import sys; sys.argv[0] = 'vigil'; from vigil.cli import main; main()"


def vigil(
    *arguments: str, cwd: Path = REPOSITORY, code: str = "from vigil.cli import main; main()", **variables: str
) -> subprocess.CompletedProcess[str]:
    command, environment = [sys.executable, "-c", code, *arguments], {**os.environ, **variables}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["recipe", "--help"], ["recipe", "check", "recipes/comments.yaml"]], ids=" ".join
)
def test_main_imports_nothing_heavy(arguments: list[str]) -> None:
    done = vigil(*arguments, code=COUNT_HEAVY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[-1]) == []


@pytest.mark.parametrize(
    ("words", "expected"), [("vigil rec", {"recipe"}), ("vigil policy co", {"compile"}), ("vigil data import da", {"davidson"})]
)
def test_completion_completes_commands_and_imports_nothing_heavy(words: str, expected: set[str]) -> None:
    code = "import sys; sys.argv[0] = 'vigil'" + COUNT_HEAVY
    count = str(len(words.split()) - 1)
    done = vigil(code=code, _VIGIL_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=count)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == expected
    assert json.loads(done.stderr.splitlines()[-1]) == []


WITHOUT_TRAINING = """
import importlib.util, sys
absent = ("torch", "lightning", "transformers", "timm", "pyarrow", "lance", "scipy", "numba", "wandb", "onnx", "safetensors")
sys.modules.update(dict.fromkeys(absent))
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in absent else find(name, package)
import vigil_serving.server.main
from vigil.cli import main
main()
"""
"""A None in sys.modules makes the import of a module fail as if it were not installed."""


def test_serving_commands_need_nothing_of_training(exported) -> None:
    done = vigil("verify", str(exported.bundle), code=WITHOUT_TRAINING)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"ok  {exported.bundle}"
    assert vigil("serve", "--help", code=WITHOUT_TRAINING).returncode == 0


SHELL_AS_ARGUMENT = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
"""Typer looks for the shell among the parent processes; in a test there may be none."""


@pytest.mark.parametrize(
    ("shell", "line"), [("bash", "complete -o default -F _vigil_completion vigil"), ("zsh", "#compdef vigil")]
)
def test_show_completion_prints_the_script_of_a_shell(shell: str, line: str) -> None:
    done = vigil("--show-completion", shell, code=AS_VIGIL, **SHELL_AS_ARGUMENT)
    assert done.returncode == 0, done.stderr
    assert line in done.stdout


def test_install_completion_writes_to_the_home_folder(tmp_path: Path) -> None:
    done = vigil("--install-completion", "bash", code=AS_VIGIL, HOME=str(tmp_path), **SHELL_AS_ARGUMENT)
    assert done.returncode == 0, done.stderr
    assert "_vigil_completion" in (tmp_path / ".bash_completions" / "vigil.sh").read_text(encoding="utf-8")
    assert "vigil.sh" in (tmp_path / ".bashrc").read_text(encoding="utf-8")


def test_main_help_names_every_command() -> None:
    done = vigil("--help")
    assert done.returncode == 0
    for command in ("init", "doctor", "recipe", "data", "train", "evaluate", "export", "verify", "score", "demo"):
        assert f" {command} " in done.stdout


def test_main_version() -> None:
    from importlib.metadata import version

    assert vigil("--version").stdout == f"vigil {version('vigil')}\n"


def test_main_exits_with_2_on_an_unknown_command() -> None:
    done = vigil("trian")
    assert done.returncode == 2
    assert "trian" in done.stderr
    assert "Traceback" not in done.stderr


def test_data_import_of_a_file_without_a_kind_prints_the_command() -> None:
    done = vigil("data", "import", "posts.jsonl", "--to", "x")
    assert done.returncode == 2
    assert done.stderr == (
        "error: name the kind before the file: vigil data import manifest posts.jsonl --to DATASET (or a source, as in "
        "vigil data sources, in place of manifest)\n"
    )


def test_recipe_check_reports_every_error_of_every_file(tmp_path: Path) -> None:
    right = REPOSITORY / "recipes" / "comments.yaml"
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


def test_recipe_check_takes_values_that_replace_those_of_the_recipe() -> None:
    done = vigil("recipe", "check", "recipes/comments.yaml", "optimizer.lr=1e-5", "loss.kind=focall")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: command line: loss.kind: must be bce, focal, asymmetric or gce, not 'focall' (did you mean focal?)\n"
    )
    done = vigil("recipe", "check", "loss.kind=focal")
    assert (done.returncode, done.stderr) == (2, "error: name a recipe to check: vigil recipe check FILE [KEY.PATH=VALUE]\n")


def test_recipe_show_prints_a_recipe_that_resolves_to_itself(tmp_path: Path) -> None:
    shown = vigil("recipe", "show", "recipes/comments.yaml", "optimizer.lr=1e-5", "seed=7")
    assert shown.returncode == 0, shown.stderr
    (tmp_path / "shown.yaml").write_text(shown.stdout, encoding="utf-8")
    again = vigil("recipe", "show", "shown.yaml", cwd=tmp_path)
    assert again.stdout == shown.stdout
    assert "lr: 0.00001" in shown.stdout or "lr: 1e-05" in shown.stdout


def test_recipe_show_origins_names_the_file_of_each_value() -> None:
    shown = vigil("recipe", "show", "--origins", "recipes/comments.yaml", "seed=7")
    assert "seed: 7 # command line" in shown.stdout
    assert "# recipes/taxonomies/toxic_comments.yaml:" in shown.stdout


def test_recipe_schema_to_writes_the_schema(tmp_path: Path) -> None:
    done = vigil("recipe", "schema", "--to", str(tmp_path / "schema.json"))
    assert done.returncode == 0
    assert (tmp_path / "schema.json").read_text(encoding="utf-8") == vigil("recipe", "schema").stdout


def test_recipe_schema_to_reports_an_unwritable_file(tmp_path: Path) -> None:
    done = vigil("recipe", "schema", "--to", "no/such/folder/schema.json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: no/such/folder/schema.json: cannot be written: No such file or directory\n"


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
def test_main_exit_status_and_message(
    error: BaseException, status: int, lines: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(error, monkeypatch) == status
    assert capsys.readouterr().err == lines


def test_main_keeps_the_traceback_of_an_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        exit_of(ZeroDivisionError(), monkeypatch)
