"""`vigil promote`: what it prints, and combinations of options that make no sense."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vigil.cli import build
from vigil_data.errors import UserError


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(build(), ["promote", *map(str, arguments)])


def test_promote_prints_where_the_alias_points(bundle_copy: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    done = call(bundle_copy, "--models", models, "--without-comparison", "--by", "ann")
    assert done.exit_code == 0, done.exception
    assert done.output.startswith(f"{models / 'champion'} -> {bundle_copy} (")
    assert "a server of" in done.output
    assert '"by": "ann"' in (models / "promotions.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name the bundle to promote, or give --back"),
        (("bundle", "--back"), "--back returns to the bundle before; leave BUNDLE out"),
        (("--back", "--without-experiment", "--experiment", "x"), "leave --experiment, --without-experiment out"),
        (("bundle", "--to", "a/b"), "--to a/b: must be a name such as champion"),
        (("bundle",), "bundle is not a bundle"),
    ],
)
def test_promote_names_the_mistake(arguments: tuple[str, ...], message: str) -> None:
    error = call(*arguments).exception
    assert isinstance(error, UserError)
    assert message in str(error)
