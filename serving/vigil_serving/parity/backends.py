"""The forms of an exported model, each as a function from a case to probabilities: what the gate and ``vigil verify`` compare."""

from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from vigil_data.items import Modality
from vigil_serving.bundle.load import Bundle
from vigil_serving.parity.cases import Case
from vigil_serving.parity.compare import Form, NamedForm, tensors
from vigil_serving.runtime.onnx_sessions import open_session, open_sessions, run
from vigil_serving.runtime.scorer import Scorer

BFLOAT16 = ".bf16"
"""Ends the names of ``torch.export`` programs in bfloat16."""


def forms(bundle: Bundle) -> Iterator[NamedForm]:
    """Load each form of a bundle in turn; those that need torch only where it is installed.

    Args:
        bundle: the bundle, or one in the making whose graphs are written.
    """
    graphs = bundle.signature.graphs
    scorer = Scorer(bundle, cache_bytes=0)
    yield NamedForm("ONNX, graph by graph", "fp32", lambda case: run(scorer.sessions, case.packed).probabilities_NL)
    yield NamedForm("runtime, from bytes", "fp32", lambda case: scorer.raw_probabilities(case.items))
    if "model" in graphs:
        single = open_session(bundle.graph("model"))
        yield NamedForm(
            "ONNX, single graph",
            "fp32",
            lambda case: np.asarray(single.run(["probabilities"], tensors(case.packed, graphs["model"].inputs))[0]),
        )
    for variant in bundle.signature.variants:
        if variant != "fp32":
            yield NamedForm(f"ONNX, {variant}", variant, _variant(bundle, variant))
    if find_spec("torch") is not None:
        if "torchscript" in graphs:
            yield NamedForm("TorchScript", "fp32", _torchscript(bundle))
        for ending, name, variant in (("", "torch.export", "fp32"), (BFLOAT16, "torch.export, bf16", "bf16")):
            if archive(bundle.signature.modalities[0]) + ending in graphs:
                yield NamedForm(name, variant, _torch_export(bundle, ending))


def archive(part: str) -> str:
    """Name of the ``torch.export`` program of a modality or of the fusion, among a bundle's graphs."""
    return f"torch_export.{part}"


def _variant(bundle: Bundle, variant: str) -> Form:
    sessions = open_sessions(bundle, variant=variant)
    return lambda case: run(sessions, case.packed).probabilities_NL


def _torchscript(bundle: Bundle) -> Form:
    import torch

    from vigil_serving.export.torchscript import load

    module = load(bundle.graph("torchscript"))
    inputs = bundle.signature.graphs["torchscript"].inputs

    def probabilities(case: Case) -> NDArray[np.floating]:
        with torch.no_grad():
            found: torch.Tensor = module(*(torch.from_numpy(array) for array in tensors(case.packed, inputs).values()))[0]
        return np.asarray(found.numpy())

    return probabilities


def _torch_export(bundle: Bundle, ending: str) -> Form:
    from vigil_serving.export.torch_export import load, probabilities

    modalities = bundle.signature.modalities
    encoders = {m: load(bundle.graph(archive(m) + ending)) for m in modalities}
    fusion = load(bundle.graph(archive("fusion")))
    taken = bundle.signature.graphs[archive("fusion")].inputs

    def tokens(modality: Modality) -> tuple[int, int]:
        _, per_segment, width = taken[f"{modality}_tokens"].shape
        return int(per_segment), int(width)

    shapes = {m: tokens(m) for m in modalities}
    return lambda case: probabilities(encoders, fusion, case.packed, shapes)
