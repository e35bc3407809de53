"""`vigil recipe`: list, copy and check recipes, show a resolved recipe, and write the JSON Schema for editors."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(help="List, copy, check and show recipes.", no_args_is_help=True)
    group.command("list")(list_recipes)
    group.command("copy")(copy)
    group.command("check")(check)
    group.command("show")(show)
    group.command("schema")(schema)
    app.add_typer(group, name="recipe")


def list_recipes() -> None:
    """List the recipes that come with Vigil, with one line each."""
    from vigil.workflows.shipped_recipes import shipped_recipes

    recipes = shipped_recipes()
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        typer.echo(f"{recipe.name:<{width}}  {recipe.description}")


def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe of `vigil recipe list`.")],
    to: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the copy; its files are not overwritten.")] = Path(
        "recipes"
    ),
) -> None:
    """Copy a recipe that comes with Vigil, with its taxonomy, policy and all other files that it names, into a folder of yours.

    The commands at the top of the copy are for the working folder.
    """
    from vigil.workflows.shipped_recipes import copy_recipe

    files = copy_recipe(name, to)
    for file in files:
        typer.echo(file)
    typer.echo(f"\nnext: the commands at the top of {files[0]}")


def check(
    arguments: Annotated[
        list[str], typer.Argument(metavar="FILE... [KEY.PATH=VALUE...]", help="Recipes, and values that replace theirs.")
    ],
) -> None:
    """Check recipes: every mistake of every file, with its line.

    Exit status 0 if all are valid, 2 otherwise. Nothing is trained, loaded or downloaded. A guard's recipe also
    gets the tokens of its policies and prompts.
    """
    from vigil_data.errors import UserError
    from vigil_training.recipe.requirements import check_installed, check_sources, describe_prompt
    from vigil_training.recipe.resolve import resolve_recipe

    overrides = [argument for argument in arguments if "=" in argument and not Path(argument).exists()]
    files = [Path(argument) for argument in arguments if argument not in overrides]
    if not files:
        raise UserError("name a recipe to check: vigil recipe check FILE [KEY.PATH=VALUE]")
    mistakes: list[str] = []
    for file in files:
        try:
            resolved = resolve_recipe(file, overrides)
            check_installed(resolved)
            check_sources(resolved)
            prompt = describe_prompt(resolved)
        except UserError as error:
            mistakes += error.lines
        else:
            raw = ", ".join(getattr(resolved.recipe.strategy, "raw", ()))
            unchecked = f" (except strategy.raw, which only DeepSpeed can check: {raw})" if raw else ""
            typer.echo(f"ok  {file}{unchecked}")
            for line in prompt:
                typer.echo(f"    {line}")
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="Values that replace the recipe's.")
    ] = None,
    origins: Annotated[bool, typer.Option("--origins", help="Append the file and line of each value.")] = False,
) -> None:
    """Print the resolved recipe: defaults, extended files and overrides, merged and checked."""
    from vigil_training.recipe.resolve import dump_recipe, resolve_recipe

    typer.echo(dump_recipe(resolve_recipe(file, overrides or ()), origins), nl=False)


def schema(
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="Write to this file (default: standard output).")
    ] = None,
) -> None:
    """Print the JSON Schema of recipe files, with which editors complete and explain keys.

    A recipe names it in its first line: # yaml-language-server: $schema=schema.json
    """
    from vigil_data.errors import Failure, UserError
    from vigil_data.filesystem import write_file
    from vigil_training.recipe.json_schema import recipe_schema_text

    if to is None:
        typer.echo(recipe_schema_text(), nl=False)
        return
    try:
        write_file(to, recipe_schema_text())
    except Failure as error:
        raise UserError(str(error)) from error
    typer.echo(f"wrote {to}")
