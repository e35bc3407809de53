"""`vigil promote`: a bundle becomes the champion, past a comparison and an experiment."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("promote")(promote)


def promote(
    bundle: Annotated[Path | None, typer.Argument(metavar="BUNDLE", help="The bundle; leave it out with --back.")] = None,
    *,
    to: Annotated[str, typer.Option(metavar="NAME", help="Alias in the folder of models.")] = "champion",
    models: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the aliases and of promotions.jsonl.")] = Path("models"),
    comparison: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="comparison.json of `vigil compare DIR/NAME BUNDLE`, or its folder (default: the bundle's own)."
        ),
    ] = None,
    experiment: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Result of `vigil monitor experiment` with both bundles.")
    ] = None,
    without_experiment: Annotated[
        bool, typer.Option("--without-experiment", help="Promote without an experiment; the record states it.")
    ] = False,
    without_comparison: Annotated[
        bool, typer.Option("--without-comparison", help="Promote the first bundle: there is none to compare it with.")
    ] = False,
    back: Annotated[bool, typer.Option("--back", help="Return to the bundle before the current one.")] = False,
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who promotes it (default: the user and the host).")] = None,
    public_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Refuse a bundle that is not signed by this key.")
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(
            metavar="[ENTITY/]REGISTRY/NAME",
            help="Link the bundle in this registry of Weights & Biases too, with the alias --to.",
        ),
    ] = None,
) -> None:
    """Make a bundle the champion: DIR/champion points to it, and DIR/promotions.jsonl records why.

    It must have passed `vigil compare` with the current champion, and an experiment on traffic. See docs/experiments.md.
    """
    import getpass
    import socket

    from vigil.workflows.monitor import promotion
    from vigil_data.errors import UserError
    from vigil_data.progress import Progress

    if Path(to).name != to or to.startswith("."):
        raise UserError(f"--to {to}: must be a name such as champion; the folder is given by --models")
    if wandb is not None:
        from vigil.workflows.tracking.registry_link import link_promoted, registry_path

        registry_path(wandb)
    who = by or f"{getpass.getuser()}@{socket.gethostname()}"
    if back:
        given = {
            "BUNDLE": bundle,
            "--comparison": comparison,
            "--experiment": experiment,
            "--without-experiment": without_experiment or None,
            "--without-comparison": without_comparison or None,
            "--public-key": public_key,
        }
        if unused := [name for name, value in given.items() if value is not None]:
            raise UserError(f"--back returns to the bundle before; leave {', '.join(unused)} out")
        made = promotion.promote_back(models, to, by=who)
    elif bundle is None:
        raise UserError("name the bundle to promote, or give --back")
    else:
        with Progress("checking the bundle"):
            made = promotion.promote(
                bundle,
                models,
                to,
                by=who,
                comparison=comparison,
                experiment=experiment,
                without_comparison=without_comparison,
                without_experiment=without_experiment,
                public_key=public_key,
            )
    typer.echo(f"{models / to} -> {made.bundle.path} ({made.bundle.digest[:12]})")
    if made.previous is not None:
        typer.echo(
            f"before: {made.previous.path} ({made.previous.digest[:12]}); `vigil promote --back --models {models}` returns to it"
        )
    typer.echo(f"recorded in {models / promotion.RECORD}; a server of {models / to} loads it on SIGHUP or POST /v1/reload")
    if wandb is not None:
        typer.echo(f"linked as {link_promoted(made, models, wandb)} in W&B")
