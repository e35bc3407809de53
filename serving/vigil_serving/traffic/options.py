"""Options of a traffic log, and what its decisions are of; without pyarrow, which only writing needs."""

from dataclasses import dataclass
from typing import Literal

from vigil_data.errors import UserError
from vigil_data.filesystem import StrPath

ITEM_COLUMNS = ("content_type", "language", "market", "author", "thread")
"""Columns of an item that are logged as text if it has them."""
EXPOSURE = "exposure"
"""Column of an item with its views, logged as a number."""
PROBABILITY = "probability."
"""What precedes a label in the name of the column of its calibrated probability."""
OWN_COLUMNS = ["id", "time", "source", "role", "presence", "labels", "action", "review", "reasons", "bundle", "policy", "error"]
"""Columns of the log that are not columns of the item."""

TrafficSource = Literal["serve", "score", "triton"]
Role = Literal["live", "shadow"]

DEFAULT_DAYS = 90
DEFAULT_MAX_BYTES = 64 << 30


@dataclass(frozen=True, slots=True)
class TrafficLogOptions:
    """Where and what to log, and for how long.

    Attributes:
        folder: the log; several processes can write into it.
        columns: further columns of the items to log, as text.
        days: days that are kept, today among them.
        max_bytes: largest size of the log; the oldest files are removed beyond it.

    Raises:
        UserError: if a column is given twice or is one of the log's own.
    """

    folder: StrPath
    columns: tuple[str, ...] = ()
    days: int = DEFAULT_DAYS
    max_bytes: int = DEFAULT_MAX_BYTES

    def __post_init__(self) -> None:
        if not str(self.folder):
            raise UserError("--log: name a folder")
        for place, name in enumerate(self.columns):
            if not name or name in self.columns[:place]:
                raise UserError(f"--log-column {name!r}: give each column once, by its name")
            if name in ITEM_COLUMNS or name == EXPOSURE:
                raise UserError(f"--log-column {name}: is always logged; leave it out")
            if name in OWN_COLUMNS or name.startswith(PROBABILITY):
                raise UserError(f"--log-column {name}: the log has a column of its own with this name; rename the item's column")


@dataclass(frozen=True, slots=True)
class Origin:
    """What made decisions.

    Attributes:
        source: the program.
        role: whether the decisions count, or are those of a second bundle that decides along.
        bundle: digest of the bundle.
        policy: name and version of its policy.
        labels: its labels.
    """

    source: TrafficSource
    role: Role
    bundle: str
    policy: str | None
    labels: tuple[str, ...]
