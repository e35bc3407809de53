"""Selection of runs by a condition, and their order.

A condition is SQL over columns, as `--where` of other commands; SQLite evaluates it: ``macro_ap > .8 and state = finished``.
A run without a value for a column meets no comparison with it.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

from vigil_data.errors import UserError, one_line
from vigil_data.yaml_files.yaml_tree import nearest
from vigil_training.overview.summary import COLUMNS, RunSummary

_TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*')|(?P<quoted>"(?:[^"]|"")*"|`[^`]*`)|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"""
    r"""|(?P<word>[^\W\d][\w./]*)|(?P<space>\s+)|(?P<mark><=|>=|<>|!=|==|\|\||.)""",
    re.VERBOSE,
)
_KEYWORDS = frozenset(
    (
        *("and", "or", "not", "is", "null", "in", "like", "glob", "between", "true", "false", "escape", "collate", "nocase"),
        *("case", "when", "then", "else", "end", "cast", "as", "integer", "real", "text"),
    )
)
_COMPARISONS = frozenset({"=", "==", "!=", "<>", "like", "glob"})
_SMALLEST_FIRST = ("run", "name", "group", "state", "reason", "monitor", "split", "dataset", "digest", "commit", "host", "run_id")


def select(
    runs: Iterable[RunSummary], *, where: str | None = None, sort: str | None = None, reverse: bool = False
) -> list[RunSummary]:
    """Return the runs that meet a condition, in an order.

    Args:
        runs: the runs.
        where: the condition (default: all).
        sort: a column (default: the start, the newest first). Texts and losses go from the smallest, other numbers from the
            largest; the best value goes from the best. Runs without a value come last.
        reverse: turn the order round.

    Raises:
        UserError: if the condition cannot be evaluated, or a column is unknown.
    """
    runs = list(runs)
    check_columns(runs, [] if sort is None else [sort], "--sort")
    chosen = _filter(runs, where) if where is not None else runs
    column = sort or "started"
    known = [run for run in chosen if run.value(column) is not None]
    rising = reverse != (column in _SMALLEST_FIRST or "loss" in column or (column == "best" and _is_minimized(known)))
    known.sort(key=lambda run: _sort_key(run.value(column)), reverse=not rising)
    return known + [run for run in chosen if run.value(column) is None]


def check_columns(runs: Sequence[RunSummary], columns: Iterable[str], option: str) -> None:
    """Check that some run has each column.

    Raises:
        UserError: for one that none has, with the nearest name.
    """
    if unknown := [column for column in columns if column not in COLUMNS]:
        known = {name for run in runs for name in run.names()}
        for column in unknown:
            if column not in known and runs:
                raise UserError(
                    f"{option}: no run has a column {one_line(column)}{nearest(column, sorted(known))}; "
                    "`vigil runs --columns help` lists them"
                )


def _is_minimized(runs: Sequence[RunSummary]) -> bool:
    return bool(runs) and all(run.recipe.get("training.mode") == "min" for run in runs)


def _sort_key(value: Any) -> tuple[bool, float, str]:
    """Numbers come before texts, where a column has both."""
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, "" if number else str(value)


def _filter(runs: list[RunSummary], where: str) -> list[RunSummary]:
    names: list[str] = []
    condition = _translate(where, runs, names)
    columns = ["place", *(f"c{number}" for number in range(len(names)))]
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"create table runs ({', '.join(columns)})")
        rows = [(place, *(_stored(run.value(name)) for name in names)) for place, run in enumerate(runs)]
        database.executemany(f"insert into runs values ({', '.join('?' * len(columns))})", rows)  # noqa: S608 (numbered columns)
        allowed = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
        database.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY)
        try:
            found = database.execute(f"select place from runs where (\n{condition}\n) order by place")  # noqa: S608 (the user's own)
            return [runs[place] for (place,) in found]
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise UserError(
                f"--where {one_line(where)}: {error}; write a condition in SQL, such as \"macro_ap > .8 and state = 'finished'\""
            ) from None


def _translate(where: str, runs: Sequence[RunSummary], names: list[str]) -> str:
    """Return the condition with its columns replaced by numbered ones; a word that is compared with a column is a text."""
    known = {name for run in runs for name in run.names()} | set(COLUMNS)
    tokens = [match for match in _TOKEN.finditer(where) if match.lastgroup != "space"]
    parts, before, in_list = [], "", False
    for place, token in enumerate(tokens):
        text, kind = token.group(), token.lastgroup
        if text in {"'", '"', "`"}:
            raise UserError(f"--where {one_line(where)}: the {text} in column {token.start() + 1} has no partner")
        after = tokens[place + 1].group() if place + 1 < len(tokens) else ""
        compared = before in _COMPARISONS or in_list
        in_list = (in_list or (text == "(" and before == "in")) and text != ")"
        before = text.lower()
        name = text[1:-1].replace('""', '"') if kind == "quoted" else text
        if kind == "quoted" or (kind == "word" and before not in _KEYWORDS and after != "("):
            if name in known:
                names += [name] if name not in names else []
                text = f"c{names.index(name)}"
            elif compared:
                text = "'" + name.replace("'", "''") + "'"
            else:
                check_columns(runs, [name], f"--where {one_line(where)}")
                text = "null"  # There are no runs.
        parts.append(text)
    return " ".join(parts)


def _stored(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
