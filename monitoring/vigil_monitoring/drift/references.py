"""Parse what traffic is compared with: days of the traffic itself, another log or table of scores, or a bundle."""

import re
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from vigil_data.errors import UserError
from vigil_evaluation.calibration.calibrators import FittedCalibration
from vigil_evaluation.calibration.drift import DriftReference
from vigil_monitoring.traffic import Traffic, open_traffic
from vigil_serving.bundle.manifest import CALIBRATION, is_bundle

_PERIOD = re.compile(r"(\d{4}-\d{2}-\d{2})\.\.(\d{4}-\d{2}-\d{2})")


@dataclass(frozen=True, slots=True)
class ReferenceSource:
    """A reference before it is summarized.

    Attributes:
        name: its description.
        traffic: its decisions; ``None`` for a bundle.
        split: summary of the calibration split of a bundle; ``None`` for traffic.
        period_end: last day, if it is a period of the traffic that is tested.
    """

    name: str
    traffic: Traffic | None
    split: DriftReference | None
    period_end: date | None = None


def open_reference(text: str, traffic: Path, role: str = "live") -> ReferenceSource:
    """Open a reference.

    Args:
        text: ``2026-10-01..2026-10-28`` (days of the traffic, both included), or the path of a traffic log, of a table of scores
            or of a bundle.
        traffic: the traffic that is tested.
        role: role of the decisions.

    Raises:
        UserError: if it is none of these, or the bundle has no reference.
    """
    if (match := _PERIOD.fullmatch(text)) is not None:
        try:
            start, end = date.fromisoformat(match[1]), date.fromisoformat(match[2])
        except ValueError as error:
            raise UserError(f"--reference {text}: {error}") from None
        return ReferenceSource(f"{start} to {end}", open_traffic(traffic, start, end, role), None, end)
    path = Path(text)
    if is_bundle(path):
        split = FittedCalibration.read(path / CALIBRATION).reference
        if split is None:
            raise UserError(f"{path}: has no reference of its calibration split; give a period such as 2026-10-01..2026-10-28")
        return ReferenceSource(f"calibration split of {path}", None, split)
    if not path.exists():
        raise UserError(
            f"--reference {text}: is neither a period such as 2026-10-01..2026-10-28 nor a path of traffic, scores or a bundle"
        )
    return ReferenceSource(str(path), open_traffic(path, role=role), None)
