"""`vigil policy`: check what a policy team wrote, compile it into thresholds, and replay two over the same traffic."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from vigil_evaluation.policy.compiled_policy import CompiledPolicy
    from vigil_evaluation.policy.constraints import ConstraintResult
    from vigil_evaluation.policy.impact import PolicyImpact
    from vigil_evaluation.policy.replay import Replay

Data = Annotated[
    Path | None, typer.Option(metavar="DATASET", help="What a run or bundle predicts; its own dataset if not given.")
]
Cluster = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the items that belong together, such as author.")]

SHOWN = 25
"""The most rows of one table."""


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(help="Turn probabilities into actions that keep stated constraints.", no_args_is_help=True)
    group.command("check")(check)
    group.command("compile")(compile_)
    group.command("show")(show)
    group.command("replay")(replay)
    app.add_typer(group, name="policy")


def check(files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Policies, YAML files.")]) -> None:
    """Check policies whole: every mistake of every file, with its line. Nothing is compiled.

    Exit status 0 if all are right and 2 if one is not.
    """
    from vigil.workflows.policies import read_policy
    from vigil_data.errors import UserError
    from vigil_evaluation.policy.market_constraints import actions_of, labels_of, market_constraints

    mistakes: list[str] = []
    for file in files:
        try:
            policy = read_policy(file)
        except UserError as error:
            mistakes += error.lines
            continue
        promises = sum(len(scope.rules) for scope in market_constraints(policy))
        markets = f", {len(policy.markets)} markets of their own" if policy.markets else ""
        actions = ", ".join(actions_of(policy)[1:])
        typer.echo(f"ok  {file}: {len(labels_of(policy))} labels, {actions}; {promises} promises{markets}")
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))


def compile_(
    policy: Annotated[Path, typer.Argument(metavar="POLICY.yaml", help="What must hold.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A run, a bundle, or a Parquet table of predictions.")],
    *,
    data: Data = None,
    split: Annotated[str, typer.Option(help="Which rows; none that the model was trained on.")] = "validation",
    cluster: Cluster = None,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="The file to write; RUN/policy.json if SOURCE is a run.")
    ] = None,
) -> None:
    """Find the lowest thresholds at which everything is shown to hold, and write them with what each constraint gives.

    If something cannot be shown, nothing is written: the nearest that could is said, and the exit status is 1.
    """
    from vigil.cli.compare import progress
    from vigil.workflows.policies import compile_policy
    from vigil_evaluation.policy.impact import policy_impact

    with progress("compiling") as (advance, say):
        compiled = compile_policy(policy, source, data=data, split=split, cluster=cluster, to=to, progress=advance, say=say)
        unit = compiled.policy.facts["unit"]
        found = policy_impact(compiled.policy, compiled.predictions.table, cluster=None if unit == "item" else unit)
    _show_policy(compiled.policy)
    _show_outcome(found)
    typer.echo(f"policy: {compiled.file}")


def show(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A compiled policy, or a run or bundle that carries one.")],
) -> None:
    """Show a compiled policy: its thresholds, and what each constraint gave on the items that it was compiled on."""
    from vigil.workflows.policies import read_compiled_policy

    _show_policy(read_compiled_policy(path))


def replay(
    first: Annotated[Path, typer.Argument(metavar="A", help="What is: a compiled policy, a run, a bundle or a table.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="What would be, likewise.")],
    *,
    on: Annotated[
        Path | None,
        typer.Option(metavar="SOURCE", help="Whose predictions both policies decide on; each side's own if not given."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="A compiled policy for the sides that carry none.")
    ] = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="Which rows.")] = "test",
    by: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="A column by which to tell who is affected.")] = None,
    cluster: Cluster = None,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Write replay.json and changes.parquet there.")] = None,
) -> None:
    """Decide the same items twice: every decision that changes, volumes, costs, who is affected, and which changes are right."""
    from vigil.cli.compare import progress
    from vigil.workflows.policies import CHANGES, REPLAY, replay_sources, write_replay

    with progress("replaying") as (advance, _):
        found, changes = replay_sources(
            first, second, on=on, policy=policy, data=data, split=split, columns=by or (), cluster=cluster, progress=advance
        )
    if to is not None:
        write_replay(found, changes, to)
    _show_replay(found)
    if to is not None:
        typer.echo(f"written: {to / REPLAY}, {to / CHANGES}")


def _console() -> "Console":
    """A console on which a table that is piped is not cut to 80 columns."""
    from rich.console import Console

    return Console() if Console().is_terminal else Console(width=160)


def _print(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> None:
    """A table whose columns from ``words`` on are numbers."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if i < words else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def _show_policy(policy: "CompiledPolicy") -> None:
    actions = policy.actions[1:]
    rows = []
    for (market, presence), thresholds in policy.cells.items():
        rest = "everywhere" if len(policy.cells) == 1 else "everywhere else"
        where = ", ".join(name for name in (market and f"market {market}", presence) if name) or rest
        for label in (label for label in policy.labels if label in thresholds):
            cuts = thresholds[label]
            rows.append([where, label, *(f"{cuts[action]:.4g}" if action in cuts else "-" for action in actions)])
    review = f", review {policy.review} milder actions" if policy.review else ""
    _print(f"{policy.title}{review}: lowest probabilities", ("where", "label", *actions), rows, words=2)
    heads = ("action", "must hold", "seen", "interval", "bound", "margin", "of items")
    _print("what each constraint gives on the items it was compiled on", heads, list(map(_promise, policy.constraints)), words=2)
    for name, fact in policy.facts.items():
        _console().print(f"- {name}: {fact}", markup=False, highlight=False)


def _promise(shown: "ConstraintResult") -> list[str]:
    group = f" ({shown.group})" if shown.group is not None else ""
    return [
        shown.rule.place,
        f"{shown.rule}{group}",
        _percent(shown.estimate),
        _range(None if shown.low is None or shown.high is None else (shown.low, shown.high)),
        _percent(shown.bound),
        "-" if shown.margin is None else f"{100 * shown.margin:+.2f}",
        f"{shown.count:,} / {shown.rows:,}",
    ]


def _show_outcome(found: "PolicyImpact") -> None:
    rows = [
        [
            outcome.action,
            f"{outcome.items:,}",
            _percent(outcome.share),
            _range(outcome.interval),
            _percent(outcome.right),
            _range(outcome.right_interval),
            f"{outcome.cost:,.6g}",
            "-" if outcome.overturned is None else f"{outcome.overturned:,.3g}",
        ]
        for outcome in found.actions
    ]
    heads = ("action", "items", "share", "interval", "right", "interval", "cost", "overturned")
    _print(f"{found.items:,} items", heads, rows)
    for line in _sums(found):
        _console().print(f"- {line}", markup=False, highlight=False)


def _sums(found: "PolicyImpact") -> Iterator[str]:
    if found.harm_caught is not None:
        yield f"harm caught, positives by severity: {_percent(found.harm_caught)}"
    if found.cost is not None and found.items:
        yield f"expected cost with appeals: {found.cost:,.6g}, {1000 * found.cost / found.items:,.4g} per 1,000 items"


def _show_replay(found: "Replay") -> None:
    console = _console()
    console.print(
        f"{found.changed:,} of {found.items:,} decisions change, {_percent(found.share)} {_range(found.interval)}: "
        f"{found.stricter:,} stricter, {found.milder:,} milder",
        markup=False,
        highlight=False,
    )
    for line in _replay_notes(found):
        console.print(f"- {line}", markup=False, highlight=False)
    rows = [
        [name, *(f"{count:,}" if count else "" for count in counts)]
        for name, counts in zip(found.outcomes, found.transitions, strict=True)
    ]
    _print(f"{found.first} (rows) to {found.second} (columns)", ("from \\ to", *found.outcomes), rows)
    volumes = [
        [v.action, f"{v.before:,}", f"{v.after:,}", f"{100 * v.difference:+.3g} points", _range(v.interval, points=True)]
        for v in found.volumes
    ]
    _print("volumes", ("action", "before", "after", "difference", "interval"), volumes)
    verdicts = [
        [v.label or "all", *(f"{n:,}" for n in counts)]
        for v in found.verdicts
        for counts in [(v.wins, v.losses, v.stricter_right, v.stricter_wrong, v.milder_right, v.milder_wrong, v.unknown)]
    ]
    heads = ("label", "better", "worse", "rightly stricter", "wrongly", "rightly milder", "wrongly", "unknown")
    _print("changes by what is known of the deciding label", heads, verdicts)
    most = sorted(found.affected, key=lambda group: -group.share)[:SHOWN]
    affected = [
        [
            f"{a.column}: {'null' if a.value is None else a.value}",
            *(f"{a.items:,}", f"{a.changed:,}", _percent(a.share), _range(a.interval), f"{a.stricter:,}", f"{a.milder:,}"),
        ]
        for a in most
    ]
    _print("who is affected, most first", ("who", "items", "changed", "share", "interval", "stricter", "milder"), affected)


def _replay_notes(found: "Replay") -> Iterator[str]:
    if found.left_out:
        yield f"{found.left_out:,} items that only one side has are left out"
    if found.units is not None:
        yield f"{found.units:,} units, such as authors, are hit by a change"
    if found.before.harm_caught is not None and found.after.harm_caught is not None:
        yield f"harm caught: {_percent(found.before.harm_caught)} before, {_percent(found.after.harm_caught)} after"
    if found.before.cost is not None and found.after.cost is not None:
        yield f"expected cost: {found.before.cost:,.6g} before, {found.after.cost:,.6g} after"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g} %"


def _range(interval: tuple[float, float] | None, points: bool = False) -> str:
    if interval is None:
        return ""
    return (
        "{:+.3g} to {:+.3g}".format(*(100 * end for end in interval))
        if points
        else "{:.3g}-{:.3g} %".format(*(100 * end for end in interval))
    )
