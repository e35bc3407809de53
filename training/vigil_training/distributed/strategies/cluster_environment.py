"""The place of a process in a run, in the form in which Lightning asks for it."""

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment

from vigil_training.distributed.world import World


class WorldEnvironment(ClusterEnvironment):
    """Answers from a :class:`World`; processes were started by srun or by :mod:`vigil_training.distributed.launch`.

    Args:
        world: the place of this process.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def creates_processes_externally(self) -> bool:
        """Always: Lightning starts none."""
        return True

    @property
    def main_address(self) -> str:
        """Of the machine of rank 0."""
        return self._world.address

    @property
    def main_port(self) -> int:
        """At which rank 0 gathers the others."""
        return self._world.port

    @staticmethod
    def detect() -> bool:
        """Never by itself: it is given to the trainer."""
        return False

    def world_size(self) -> int:
        """Ranks in all."""
        return self._world.size

    def set_world_size(self, size: int) -> None:
        """Nothing: the launcher has decided."""

    def global_rank(self) -> int:
        """Of this process."""
        return self._world.rank

    def set_global_rank(self, rank: int) -> None:
        """Nothing: the launcher has decided."""

    def local_rank(self) -> int:
        """Among those of this machine."""
        return self._world.local_rank

    def node_rank(self) -> int:
        """Which machine this is."""
        return self._world.node_rank
