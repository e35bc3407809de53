"""Connection to a Ray cluster, for preparation of data and for batch scoring.

Example:
    >>> with connected("head:6379") as cluster:
    ...     clustering = find_clusters(Dataset("datasets/posts"), cluster=cluster)
"""

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from vigil_data.errors import Failure, UserError

LOCAL = "local"
"""Address with which a new cluster is started on this machine, for as long as it is connected."""

OBJECT_STORE_BYTES = 256 << 20
"""Size of the object store of a local cluster, which holds a few results at a time."""


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A cluster that this process is connected to.

    Attributes:
        ray: the package.
    """

    ray: Any

    def cpus(self) -> list[int]:
        """Return the number of CPUs of each node."""
        return [int(node["Resources"].get("CPU", 0)) for node in self.ray.nodes() if node["Alive"]]


@contextmanager
def connected(address: str) -> Iterator[RayCluster]:
    """Connect to a cluster, or start one on this machine; a connection that exists is used and kept.

    Args:
        address: ``HOST:PORT`` or ``ray://HOST:PORT``; ``auto``, the cluster that this machine is a node of (or ``RAY_ADDRESS``);
            or :data:`LOCAL`.

    Raises:
        UserError: if Ray is not installed, or no cluster answers.
        Failure: if Ray cannot start on this machine.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no report leaves the machine
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # errors are reported below, in one line
    try:
        import ray
    except ImportError:
        raise UserError(f"--ray {address}: Ray is not installed; pip install 'vigil[ray]'") from None
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or address
    _check_reachable(address)
    if ray.is_initialized():
        yield RayCluster(ray)
        return
    alone: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES} if address == LOCAL else {}
    try:
        with warnings.catch_warnings():
            # Ray forks only to execute another program, which uses no dataset.
            warnings.filterwarnings("ignore", message="lance is not fork-safe")
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **alone)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if address == LOCAL:
            raise Failure(f"Ray cannot start on this machine: {reason}") from None
        raise UserError(f"--ray {address}: no cluster answers: {reason}") from None
    try:
        yield RayCluster(ray)
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would retry for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon:
        if address not in (LOCAL, "auto"):
            raise UserError(f"--ray {address}: must be HOST:PORT, auto or {LOCAL}")
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(f"--ray {address}: no cluster answers: {error}") from None
