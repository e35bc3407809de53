"""Arguments and options that several commands of `vigil monitor` share."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

TrafficPath = Annotated[
    Path, typer.Argument(metavar="TRAFFIC", help="A traffic log, or Parquet of any model's scores: a table, or a folder of them.")
]
From = Annotated[
    datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], metavar="DATE", help="First day, UTC (default: the first one).")
]
Until = Annotated[
    datetime | None,
    typer.Option("--until", formats=["%Y-%m-%d"], metavar="DATE", help="Last day, included (default: the last one)."),
]
ExposureFile = Annotated[
    Path | None,
    typer.Option("--exposure", metavar="FILE", help="Parquet or CSV of id and exposure, in place of the traffic's."),
]
PolicyVersion = Annotated[
    str | None, typer.Option(metavar="VERSION", help="Refuse decisions under another version of the content policy.")
]
ResultFile = Annotated[
    Path | None, typer.Option("--to", metavar="FILE.json", help="Write the result there, for `vigil monitor report`.")
]
