"""Options of the traffic log, which `vigil serve`, `vigil score` and `vigil triton` share."""

from pathlib import Path
from typing import Annotated

import typer

from vigil_data.errors import UserError
from vigil_serving.traffic.options import DEFAULT_DAYS, DEFAULT_MAX_BYTES, TrafficLogOptions

LogOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Log the decisions as Parquet by day, without content (`vigil monitor traffic DIR`)."),
]
LogColumnOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="Further column of the items to log, as text; content_type, language, market, author, thread and exposure are "
        "always logged. Repeatable.",
    ),
]
LogDaysOption = Annotated[int, typer.Option(min=1, help="Days of the log that are kept.")]
LogMaxBytesOption = Annotated[
    int, typer.Option(min=1 << 20, help="Largest size of the log; the oldest files are removed beyond it.")
]


def log_options(
    log: Path | None, columns: list[str] | None, days: int = DEFAULT_DAYS, max_bytes: int = DEFAULT_MAX_BYTES
) -> TrafficLogOptions | None:
    """Return the options of the traffic log.

    Raises:
        UserError: if its other options are given without a folder, or a column cannot be logged.
    """
    if log is not None:
        return TrafficLogOptions(log, tuple(columns or ()), days, max_bytes)
    for name, given in (
        ("--log-column", bool(columns)),
        ("--log-days", days != DEFAULT_DAYS),
        ("--log-max-bytes", max_bytes != DEFAULT_MAX_BYTES),
    ):
        if given:
            raise UserError(f"{name}: needs --log DIR")
    return None
