"""Shipped recipes are valid, and so is the JSON Schema for editors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vigil_data.errors import UserError
from vigil_data.yaml_files.yaml_tree import Tree, parse
from vigil_training.recipe.json_schema import recipe_schema_text
from vigil_training.recipe.recipe import Recipe
from vigil_training.recipe.resolve import dump_recipe, read_recipe, resolve_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = sorted((REPOSITORY / "recipes").glob("*.yaml"))
FILES = RECIPES + [
    path for part in ("base", "overlays", "taxonomies") for path in sorted((REPOSITORY / "recipes" / part).glob("*.yaml"))
]
"""Recipes, and the parts that they extend."""
KINDS: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
    "array": list,
    "object": dict,
}
"""JSON Schema's types in Python."""


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY / "recipes"))


def test_recipes_exist() -> None:
    assert RECIPES, f"no recipe in {REPOSITORY / 'recipes'}"


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_is_valid_and_reads_back_equal(path: Path, tmp_path: Path) -> None:
    resolved = resolve_recipe(path)
    (tmp_path / "resolved.yaml").write_text(dump_recipe(resolved), encoding="utf-8")
    assert read_recipe(tmp_path / "resolved.yaml") == resolved.recipe


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe_file_is_named_as_its_run(path: Path) -> None:
    assert resolve_recipe(path).recipe.name == path.stem


@pytest.mark.parametrize("path", FILES, ids=name)
def test_recipe_names_the_schema_in_its_first_line(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    prefix = "# yaml-language-server: $schema="
    assert first.startswith(prefix)
    assert (path.parent / first.removeprefix(prefix)).resolve() == REPOSITORY / "recipes" / "schema.json"


def test_schema_is_current() -> None:
    written = (REPOSITORY / "recipes" / "schema.json").read_text(encoding="utf-8")
    assert written == recipe_schema_text(), "run: vigil recipe schema --to recipes/schema.json"


def fits(value: Any, schema: dict[str, Any], top: dict[str, Any]) -> bool:
    """Whether ``value`` fits, as far as keys, types, words and alternatives go."""
    if "$ref" in schema:
        return fits(value, top["$defs"][schema["$ref"].rpartition("/")[2]], top)
    if "anyOf" in schema:
        return any(fits(value, member, top) for member in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return False
    if isinstance(value, list):
        return all(fits(entry, schema.get("items", {}), top) for entry in value)
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        return all(
            fits(child, known[key], top)
            if key in known
            else others is not False and fits(child, others if others is not True else {}, top)
            for key, child in value.items()
        )
    return True


def plain(text: str) -> Any:
    tree = parse(text, "text", [])
    assert isinstance(tree, Tree)
    return tree.plain()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_schema_accepts_a_shipped_file(path: Path) -> None:
    schema = json.loads(recipe_schema_text())
    assert fits(plain(path.read_text(encoding="utf-8")), schema, schema)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("seed: 3", True),
        ("extends: a.yaml", True),
        ("extends: [a.yaml, b.yaml]", True),
        ("model: {fusion: {layers: 3}}", True),
        ("model: {encoders: {text: null}}", True),
        ("sead: 3", False),
        ("seed: three", False),
        ("extends: {a: b}", False),
        ("model: {fusion: {kind: sum}}", False),
        ("model: {fusion: {kind: gated, layers: 3}}", False),
        ("inputs: {image: {fit: crpo}}", False),
    ],
)
def test_schema_accepts_valid_and_rejects_invalid_recipes(text: str, right: bool) -> None:
    schema = json.loads(recipe_schema_text())
    assert fits(plain(text), schema, schema) is right


def test_guide_shows_the_messages_of_an_invalid_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
    shown = re.search(r"```yaml\n([^`]*name: Oops[^`]*)```\n\ncomes\n\n```\n(.*?)```", guide, re.DOTALL)
    assert shown is not None
    recipe, lines = shown.groups()
    (tmp_path / "recipes").symlink_to(REPOSITORY / "recipes")
    (tmp_path / "oops.yaml").write_text(recipe, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        resolve_recipe(Path("oops.yaml"))
    assert "".join(f"error: {line}\n" for line in caught.value.lines) == lines


def test_guide_names_every_block() -> None:
    guide = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
    table = guide.partition("| key | contents | spec |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)`", "".join(row.split("|")[1] for row in table.splitlines()[2:]))) == set(
        Recipe.model_fields
    )
