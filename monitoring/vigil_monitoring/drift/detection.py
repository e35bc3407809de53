"""Detection of drift: all streams of all windows against the reference, with one rate of false alarms over all looks.

The result is a function of the traffic, the reference and the settings: nothing is kept between looks, and looking every day is
the same as looking once at all days, since a stream alarms on the first day on which its evidence is large enough and stays
alarmed.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vigil_data.errors import UserError
from vigil_monitoring.drift.alarms import Tests, calibration_alarms, stream_alarms
from vigil_monitoring.drift.calibration import MIN_REVIEWS, CalibrationStream, ReviewedItems, calibration_evidence
from vigil_monitoring.drift.prevalence import label_shifts
from vigil_monitoring.drift.references import ReferenceSource
from vigil_monitoring.drift.results import KINDS, DriftKind, DriftResults, KindResults
from vigil_monitoring.drift.settings import DriftSettings
from vigil_monitoring.drift.streams import Stream, build_streams, stream_arrays
from vigil_monitoring.drift.summaries import ALL, summarize, summary_plan
from vigil_monitoring.drift.windows import Comparison, Reference, calibration_split, days_between, weekdays_of, windows_of
from vigil_monitoring.sequential.e_process import ChangeEvidence, ever_p, first_alarms, shift_evidence
from vigil_monitoring.traffic import Traffic

Floats = NDArray[np.float64]
Progress = Callable[[str, int, int | None], None]


def find_drift(
    traffic: Traffic,
    source: ReferenceSource,
    settings: DriftSettings,
    *,
    start: date | None = None,
    end: date | None = None,
    reviewed: ReviewedItems | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> DriftResults:
    """Compare windows of traffic with a reference.

    Args:
        traffic: the decisions, of any period.
        source: the reference.
        settings: what is compared, and how sure an alarm must be.
        start: first day that is tested (default: the day after the reference, or the first of the traffic).
        end: last day that is tested (default: the day before the newest one, which may be incomplete).
        reviewed: reviewed items, for calibration.
        cache: folder of daily summaries, for logs.
        progress: called with the rows read.

    Raises:
        UserError: if the settings are wrong, no window is left to test, or no label is in both.
    """
    check_settings(settings)
    compared = compare(traffic, source, settings, start=start, end=end, cache=cache, progress=progress)
    streams = build_streams(compared.reference, compared.windows, compared.plan, compared.notes)
    return detect(traffic, compared, streams, settings, reviewed)


def check_settings(settings: DriftSettings) -> None:
    """Raise UserError if a setting is out of its range."""
    if not settings.smallest > 1:
        raise UserError(
            f"smallest {settings.smallest:g}: must be a factor above 1, such as 1.25 for a change of the odds by a quarter"
        )
    if not 0 < settings.alpha < 1:
        raise UserError(f"alpha {settings.alpha:g}: must be between 0 and 1, such as 0.05")


def compare(
    traffic: Traffic,
    source: ReferenceSource,
    settings: DriftSettings,
    *,
    start: date | None,
    end: date | None,
    cache: Path | None,
    progress: Progress | None,
) -> Comparison:
    """Summarize the reference and the days that are tested."""
    first = start or (traffic.days[0] if source.period_end is None else source.period_end + timedelta(days=1))
    last = end or (traffic.days[-1] if traffic.assumed_day is not None else traffic.days[-1] - timedelta(days=1))
    if source.period_end is not None and first <= source.period_end:
        raise UserError(f"the tested days start on {first}, within the reference {source.name}; start later")
    if last < first:
        raise UserError(
            f"{traffic.path}: has no day to test after {first - timedelta(days=1)}: its days are {traffic.days[0]} to "
            f"{traffic.days[-1]}, and the newest one may be incomplete; name it by --until to test it"
        )
    known = source.traffic.labels if source.traffic is not None else tuple(source.split.labels) if source.split else ()
    labels = [label for label in traffic.labels if label in known]
    notes = []
    if not labels:
        raise UserError(
            f"{traffic.path} has the labels {', '.join(traffic.labels)}, the reference {', '.join(known)}: none in common"
        )
    if apart := [*(label for label in traffic.labels if label not in known), *(label for label in known if label not in labels)]:
        notes.append(f"labels that only the traffic or the reference has: {', '.join(apart)}")
    edges = {label: source.split.labels[label].edges for label in labels} if source.split is not None else None
    plan = summary_plan(labels, settings.by, edges)
    if source.traffic is not None:
        days = days_between(source.traffic.days[0], source.traffic.days[-1])
        summaries = summarize(source.traffic, plan, days, cache=cache, progress=progress)
        reference = Reference(source.name, windows_of(summaries, settings.window))
    else:
        assert source.split is not None
        reference = calibration_split(source.split, plan, source.name)
        notes.append(
            "a calibration split has no days: it counts as one window, and only scores and presence are compared with it"
        )
    if not reference.windows:
        raise UserError(f"the reference {source.name} has no complete week; give a longer one, or test days")
    windows = windows_of(summarize(traffic, plan, days_between(first, last), cache=cache, progress=progress), settings.window)
    if not windows:
        raise UserError(f"{traffic.path}: has no complete week from {first} to {last}; test days, or wait")
    if reference.is_traffic and len(reference.windows) < 14 and settings.window == "day":
        length = "1 day" if len(reference.windows) == 1 else f"{len(reference.windows)} days"
        notes.append(f"the reference has {length}: with fewer than two of each weekday, the weekly cycle counts as chance")
    return Comparison(reference, windows, plan, notes)


def detect(
    traffic: Traffic, compared: Comparison, streams: Sequence[Stream], settings: DriftSettings, reviewed: ReviewedItems | None
) -> DriftResults:
    """Test the streams and the calibration, and describe each alarm."""
    windows = compared.windows
    calibrated: list[CalibrationStream] = []
    evidence = None
    if reviewed is not None:
        calibrated, evidence = calibration_evidence(reviewed, windows, settings.smallest)
        if not calibrated:
            compared.notes.append(f"calibration: no label has {MIN_REVIEWS} reviewed items in the tested windows")
    tests = run_tests(compared, streams, settings, calibrated, evidence)
    alarms = stream_alarms(traffic, compared, streams, tests, settings.window)
    if reviewed is not None:
        alarms += calibration_alarms(reviewed, calibrated, windows, tests)
    alarms.sort(key=lambda alarm: (alarm.p_value, KINDS.index(alarm.kind), alarm.slice))
    found = Counter(alarm.kind for alarm in alarms)
    by_kind = [
        KindResults(kind, len(at), found[kind], tests.p_TK[:, at].min(axis=1).tolist())
        for kind in KINDS
        if (at := [k for k, each in enumerate(tests.kinds) if each == kind])
    ]
    return DriftResults(
        compared.reference.name,
        settings.window,
        [window.start.isoformat() for window in windows],
        windows[-1].end.isoformat(),
        [window.summary.items for window in windows],
        settings.smallest,
        settings.alpha,
        by_kind,
        alarms,
        label_shifts(compared, streams),
        compared.notes,
    )


def run_tests(
    compared: Comparison,
    streams: Sequence[Stream],
    settings: DriftSettings,
    calibrated: Sequence[CalibrationStream] = (),
    calibration: ChangeEvidence | None = None,
) -> Tests:
    """Test all streams, and those of calibration behind them, at one rate of false alarms.

    Args:
        compared: reference and windows.
        streams: K streams.
        settings: the negligible change, and the rate.
        calibrated: C labels and slices whose calibration is tested.
        calibration: its evidence, ``[T, 2 C]``.
    """
    references = len(compared.reference.windows)
    arrays = stream_arrays(streams, references, settings.smallest)
    evidence = shift_evidence(
        arrays.values_NK.reshape(references + len(compared.windows), -1),
        references,
        group_N=np.array(weekdays_of(compared.reference.windows, compared.windows, settings.window), np.int64),
        weights_NK=arrays.weights_NK.reshape(references + len(compared.windows), -1),
        band_2K=arrays.band_2K,
        least_variance_K=arrays.least_variance_K,
    )
    kinds: list[DriftKind] = [stream.kind for stream in streams]
    slices = [stream.slice_name for stream in streams]
    if calibration is not None:
        evidence = ChangeEvidence(*(np.concatenate(pair, axis=1) for pair in zip(evidence, calibration, strict=True)))
        kinds += ["calibration"] * (2 * len(calibrated))
        slices += [each.slice_name for each in calibrated for _ in range(2)]
    shares_K = alpha_shares(kinds, slices)
    first_K = first_alarms(evidence.log_e, shares_K, settings.alpha)
    return Tests(evidence, first_K, np.minimum(ever_p(evidence.log_e) / shares_K, 1.0), kinds)


def alpha_shares(kinds: Sequence[DriftKind], slices: Sequence[str]) -> Floats:
    """Return the share of alpha of each stream: equal ones for each kind, half of each for all items and half for the slices."""
    groups = [(kind, name == ALL) for kind, name in zip(kinds, slices, strict=True)]
    sizes, present = Counter(groups), Counter(kind for kind, _ in set(groups))
    return np.array([1.0 / (len(present) * present[group[0]] * sizes[group]) for group in groups])
