"""Private methods of Lightning 2.6 that the strategies need; no other module of this package uses any."""

from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy


class AnyDeviceDeepSpeedStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy on any device, with a configuration that depends on the model alone.

    Lightning accepts CUDA only, requires each rank to have a device of its own, and adds batch sizes and precision to the
    configuration; the last two cannot be changed without its private methods.
    """

    def make_config(self) -> dict[str, Any]:
        """Return DeepSpeed's configuration; the model is set up by then."""
        raise NotImplementedError

    def setup_environment(self) -> None:
        """Set up as the base classes do, without the check that the accelerator is CUDA."""
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self) -> None:
        """Let DeepSpeed take over the default process group; several ranks may share the CPU."""
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _format_config(self) -> None:
        self.config = self.make_config()
