"""`vigil policy`: check policies, compile them into thresholds, apply them to scores, and replay two on the same traffic."""

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
    Path | None, typer.Option(metavar="DATASET", help="Dataset that a run or bundle predicts (default: its training dataset).")
]
Cluster = Annotated[str | None, typer.Option(metavar="COLUMN", help="Column of the items that belong together, such as author.")]

MAX_ROWS = 25
"""Most rows of a printed table."""

CONSTRAINT_HEADS = ("action", "constraint", "estimate", "interval", "bound", "margin", "of items")


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    group = typer.Typer(help="Turn probabilities into actions that satisfy stated constraints.", no_args_is_help=True)
    group.command("check")(check)
    group.command("compile")(compile_)
    group.command("show")(show)
    group.command("apply")(apply)
    group.command("replay")(replay)
    app.add_typer(group, name="policy")


def check(files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Policies, YAML files.")]) -> None:
    """Check policies and report every mistake in every file with its line. Compiles nothing.

    Exits with 0 if all files are valid, else with 2.
    """
    from vigil.workflows.policies import read_policy
    from vigil_data.errors import UserError
    from vigil_evaluation.policy.specs import actions_of, labels_of, market_constraints

    mistakes: list[str] = []
    for file in files:
        try:
            policy = read_policy(file)
        except UserError as error:
            mistakes += error.lines
            continue
        rules = sum(len(resolved.rules) for resolved in market_constraints(policy))
        markets = f" in {len(policy.markets)} named markets and elsewhere" if policy.markets else ""
        actions = ", ".join(actions_of(policy)[1:])
        labels, constraints = _count(len(labels_of(policy)), "label"), _count(rules, "constraint")
        typer.echo(f"ok  {file}: {labels}, {actions}; {constraints}{markets}")
    if mistakes:
        raise UserError(*dict.fromkeys(mistakes))


def compile_(
    policy: Annotated[Path, typer.Argument(metavar="POLICY.yaml", help="The policy.")],
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A run, a bundle, or a Parquet table of predictions.")],
    *,
    data: Data = None,
    split: Annotated[str, typer.Option(help="Split of the dataset that the model was not trained on.")] = "validation",
    cluster: Cluster = None,
    assume_random: Annotated[
        bool,
        typer.Option(
            "--assume-random",
            help="Compile although the labelled items are shown not to be a random sample; the policy records it.",
        ),
    ] = False,
    to: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="The output file (default: RUN/policy.json if SOURCE is a run).")
    ] = None,
) -> None:
    """Find the lowest thresholds at which every constraint is shown to hold, and write them.

    Writes nothing and exits with 1 if the policy is infeasible; prints the closest feasible bounds. Exits with 2 if known targets
    depend on a score or a column, unless the table has a column inclusion_probability.
    """
    from vigil.workflows.policies import compile_policy
    from vigil_data.progress import Progress
    from vigil_evaluation.policy.impact import policy_impact

    with Progress("compiling") as progress:
        compiled = compile_policy(
            policy, source, data=data, split=split, cluster=cluster, assume_random=assume_random, to=to, progress=progress
        )
        unit = compiled.policy.facts["unit"]
        impact = policy_impact(compiled.policy, compiled.predictions.table, cluster=None if unit == "item" else unit)
    _show_policy(compiled.policy)
    _show_impact(impact)
    typer.echo(f"policy: {compiled.file}")


def show(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A compiled policy, or a run or bundle that has one.")],
) -> None:
    """Show a compiled policy: its thresholds, and its constraints on the items that it was compiled on."""
    from vigil.workflows.policies import read_compiled_policy

    _show_policy(read_compiled_policy(path))


def apply(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A compiled policy, or a run or bundle that has one.")],
    scores: Annotated[Path, typer.Argument(metavar="SCORES.parquet", help="Table of scores, with or without targets.")],
    *,
    to: Annotated[Path, typer.Option(metavar="DECISIONS.parquet", help="The output file.")],
    cluster: Cluster = None,
) -> None:
    """Decide on each item of a table of scores: its action, the deciding label and its threshold.

    Prints volumes and, as far as targets are known, the constraints measured on these items.
    """
    from vigil.workflows.policies import apply_policy
    from vigil_data.progress import Progress

    with Progress("applying") as progress:
        applied = apply_policy(policy, scores, cluster=cluster, to=to, progress=progress)
    _show_impact(applied.impact)
    measured = [result for result in applied.impact.constraints if result.estimate is not None]
    if measured:
        rows = [[*_constraint_row(result), result.status] for result in measured]
        _print("constraints on these items", (*CONSTRAINT_HEADS, "status"), rows, words=2)
    for note in (*applied.impact.notes, *applied.notes):
        _console().print(f"- {note}", markup=False, highlight=False)
    typer.echo(f"decisions: {to}")


def replay(
    first: Annotated[
        Path, typer.Argument(metavar="CURRENT", help="Current policy: a compiled policy, a run, a bundle or a table.")
    ],
    second: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="Candidate policy, of the same kinds.")],
    *,
    on: Annotated[
        Path | None,
        typer.Option(metavar="SOURCE", help="Source of the predictions that both decide on (default: each side's own)."),
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="A compiled policy for the sides that have none.")
    ] = None,
    data: Data = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "test",
    by: Annotated[list[str] | None, typer.Option(metavar="COLUMN", help="Additional column to group affected items by.")] = None,
    cluster: Cluster = None,
    to: Annotated[Path | None, typer.Option(metavar="DIR", help="Write replay.json and changes.parquet there.")] = None,
) -> None:
    """Decide the same items with two policies or models: changed decisions, volumes, costs, and affected groups."""
    from vigil.workflows.policies import CHANGES_FILE, REPLAY_FILE, replay_sources, write_replay
    from vigil_data.progress import Progress

    with Progress("replaying") as progress:
        found, changes = replay_sources(
            first, second, on=on, policy=policy, data=data, split=split, columns=by or (), cluster=cluster, progress=progress
        )
    if to is not None:
        write_replay(found, changes, to)
    _show_replay(found)
    if to is not None:
        typer.echo(f"written: {to / REPLAY_FILE}, {to / CHANGES_FILE}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _console() -> "Console":
    """Return a console that does not cut piped tables to 80 columns."""
    from rich.console import Console

    return Console() if Console().is_terminal else Console(width=160)


def _print(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> None:
    """Print a table whose columns from ``words`` on are numbers."""
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
            own = thresholds[label]
            rows.append([where, label, *(f"{own[action]:.4g}" if action in own else "-" for action in actions)])
    review = f", review {policy.review} milder actions" if policy.review else ""
    _print(f"{policy.title}{review}: thresholds", ("where", "label", *actions), rows, words=2)
    _print(
        "constraints on the items it was compiled on", CONSTRAINT_HEADS, list(map(_constraint_row, policy.constraints)), words=2
    )
    for name, fact in policy.facts.items():
        _console().print(f"- {name}: {fact}", markup=False, highlight=False)


def _constraint_row(result: "ConstraintResult") -> list[str]:
    group = f" ({result.group})" if result.group is not None else ""
    return [
        result.rule.place,
        f"{result.rule}{group}",
        _percent(result.estimate),
        _range(None if result.low is None or result.high is None else (result.low, result.high)),
        _percent(result.bound),
        "-" if result.margin is None else f"{100 * result.margin:+.2f}",
        f"{result.count:,} / {result.rows:,}",
    ]


def _show_impact(impact: "PolicyImpact") -> None:
    rows = [
        [
            action.action,
            f"{action.items:,}",
            _percent(action.share),
            _range(action.interval),
            _percent(action.right),
            _range(action.right_interval),
            f"{action.cost:,.6g}",
            "-" if action.overturned is None else f"{action.overturned:,.3g}",
        ]
        for action in impact.actions
    ]
    heads = ("action", "items", "share", "interval", "correct", "interval", "cost", "overturned")
    _print(f"{impact.items:,} items", heads, rows)
    for line in _totals(impact):
        _console().print(f"- {line}", markup=False, highlight=False)


def _totals(impact: "PolicyImpact") -> Iterator[str]:
    if impact.harm_caught is not None:
        yield f"harm caught (positives weighted by severity): {_percent(impact.harm_caught)}"
    if impact.cost is not None and impact.items:
        yield f"expected cost with appeals: {impact.cost:,.6g}, {1000 * impact.cost / impact.items:,.4g} per 1,000 items"


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
    _print("volumes", ("action", "current", "candidate", "difference", "interval"), volumes)
    changes = [
        [v.label or "all", *(f"{n:,}" for n in counts)]
        for v in found.verdicts
        for counts in [(v.wins, v.losses, v.stricter_right, v.stricter_wrong, v.milder_right, v.milder_wrong, v.unknown)]
    ]
    if _judged(found):
        heads = ("label", "better", "worse", "stricter, correct", "wrong", "milder, correct", "wrong", "unknown")
        _print("changes by the target of the decisive label", heads, changes)
    most = sorted(found.affected, key=lambda group: -group.share)[:MAX_ROWS]
    affected = [
        [
            f"{a.column}: {'null' if a.value is None else a.value}",
            *(f"{a.items:,}", f"{a.changed:,}", _percent(a.share), _range(a.interval), f"{a.stricter:,}", f"{a.milder:,}"),
        ]
        for a in most
    ]
    if affected:
        _print("most affected groups", ("group", "items", "changed", "share", "interval", "stricter", "milder"), affected)


def _judged(found: "Replay") -> bool:
    """Return whether any change is known to be better or worse."""
    return any(group.wins or group.losses for group in found.verdicts)


def _replay_notes(found: "Replay") -> Iterator[str]:
    if found.left_out:
        yield f"{found.left_out:,} items of one side only are excluded"
    if found.changed and not _judged(found):
        yield "no target of a deciding label is known, so it is open which changes are better; add columns target.LABEL"
    if found.units is not None:
        yield f"{found.units:,} units, such as authors, are affected"
    if found.before.harm_caught is not None and found.after.harm_caught is not None:
        yield f"harm caught: {_percent(found.before.harm_caught)} now, {_percent(found.after.harm_caught)} with the candidate"
    if found.before.cost is not None and found.after.cost is not None:
        yield f"expected cost: {found.before.cost:,.6g} now, {found.after.cost:,.6g} with the candidate"


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
