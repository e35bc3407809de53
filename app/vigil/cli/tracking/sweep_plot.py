"""`vigil sweep plot`: a sweep as one page."""

from pathlib import Path
from typing import Annotated

import typer


def plot(
    sweep: Annotated[Path, typer.Argument(metavar="SWEEPDIR", help="A sweep folder.")],
    to: Annotated[Path | None, typer.Option(help="HTML file (default: SWEEPDIR/sweep.html).", metavar="FILE")] = None,
) -> None:
    """Write a page about a sweep: history, importances, parallel coordinates, every parameter, and a table of the trials.

    One file, which loads nothing from the network. It may be written at any time while the sweep runs; nothing else is changed.
    """
    from vigil_training.sweeps.report import write_sweep_page
    from vigil_training.sweeps.report.folder_view import read_view
    from vigil_training.sweeps.sweep_folder import SweepFolder

    folder = SweepFolder(sweep)
    page = to or folder.path / "sweep.html"
    write_sweep_page(read_view(folder), page)
    typer.echo(f"wrote {page}")
