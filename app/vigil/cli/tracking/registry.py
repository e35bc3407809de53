"""`vigil push` and `vigil pull`: bundles and runs in a folder, on the Hugging Face hub or in W&B."""

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("push")(push)
    app.command("pull")(pull)


def push(
    source: Annotated[Path, typer.Argument(metavar="BUNDLE|RUN", help="The bundle, or a finished run.")],
    to: Annotated[str, typer.Argument(metavar="TO", help="hf:ORG/NAME, wandb:[ENTITY/]PROJECT/NAME, or a folder.")],
    *,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository on the hub public (default: private).")] = False,
) -> None:
    """Push a bundle with its card and signature, or a run as its best checkpoint, recipe and evaluations.

    Sends nothing if the same content is there. See docs/registry.md.
    """
    from vigil.workflows.tracking import registry
    from vigil_data.progress import Progress

    with Progress("reading") as progress:
        pushed = registry.push(source, to, public=public, progress=progress)
    typer.echo(f"{pushed.place}: {pushed.version}{'' if pushed.new else ' (already there; nothing was sent)'}")


def pull(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="hf:ORG/NAME[@REVISION], wandb:[ENTITY/]PROJECT/NAME[:VERSION], or a folder.")
    ],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The folder, absent or empty.")],
    *,
    public_key: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Refuse a bundle that is not signed by the holder of this key.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the bundle's golden cases on this machine too, as `vigil verify` does.")
    ] = False,
) -> None:
    """Pull a bundle or a run. Every file is checked before the folder appears; nothing stays of a pull that fails."""
    from vigil.workflows.tracking import registry
    from vigil_data.progress import Progress

    with Progress("fetching") as progress:
        pulled = registry.pull(source, to, public_key=public_key, verify=verify, progress=progress)
    typer.echo(f"{pulled.kind} {to}: {source} at {pulled.version}")
    typer.echo(f"every file is as it was pushed, sha256 of the manifest {pulled.digest}")
    typer.echo(f"next: vigil serve {to}" if pulled.kind == "bundle" else f"next: vigil evaluate {to} --data DATASET")
