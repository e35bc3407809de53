"""What every exported format is compared with: the trained model's outputs, and the settings that turn outputs into decisions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vigil_data.filesystem import sha256_json
from vigil_data.items import Item
from vigil_data.loading.batch import collate
from vigil_data.specs import Inputs
from vigil_evaluation.calibration.calibrators import Calibration, FittedCalibration
from vigil_evaluation.policy.compiled_policy import CompiledPolicy
from vigil_modeling.multimodal_model import MultimodalModel
from vigil_modeling.safety_model import SafetyModel
from vigil_serving.bundle.load import ExportedModel
from vigil_serving.bundle.metadata import InputSettings, PromptSettings
from vigil_serving.bundle.save import input_settings
from vigil_serving.export.graph_builder import BuiltGraphs
from vigil_serving.export.modules import tokenizer_file
from vigil_serving.export.step_cache import Step, StepCache, items_fingerprint
from vigil_serving.parity.cases import Case, make_cases

REFERENCE = "trained model on the cases"


@dataclass(frozen=True, slots=True)
class DecisionSettings:
    """What turns media into the graphs' inputs, and the graphs' probabilities into decisions.

    Attributes:
        labels: L labels, in the order of every ``[.., L]`` axis.
        inputs: how media are decoded; the tokenizer's path is that of the source.
        thresholds: label to the calibrated probability from which the label is decided.
        calibrated: calibration of the graphs' probabilities.
        policy: the compiled policy, if there is one.
        prompt: how a guard asks; ``None`` for a fusion model.
        spans: the labels with spans.
    """

    labels: tuple[str, ...]
    inputs: InputSettings
    thresholds: Mapping[str, float]
    calibrated: FittedCalibration
    policy: CompiledPolicy | None
    prompt: PromptSettings | None = None
    spans: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Return a digest of the calibration, thresholds and policy."""
        policy = None if self.policy is None else self.policy.to_dict()
        return sha256_json([dict(self.thresholds), self.calibrated.to_dict(), policy])


@dataclass(frozen=True, slots=True)
class Reference:
    """Batches and the raw probabilities that every format is compared with.

    Attributes:
        cases: the batches.
        expected: raw probabilities of each batch, ``[N, L]``.
        steps: steps that computed them.
        spans: log-odds of each batch's spans, see :attr:`.Prediction.spans_STK`; empty without a span head.
    """

    cases: Sequence[Case] = ()
    expected: Sequence[NDArray[np.floating]] = ()
    steps: tuple[Step, ...] = ()
    spans: Sequence[NDArray[np.floating]] = ()

    def __add__(self, other: "Reference") -> "Reference":
        return Reference([*self.cases, *other.cases], [*self.expected, *other.expected], (*self.steps, *other.steps))


def decision_settings(  # noqa: PLR0917 (one for each setting)
    inputs: Inputs,
    labels: tuple[str, ...],
    thresholds: Mapping[str, float],
    calibrated: FittedCalibration | None,
    policy: CompiledPolicy | None,
    prompt: PromptSettings | None = None,
    spans: tuple[str, ...] = (),
) -> DecisionSettings:
    """Complete the settings of an export: a threshold of 0.5 for other labels, and no calibration if none was fitted."""
    return DecisionSettings(
        labels=labels,
        inputs=input_settings(inputs, tokenizer_file(inputs)),
        thresholds={label: float(thresholds.get(label, 0.5)) for label in labels},
        calibrated=calibrated or FittedCalibration(Calibration.identity(labels), None, None),
        policy=policy,
        prompt=prompt,
        spans=spans,
    )


def exported_model(built: BuiltGraphs, settings: DecisionSettings) -> ExportedModel:
    """Return the graphs as a model that can be scored with before it is published."""
    return ExportedModel(
        path=built.folder,
        modalities=built.modalities,
        labels=settings.labels,
        graphs={name: one.graph for name, one in built.graphs.items()},
        variants=built.variants,
        inputs=settings.inputs,
        thresholds=settings.thresholds,
        calibrated=settings.calibrated,
        policy=settings.policy,
        prompt=settings.prompt,
        spans=settings.spans,
    )


def compute_reference(network: MultimodalModel, inputs: Inputs, examples: Sequence[Item], cache: StepCache) -> Reference:
    """Run the trained model on synthetic batches of every presence pattern, on extremes, and on real items.

    Args:
        network: the trained model, in evaluation mode.
        inputs: how its media are decoded.
        examples: real items.
        cache: runs the step.
    """
    with cache.timed("cases"):
        placed = not isinstance(network, SafetyModel) or network.position is not None
        cases = make_cases(inputs, examples, placed=placed)

    def run(to: Path) -> None:
        outputs: dict[str, NDArray[np.floating]] = {}
        spans: dict[str, NDArray[np.floating]] = {}
        for place, case in enumerate(cases):
            cache.progress(REFERENCE, place, len(cases))
            with torch.no_grad():
                prediction = network(collate(case.packed))
            outputs[str(place)] = torch.sigmoid(prediction.logits_NL.float()).numpy()
            if network.spans is not None:
                found = prediction.spans_STK
                spans[str(place)] = np.zeros((0, 0, len(network.span_labels))) if found is None else found.numpy()
        np.savez(to / "expected.npz", allow_pickle=False, **outputs)
        np.savez(to / "spans.npz", allow_pickle=False, **spans)

    step = cache.run(REFERENCE, run, depends_on={"cases": cases_fingerprint(cases)})
    expected, marked = load_arrays(step.folder / "expected.npz", len(cases)), []
    if network.spans is not None:
        marked = load_arrays(step.folder / "spans.npz", len(cases))
    return Reference(cases, expected, (step,), marked)


def cases_fingerprint(cases: Sequence[Case]) -> list[list[str]]:
    """Return the name of each case with a digest of its items."""
    return [[case.name, items_fingerprint(case.items)] for case in cases]


def load_arrays(path: Path, count: int) -> list[NDArray[np.floating]]:
    """Return the arrays of a file that are named ``0`` to ``count - 1``."""
    with np.load(path) as arrays:
        return [arrays[str(place)] for place in range(count)]
