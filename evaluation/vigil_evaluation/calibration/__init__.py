"""Calibrated probabilities, conformal prediction and drift.

Example:
    >>> calibrated = fit_calibration(targets_NL, raw_NL, labels, EvaluationSpec())
    >>> probabilities_NL = calibrated.calibration.apply(raw_NL)
    >>> detect_drift(calibrated.reference, new_probabilities_NL).warnings
    []

Applying calibrators and thresholds needs numpy and the standard library alone.
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_evaluation.calibration.calibrators import Calibration as Calibration
    from vigil_evaluation.calibration.calibrators import Calibrator as Calibrator
    from vigil_evaluation.calibration.calibrators import FittedCalibration as FittedCalibration
    from vigil_evaluation.calibration.conformal import ConformalThresholds as ConformalThresholds
    from vigil_evaluation.calibration.conformal import fit_conformal as fit_conformal
    from vigil_evaluation.calibration.conformal import risk_control as risk_control
    from vigil_evaluation.calibration.drift import DriftReference as DriftReference
    from vigil_evaluation.calibration.drift import detect_drift as detect_drift
    from vigil_evaluation.calibration.fit import fit_calibration as fit_calibration
    from vigil_evaluation.calibration.fit import fit_calibrators as fit_calibrators

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Calibration": "vigil_evaluation.calibration.calibrators",
        "Calibrator": "vigil_evaluation.calibration.calibrators",
        "ConformalThresholds": "vigil_evaluation.calibration.conformal",
        "DriftReference": "vigil_evaluation.calibration.drift",
        "FittedCalibration": "vigil_evaluation.calibration.calibrators",
        "detect_drift": "vigil_evaluation.calibration.drift",
        "fit_calibration": "vigil_evaluation.calibration.fit",
        "fit_calibrators": "vigil_evaluation.calibration.fit",
        "fit_conformal": "vigil_evaluation.calibration.conformal",
        "risk_control": "vigil_evaluation.calibration.conformal",
    },
)
