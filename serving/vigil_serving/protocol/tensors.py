"""Tensors of the Open Inference Protocol (KServe V2): one BYTES input of items, three outputs of decisions."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vigil_serving.runtime.decisions import Decision

INPUT = "item"
OUTPUTS: Mapping[str, Literal["BYTES", "FP32"]] = {"probabilities": "FP32", "action": "BYTES", "decision": "BYTES"}
"""Name of each output to its datatype."""


def output_tensors(decisions: Sequence[Decision], labels: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the outputs for N decisions.

    Args:
        decisions: N decisions.
        labels: the bundle's L labels.

    Returns:
        ``probabilities`` float32 ``[N, L]``, NaN for an item that could not be decoded; ``action`` ``[N]`` of UTF-8 bytes, empty
        without a policy; ``decision`` ``[N]``, each decision as JSON bytes.
    """
    rows = [[decision.probabilities.get(label, np.nan) for label in labels] for decision in decisions]
    as_json = [json.dumps(decision.to_dict(), ensure_ascii=False, allow_nan=False).encode() for decision in decisions]
    return {
        "probabilities": np.array(rows, np.float32).reshape(len(decisions), len(labels)),
        "action": np.array([(decision.action or "").encode() for decision in decisions], np.object_),
        "decision": np.array(as_json, np.object_),
    }
