"""The option ``--ray`` of commands that can work on many machines."""

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from vigil_data.parallel.ray_cluster import RayCluster

Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help="Work on a Ray cluster: HOST:PORT, auto on one of its nodes, or local for a new one here (default: no cluster).",
    ),
]


def cluster_at(address: str | None) -> "AbstractContextManager[RayCluster | None]":
    """Return the context in which a cluster is connected; without an address there is none."""
    if address is None:
        return nullcontext()
    from vigil_data.parallel.ray_cluster import connected

    return connected(address)
