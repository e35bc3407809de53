"""`vigil monitor sample` and `designs`: draw review queues from traffic, and what a budget buys before anybody reviews."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vigil.cli.monitor.options import ExposureFile, From, TrafficPath, Until

if TYPE_CHECKING:
    from vigil_monitoring.queues.queue import Queue
    from vigil_monitoring.sampling.power import Precision

BUDGETS = (0.5, 1.0, 2.0, 4.0)
"""Budgets of ``--power``, as factors of ``--budget``."""


def register(group: typer.Typer) -> None:
    """Add the commands to ``group``."""
    group.command("sample")(sample)
    group.command("designs")(designs)


def sample(
    traffic: TrafficPath,
    design: Annotated[
        str, typer.Option("--design", metavar="NAME", help="Shipped design, or a YAML file of yours; `vigil monitor designs`.")
    ],
    *,
    budget: Annotated[int, typer.Option(min=1, help="Number of decisions to review.")] = 500,
    to: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="The queue; its record is written next to it.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw; another one draws another sample.")] = 0,
    start: From = None,
    end: Until = None,
    exposure: ExposureFile = None,
    against: Annotated[
        Path | None,
        typer.Option(metavar="TRAFFIC", help="The other model's decisions, for ab_pair (default: the traffic's shadow)."),
    ] = None,
    not_in: Annotated[
        list[Path] | None,
        typer.Option("--not-in", metavar="QUEUE", help="Earlier queue whose decisions are reviewed already; repeatable."),
    ] = None,
    power: Annotated[
        bool, typer.Option("--power", help="Draw nothing; show the half-widths that several budgets are expected to buy.")
    ] = False,
) -> None:
    """Draw a probability sample of decisions for review; each has its inclusion probability.

    The same traffic, design, budget and seed give the same queue. Expected half-widths follow from the probabilities, so they are
    as good as the calibration.
    """
    from vigil.workflows.shipped_recipes import RECIPES
    from vigil_data.errors import UserError
    from vigil_data.progress import Progress
    from vigil_data.yaml_files.shipped_files import named_file
    from vigil_monitoring.queues.queue import record_file, write_queue
    from vigil_monitoring.sampling.design import read_design
    from vigil_monitoring.sampling.draw import draw, expected_precision
    from vigil_monitoring.traffic.reader import open_traffic

    if (to is None) != power:
        raise UserError("--to FILE.jsonl is missing" if to is None else "--power draws nothing; leave out --to")
    read = read_design(named_file(design, RECIPES / "monitoring", "design", "vigil monitor designs"))
    first, last = (None if moment is None else moment.date() for moment in (start, end))
    live = open_traffic(traffic, first, last, exposure=exposure)
    other = None
    if read.compares or against is not None:
        other = open_traffic(against or traffic, first, last, role="live" if against else "shadow")
    earlier = not_in or []
    if power:
        with Progress("measuring", unit="decisions") as progress:
            budgets = [max(round(factor * budget), 2) for factor in BUDGETS]
            found = expected_precision(live, read, budgets, seed, challenger=other, earlier=earlier, report=progress)
        _print_budgets(found)
        return
    with Progress("sampling", unit="decisions") as progress:
        drawn = draw(live, read, budget, seed, challenger=other, earlier=earlier, report=progress)
    assert to is not None
    write_queue(to, drawn.queue)
    _print_strata(drawn.queue)
    _print_precision(drawn.precision)
    if live.assumed_day is not None:
        typer.echo(f"- the traffic has no times; all decisions are taken as those of {live.assumed_day}")
    if (unseen := sum(not ask for ask in drawn.queue.table.column("ask").to_pylist())) > 0:
        typer.echo(f"- {unseen:,} decisions were reviewed earlier: give their reviews together with the new ones")
    typer.echo(f"queue: {to}\nrecord: {record_file(to)}")


def designs() -> None:
    """List the designs that come with Vigil."""
    from vigil.workflows.shipped_recipes import RECIPES
    from vigil_data.yaml_files.shipped_files import shipped_names
    from vigil_monitoring.sampling.design import read_design

    folder = RECIPES / "monitoring"
    names = shipped_names(folder)
    width = max(map(len, names))
    for name in names:
        typer.echo(f"{name:{width}}  {read_design(folder / f'{name}.yaml').description}")


def _print_strata(queue: "Queue") -> None:
    from vigil.cli.data.tables import print_table

    weights: dict[str, list[float]] = {}
    for row in queue.table.select(["stratum", "inclusion_probability"]).to_pylist():
        weights.setdefault(row["stratum"], []).append(1 / row["inclusion_probability"])
    exposed = queue.record.exposure is not None
    header = ["stratum", "decisions", *(["exposure"] if exposed else []), "drawn", "certain", "each stands for"]
    lines = []
    for stratum in queue.record.strata:
        own = weights.get(stratum.name, [])
        stands = f"{min(own):,.4g} to {max(own):,.4g}" if own else ""
        views = [f"{stratum.exposure:,.0f}"] if exposed else []
        lines.append([stratum.name, stratum.items, *views, stratum.sampled, stratum.certain, stands])
    print_table(header, lines)


def _print_precision(found: Sequence["Precision"]) -> None:
    from vigil.cli.data.tables import print_table

    header = ["expected", "label", "among", "weighed by", "value", "reviewed", "positives", "± reviews only", "± with scores"]
    lines = [
        [
            *(of.metric, of.label, of.group or "all", of.weight, _percent(of.expected), f"{of.reviewed:.0f}"),
            *(f"{of.positives:.1f}", _percent(of.half_width), _percent(of.half_width_with_scores)),
        ]
        for of in found
    ]
    print_table(header, lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def _print_budgets(found: dict[int, list["Precision"]]) -> None:
    from vigil.cli.data.tables import print_table

    header = ["expected", "label", "among", "weighed by", "value", *(f"± at {budget:,}" for budget in found)]
    lines = []
    for row in zip(*found.values(), strict=True):
        one = row[0]
        widths = [f"{_percent(of.half_width)} ({_percent(of.half_width_with_scores)})" for of in row]
        lines.append([one.metric, one.label, one.group or "all", one.weight, _percent(one.expected), *widths])
    print_table(header, lines)
    typer.echo("Half-widths of 95 % intervals from reviews alone; in brackets, with the help of the scores (PPI++).")
