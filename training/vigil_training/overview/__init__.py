"""Runs as their folders show them, without Weights & Biases and without torch: a list, differences, and a page with curves.

Example:
    >>> runs = read_all([Path("runs")])
    >>> for run in select(runs, where="macro_ap > .8 and state = finished", sort="macro_ap"):
    ...     print(run.path, run.value("macro_ap"))
"""

from typing import TYPE_CHECKING

from vigil_data.lazy import lazy_exports

if TYPE_CHECKING:
    from vigil_training.overview.board import BoardReader as BoardReader
    from vigil_training.overview.board import write_board as write_board
    from vigil_training.overview.differences import compare_runs as compare_runs
    from vigil_training.overview.selection import select as select
    from vigil_training.overview.state import RunState as RunState
    from vigil_training.overview.state import read_state as read_state
    from vigil_training.overview.summary import RunSummary as RunSummary
    from vigil_training.overview.summary import find_runs as find_runs
    from vigil_training.overview.summary import read_all as read_all
    from vigil_training.overview.summary import read_summary as read_summary

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "BoardReader": "vigil_training.overview.board",
        "RunState": "vigil_training.overview.state",
        "RunSummary": "vigil_training.overview.summary",
        "compare_runs": "vigil_training.overview.differences",
        "find_runs": "vigil_training.overview.summary",
        "read_all": "vigil_training.overview.summary",
        "read_state": "vigil_training.overview.state",
        "read_summary": "vigil_training.overview.summary",
        "select": "vigil_training.overview.selection",
        "write_board": "vigil_training.overview.board",
    },
)
