"""State of the process's global random generators as tensors."""

import random
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def get_rng_state() -> dict[str, Tensor]:
    """Return the state of every global generator: Python, NumPy, PyTorch and each GPU.

    Python and NumPy keep the second half of a pair of normal draws. It is saved as float64, so that nothing is rounded, in a
    tensor that is empty if there is none.
    """
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, numpy_gauss = np.random.get_state()  # noqa: NPY002 (libraries draw from the global one)
    state = {
        "python": torch.tensor([version, *internal], dtype=torch.int64),
        "python_gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "numpy_position": torch.tensor([int(position)], dtype=torch.int64),
        "numpy_gauss": torch.tensor([float(numpy_gauss)] if has_gauss else [], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state |= {f"cuda/{n}": device for n, device in enumerate(torch.cuda.get_rng_state_all())}
    return state


def set_rng_state(state: Mapping[str, Tensor]) -> None:
    """Restore a state of :func:`get_rng_state`; generators of GPUs that this machine lacks are ignored."""
    version, *internal = state["python"].tolist()
    random.setstate((version, tuple(internal), _optional(state["python_gauss"])))
    gauss = _optional(state["numpy_gauss"])
    keys = state["numpy"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        ("MT19937", keys, int(state["numpy_position"].item()), int(gauss is not None), gauss or 0.0)
    )
    torch.set_rng_state(state["torch"])
    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda/{n}" in state:
            torch.cuda.set_rng_state(state[f"cuda/{n}"], n)


def _optional(values: Tensor) -> float | None:
    return float(values.item()) if values.numel() else None
