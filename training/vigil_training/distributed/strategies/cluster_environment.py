"""Lightning's cluster environment for a :class:`World`."""

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from vigil_training.distributed.world import World


class WorldEnvironment(ClusterEnvironment):
    """Ranks that srun or :mod:`vigil_training.distributed.launch` has started.

    Args:
        world: position of this process.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def creates_processes_externally(self) -> bool:
        """True: Lightning starts no processes."""
        return True

    @property
    def main_address(self) -> str:
        """Address of rank 0's machine."""
        return self._world.address

    @property
    def main_port(self) -> int:
        """Port on which rank 0 accepts the others."""
        return self._world.port

    @staticmethod
    def detect() -> bool:
        """False: the environment is passed to the trainer, never detected."""
        return False

    def world_size(self) -> int:
        """Return the number of ranks."""
        return self._world.size

    def set_world_size(self, size: int) -> None:
        """Ignore the size: the launcher has decided."""

    def global_rank(self) -> int:
        """Return the rank of this process."""
        return self._world.rank

    def set_global_rank(self, rank: int) -> None:
        """Ignore the rank: the launcher has decided."""

    def local_rank(self) -> int:
        """Return the rank within this machine."""
        return self._world.local_rank

    def node_rank(self) -> int:
        """Return the index of this machine."""
        return self._world.node_rank
