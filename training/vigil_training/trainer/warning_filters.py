"""Warnings of Lightning and torch that are expected in training, each with the reason why it is ignored."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_EXPECTED = (
    # The recipe names the number of workers.
    r"The '.*_dataloader' does not have many workers",
    # MetricsCallback writes the metrics, not Lightning's logging interval.
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    # Frozen encoders stay in evaluation mode.
    r"Found \d+ module\(s\) in eval mode at the start of training",
    # A resumed run continues in its folder.
    r"Checkpoint directory .* exists and is not empty",
    # The recipe may say training.accelerator: cpu.
    r"GPU available but not used",
    # `vigil submit` uses srun; a login node has it too.
    r"The `srun` command is available on your system but is not used",
    # Convolutions of one pixel; the cost is a copy at most.
    r"Grad strides do not match bucket view strides",
    # No module changes the output of a unit of FSDP2 in place.
    r"FSDP2-wrapped module \(\w+\) returned a view tensor",
    # Lightning 2.6 calls what torch 2.14 deprecates.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


@contextmanager
def ignore_expected_warnings() -> Iterator[None]:
    """Ignore these warnings, and Lightning's log below errors, while the block runs."""
    lightning = logging.getLogger("lightning.pytorch")
    level = lightning.level
    lightning.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        lightning.setLevel(level)
