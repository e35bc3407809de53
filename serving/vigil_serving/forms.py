"""The forms of an exported model, each as a function from a case to probabilities: what the gate and ``vigil verify`` compare."""

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from vigil_serving.bundle import Bundle
from vigil_serving.cases import Case
from vigil_serving.parity import Form, tensors
from vigil_serving.runtime import Scorer
from vigil_serving.sessions import open_session, run


def forms(bundle: Bundle) -> Iterator[tuple[str, Form]]:
    """Load each form of a bundle in turn; TorchScript only where torch is installed.

    Args:
        bundle: the bundle, or one in the making whose graphs are written.
    """
    scorer = Scorer(bundle, cache_bytes=0)
    yield "ONNX, graph by graph", lambda case: run(scorer.sessions, case.packed).probabilities_NL
    yield "runtime, from bytes", lambda case: scorer.raw_probabilities(case.items)
    single = open_session(bundle.graph("model"))
    single_inputs = bundle.signature.graphs["model"].inputs
    yield "ONNX, single graph", lambda case: np.asarray(single.run(["probabilities"], tensors(case.packed, single_inputs))[0])
    if find_spec("torch") is not None:
        yield "TorchScript", _torchscript(bundle)


def _torchscript(bundle: Bundle) -> Form:
    import torch

    from vigil_serving.torchscript import load

    module = load(bundle.graph("torchscript"))
    inputs = bundle.signature.graphs["torchscript"].inputs

    def probabilities(case: Case) -> NDArray[np.floating]:
        with torch.no_grad():
            found: torch.Tensor = module(*(torch.from_numpy(array) for array in tensors(case.packed, inputs).values()))[0]
        return np.asarray(found.numpy())

    return probabilities
