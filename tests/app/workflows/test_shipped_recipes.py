"""Recipes that come with Vigil: each has a description, and each copy is complete, checks in its place and overwrites nothing."""

import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vigil.cli import build
from vigil.workflows import shipped_recipes as shipped
from vigil_data.errors import UserError
from vigil_training.recipe.resolve import resolve_recipe

RECIPES = {recipe.name: recipe for recipe in shipped.shipped_recipes()}


def test_shipped_recipes_are_those_of_the_repository(repository: Path) -> None:
    assert repository / "recipes" == shipped.RECIPES
    assert set(RECIPES) == {path.stem for path in (repository / "recipes").glob("*.yaml")}


def test_wheel_has_the_recipes_where_an_installed_package_looks_for_them(repository: Path) -> None:
    wheel = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert "recipes" in wheel["packages"]
    assert wheel["sources"]["recipes"] == "vigil/recipes"


@pytest.mark.parametrize("name", RECIPES)
def test_description_is_one_line_that_begins_the_file(name: str) -> None:
    description = RECIPES[name].description
    assert 20 < len(description) <= 120
    first = (shipped.RECIPES / f"{name}.yaml").read_text().splitlines()[1]
    assert first.startswith(f"# {description[:60]}")


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_opens_with_its_launch_command(name: str) -> None:
    head = (shipped.RECIPES / f"{name}.yaml").read_text().partition("\nname:")[0]
    assert re.search(rf"^#   vigil (train|submit|distill) recipes/{name}\.yaml", head, re.MULTILINE)


@pytest.mark.parametrize("name", RECIPES)
def test_copy_recipe_is_valid_in_its_place(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = shipped.copy_recipe(name, "mine")
    assert files[0] == Path("mine") / f"{name}.yaml"
    assert sorted(files) == sorted(path for path in Path("mine").rglob("*") if path.is_file())
    assert resolve_recipe(files[0]).recipe == resolve_recipe(shipped.RECIPES / f"{name}.yaml").recipe
    text = files[0].read_text()
    assert "recipes/" not in text
    assert (files[0].parent / text.splitlines()[0].partition("$schema=")[2]).is_file()


def test_copy_recipe_takes_policy_and_taxonomy_along_and_keeps_equal_files(tmp_path: Path) -> None:
    files = shipped.copy_recipe("comments", tmp_path / "a b")
    parts = {str(path.relative_to(tmp_path / "a b")) for path in files}
    assert parts == {
        "comments.yaml",
        "taxonomies/toxic_comments.yaml",
        "policies/comments.yaml",
        "collections/comments.yaml",
        "schema.json",
    }
    assert (
        f"vigil policy compile '{tmp_path}/a b/policies/comments.yaml'" in (tmp_path / "a b/policies/comments.yaml").read_text()
    )
    before = {path: path.stat().st_size for path in files}
    assert shipped.copy_recipe("comments", tmp_path / "a b") == files
    assert before == {path: path.stat().st_size for path in files}


def test_copy_recipe_overwrites_nothing(tmp_path: Path) -> None:
    mine = tmp_path / "taxonomies" / "toxic_comments.yaml"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(UserError) as caught:
        shipped.copy_recipe("comments", tmp_path)
    assert caught.value.lines == (
        f"{mine}: exists with other content, and is not overwritten",
        "nothing is copied; name another folder: vigil recipe copy comments DIR",
    )
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_copy_recipe_refuses_a_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: is not a folder; name another one: vigil recipe copy thread DIR"):
        shipped.copy_recipe("thread", tmp_path / "file")


def test_guide_has_a_row_for_each_recipe(repository: Path) -> None:
    guide = (repository / "docs" / "recipes.md").read_text()
    table = guide.partition("| recipe | content | its choices |")[2].partition("\n\n")[0]
    assert {name for row in table.splitlines()[2:] for name in re.findall(r"`([a-z0-9-]+)`", row.split("|")[1])} == set(RECIPES)


def test_commands_list_and_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    listed = run(build(), ["recipe", "list"])
    assert [line.split()[0] for line in listed.stdout.splitlines()] == sorted(RECIPES)
    assert all(RECIPES[line.split()[0]].description in line for line in listed.stdout.splitlines())
    copied = run(build(), ["recipe", "copy", "comments"])
    assert copied.exit_code == 0
    assert "next: the commands at the top of recipes/comments.yaml" in copied.stdout
    assert "vigil train recipes/comments.yaml" in Path("recipes/comments.yaml").read_text()
    refused = run(build(), ["recipe", "copy", "coments"])
    assert "no recipe 'coments' comes with Vigil; there are comments" in str(refused.exception)
