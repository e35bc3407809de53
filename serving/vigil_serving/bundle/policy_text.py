"""Policy texts in place of those that a guard was exported with, and what is known of the guard under them.

A guard reads its policy, so the policy can change without training. What was measured stays with the text: evaluation,
calibration and threshold belong to a label and the SHA-256 of its text. A file of texts is either a taxonomy in YAML, whose
texts are not evaluated, or the ``policy_text.json`` that ``vigil evaluate BUNDLE --policy-text`` writes: the texts with what was
measured.

Example:
    >>> bundle = load_bundle("bundles/guard")
    >>> bundle = with_policy_text(bundle, read_measured_text("evaluation/policy_text.json"))
    >>> bundle.not_evaluated
    ('harassment',)
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath, sha256_json, write_json
from vigil_data.json_fields import Count, Range
from vigil_data.prompts.assemble import content_room
from vigil_data.prompts.clauses import digest_of, make_clause
from vigil_data.prompts.tokenizer import PromptTokenizer
from vigil_evaluation.calibration.calibrators import IDENTITY, Calibration, FittedCalibration, LabelCalibration
from vigil_serving.bundle.load import Bundle
from vigil_serving.bundle.metadata import PromptSettings

POLICY_TEXT = "policy_text.json"
"""File in the folder of an evaluation."""
UNCALIBRATED_THRESHOLD = 0.5
"""Threshold of a label whose text has none of its own: the more probable answer decides."""


@dataclass(frozen=True, slots=True)
class TextEvaluation:
    """What an evaluation measured of one label under its text.

    Attributes:
        dataset: path and version of the dataset.
        split: split of the dataset.
        known: items whose target is known.
        positive: those to which the label applies.
        average_precision: average precision on these items.
        auroc: area under the ROC curve on these items.
    """

    dataset: str
    split: str
    known: Count
    positive: Count
    average_precision: Annotated[float, Range(0, 1)]
    auroc: Annotated[float, Range(0, 1)]


@dataclass(frozen=True, slots=True)
class LabelText:
    """Policy text of one label, and what was measured with it.

    Attributes:
        text: what the model reads.
        evaluation: result of ``vigil evaluate``; ``None`` if the text was not evaluated.
        calibration: JSON form of the label's :class:`.LabelCalibration`; ``None`` if its probabilities are not calibrated.
        threshold: probability from which the label is decided; ``None`` without a calibration.
    """

    text: str
    evaluation: TextEvaluation | None = None
    calibration: Mapping[str, Any] | None = None
    threshold: Annotated[float, Range(0, 1)] | None = None


@dataclass(frozen=True, slots=True)
class PolicyText:
    """Policy texts of some or all labels of a guard.

    Attributes:
        labels: label to its text; other labels keep the text of the bundle.
        bundle: digest of the bundle that was evaluated; ``None`` if nothing was.
        calibrated_by: column whose values have their own calibrators, or ``presence``.
        format: version of the file.
    """

    labels: Mapping[str, LabelText]
    bundle: str | None = None
    calibrated_by: str | None = None
    format: Literal[1] = 1

    @property
    def digest(self) -> str:
        """SHA-256 of the texts and of what was measured with them."""
        return sha256_json(asdict(self))

    def write(self, path: StrPath) -> None:
        """Write the JSON form atomically."""
        write_json(Path(path), asdict(self))


def read_measured_text(path: StrPath) -> PolicyText:
    """Read the ``policy_text.json`` of an evaluation.

    Raises:
        UserError: if it cannot be read or is malformed.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); a taxonomy with policy texts ends in .yaml") from None
    try:
        found: PolicyText = json_fields.structure(PolicyText, content, "policy text")
        for name, label in found.labels.items():
            if label.calibration is not None:
                LabelCalibration.from_dict(label.calibration, f"labels.{name}.calibration")
    except UserError as error:
        raise UserError(f"{path}: {error}; write it with `vigil evaluate BUNDLE --policy-text`") from None
    return found


def with_policy_text(bundle: Bundle, policy_text: PolicyText) -> Bundle:
    """Return a guard's bundle that decides under other policy texts.

    A label whose text is that of the bundle is unchanged. Any other has the calibration and threshold of its new text; without
    them its probability is the guard's own, and :data:`UNCALIBRATED_THRESHOLD` decides.

    Raises:
        UserError: if the bundle is not a guard, lacks a label, is not the one that was evaluated, or a text is too long for its
            context.
    """
    prompt = prompt_of(bundle)
    _check(bundle, policy_text)
    tokenizer = PromptTokenizer(Path(str(bundle.inputs.text and bundle.inputs.text.tokenizer)).read_text(encoding="utf-8"))
    changed = {
        name: label
        for name, label in policy_text.labels.items()
        if digest_of(label.text) != next(clause.digest for clause in prompt.clauses if clause.label == name)
    }
    clauses = tuple(
        make_clause(clause.label, changed[clause.label].text, tokenizer.text) if clause.label in changed else clause
        for clause in prompt.clauses
    )
    content_room(prompt.pieces, clauses)
    calibration = bundle.calibrated.calibration
    labels = {name: _calibration(changed[name]) if name in changed else own for name, own in calibration.labels.items()}
    thresholds = {
        name: _threshold(changed[name].threshold) if name in changed else own for name, own in bundle.thresholds.items()
    }
    return replace(
        bundle,
        prompt=replace(prompt, clauses=clauses),
        # Conformal thresholds and the reference for drift were fitted under the former texts.
        calibrated=FittedCalibration(Calibration(calibration.by, labels), None, None) if changed else bundle.calibrated,
        thresholds=thresholds,
        not_evaluated=tuple(name for name in bundle.labels if name in changed and changed[name].evaluation is None),
        uncalibrated=tuple(name for name in bundle.labels if name in changed and changed[name].calibration is None),
    )


def prompt_of(bundle: Bundle) -> PromptSettings:
    """Return how a guard asks.

    Raises:
        UserError: if the bundle is not a guard.
    """
    if bundle.prompt is None:
        raise UserError(f"{bundle.path}: the model reads no policy text, so it cannot be given another; only a guard can")
    return bundle.prompt


def _check(bundle: Bundle, policy_text: PolicyText) -> None:
    if unknown := [name for name in policy_text.labels if name not in bundle.labels]:
        raise UserError(
            f"policy text: the bundle has no label {', '.join(unknown)}; its labels are {', '.join(bundle.labels)}. "
            "A new label needs a new bundle"
        )
    if empty := [name for name, label in policy_text.labels.items() if not label.text.strip()]:
        raise UserError(f"policy text: the text of {', '.join(empty)} is empty")
    if policy_text.bundle is not None and policy_text.bundle != bundle.digest:
        raise UserError(
            f"policy text: it was evaluated with the bundle {policy_text.bundle[:12]}, not with {bundle.digest[:12]}; "
            "evaluate it with this bundle"
        )
    by = bundle.calibrated.calibration.by
    grouped = [name for name, label in policy_text.labels.items() if label.calibration is not None]
    if grouped and policy_text.calibrated_by != by:
        raise UserError(f"policy text: calibrated by {policy_text.calibrated_by}, the bundle by {by}; evaluate it again")


def _calibration(label: LabelText) -> LabelCalibration:
    if label.calibration is None:
        return LabelCalibration(IDENTITY, {}, {}, 0, 0)
    return LabelCalibration.from_dict(label.calibration, "calibration")


def _threshold(value: float | None) -> float:
    return UNCALIBRATED_THRESHOLD if value is None else value
