"""``training.compile``: what it needs, and all compilation before the first step."""

import logging
import shutil
import time
from contextlib import AbstractContextManager

import torch

from vigil_data.errors import UserError
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_training.checkpoint.rng_state import get_rng_state, set_rng_state

log = logging.getLogger("vigil.train")


def check_compiler() -> None:
    """Check that this machine has the compiler with which torch.compile builds kernels, on the CPU, and their launchers, on GPUs.

    Raises:
        UserError: if there is none.
    """
    if shutil.which("g++") is None:
        raise UserError("training.compile: g++ is not on the PATH of this machine; install it, or set training.compile to false")


def compile_all(
    model: MultimodalModel, device: torch.device, forward_context: AbstractContextManager[None], touch_all: bool
) -> None:
    """Run the forward pass of the model's ``compiler_batches()``, and leave random generators and running statistics unchanged.

    Args:
        model: in training mode, on its device.
        device: that device.
        forward_context: autocast, as in training.
        touch_all: see :meth:`MultimodalModel.forward`.
    """
    start, state = time.monotonic(), get_rng_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with forward_context:
        for batch in model.compiler_batches():
            model(batch.to(device), touch_all=touch_all)
    with torch.no_grad():
        for buffer, value in buffers:
            buffer.copy_(value)
    set_rng_state(state)
    log.info("compiled the encoders in %.0f s", time.monotonic() - start)
