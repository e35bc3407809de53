"""RandAugment by torchvision, with draws that leave torch's global generator as it was."""

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from vigil_data.augmentation.specs import RandAugment

GREY = 128
"""Level of pixels that an operation moves in from outside the image."""


def rand_augment(pixels_CHW: NDArray[np.uint8], spec: RandAugment, seed: int) -> NDArray[np.uint8]:
    """Return an image after ``spec.operations`` random operations (Cubuk et al. 2020, section 3).

    Args:
        pixels_CHW: uint8 RGB ``[3, H, W]``.
        spec: number and strength of the operations.
        seed: determines all draws.
    """
    transform = v2.RandAugment(spec.operations, spec.magnitude, fill=GREY)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed GPUs too
        changed: torch.Tensor = transform(torch.from_numpy(pixels_CHW.copy()))
    return np.ascontiguousarray(changed.numpy())
