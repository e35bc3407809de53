"""`vigil recipe`: check recipes, show what one resolves to, and write the JSON Schema for editors."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(help="Check and show recipes.", no_args_is_help=True)
    group.command("check")(check)
    group.command("show")(show)
    group.command("schema")(schema)
    app.add_typer(group, name="recipe")


def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Recipes.")],
) -> None:
    """Check recipes whole: every mistake of every file, with its line.

    Exit status 0 if all are right and 2 if one is not. Nothing is trained, loaded or downloaded.
    """
    from vigil_data.errors import UserError
    from vigil_training.recipe.resolve import resolve_recipe

    mistakes: list[str] = []
    for file in files:
        try:
            strategy = resolve_recipe(file).recipe.strategy
        except UserError as error:
            mistakes += error.lines
        else:
            raw = ", ".join(getattr(strategy, "raw", ()))
            unchecked = f" (but for strategy.raw, which DeepSpeed alone knows: {raw})" if raw else ""
            typer.echo(f"ok  {file}{unchecked}")
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))


def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recipe.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY.PATH=VALUE", help="Values that replace the recipe's.")
    ] = None,
    origins: Annotated[bool, typer.Option("--origins", help="Say behind each value which file and line it came from.")] = False,
) -> None:
    """Print the recipe that a run would follow: defaults, extended files and overrides merged and checked."""
    from vigil_training.recipe.resolve import dump_recipe, resolve_recipe

    typer.echo(dump_recipe(resolve_recipe(file, overrides or ()), origins), nl=False)


def schema(
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help="Write it there and not to standard output.")] = None,
) -> None:
    """Print the JSON Schema of recipe files, by which an editor completes keys and explains them.

    A recipe names it in its first line: # yaml-language-server: $schema=schema.json
    """
    from vigil_data.errors import UserError
    from vigil_training.recipe.json_schema import recipe_schema_text

    if to is None:
        typer.echo(recipe_schema_text(), nl=False)
        return
    try:
        to.write_text(recipe_schema_text(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {to}: {error.strerror}") from error
    typer.echo(f"wrote {to}")
