"""`vigil export`, `vigil verify` and `vigil score`: from a run to a bundle, and from a bundle to decisions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vigil_data.items import Item
    from vigil_serving.specs import Parity
    from vigil_training.run import Run

EXAMPLES = 64


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("export")(export)
    app.command("verify")(verify)
    app.command("score")(score)


def export(
    run: Annotated[Path, typer.Argument(help="The run folder.", metavar="RUN")],
    to: Annotated[Path, typer.Option(help="The bundle's folder; an older bundle there is replaced.", metavar="BUNDLE")],
    *,
    checkpoint: Annotated[str, typer.Option(help="best, last, or the path of a checkpoint.")] = "best",
    promote: Annotated[
        Path | None,
        typer.Option(metavar="CHAMPION", help="Only if the run is no regression from this run, bundle or table of scores."),
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DATASET", help="With --promote: what both predict.")] = None,
    split: Annotated[str, typer.Option(help="With --promote: which of its splits.")] = "test",
) -> None:
    """Export a run as ONNX and TorchScript, or fail if any form decides otherwise than the trained model."""
    from vigil_serving.bundle import read, refuse_occupied
    from vigil_training.run import Run

    opened = Run(run)
    thresholds, calibrated, policy = opened.read_thresholds(), opened.read_calibrated(), opened.current_policy()
    refuse_occupied(to)
    compared = _promoted(opened, checkpoint, promote, data, split)
    import time

    from vigil_serving.export import export as write

    start = time.perf_counter()
    recipe = opened.recipe
    model = opened.model(checkpoint)
    _step("trained model", time.perf_counter() - start)
    facts = {**_facts(opened, checkpoint), **compared}
    write(
        model,
        recipe.inputs,
        recipe.taxonomy,
        thresholds,
        _examples(opened),
        to=to,
        facts=facts,
        calibrated=calibrated,
        policy=policy,
        progress=_step,
    )
    _show_parity(read(to).signature.parity)
    typer.echo(f"bundle: {to}")


def verify(bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")]) -> None:
    """Refuse a bundle that was altered, or that decides otherwise here than the trained model did."""
    from rich.console import Console

    from vigil_serving.verify import verify as check

    with Console(stderr=True).status("verifying") as status:
        found = check(bundle, lambda step: status.update(f"verifying: {step}"))
    _show_parity(found.parity)
    typer.echo(f"{found.files} files unaltered, sha256 of the manifest {found.digest}")
    typer.echo(f"ok  {bundle}")


def score(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.", metavar="BUNDLE")],
    dataset: Annotated[Path, typer.Argument(help="The dataset's folder.", metavar="DATASET")],
    to: Annotated[Path, typer.Option(help="The Parquet file to write.", metavar="OUT.parquet")],
    split: Annotated[str | None, typer.Option(help="Score only this split.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads within an operator; all cores if not given.")] = None,
) -> None:
    """Score a dataset with ONNX Runtime; PyTorch is not needed."""
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vigil_serving.score import score as run

    start = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scoring", total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        found = run(bundle, dataset, to, split=split, threads=threads, progress=advance)
    seconds = time.perf_counter() - start
    for label, count in [*found.decided.items(), *found.actions.items()]:
        typer.echo(f"{label:<32} {count:>9} of {found.items - found.errors}")
    if found.errors:
        typer.echo(f"{found.errors} items could not be decoded; the column error says why")
    typer.echo(f"{found.items} items in {seconds:.1f} s: {to}")


def _promoted(run: "Run", checkpoint: str, champion: Path | None, data: Path | None, split: str) -> dict[str, Any]:
    """The comparison with what the run is to replace, as a fact of the bundle; a failure if it does not pass."""
    from vigil_data.errors import UserError

    if champion is None:
        if data is not None:
            raise UserError(f"--data {data}: goes with --promote, which compares with what the run is to replace")
        return {}
    if checkpoint != "best":
        raise UserError(f"--checkpoint {checkpoint}: --promote judges the best checkpoint; leave it out to export that one")
    from vigil_training.cli.compare import progress
    from vigil_training.gate import check, without_items

    with progress("comparing") as (advance, say):
        found = check(run, champion, data=data, split=split, progress=advance, say=say)
    typer.echo(f"passes against {champion}: {found.compared} comparisons on {found.alignment.items} items")
    return {"comparison": without_items(found)}


def _examples(run: "Run") -> "list[Item]":
    """Real items of the run's validation split, spread over it; those that cannot be decoded are left out."""
    import numpy as np

    from vigil_data.decode import Decoder, Undecodable

    dataset = run.dataset()
    rows = dataset.rows(run.recipe.data.validation)
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(EXAMPLES, len(rows))).astype(np.int64))]
    decoder, items = Decoder(run.recipe.inputs, ()), []
    for item in dataset.take(chosen):
        try:
            decoder.decode(item)
        except Undecodable:
            continue
        items.append(item)
    return items


def _facts(run: "Run", checkpoint: str) -> dict[str, Any]:
    """What the bundle says of its origin."""
    import json

    recipe, environment = run.recipe, run.read_environment()
    metrics = sorted(run.path.glob("evaluation/*/metrics.json"))
    return {
        "name": recipe.name,
        "recipe": run.resolved.read_text(encoding="utf-8"),
        "evaluation": {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in metrics},
        "run": str(run.path),
        "checkpoint": checkpoint,
        **{name: environment[name] for name in ("dataset", "git")},
    }


def _step(name: str, seconds: float) -> None:
    typer.echo(f"{name:<44} {seconds:6.1f} s")


def _show_parity(parity: "tuple[Parity, ...]") -> None:
    """Print a row for each form."""
    from rich.console import Console
    from rich.table import Table

    table = Table("form", "batches", "items", "decisions", "max diff", "flips", "other actions")
    for p in parity:
        counts = (str(p.cases), str(p.items), str(p.decisions))
        table.add_row(p.form, *counts, f"{p.max_difference:.1e}", str(p.flips), str(p.action_flips))
    Console().print(table)
