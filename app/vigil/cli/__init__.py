"""The command `vigil`: one module per command group; slow imports happen when a command runs."""

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated

import typer

from vigil.cli import (
    checkpoint,
    compare,
    data,
    evaluate,
    export,
    guard,
    loop,
    monitor,
    plan,
    policy,
    promote,
    recipe,
    serve,
    slurm,
    start,
    suite,
    tracking,
    train,
)
from vigil_data.errors import Failure, MediaError, UserError, one_line

_HELP = """
Train, evaluate and serve multimodal content-safety models.

A [bold]recipe[/] (YAML) describes a training run; a [bold]dataset[/] holds the items; a [bold]run[/] is the folder that training
fills; a [bold]bundle[/] is the folder that a server loads. Start with [cyan]vigil init[/] or [cyan]vigil demo[/].
"""


def main() -> None:
    """Run the command; exit with 2 for a mistake of the user, 85 after preemption, 130 after Ctrl-C, and 1 for other failures."""
    with exit_on_error():
        build()()


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an error that a command raises, and exit with its status; see ``main``."""
    try:
        yield
    except UserError as error:
        _fail(error.lines if _prints(error) else (), 2)
    except MediaError as error:
        _fail([str(error)], 2)
    except Failure as failure:
        _fail(str(failure).splitlines() if _prints(failure) else (), failure.status)
    except KeyboardInterrupt:
        sys.exit(130)


def build() -> typer.Typer:
    """Return the command with all its subcommands."""
    app = typer.Typer(
        name="vigil",
        help=_reflow(_HELP),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_top)
    for module in (
        start,
        recipe,
        data,
        plan,
        train,
        slurm,
        checkpoint,
        tracking,
        evaluate,
        suite,
        compare,
        policy,
        export,
        guard,
        monitor,
        promote,
        loop,
        serve,
    ):
        module.register(app)
    _reflow_commands(app)
    return app


def _reflow_commands(app: typer.Typer) -> None:
    for command in app.registered_commands:
        command.help = _reflow(command.help or inspect.getdoc(command.callback) or "")
    for group in app.registered_groups:
        if group.typer_instance is not None:
            _reflow_commands(group.typer_instance)


def _reflow(text: str) -> str:
    """Join the lines of each paragraph, as terminals differ in width; indented paragraphs keep their lines."""
    paragraphs = [paragraph for paragraph in text.strip().split("\n\n") if paragraph]
    return "\n\n".join(p if p.startswith(" ") else " ".join(p.split()) for p in paragraphs)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"vigil {version('vigil')}")
        raise typer.Exit


def _top(
    _: Annotated[bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")] = False,
) -> None:
    pass


def _prints(error: UserError | Failure) -> bool:
    """Return whether this process prints an error that every rank raises: only rank 0 does."""
    return not error.everywhere or os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def _fail(lines: Sequence[str], status: int) -> None:
    for line in lines:
        # File names and ids in a message may hold terminal codes; its own line breaks stay.
        typer.echo("error: " + "\n".join(map(one_line, line.split("\n"))), err=True)
    sys.exit(status)
