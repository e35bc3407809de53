"""Drift: windows of traffic against a reference, by kind, label and slice, with alarms that may be looked at every day.

Example:
    >>> from vigil_monitoring.drift import DriftSettings, find_drift
    >>> results = find_drift(traffic, reference, DriftSettings(by=("language",)))
    >>> [alarm.sentence for alarm in results.alarms]
"""

from vigil_monitoring.drift.detection import find_drift as find_drift
from vigil_monitoring.drift.results import DriftResults as DriftResults
from vigil_monitoring.drift.settings import DriftSettings as DriftSettings
