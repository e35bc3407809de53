"""Calibrators: monotone maps from raw to calibrated probabilities; of the items at 0.3, three in ten are positive.

Applied by the runtime, so this module needs numpy and the standard library alone; fitting is in
:mod:`vigil_evaluation.calibration.fit`. A calibrator never changes the ranking of items. It reads probabilities in float32, the
precision of bundles, so that training, evaluation and serving calibrate the same numbers.

Example:
    >>> calibrated = FittedCalibration.read("runs/demo/calibration.json")
    >>> calibrated.calibration.apply([[0.2, 0.9]])
    array([[0.11, 0.83]])
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vigil_data import json_fields
from vigil_data.errors import UserError
from vigil_data.filesystem import write_json
from vigil_evaluation.calibration.conformal import ConformalThresholds
from vigil_evaluation.calibration.drift import DriftReference

if TYPE_CHECKING:
    from vigil_evaluation.specs import Method

Floats = NDArray[np.float64]

PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "temperature": ("temperature",),
    "platt": ("slope", "intercept"),
    "beta": ("a", "b", "c"),
    "isotonic": ("raw", "calibrated"),
}
"""Parameters of each method, from the simplest method to the most flexible."""

BELOW_FLOAT32 = 2.0**-150
"""Replaces an exact 0: half the smallest float32."""

ABOVE_FLOAT32 = 2.0**-26
"""Replaces 1 - p of an exact 1: numbers that float32 rounds to 1 lie within twice this."""

GRID = 2.0**40
"""Log odds are rounded to multiples of 1 / this, so that an error of the last bit in exp cannot change the ranking."""

MAX_LOG_ODDS = 700.0
"""Largest absolute log odds; exp of more overflows."""


@dataclass(frozen=True, slots=True)
class Calibrator:
    r"""Monotone map of probabilities.

    With :math:`z = \log p - \log(1 - p)` and :math:`\sigma` the logistic function:

    - ``none``: :math:`p`;
    - ``temperature``: :math:`\sigma(z / temperature)` (Guo et al. 2017);
    - ``platt``: :math:`\sigma(slope \cdot z + intercept)` (Platt 1999);
    - ``beta``: :math:`\sigma(a \log p - b \log(1 - p) + c)`, a and b at least 0 (Kull et al. 2017);
    - ``isotonic``: linear between the knots ``raw`` and ``calibrated``, constant beyond the outer ones.

    Attributes:
        method: one of the above.
        parameters: values of the method's :data:`PARAMETERS`.
    """

    method: "Method"
    parameters: Mapping[str, float | list[float]]

    def apply(self, probabilities_N: ArrayLike) -> Floats:
        """Calibrate each item independently of the others in its batch.

        Args:
            probabilities_N: in [0, 1]; NaN for an item without a probability stays NaN.

        Returns:
            In [0, 1], non-decreasing in ``probabilities_N``.

        Raises:
            ValueError: if a probability is outside [0, 1].
        """
        given_N = np.asarray(probabilities_N)
        if ((given_N < 0) | (given_N > 1)).any():
            raise ValueError("probabilities must be in [0, 1]")
        if self.method == "none":
            return given_N.astype(np.float64)
        read_N = np.ascontiguousarray(given_N, np.float32).astype(np.float64)
        if self.method == "isotonic":
            return _between_knots(read_N, np.asarray(self.parameters["raw"]), np.asarray(self.parameters["calibrated"]))
        return logistic(self._log_odds(*log_probabilities(read_N)))

    def _log_odds(self, log_yes_N: Floats, log_no_N: Floats) -> Floats:
        values: dict[str, Any] = dict(self.parameters)
        with np.errstate(over="ignore"):
            if self.method == "beta":
                return np.asarray(values["a"] * log_yes_N - values["b"] * log_no_N + values["c"])
            if self.method == "platt":
                return np.asarray(values["slope"] * (log_yes_N - log_no_N) + values["intercept"])
            return np.asarray((log_yes_N - log_no_N) / values["temperature"])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"method": self.method, "parameters": dict(self.parameters)}

    @classmethod
    def from_dict(cls, value: Any, where: str = "calibrator") -> "Calibrator":
        """Read the JSON form.

        Raises:
            UserError: one line, if it is malformed or would not be monotone.
        """
        read = json_fields.mapping(value, where, ("method", "parameters"))
        if not isinstance(read["method"], str) or read["method"] not in PARAMETERS:
            json_fields.wrong(f"{where}.method", f"must be one of {', '.join(PARAMETERS)}, not {read['method']!r}")
        method = cast("Method", read["method"])
        inside = f"{where}.parameters"
        given = json_fields.mapping(read["parameters"], inside, PARAMETERS[method])
        if method == "isotonic":
            knots = {name: json_fields.numbers(given[name], f"{inside}.{name}", 0, 1) for name in PARAMETERS[method]}
            if problem := _problem_of_knots(**knots):
                json_fields.wrong(inside, problem)
            return cls(method, dict(knots))
        numbers = {name: json_fields.number(given[name], f"{inside}.{name}") for name in PARAMETERS[method]}
        for name in ("temperature", "slope"):
            if name in numbers and numbers[name] <= 0:
                json_fields.wrong(f"{inside}.{name}", f"must be above 0, not {numbers[name]:g}")
        if method == "beta" and (min(numbers["a"], numbers["b"]) < 0 or not numbers["a"] + numbers["b"] > 0):
            json_fields.wrong(inside, "a and b must be at least 0, and one of them above")
        return cls(method, dict(numbers))


IDENTITY = Calibrator("none", {})
"""Returns probabilities unchanged."""


@dataclass(frozen=True, slots=True)
class LabelCalibration:
    """Calibrators of one label.

    Attributes:
        pooled: fitted on all items; applied to every item whose group has no calibrator.
        groups: value of the column (or presence) to its calibrator.
        log_loss: candidate to its cross-validated log loss per item; empty if there were too few items to choose.
        known: known targets that it was fitted on.
        positive: known positives among them; with too few of either class ``pooled`` is ``none``.
    """

    pooled: Calibrator
    groups: Mapping[str, Calibrator]
    log_loss: Mapping[str, float]
    known: int
    positive: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        groups = {value: calibrator.to_dict() for value, calibrator in self.groups.items()}
        counts = {"known": self.known, "positive": self.positive, "log_loss": dict(self.log_loss)}
        return {**counts, "pooled": self.pooled.to_dict(), "groups": groups}

    @classmethod
    def from_dict(cls, value: Any, where: str) -> "LabelCalibration":
        """Read the JSON form.

        Raises:
            UserError: one line, if it is malformed.
        """
        read = json_fields.mapping(value, where, ("known", "positive", "log_loss", "pooled", "groups"))
        groups, losses = (json_fields.mapping(read[name], f"{where}.{name}") for name in ("groups", "log_loss"))
        if unknown := sorted(set(losses) - set(PARAMETERS)):
            json_fields.wrong(f"{where}.log_loss", f"{', '.join(unknown)}: no such method")
        return cls(
            Calibrator.from_dict(read["pooled"], f"{where}.pooled"),
            {name: Calibrator.from_dict(group, f"{where}.groups.{name}") for name, group in groups.items()},
            {name: json_fields.number(loss, f"{where}.log_loss.{name}", 0) for name, loss in losses.items()},
            json_fields.count(read["known"], f"{where}.known"),
            json_fields.count(read["positive"], f"{where}.positive"),
        )


@dataclass(frozen=True, slots=True)
class CalibrationSummary:
    """Summary of one label's calibration, for reports.

    Attributes:
        method: method of the pooled calibrator.
        groups: group to the method of its calibrator.
        log_loss: candidate to its cross-validated log loss on the calibration rows; empty if nothing was chosen.
        known: known targets that it was fitted on.
        positive: known positives among them.
    """

    method: str
    groups: dict[str, str]
    log_loss: dict[str, float]
    known: int
    positive: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Calibrators of all labels of a model.

    Attributes:
        by: the column, or ``presence``, whose values may have their own calibrators; ``None`` for pooled calibrators only.
        labels: label to its calibrators, in the order of every ``[.., L]``.
    """

    by: str | None
    labels: Mapping[str, LabelCalibration]

    @classmethod
    def identity(cls, labels: Sequence[str]) -> "Calibration":
        """Return a calibration that leaves all probabilities unchanged."""
        return cls(None, {label: LabelCalibration(IDENTITY, {}, {}, 0, 0) for label in labels})

    def apply(self, probabilities_NL: ArrayLike, groups_N: Sequence[str | None] | None = None) -> Floats:
        """Calibrate every label.

        Args:
            probabilities_NL: raw, in [0, 1]; NaN stays NaN.
            groups_N: value of ``by`` of each item; the pooled calibrator applies to items whose value is ``None`` or has no
                calibrator, and to all items by default.

        Returns:
            float64 ``[N, L]`` in [0, 1].

        Raises:
            ValueError: if the shapes differ or a probability is outside [0, 1].
        """
        raw_NL = np.asarray(probabilities_NL)
        if raw_NL.ndim != 2 or raw_NL.shape[1] != len(self.labels):
            raise ValueError(f"probabilities {raw_NL.shape} must be [N, {len(self.labels)}], one column for each label")
        own = sorted({value for label in self.labels.values() for value in label.groups})
        codes_N = _codes(groups_N, own, len(raw_NL))
        calibrated_NL = np.empty(raw_NL.shape, np.float64)
        for i, label in enumerate(self.labels.values()):
            calibrated_NL[:, i] = label.pooled.apply(raw_NL[:, i])
            for value, calibrator in label.groups.items():
                rows = np.flatnonzero(codes_N == own.index(value))
                calibrated_NL[rows, i] = calibrator.apply(raw_NL[rows, i])
        return calibrated_NL

    def summaries(self) -> dict[str, CalibrationSummary]:
        """Return the summary of each label, for reports."""
        return {
            name: CalibrationSummary(
                label.pooled.method,
                {value: calibrator.method for value, calibrator in label.groups.items()},
                dict(label.log_loss),
                label.known,
                label.positive,
            )
            for name, label in self.labels.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"by": self.by, "labels": {name: label.to_dict() for name, label in self.labels.items()}}

    @classmethod
    def from_dict(cls, value: Any, where: str = "calibration") -> "Calibration":
        """Read the JSON form.

        Raises:
            UserError: one line, if it is malformed.
        """
        read = json_fields.mapping(value, where, ("by", "labels"))
        by = None if read["by"] is None else json_fields.text(read["by"], f"{where}.by")
        labels = json_fields.mapping(read["labels"], f"{where}.labels")
        return cls(by, {name: LabelCalibration.from_dict(label, f"{where}.labels.{name}") for name, label in labels.items()})


@dataclass(frozen=True, slots=True)
class FittedCalibration:
    """Everything that is fitted on the calibration rows: the file ``calibration.json`` of a run and of a bundle.

    Attributes:
        calibration: calibrators of all labels.
        conformal: thresholds for review and prediction sets, with guarantees; ``None`` if none were fitted.
        reference: distribution of the calibrated probabilities, for the detection of drift; ``None`` if none was kept.
    """

    calibration: Calibration
    conformal: ConformalThresholds | None
    reference: DriftReference | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        conformal, reference = (part and asdict(part) for part in (self.conformal, self.reference))
        return {"calibration": self.calibration.to_dict(), "conformal": conformal, "reference": reference}

    @classmethod
    def from_dict(cls, value: Any, labels: Sequence[str] | None = None) -> "FittedCalibration":
        """Read the JSON form and put its labels into the order of ``labels``.

        Args:
            value: decoded JSON.
            labels: labels that it must have, in the order of every ``[.., L]`` (default: those that it has).

        Raises:
            UserError: one line, if it is malformed or has other labels.
        """
        read = json_fields.mapping(value, "calibration", ("calibration", "conformal", "reference"))
        calibration = Calibration.from_dict(read["calibration"])
        conformal = json_fields.structure(ConformalThresholds | None, read["conformal"], "conformal")
        reference = None if read["reference"] is None else DriftReference.from_dict(read["reference"])
        wanted = tuple(labels) if labels is not None else tuple(calibration.labels)
        for name, part in (("calibration", calibration), ("conformal", conformal), ("reference", reference)):
            if part is not None and set(part.labels) != set(wanted):
                json_fields.wrong(name, f"has the labels {', '.join(part.labels)} instead of {', '.join(wanted)}")
        return cls(
            Calibration(calibration.by, {label: calibration.labels[label] for label in wanted}),
            conformal and conformal.ordered(wanted),
            reference and reference.ordered(wanted),
        )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON form atomically."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def read(cls, path: str | os.PathLike[str], labels: Sequence[str] | None = None) -> "FittedCalibration":
        """Read a file that :meth:`write` wrote.

        Args:
            path: the file.
            labels: labels that it must have (default: any).

        Raises:
            UserError: one line, if it cannot be read, is malformed, or has other labels.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")), labels)
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read as a calibration ({error}); calibrate the run again") from None
        except UserError as error:
            raise UserError(f"{path}: {error}; calibrate the run again") from None


def log_probabilities(probabilities_N: ArrayLike) -> tuple[Floats, Floats]:
    """Return the logarithms of p and of 1 - p, both finite: an exact 0 or 1 counts as closer to it than any other float32.

    Args:
        probabilities_N: in [0, 1]; read in float32.
    """
    read_N = np.ascontiguousarray(probabilities_N, np.float32).astype(np.float64)
    log_yes_N = np.log(np.where(read_N == 0, BELOW_FLOAT32, read_N))
    log_no_N = np.log1p(np.where(read_N == 1, ABOVE_FLOAT32 - 1, -read_N))
    return log_yes_N, log_no_N


def logistic(log_odds_N: Floats) -> Floats:
    """Return probabilities of log odds, non-decreasing; equal where log odds differ by less than 1e-12."""
    rounded_N = np.rint(np.clip(log_odds_N, -MAX_LOG_ODDS, MAX_LOG_ODDS) * GRID) / GRID
    small_N = np.exp(-np.abs(rounded_N))
    return np.asarray(np.where(rounded_N >= 0, 1.0, small_N) / (1 + small_N))


def _between_knots(read_N: Floats, raw_K: Floats, calibrated_K: Floats) -> Floats:
    """Interpolate linearly between knots; np.interp may overshoot a knot by a rounding error and so change the ranking."""
    if len(raw_K) == 1:
        return np.asarray(np.where(np.isnan(read_N), np.nan, calibrated_K[0]))
    left_N = np.clip(np.searchsorted(raw_K, read_N, side="right") - 1, 0, len(raw_K) - 2)
    (from_N, to_N), (low_N, high_N) = ((knots_K[left_N], knots_K[left_N + 1]) for knots_K in (raw_K, calibrated_K))
    along_N = (np.clip(read_N, from_N, to_N) - from_N) / (to_N - from_N)
    return np.asarray(np.minimum(low_N + along_N * (high_N - low_N), high_N))


def _problem_of_knots(raw: list[float], calibrated: list[float]) -> str | None:
    if not raw or len(raw) != len(calibrated):
        return f"has {len(raw)} raw and {len(calibrated)} calibrated knots; there must be equally many, at least one"
    if any(left >= right for left, right in pairwise(raw)):
        return "the raw knots must increase"
    if any(left > right for left, right in pairwise(calibrated)):
        return "the calibrated knots must not decrease"
    return None


def _codes(groups_N: Sequence[str | None] | None, values: Sequence[str], items: int) -> NDArray[np.int64]:
    """Return the index of each item's group in ``values``; -1 for those without."""
    if groups_N is None or not values:
        return np.full(items, -1)
    if len(groups_N) != items:
        raise ValueError(f"{len(groups_N)} groups were given for {items} items")
    places = {value: i for i, value in enumerate(values)}
    return np.fromiter((-1 if value is None else places.get(value, -1) for value in groups_N), np.int64, items)
